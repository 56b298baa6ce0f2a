//! A teacher at a temperature, and its student.

use candle_core::{D, Tensor};
use theriac::{Batch, Classifier, Error, Labels, Pass, Result};
use theriac_nn::Twin;
use theriac_ops::{cross_entropy, cross_entropy_soft};
use theriac_train::Objective;

/// Training at a temperature: `mean CE(z(x) / T, y)`. With T = 1 it is ordinary training.
///
/// The teacher of defensive distillation. Predictions do not depend on T, so the network predicts as
/// it stands; its logits are about T times as large as an ordinary network's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tempered {
    /// Temperature T.
    pub temperature: f64,
}

impl<C: Classifier> Objective<C> for Tempered {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let logits = cooled(&twin.live.logits(&batch.pixels, pass)?, self.temperature)?;
        Ok(cross_entropy(&logits, batch.target.tensor())?.mean_all()?)
    }
}

/// Defensive distillation: a student learns the teacher's probabilities at a temperature.
///
/// ```text
/// p = softmax(teacher(x) / T),   loss = mean CE(student(x) / T, p);   predict at T = 1
/// ```
///
/// Papernot, McDaniel, Wu, Jha & Swami, "Distillation as a defense to adversarial perturbations
/// against deep neural networks", IEEE S&P 2016. The teacher is trained at the same T
/// ([`Tempered`]). Its probabilities are those of the images as the student sees them, augmented or
/// not; the code of Carlini & Wagner computes them once, on images that never change. ART's class of
/// this name has no temperature.
///
/// At T = 1 the student's logits are large, its cross entropy has no gradient in f32 on most images,
/// and attacks by that gradient fail while others do not (Carlini & Wagner 2017): masked gradients,
/// not robustness.
#[derive(Clone, Copy, Debug)]
pub struct Distillation<T> {
    /// The trained teacher; it runs in evaluation mode.
    pub teacher: T,
    /// Temperature T.
    pub temperature: f64,
}

impl<C: Classifier, T: Classifier> Objective<C> for Distillation<T> {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        pass.meter.forward(pass.samples);
        let taught = self.teacher.logits(&batch.pixels, &pass.eval())?.detach();
        let taught = softmax(&cooled(&taught, self.temperature)?)?;
        let logits = cooled(&twin.live.logits(&batch.pixels, pass)?, self.temperature)?;
        Ok(cross_entropy_soft(&logits, &taught)?.mean_all()?)
    }
}

fn cooled(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::Setting {
            name: "temperature",
            value: temperature.to_string(),
            remedy: "use a finite number above 0; 1 is ordinary training",
        });
    }
    Ok((logits / temperature)?)
}

fn softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits
        .broadcast_sub(&logits.max_keepdim(D::Minus1)?)?
        .exp()?;
    Ok(shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?)
}
