//! An attacker who knows the detectors.

use candle_core::Tensor;
use theriac::{Classifier, Labels, Model, Pass, Pixels, Result, Transform};
use theriac_ops::{cross_entropy, relu};

use crate::MagNet;

/// What an attacker climbs who knows all of [`MagNet`]: the loss of the reformed image, less what the
/// detectors would see.
///
/// ```text
/// L(x, y) = CE(f(R(x)), y) - w sum_d max(0, mark_d(x) / threshold_d - 1)
/// ```
///
/// In the manner of Carlini & Wagner, "MagNet and 'Efficient defenses against adversarial attacks'
/// are not robust to adversarial examples", 2017, who attack with C&W and several auto-encoders. For
/// untargeted attacks, which raise the loss.
pub struct Evasion<'m, 'a, C, R> {
    /// What is evaded.
    pub magnet: &'m MagNet<'a, C, R>,
    /// Weight w of the detectors.
    pub weight: f64,
}

impl<C: Classifier, R: Transform> Model for Evasion<'_, '_, C, R> {
    type Target = Labels;

    fn loss(&self, x: &Pixels, target: &Labels, pass: &Pass<'_>) -> Result<Tensor> {
        let mut loss = cross_entropy(&self.magnet.logits(x, pass)?, target.tensor())?;
        for (detector, threshold) in &self.magnet.detectors {
            let over = detector.marks(x, pass)?.affine(1.0 / threshold, -1.0)?;
            loss = (loss - (relu(&over)? * self.weight)?)?;
        }
        Ok(loss)
    }
}
