//! Expectation over transformation, for models that draw random numbers.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Cut, Error, Labels, Pass, Pixels, Result, scores};

use crate::declared::at_least_one;
use crate::{Declare, Declared};

/// Averages losses, logits and gradients of an attack over passes with independent noise.
///
/// ```text
/// g = 1/k sum_j grad_x L(f(x; noise_j), y)
/// ```
///
/// Athalye et al., "Synthesizing robust adversarial examples", ICML 2018. torchattacks sums where
/// AutoAttack averages, which no sign notices; AutoAttack keeps the books by the last draw, we by
/// the mean. Copies of an image in one batch, as in Learn2Perturb's code, are no substitute when
/// the noise is shared over the batch: then images see each other, no result can be given for one
/// of them, and the attack refuses.
///
/// ```
/// # use theriac_attacks::{Eot, Pgd};
/// # use theriac::{Budget, Eps};
/// let budget = Budget::linf("8/255".parse()?)?;
/// let attack = Eot { attack: Pgd::new(budget, Eps::of_255(2.0)?, 20), draws: 20 };
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eot<A> {
    /// The attack.
    pub attack: A,
    /// Passes for each of the attack's passes.
    #[serde(default = "twenty")]
    pub draws: u32,
}

fn twenty() -> u32 {
    20
}

impl<C: Classifier + ?Sized, A: Attack<C>> Attack<C> for Eot<A> {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        at_least_one("draws", self.draws)?;
        noise_of_its_own(model, clean, pass)?;
        let draws = self.draws;
        let pass = Pass { draws, ..*pass };
        self.attack.perturb(model, clean, aim, &pass)
    }

    fn cut(&self) -> Cut {
        self.attack.cut()
    }
}

/// An error if an image's logits depend on what else is in the batch.
fn noise_of_its_own<C: Classifier + ?Sized>(
    model: &C,
    clean: &Pixels,
    pass: &Pass<'_>,
) -> Result<()> {
    let last = clean.len() - 1;
    if last == 0 {
        return Ok(());
    }
    let ends = [pass.samples[0], pass.samples[last]];
    let both = scores(model, &clean.pick(&[0, last as u32])?, &pass.over(&ends))?;
    let alone = scores(model, &clean.narrow(last, 1)?, &pass.narrow(last, 1)?)?;
    if both[1] == alone[0] {
        return Ok(());
    }
    Err(Error::Setting {
        name: "model",
        value: "its noise is shared over the batch".to_owned(),
        remedy: "an average over draws means something only if each image has noise of its own: \
                 draw it by the pass's sample ids (Pass::normal)",
    })
}

impl<A: Declare> Declare for Eot<A> {
    fn declared(&self) -> Declared {
        let one = self.attack.declared();
        let name = format!("{}, mean of {} draws", one.name, self.draws);
        Declared { name, ..one }
    }

    fn check(&self) -> Result<()> {
        at_least_one("draws", self.draws)?;
        self.attack.check()
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let attack = self.attack.scaled(factor)?;
        Ok(Self { attack, ..self })
    }
}
