//! What tells images that are not of the data.

use candle_core::{D, Tensor};
use theriac::{Classifier, Error, Pass, Pixels, Result};

use crate::AutoEncoder;
use crate::auto_encoder::error;

/// Gives each image a mark: the higher, the less it looks like the data.
pub trait Detector: Send + Sync {
    /// The marks, shape (N), differentiable in the pixels.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn marks(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor>;
}

impl<T: Detector + ?Sized> Detector for &T {
    fn marks(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        (**self).marks(x, pass)
    }
}

impl<T: Detector + ?Sized> Detector for Box<T> {
    fn marks(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        (**self).marks(x, pass)
    }
}

/// By the reconstruction error: `mean |x - AE(x)|^p`.
#[derive(Clone, Copy, Debug)]
pub struct Reconstruction<A> {
    /// Rebuilds the image.
    pub auto_encoder: A,
    /// p, 1 or 2.
    pub power: u32,
}

impl<A: AsRef<AutoEncoder> + Send + Sync> Detector for Reconstruction<A> {
    fn marks(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let made = self.auto_encoder.as_ref().reconstruct(x, pass)?;
        error(&made, x.tensor(), self.power)
    }
}

impl AsRef<Self> for AutoEncoder {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// By what the classifier makes of the image before and after: the Jensen-Shannon divergence
/// `JSD(softmax(z(x) / T), softmax(z(AE(x)) / T))`, in nats.
#[derive(Clone, Copy, Debug)]
pub struct Divergence<A, C> {
    /// Rebuilds the image.
    pub auto_encoder: A,
    /// Classifies both.
    pub model: C,
    /// Temperature T: at 1 a sure classifier gives 0 or the largest value, ln 2.
    pub temperature: f64,
}

impl<A: AsRef<AutoEncoder> + Send + Sync, C: Classifier> Detector for Divergence<A, C> {
    fn marks(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let made = self.auto_encoder.as_ref().reconstruct(x, pass)?;
        let made = x.through(|_| Ok(made))?;
        let log = |x: &Pixels| log_softmax(&(self.model.logits(x, pass)? / self.temperature)?);
        let (p, q) = (log(x)?, log(&made)?);
        // log (e^p + e^q) / 2, from the larger of both.
        let top = p.maximum(&q)?.detach();
        let sum = ((&p - &top)?.exp()? + (&q - &top)?.exp()?)?;
        let middle = ((sum * 0.5)?.log()? + top)?;
        let from =
            |of: &Tensor| -> Result<Tensor> { Ok((of.exp()? * (of - &middle)?)?.sum(D::Minus1)?) };
        Ok(((from(&p)? + from(&q)?)? * 0.5)?)
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let sum = shifted.exp()?.sum_keepdim(D::Minus1)?;
    Ok(shifted.broadcast_sub(&sum.log()?)?)
}

/// The mark that a share `drop_rate` of clean images reaches: images at or above it are rejected. As
/// in the published code, the k-th largest of n marks with k = floor(drop_rate n), at least the
/// largest.
///
/// # Errors
/// [`Error::Empty`] without marks, [`Error::Setting`] for a share outside [0, 1].
pub fn threshold(marks: &[f64], drop_rate: f64) -> Result<f64> {
    if !(0.0..=1.0).contains(&drop_rate) {
        return Err(Error::Setting {
            name: "drop_rate",
            value: drop_rate.to_string(),
            remedy: "use a share of clean images from 0 to 1",
        });
    }
    let mut marks = marks.to_vec();
    marks.sort_by(|a, b| b.total_cmp(a));
    let dropped = (drop_rate * marks.len() as f64).floor() as usize;
    let at = dropped.saturating_sub(1).min(marks.len().saturating_sub(1));
    marks.get(at).copied().ok_or(Error::Empty { what: "marks" })
}
