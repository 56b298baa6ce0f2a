//! Simultaneous perturbation stochastic approximation.
//!
//! ```text
//! g = 1/m sum_j (L(x + delta v_j) - L(x - delta v_j)) / (2 delta) * v_j,   v_j in {-1, 1}^d
//! x = P(x + Adam(g))
//! ```
//!
//! Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks", ICML
//! 2018: PGD with a gradient from queries, which no masked gradient stops. torchattacks and
//! advertorch take one step by default and draw one sign map for the whole batch; cleverhans and
//! we draw one for each image and sample, and take 100 steps.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Classifier, Cut, Eps, Labels, Pass, Pixels, Result};

use crate::active::{Active, pick};
use crate::declared::{at_least_one, setting};
use crate::host::{dims, images, rows};
use crate::restarts::mean_scores;
use crate::{Access, Declare, Declared, Loss};

/// PGD by queries.
///
/// ```
/// # use theriac_attacks::Spsa;
/// let attack = Spsa::new(theriac::Budget::linf("8/255".parse()?)?)?;
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spsa {
    /// The allowed ball.
    pub budget: Budget,
    /// Number of steps.
    pub steps: u32,
    /// Pairs of queries for each step.
    pub samples: u32,
    /// Distance of the queries.
    pub delta: Eps,
    /// Adam's rate, the size of a step.
    pub learning_rate: Eps,
}

impl Spsa {
    /// 100 steps of 0.01 from 128 pairs at distance 0.01.
    ///
    /// # Errors
    /// None in practice: the sizes are constants.
    pub fn new(budget: Budget) -> Result<Self> {
        Ok(Self {
            budget,
            steps: 100,
            samples: 128,
            delta: Eps::unit(0.01)?,
            learning_rate: Eps::unit(0.01)?,
        })
    }

    /// The estimated gradient of one image's margin.
    fn estimate<C: Classifier + ?Sized>(
        &self,
        x: &[f64],
        label: &Labels,
        like: &Pixels,
        model: &C,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Vec<f64>> {
        let (m, d, delta) = (self.samples as usize, x.len(), self.delta.get());
        let draws = pass.rng.uniform("signs", u64::from(pass.samples[0]), m * d);
        let sign = |i: usize| if draws[i] < 0.5 { -1.0 } else { 1.0 };
        let query = |j: usize, side: f64| -> Vec<f64> {
            let moved = x.iter().enumerate();
            moved
                .map(|(i, x)| x + side * delta * sign(j * d + i))
                .collect()
        };
        let pairs = (0..m).flat_map(|j| [query(j, 1.0), query(j, -1.0)]);
        let queries: Vec<Vec<f64>> = pairs.collect();
        let ids = vec![pass.samples[0]; 2 * m];
        let scores = mean_scores(model, &images(&queries, like)?, &pass.over(&ids))?;
        let wanted = vec![label.to_vec()?[0]; 2 * m];
        let wanted = Labels::new(&wanted, model.classes(), like.tensor().device())?;
        let values = Loss::margins(&scores, aim.at(&wanted))?;
        let mut gradient = vec![0.0; d];
        for j in 0..m {
            let slope = (values[2 * j] - values[2 * j + 1]) / (2.0 * delta * m as f64);
            for (i, g) in gradient.iter_mut().enumerate() {
                *g += slope * sign(j * d + i);
            }
        }
        Ok(gradient)
    }
}

impl<C: Classifier + ?Sized> Attack<C> for Spsa {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let [_, c, h, w] = dims(clean);
        let mut left = Active::all(clean, aim.target(), pass.samples)?;
        let mut x = clean.clone();
        let mut m = vec![vec![0.0; c * h * w]; clean.len()];
        let mut v = m.clone();
        for k in 0..=self.steps {
            let pass = pass.at(u64::from(k));
            let here = pass.over(&left.samples);
            let scores = mean_scores(model, &x, &here)?;
            let current = aim.at(&left.target);
            let fooled = crate::loss::fooled(&scores, current)?;
            here.show(&x, &Loss::margins(&scores, current)?, Some(&fooled))?;
            let Some(stay) = left.leave(&fooled, &x)? else {
                break;
            };
            if k == self.steps {
                x = x.pick(&stay)?;
                break;
            }
            (m, v) = (pick(&m, &stay), pick(&v, &stay));
            let mut at = rows(x.pick(&stay)?.tensor())?;
            let step = i32::try_from(k + 1).unwrap_or(i32::MAX);
            for (i, x) in at.iter_mut().enumerate() {
                let label = theriac::Target::narrow(&left.target, i, 1)?;
                let pass = pass.over(&left.samples[i..=i]);
                let gradient = self.estimate(x, &label, clean, model, aim, &pass)?;
                for (j, g) in gradient.into_iter().enumerate() {
                    let (m, v) = (&mut m[i][j], &mut v[i][j]);
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.999 * *v + 0.001 * g * g;
                    let (first, second) = (
                        *m / (1.0 - 0.9f64.powi(step)),
                        *v / (1.0 - 0.999f64.powi(step)),
                    );
                    x[j] += self.learning_rate.get() * first / (second.sqrt() + 1e-8);
                }
            }
            x = self
                .budget
                .project(images(&at, clean)?.tensor(), &left.clean)?;
        }
        left.finish(&x)
    }

    fn cut(&self) -> Cut {
        // Each image fills batches of its own.
        Cut::Small
    }
}

impl Declare for Spsa {
    fn declared(&self) -> Declared {
        let name = format!("SPSA, {} steps of {} pairs", self.steps, self.samples);
        Declared::queries(&name, Some(self.budget), Access::Scores)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        at_least_one("samples", self.samples)?;
        let remedy = "expected a size above 0";
        setting(self.delta.get() > 0.0, "delta", self.delta, remedy)?;
        setting(
            self.learning_rate.get() > 0.0,
            "learning_rate",
            self.learning_rate,
            remedy,
        )
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let budget = self.budget.scaled(factor)?;
        Ok(Self { budget, ..self })
    }
}
