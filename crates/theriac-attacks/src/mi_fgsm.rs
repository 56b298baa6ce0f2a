//! Momentum iterative FGSM.
//!
//! ```text
//! m_0 = 0,   m_{k+1} = mu * m_k + g_k / mean|g_k|,   x_{k+1} = P(x_k + a * d(m_{k+1}))
//! ```
//!
//! Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018. Normalised by the mean
//! of |g| as in torchattacks, with a floor of 1e-12 (torchattacks has none: 0/0 is NaN on a zero
//! gradient); advertorch and ART divide by the sum, which in Linf is the same attack. foolbox
//! takes the sign before it accumulates: another attack.

use candle_core::D;
use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Eps, Model, Pass, Pixels, Result};

use crate::declared::{at_least_one, setting};
use crate::loss::climb;
use crate::{Declare, Declared};

/// PGD from the clean image along an accumulated gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MiFgsm {
    /// The allowed ball.
    pub budget: Budget,
    /// Size a of a step. The paper's is eps / steps; torchattacks' default is 2/255.
    pub step: Eps,
    /// Number of steps.
    pub steps: u32,
    /// Momentum mu.
    #[serde(default = "one")]
    pub decay: f64,
    /// Allows steps that cannot add up to the radius.
    #[serde(default)]
    pub short_reach: bool,
}

fn one() -> f64 {
    1.0
}

impl MiFgsm {
    /// The paper's setting: mu = 1, steps of eps / steps.
    ///
    /// # Errors
    /// When `steps` is 0.
    pub fn new(budget: Budget, steps: u32) -> Result<Self> {
        Ok(Self {
            budget,
            step: budget.eps().over(steps)?,
            steps,
            decay: one(),
            short_reach: false,
        })
    }
}

impl<M: Model + ?Sized> Attack<M> for MiFgsm {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let mut x = clean.clone();
        let mut momentum = clean.tensor().zeros_like()?;
        for k in 0..self.steps {
            let pass = pass.at(u64::from(k));
            let g = climb(model, &x, aim, &pass)?.gradient;
            let mean = g.abs()?.flatten_from(1)?.mean(D::Minus1)?.maximum(1e-12)?;
            let unit = g.broadcast_div(&mean.reshape(((), 1, 1, 1))?)?;
            momentum = ((momentum * self.decay)? + unit)?;
            let step = self.budget.norm().steepest(&momentum)?;
            let step = (step * (aim.sign() * self.step.get()))?;
            x = self.budget.project(&(x.tensor() + step)?, clean)?;
        }
        Ok(x)
    }
}

impl Declare for MiFgsm {
    fn declared(&self) -> Declared {
        let name = format!("MI-FGSM with decay {}", self.decay);
        Declared::steps(&name, self.budget, self.steps, self.step)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        let remedy = "expected a finite decay of at least 0";
        setting(
            self.decay.is_finite() && self.decay >= 0.0,
            "decay",
            self.decay,
            remedy,
        )?;
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
    use crate::testing::{contract, linf};

    #[test]
    fn keeps_the_contract() -> Result<()> {
        contract(&MiFgsm::new(linf(0.1), 10)?, linf(0.1))
    }
}
