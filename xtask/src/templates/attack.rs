//! Skeleton: the attack's name in full.
//!
//! ```text
//! x' = P(x + eps * u),   u = 0
//! ```
//!
//! Cite the paper here, and say where implementations disagree.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Model, Pass, Pixels, Result};

use crate::loss::climb;
use crate::{Declare, Declared};

/// Leaves every image where it is: the place to begin.
///
/// ```
/// # use theriac_attacks::Skeleton;
/// let attack = Skeleton { budget: theriac::Budget::linf("8/255".parse()?)? };
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skeleton {
    /// The allowed ball.
    pub budget: Budget,
}

impl<M: Model + ?Sized> Attack<M> for Skeleton {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let seen = climb(model, clean, aim, pass)?;
        let step = (seen.gradient.zeros_like()? * (aim.sign() * self.budget.eps().get()))?;
        self.budget.project(&(clean.tensor() + step)?, clean)
    }
}

impl Declare for Skeleton {
    fn declared(&self) -> Declared {
        Declared {
            iterative: false,
            ..Declared::gradients("Skeleton", Some(self.budget))
        }
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        Ok(Self {
            budget: self.budget.scaled(factor)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{contract, linf};

    #[test]
    fn keeps_the_contract() -> Result<()> {
        contract(&Skeleton { budget: linf(0.1) }, linf(0.1))
    }
}
