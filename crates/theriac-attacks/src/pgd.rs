//! Projected gradient descent.
//!
//! ```text
//! x_0 = start,   x_{k+1} = P(x_k + a * d(g_k)),   g_k = grad_x L(x_k, y)
//! d(g) = sign(g) (Linf)   or   g / max(||g||_2, floor) (L2);   P: ball, then [0, 1]
//! ```
//!
//! Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
//! Disagreements: advertorch and ART project onto the cube before the ball (same set, other
//! points in L2); the L2 floor is 1e-12 in foolbox (ours), 1e-6 in advertorch and cleverhans,
//! which turns the tiny gradient of a confident model into a step a thousand times too small;
//! the start differs everywhere, see [`Start`].

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Cut, Eps, Error, Model, Norm, Pass, Pixels, Result};

use crate::active::{Active, pick, pick_rows};
use crate::declared::at_least_one;
use crate::loss::{climb, host};
use crate::{Declare, Declared, Start};

/// Which iterate an iterative attack returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The last one, as in torchattacks, advertorch and Madry's code.
    #[default]
    Last,
    /// The one with the best loss for the attacker, image by image; costs one forward more.
    Best,
}

/// Iterated steps inside a ball.
///
/// ```
/// # use theriac_attacks::Pgd;
/// # use theriac::{Budget, Eps};
/// let budget = Budget::linf("8/255".parse()?)?;
/// let attack = Pgd::new(budget, Eps::of_255(2.0)?, 10);
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pgd {
    /// The allowed ball.
    pub budget: Budget,
    /// Size a of a step, in the budget's norm.
    pub step: Eps,
    /// Number of steps.
    pub steps: u32,
    /// The first iterate.
    #[serde(default = "uniform")]
    pub start: Start,
    /// The iterate returned.
    #[serde(default)]
    pub keep: Keep,
    /// Whether an image leaves the batch at its first iterate that fools the model, the clean one
    /// included.
    #[serde(default)]
    pub stop: bool,
    /// Floor under the L2 norm of a gradient.
    #[serde(default = "floor")]
    pub l2_floor: f64,
    /// Allows steps that cannot add up to the radius.
    #[serde(default)]
    pub short_reach: bool,
}

fn uniform() -> Start {
    Start::Uniform
}

fn floor() -> f64 {
    1e-12
}

impl Pgd {
    /// With a uniform random start, returning the last iterate.
    pub fn new(budget: Budget, step: Eps, steps: u32) -> Self {
        Self {
            budget,
            step,
            steps,
            start: uniform(),
            keep: Keep::Last,
            stop: false,
            l2_floor: floor(),
            short_reach: false,
        }
    }

    /// From a given first iterate: for starts that another attack found.
    ///
    /// # Errors
    /// When a setting makes no sense, the model fails or a gradient is not finite.
    pub fn perturb_from<M: Model + ?Sized>(
        &self,
        start: &Pixels,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let mut x = self.budget.project(start.tensor(), clean)?;
        let mut left = match self.stop {
            false => Active::all(clean, aim.target(), pass.samples)?,
            true => {
                let (left, stay) = Active::unbroken(model, clean, aim, pass)?;
                let Some(stay) = stay else {
                    return left.finish(clean);
                };
                x = x.pick(&stay)?;
                left
            }
        };
        let mut best: Option<(Vec<f64>, Pixels)> = None;
        for k in 0..self.steps {
            let pass = pass.at(u64::from(k));
            let seen = climb(model, &x, aim.at(&left.target), &pass.over(&left.samples))?;
            if self.keep == Keep::Best {
                best = Some(better(best, seen.values, &x)?);
            }
            let mut gradient = seen.gradient;
            if self.stop {
                let Some(stay) = left.leave(&told(seen.fooled)?, &x)? else {
                    return left.finish(&x);
                };
                if stay.len() < x.len() {
                    x = x.pick(&stay)?;
                    gradient = pick_rows(&gradient, &stay)?;
                    best = best
                        .map(|(values, images)| {
                            Ok::<_, Error>((pick(&values, &stay), images.pick(&stay)?))
                        })
                        .transpose()?;
                }
            }
            let step = self
                .budget
                .norm()
                .steepest_above(&gradient, self.l2_floor)?;
            let step = (step * (aim.sign() * self.step.get()))?;
            x = self.budget.project(&(x.tensor() + step)?, &left.clean)?;
        }
        if self.keep == Keep::Best {
            let pass = pass.at(u64::from(self.steps));
            let pass = pass.over(&left.samples);
            pass.meter.forward(pass.samples);
            let loss = host(&model.loss(&x, &left.target, &pass)?)?;
            let values = loss.into_iter().map(|loss| aim.sign() * loss).collect();
            x = better(best, values, &x)?.1;
        }
        left.finish(&x)
    }
}

