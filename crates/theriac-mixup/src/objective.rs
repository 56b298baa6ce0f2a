//! Training on mixtures.

use candle_core::Tensor;
use theriac::{Aim, Attack, Batch, Classifier, Labels, Pass, Pixels, Result, craft};
use theriac_nn::Twin;
use theriac_train::{LabelSource, Objective};

use crate::Mix;

/// Mixup training: the mean loss of a mixed batch, see [`Mix`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mixup {
    /// How batches are mixed.
    pub mix: Mix,
}

impl<C: Classifier> Objective<C> for Mixup {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let mixed = self.mix.batch(batch, "clean", pass)?;
        let logits = twin.live.logits(&mixed.pixels, pass)?;
        Ok(mixed.losses(&logits)?.mean_all()?)
    }
}

/// Interpolated adversarial training.
///
/// ```text
/// x' = attack(x, label)                        on the frozen twin in evaluation mode, x unmixed
/// loss = w mixup loss of x + (1 - w) mixup loss of x'       mixed independently
/// ```
///
/// Both halves go through one forward pass in training mode, so they share the statistics of batch
/// norms. Lamb, Verma, Kannala & Bengio, "Interpolated adversarial training", AISec 2019; w = 1/2,
/// predicted labels and one forward pass as in the code of Pang et al. 2020.
#[derive(Clone, Copy, Debug)]
pub struct InterpolatedAdversarial<A> {
    /// Crafts the adversarial half.
    pub attack: A,
    /// How both halves are mixed.
    pub mix: Mix,
    /// The label that the attack moves away from.
    pub label: LabelSource,
    /// Weight w of the clean half, in [0, 1].
    pub clean_weight: f64,
}

impl<A> InterpolatedAdversarial<A> {
    /// Halves of equal weight, uniform weights, an attack away from predicted labels.
    pub fn new(attack: A) -> Self {
        Self {
            attack,
            mix: Mix::default(),
            label: LabelSource::Predicted,
            clean_weight: 0.5,
        }
    }
}

impl<C: Classifier, A: Attack<C>> Objective<C> for InterpolatedAdversarial<A> {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let crafting = pass.eval();
        let labels = self.label.labels(&twin.frozen, batch, &crafting)?;
        let aim = Aim::Away(&labels);
        let moved = Batch {
            pixels: craft(&self.attack, &twin.frozen, &batch.pixels, aim, &crafting)?,
            ..batch.clone()
        };
        let clean = self.mix.batch(batch, "clean", pass)?;
        let moved = self.mix.batch(&moved, "adversarial", pass)?;
        let both = Pixels::cat(&[clean.pixels.clone(), moved.pixels.clone()])?;
        let samples = batch.samples.repeat(2);
        let logits = twin.live.logits(&both, &pass.over(&samples))?;
        let n = batch.len();
        let of_clean = clean.losses(&logits.narrow(0, 0, n)?)?.mean_all()?;
        let of_moved = moved.losses(&logits.narrow(0, n, n)?)?.mean_all()?;
        Ok(((of_clean * self.clean_weight)? + (of_moved * (1.0 - self.clean_weight))?)?)
    }
}
