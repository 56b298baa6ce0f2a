//! Fast gradient sign method.
//!
//! ```text
//! x' = P(x + eps * d),   d = sign(g) (Linf)  or  g / ||g||_2 (L2),   g = grad_x L(x, y)
//! ```
//!
//! Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
//! torchattacks, advertorch, foolbox, ART and cleverhans agree on the Linf step. In L2 they differ
//! in the floor under the norm: foolbox 1e-12 (ours), cleverhans and advertorch 1e-6.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Model, Pass, Pixels, Result};

use crate::loss::climb;
use crate::{Declare, Declared};

/// One step of the whole budget along the steepest ascent of the loss.
///
/// ```
/// # use theriac_attacks::Fgsm;
/// let attack = Fgsm { budget: theriac::Budget::linf("8/255".parse()?)? };
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fgsm {
    /// The allowed ball.
    pub budget: Budget,
}

impl<M: Model + ?Sized> Attack<M> for Fgsm {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let seen = climb(model, clean, aim, pass)?;
        let step = self.budget.norm().steepest(&seen.gradient)?;
        let step = (step * (aim.sign() * self.budget.eps().get()))?;
        self.budget.project(&(clean.tensor() + step)?, clean)
    }
}

impl Declare for Fgsm {
    fn declared(&self) -> Declared {
        Declared {
            reach: Some(self.budget.eps().get()),
            iterative: false,
            ..Declared::gradients("FGSM", Some(self.budget))
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
    use crate::testing::{Affine, contract, images, linf};

    #[test]
    fn keeps_the_contract() -> Result<()> {
        contract(&Fgsm { budget: linf(0.1) }, linf(0.1))?;
        let l2 = Budget::l2("0.5".parse()?)?;
        contract(&Fgsm { budget: l2 }, l2)
    }

    #[test]
    fn is_optimal_on_a_linear_model() -> Result<()> {
        // On logits (w x, 0) the worst point of a Linf ball is x - eps sign(w) for label 0.
        let model = Affine::new();
        let (clean, labels, run) = images(&model);
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let budget = linf(0.05);
        let moved = Fgsm { budget }.perturb(&model, &clean, Aim::Away(&labels), &run.eval(&ids))?;
        let worst = model.worst(&clean, &labels, 0.05)?;
        assert!(budget.spent(&moved, &worst)?.iter().all(|d| *d < 1e-12));
        Ok(())
    }

    #[test]
    fn toward_a_label_is_away_from_the_other_of_two() -> Result<()> {
        let model = Affine::new();
        let (clean, labels, run) = images(&model);
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let other: Vec<u32> = labels.to_vec()?.iter().map(|l| 1 - l).collect();
        let other = theriac::Labels::new(&other, 2, clean.tensor().device())?;
        let attack = Fgsm { budget: linf(0.05) };
        let away = attack.perturb(&model, &clean, Aim::Away(&labels), &run.eval(&ids))?;
        let toward = attack.perturb(&model, &clean, Aim::Toward(&other), &run.eval(&ids))?;
        assert!(linf(0.05).spent(&away, &toward)?.iter().all(|d| *d == 0.0));
        Ok(())
    }
}