fn told(fooled: Option<Vec<bool>>) -> Result<Vec<bool>> {
    fooled.ok_or(Error::Setting {
        name: "stop",
        value: "true".to_owned(),
        remedy: "this model cannot tell whether it is fooled: leave stop out",
    })
}

/// Image by image the candidate if its value is larger, else the best so far.
pub(crate) fn better(
    best: Option<(Vec<f64>, Pixels)>,
    values: Vec<f64>,
    candidate: &Pixels,
) -> Result<(Vec<f64>, Pixels)> {
    let Some((mut known, images)) = best else {
        return Ok((values, candidate.clone()));
    };
    let improved: Vec<bool> = known
        .iter()
        .zip(&values)
        .map(|(old, new)| new > old)
        .collect();
    for (old, new) in known.iter_mut().zip(values) {
        *old = old.max(new);
    }
    Ok((known, candidate.select(&improved, &images)?))
}

impl<M: Model + ?Sized> Attack<M> for Pgd {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let start = self.start.point(clean, &self.budget, pass)?;
        self.perturb_from(&start, model, clean, aim, pass)
    }

    fn cut(&self) -> Cut {
        if self.stop { Cut::Large } else { Cut::Small }
    }
}

impl Declare for Pgd {
    fn declared(&self) -> Declared {
        let kind = match (self.start, self.budget.norm()) {
            (Start::Clean, Norm::Linf) => "BIM".to_owned(),
            (Start::Clean, _) => "PGD from the clean image".to_owned(),
            (start, _) => format!("PGD from a random start ({start:?})"),
        };
        let mut declared = Declared::steps(&kind, self.budget, self.steps, self.step);
        if self.keep == Keep::Best {
            declared.name.push_str(", best iterate");
        }
        declared.random(self.start != Start::Clean)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        self.declared().check_reach(self.short_reach)
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        Ok(Self {
            budget: self.budget.scaled(factor)?,
            step: self.step.times(factor)?,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Affine, contract, images, linf};

    #[test]
    fn keeps_the_contract() -> Result<()> {
        for keep in [Keep::Last, Keep::Best] {
            let pgd = Pgd {
                keep,
                ..Pgd::new(linf(0.1), "0.03".parse()?, 7)
            };
            contract(&pgd, linf(0.1))?;
            let l2 = Budget::l2("0.5".parse()?)?;
            contract(
                &Pgd {
                    keep,
                    ..Pgd::new(l2, "0.1".parse()?, 7)
                },
                l2,
            )?;
        }
        Ok(())
    }

    #[test]
    fn eps_zero_is_the_identity_and_larger_eps_is_never_weaker() -> Result<()> {
        let model = Affine::new();
        let (clean, labels, run) = images(&model);
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let pass = run.eval(&ids);
        let mut previous = f64::NEG_INFINITY;
        for eps in [0.0, 0.01, 0.05, 0.2, 1.0] {
            let pgd = Pgd::new(linf(eps), Eps::unit(eps)?.over(4)?, 20);
            let moved = pgd.perturb(&model, &clean, Aim::Away(&labels), &pass)?;
            if eps == 0.0 {
                assert!(pgd.budget.spent(&moved, &clean)?.iter().all(|d| *d == 0.0));
            }
            let loss = model
                .loss(&moved, &labels, &pass)?
                .sum_all()?
                .to_scalar::<f64>()?;
            assert!(loss >= previous, "{loss} at eps {eps}, {previous} before");
            previous = loss;
        }
        Ok(())
    }

    #[test]
    fn reaches_the_optimum_of_a_linear_model() -> Result<()> {
        let model = Affine::new();
        let (clean, labels, run) = images(&model);
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let pgd = Pgd::new(linf(0.05), "0.01".parse()?, 12);
        let moved = pgd.perturb(&model, &clean, Aim::Away(&labels), &run.eval(&ids))?;
        let worst = model.worst(&clean, &labels, 0.05)?;
        assert!(pgd.budget.spent(&moved, &worst)?.iter().all(|d| *d < 1e-12));
        Ok(())
    }
}
