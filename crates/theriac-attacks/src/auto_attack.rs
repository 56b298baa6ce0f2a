//! AutoAttack.
//!
//! ```text
//! standard   APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square (5,000 queries)
//! plus       APGD-CE x5, APGD-DLR x5, FAB x5, Square, APGD-T, FAB-T
//! rand       APGD-CE, APGD-DLR, mean of 20 draws
//! ```
//!
//! Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
//! parameter-free attacks", ICML 2020. Each attack meets only the images that resisted the ones
//! before. The reference is undefined for few classes; here APGD-DLR below three classes and APGD-T
//! below four climb the plain margin instead, and a warning says so. The reference draws from one
//! stream for a whole batch, and from the clock if it is given no seed; here every image has its own
//! numbers, so results compare in the mean.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Classifier, Cut, Labels, Pass, Pixels, Result};

use crate::{
    Apgd, ApgdT, Declare, Declared, Eot, Fab, Loss, Restarts, Spec, Square, Within, WorstOf,
};

/// Which attacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Four attacks, for deterministic models.
    #[default]
    Standard,
    /// Six attacks with restarts.
    Plus,
    /// Two attacks averaged over draws, for models that draw random numbers.
    Rand,
}

/// Parameter-free ensemble.
///
/// ```
/// # use theriac_attacks::AutoAttack;
/// let attack = AutoAttack::standard(theriac::Budget::linf("8/255".parse()?)?);
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoAttack {
    /// The allowed ball.
    pub budget: Budget,
    /// Which attacks.
    #[serde(default)]
    pub version: Version,
}

impl AutoAttack {
    /// The standard version.
    pub fn standard(budget: Budget) -> Self {
        Self {
            budget,
            version: Version::Standard,
        }
    }

    /// The attacks of this version against a model with so many classes, in order.
    pub fn attacks(&self, classes: usize) -> Vec<Spec> {
        let budget = self.budget;
        let dlr = if classes < 3 { Loss::Margin } else { Loss::Dlr };
        let apgd = |loss| Spec::Apgd(Apgd::new(budget, loss));
        let apgd_t = Spec::ApgdT(ApgdT::new(budget));
        let square = Spec::Square(Square::new(budget));
        let fab = |targets, restarts| {
            let enough = Some(budget.eps());
            let attack = Fab {
                targets,
                enough,
                restarts,
                ..Fab::new(budget.norm())
            };
            let attack = Box::new(Spec::Fab(attack));
            Spec::Within(Within { budget, attack })
        };
        let five = |attack| {
            let attack = Box::new(attack);
            Spec::Restarts(Restarts { attack, times: 5 })
        };
        let eot = |attack| {
            let attack = Box::new(attack);
            Spec::Eot(Eot { attack, draws: 20 })
        };
        match self.version {
            Version::Standard => vec![apgd(Loss::CrossEntropy), apgd_t, fab(Some(9), 1), square],
            Version::Plus => vec![
                five(apgd(Loss::CrossEntropy)),
                five(apgd(dlr)),
                fab(None, 5),
                square,
                apgd_t,
                fab(Some(9), 1),
            ],
            Version::Rand => vec![eot(apgd(Loss::CrossEntropy)), eot(apgd(dlr))],
        }
    }
}

impl<C: Classifier + ?Sized> Attack<C> for AutoAttack {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let classes = model.classes();
        if classes < 4 {
            tracing::warn!(
                classes,
                "the difference of logits ratio needs 3 classes, 4 when targeted: AutoAttack takes \
                 the margin instead"
            );
        }
        let attacks = self.attacks(classes);
        WorstOf { attacks }.perturb(model, clean, aim, pass)
    }

    fn cut(&self) -> Cut {
        Cut::Whole
    }
}

impl Declare for AutoAttack {
    fn declared(&self) -> Declared {
        let name = match self.version {
            Version::Standard => "AutoAttack standard",
            Version::Plus => "AutoAttack plus",
            Version::Rand => "AutoAttack rand",
        };
        Declared::gradients(name, Some(self.budget)).random(true)
    }

    fn check(&self) -> Result<()> {
        self.attacks(10).iter().try_for_each(Declare::check)
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let budget = self.budget.scaled(factor)?;
        Ok(Self { budget, ..self })
    }
}
