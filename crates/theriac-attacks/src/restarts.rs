//! The strongest of several runs of one attack.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Cut, Labels, Pass, Pixels, Result, craft, scores};

use crate::active::{Active, pick};
use crate::declared::at_least_one;
use crate::loss::fooled;
use crate::pgd::better;
use crate::{Declare, Declared, Loss};

/// Runs an attack several times with fresh randomness and keeps, for each image, the first
/// success, else the largest margin. (ART keeps the last success.) An image that is fooled is not
/// attacked again.
///
/// ```
/// # use theriac_attacks::{Pgd, Restarts};
/// # use theriac::{Budget, Eps};
/// let budget = Budget::linf("8/255".parse()?)?;
/// let attack = Pgd::new(budget, Eps::of_255(2.0)?, 20);
/// let attack = Restarts { attack, times: 5 };
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restarts<A> {
    /// The attack; without a random part, every run is the same.
    pub attack: A,
    /// Number of runs.
    pub times: u32,
}

impl<C: Classifier + ?Sized, A: Attack<C>> Attack<C> for Restarts<A> {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        at_least_one("times", self.times)?;
        let (mut left, stay) = Active::unbroken(model, clean, aim, pass)?;
        if stay.is_none() {
            return left.finish(clean);
        }
        let mut best: Option<(Vec<f64>, Pixels)> = None;
        for run in 0..self.times {
            let pass = pass.fork(u64::from(run));
            let pass = pass.over(&left.samples);
            let aim = aim.at(&left.target);
            let moved = craft(&self.attack, model, &left.clean, aim, &pass)?;
            let (values, done) = judge(model, &moved, aim, &pass)?;
            let (values, x) = better(best, values, &moved)?;
            let Some(stay) = left.leave(&done, &x)? else {
                return left.finish(&x);
            };
            best = Some((pick(&values, &stay), x.pick(&stay)?));
        }
        match best {
            Some((_, x)) => left.finish(&x),
            None => Ok(clean.clone()),
        }
    }

    fn cut(&self) -> Cut {
        Cut::Whole
    }
}

/// The margin of each image for the attacker, infinite where the model is fooled, and whether it
/// is: by the mean logits of the pass's draws.
pub(crate) fn judge<C: Classifier + ?Sized>(
    model: &C,
    x: &Pixels,
    aim: Aim<'_, Labels>,
    pass: &Pass<'_>,
) -> Result<(Vec<f64>, Vec<bool>)> {
    let rows = mean_scores(model, x, pass)?;
    let done = fooled(&rows, aim)?;
    let margins = Loss::margins(&rows, aim)?;
    let values = margins.into_iter().zip(&done);
    let values = values.map(|(margin, done)| if *done { f64::INFINITY } else { margin });
    Ok((values.collect(), done))
}

/// Logits on the host, the mean over the pass's draws.
pub(crate) fn mean_scores<C: Classifier + ?Sized>(
    model: &C,
    x: &Pixels,
    pass: &Pass<'_>,
) -> Result<Vec<Vec<f64>>> {
    let mut mean: Option<Vec<Vec<f64>>> = None;
    for pass in pass.each_draw() {
        let rows = scores(model, x, &pass)?;
        mean = Some(match mean {
            None => rows,
            Some(mut sum) => {
                let pairs = sum.iter_mut().flatten().zip(rows.into_iter().flatten());
                pairs.for_each(|(sum, value)| *sum += value);
                sum
            }
        });
    }
    let mut mean = mean.unwrap_or_default();
    let draws = f64::from(pass.draws.max(1));
    mean.iter_mut().flatten().for_each(|value| *value /= draws);
    Ok(mean)
}

impl<A: Declare> Declare for Restarts<A> {
    fn declared(&self) -> Declared {
        let one = self.attack.declared();
        let name = format!("{}, best of {} runs", one.name, self.times);
        Declared { name, ..one }
    }

    fn check(&self) -> Result<()> {
        at_least_one("times", self.times)?;
        self.attack.check()
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let attack = self.attack.scaled(factor)?;
        Ok(Self { attack, ..self })
    }
}

#[cfg(test)]
mod tests {
    use theriac::Model;

    use super::*;
    use crate::Pgd;
    use crate::testing::{Affine, contract, images, linf};

    #[test]
    fn keeps_the_contract_and_never_loses_to_one_run() -> Result<()> {
        let attack = Pgd {
            short_reach: true,
            ..Pgd::new(linf(0.1), "0.01".parse()?, 3)
        };
        contract(&Restarts { attack, times: 3 }, linf(0.1))?;
        let model = Affine::new();
        let (clean, labels, run) = images(&model);
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let pass = run.eval(&ids);
        let loss = |times| -> Result<Vec<f64>> {
            let attack = Restarts { attack, times };
            let moved = attack.perturb(&model, &clean, Aim::Away(&labels), &pass)?;
            let broken = theriac::predict(&model, &moved, &pass)?.to_vec()?;
            let wanted = labels.to_vec()?;
            let losses = model.loss(&moved, &labels, &pass)?.to_vec1::<f64>()?;
            let score = losses.iter().enumerate();
            Ok(score
                .map(|(i, l)| if broken[i] == wanted[i] { *l } else { f64::MAX })
                .collect())
        };
        let (one, five) = (loss(1)?, loss(5)?);
        assert!(one.iter().zip(&five).all(|(a, b)| b >= a));
        assert!(
            one != five,
            "five runs from five starts found nothing better"
        );
        Ok(())
    }
}
