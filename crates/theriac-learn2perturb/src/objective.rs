//! Weights and theta in alternation.

use candle_core::Tensor;
use theriac::{Aim, Attack, Batch, Classifier, Labels, Mode, Pass, Result, craft};
use theriac_nn::Twin;
use theriac_ops::cross_entropy;
use theriac_train::{LabelSource, Objective, Schedule};

use crate::Learn2Perturb;
use crate::theta::Theta;

/// The training step of Learn2Perturb, made by [`Learn2Perturb::training`].
///
/// ```text
/// theta <- SGD(theta, grad of gamma g(theta))                                    step A
/// z  = f(x), in training mode, with noise
/// x' = attack(x, argmax z)              on the frozen twin in evaluation mode, with noise
/// loss = w mean CE(z, y) + (1 - w) mean CE(f(x'), y)
/// W <- SGD(W, grad of loss);   theta <- max(SGD(theta, grad of loss), minimum)   step B
/// ```
///
/// In the first [`Learn2Perturb::noise_delay`] epochs the network has no noise and theta rests; in
/// the first [`Learn2Perturb::adv_delay`] the loss is that of clean images. The two halves pass one
/// after the other, so each has its own statistics of batch norms and its own noise.
pub struct Alternating<M, A> {
    /// Crafts the adversarial half.
    pub attack: A,
    /// The label that the attack moves away from; the code has predicted ones.
    pub label: LabelSource,
    /// Weight w of the clean half, in [0, 1].
    pub clean_weight: f64,
    /// The network's mode while images are crafted.
    pub mode: Mode,
    pub(crate) settings: Learn2Perturb,
    pub(crate) plain: Twin<M>,
    pub(crate) theta: Theta,
    pub(crate) schedule: Schedule,
    pub(crate) epoch: usize,
}

impl<M: Classifier, A: Attack<M>> Objective<M> for Alternating<M, A> {
    fn loss(&mut self, twin: &Twin<M>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let twin = match self.epoch < self.settings.noise_delay {
            true => &self.plain,
            false => twin,
        };
        self.theta.regularise(self.schedule.at(self.epoch))?;
        let logits = twin.live.logits(&batch.pixels, &pass.fork(0))?;
        let clean = cross_entropy(&logits, batch.target.tensor())?.mean_all()?;
        if self.epoch < self.settings.adv_delay {
            return Ok(clean);
        }
        let labels = match self.label {
            LabelSource::True => batch.target.clone(),
            LabelSource::Predicted => Labels::most_likely(&logits)?,
        };
        let crafting = Pass {
            mode: self.mode,
            ..pass.fork(1)
        };
        let aim = Aim::Away(&labels);
        let moved = craft(&self.attack, &twin.frozen, &batch.pixels, aim, &crafting)?;
        let logits = twin.live.logits(&moved, &pass.fork(2))?;
        let moved = cross_entropy(&logits, batch.target.tensor())?.mean_all()?;
        Ok(((clean * self.clean_weight)? + (moved * (1.0 - self.clean_weight))?)?)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.epoch = epoch;
        self.theta.begin_epoch(epoch);
        Ok(())
    }
}
