//! Fast minimum-norm attack.
//!
//! ```text
//! L = max_{i != y} z_i - z_y
//! e = ||d|| + |L| / ||grad L||_dual    until the first success, then
//! e = min(e (1 - gamma_k), best)  if x + d fools the model, else  e (1 + gamma_k)
//! d = P_e(d + s_k grad L / ||grad L||_2),   s_k and gamma_k falling along a cosine
//! ```
//!
//! Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints",
//! NeurIPS 2021. As foolbox's `LInfFMNAttack`. Its L2 twin multiplies by min(1, norm / norm) and
//! so never projects; ours projects onto the ball as the paper says. Where an estimate would lie on
//! the boundary to a millionth, ours goes that much beyond: on a linear model the reference can
//! stand there without ever crossing.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Labels, Norm, Pass, Pixels, Result};

use crate::ddn::{Closest, cosine, farthest_corner, unit_l2};
use crate::declared::{at_least_one, setting};
use crate::host::column;
use crate::loss::{host, look};
use crate::{Declare, Declared, Loss};

/// The share that gamma ends at.
const LAST_GAMMA: f64 = 0.001;

/// A ball that finds its own radius.
///
/// ```
/// # use theriac_attacks::Fmn;
/// let attack = Fmn::new(theriac::Norm::Linf);
/// # let _ = attack;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fmn {
    /// The norm to keep small.
    pub norm: Norm,
    /// Number of steps.
    #[serde(default = "hundred")]
    pub steps: u32,
    /// L2 length of the first step, in units of the pixel range; the last is a hundredth of it.
    #[serde(default = "one")]
    pub step: f64,
    /// Share by which the radius changes at first.
    #[serde(default = "twentieth")]
    pub gamma: f64,
}

fn hundred() -> u32 {
    100
}

fn one() -> f64 {
    1.0
}

fn twentieth() -> f64 {
    0.05
}

impl Fmn {
    /// foolbox's settings.
    pub fn new(norm: Norm) -> Self {
        Self {
            norm,
            steps: hundred(),
            step: one(),
            gamma: twentieth(),
        }
    }
}

impl<C: Classifier + ?Sized> Attack<C> for Fmn {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let farthest = self.norm.of(&farthest_corner(clean)?)?;
        let mut epsilon = vec![f64::INFINITY; clean.len()];
        let mut best = Closest::none(clean, &farthest);
        let mut x = clean.clone();
        for k in 0..self.steps {
            let pass = pass.at(u64::from(k));
            let seen = look(model, &x, aim, &pass, |logits| Loss::Margin.of(logits, aim))?;
            let delta = (x.tensor() - clean.tensor())?;
            let distances = self.norm.of(&delta)?;
            best.offer(&x, &distances, &seen.fooled)?;
            let slopes = match self.norm {
                Norm::L2 => Norm::L2.of(&seen.gradient)?,
                _ => host(&seen.gradient.flatten_from(1)?.abs()?.sum(1)?)?,
            };
            let gamma = cosine(k, self.steps, self.gamma, LAST_GAMMA);
            for i in 0..epsilon.len() {
                epsilon[i] = if seen.fooled[i] {
                    (epsilon[i] * (1.0 - gamma)).min(best.distances[i])
                } else if best.found[i] {
                    epsilon[i] * (1.0 + gamma)
                } else {
                    // An estimate that lands on the boundary itself would stay there.
                    let to_boundary = seen.values[i].abs() / slopes[i];
                    distances[i] + to_boundary.max(1e-6 * distances[i])
                };
                epsilon[i] = epsilon[i].min(farthest[i]);
            }
            let step = cosine(k, self.steps, self.step, self.step / 100.0);
            let moved = (delta + (unit_l2(&seen.gradient, &pass)? * step)?)?;
            let radii = column(&epsilon, &moved)?;
            let inside = match self.norm {
                Norm::L2 => {
                    let norms = Norm::L2.of(&moved)?;
                    let factor = |(e, n): (&f64, f64)| (e / n.max(1e-12)).min(1.0);
                    let factors: Vec<f64> = epsilon.iter().zip(norms).map(factor).collect();
                    moved.broadcast_mul(&column(&factors, &moved)?)?
                }
                _ => {
                    let radii = radii.broadcast_as(moved.shape())?;
                    moved.minimum(&radii)?.maximum(&radii.neg()?)?
                }
            };
            x = Pixels::clamp(&(clean.tensor() + inside)?)?;
        }
        Ok(best.images)
    }
}

impl Declare for Fmn {
    fn declared(&self) -> Declared {
        let name = format!("FMN {}, {} steps", self.norm, self.steps);
        Declared::gradients(&name, None)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        let share = self.gamma > 0.0 && self.gamma < 1.0;
        setting(
            share,
            "gamma",
            self.gamma,
            "expected a share between 0 and 1",
        )?;
        let positive = self.step > 0.0 && self.step.is_finite();
        setting(positive, "step", self.step, "expected a length above 0")
    }

    fn scaled(self, _: f64) -> Result<Self> {
        Ok(self)
    }
}
