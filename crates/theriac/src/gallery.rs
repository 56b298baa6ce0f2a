//! Models that look robust and are not: what an honest evaluation must see through.
//!
//! Each takes any classifier and hides its gradient. Attacks and evaluators are tested on them.

use candle_core::{D, DType, Tensor};

use crate::{Classifier, Pass, Pixels, Result, vjp};

/// How a classifier is masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// Pixels are rounded to this many levels: the gradient is zero everywhere.
    Rounded(u32),
    /// Logits are multiplied by a large number: the cross entropy of a correct image is flat.
    Saturated(f64),
    /// The first layer lets no gradient through.
    ZeroGradient,
    /// Logits get noise of this deviation, drawn for each image in every pass.
    Noisy(f64),
    /// Logits are normalised over the batch, so that images see each other.
    BatchNorm,
}

/// A classifier behind a mask.
#[derive(Clone, Copy, Debug)]
pub struct Masked<C> {
    /// The classifier.
    pub model: C,
    /// The mask.
    pub mask: Mask,
}

impl<C: Classifier> Classifier for Masked<C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let flat = |x: &Tensor, value: Tensor| Ok(vjp(x, value, |g| g.zeros_like())?);
        match self.mask {
            Mask::Rounded(levels) => {
                let levels = f64::from(levels.max(2) - 1);
                let rounded = x.through(|x| {
                    let value = ((x.detach() * levels)?.round()? / levels)?;
                    flat(x, value)
                })?;
                self.model.logits(&rounded, pass)
            }
            Mask::Saturated(scale) => {
                // In f32, whatever the images are: there the softmax reaches 1.
                let logits = self.model.logits(x, pass)?;
                Ok((logits.to_dtype(DType::F32)? * scale)?)
            }
            Mask::ZeroGradient => {
                let blocked = x.through(|x| flat(x, x.detach()))?;
                self.model.logits(&blocked, pass)
            }
            Mask::Noisy(deviation) => {
                let logits = self.model.logits(x, pass)?;
                let noise = (pass.normal("noise", &logits)? * deviation)?;
                Ok((logits + noise)?)
            }
            Mask::BatchNorm => {
                let logits = self.model.logits(x, pass)?;
                let mean = logits.mean_keepdim(0)?;
                let centred = logits.broadcast_sub(&mean)?;
                let spread = centred.sqr()?.mean_keepdim(0)?.mean_keepdim(D::Minus1)?;
                Ok(centred.broadcast_div(&(spread + 1e-5)?.sqrt()?)?)
            }
        }
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}
