//! Adversarial training with any attack.

use candle_core::Tensor;
use theriac::{Aim, Attack, Batch, Classifier, Labels, Mode, Pass, Result, craft};
use theriac_nn::Twin;
use theriac_train::{LabelSource, Objective, mixture};

/// Trains on a mixture of clean images and images attacked on the current network.
///
/// ```text
/// x' = attack(x, label)          on the frozen twin
/// loss = w * mean CE(z(x), y) + (1 - w) * mean CE(z(x'), y)
/// ```
///
/// | name | attack | w | label | source |
/// | --- | --- | --- | --- | --- |
/// | FGSM-Adv | FGSM at the full eps | 0.5 | predicted | Kurakin et al. 2017, as in ATDA's code |
/// | BIM(N)-Adv | BIM, N steps of eps / N | 0.5 | true | epoch-wise paper, section 2 |
/// | PGD | PGD with a random start | 0 | true | Madry et al. 2018 |
#[derive(Clone, Copy, Debug)]
pub struct AdversarialTraining<A> {
    /// Crafts the adversarial half.
    pub attack: A,
    /// Weight w of the clean half, in [0, 1].
    pub clean_weight: f64,
    /// The label that the attack moves away from.
    pub label: LabelSource,
    /// The network's mode while images are crafted. In training mode norms use the batch's
    /// statistics, and every pass of the attack moves the running ones, as in code that does not
    /// switch.
    pub mode: Mode,
}

impl<C: Classifier, A: Attack<C>> Objective<C> for AdversarialTraining<A> {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let crafting = Pass {
            mode: self.mode,
            ..*pass
        };
        let labels = self.label.labels(&twin.frozen, batch, &crafting)?;
        let aim = Aim::Away(&labels);
        let moved = craft(&self.attack, &twin.frozen, &batch.pixels, aim, &crafting)?;
        mixture(twin, batch, &moved, self.clean_weight, pass)
    }
}
