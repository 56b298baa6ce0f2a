//! What is attacked.

use candle_core::{DType, Device, Tensor};

use crate::attack::in_chunks;
use crate::pixels::pick;
use crate::{Error, Pass, Pixels, Result};

/// What a batch of images is scored against: one entry an image, cut along the batch.
pub trait Target: Sized + Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries `start .. start + len`.
    ///
    /// # Errors
    /// When the range leaves the batch.
    fn narrow(&self, start: usize, len: usize) -> Result<Self>;

    /// The entries at these positions, in this order.
    ///
    /// # Errors
    /// When a position leaves the batch.
    fn pick(&self, at: &[u32]) -> Result<Self>;
}

/// Pixels and a target to a loss.
///
/// In [`crate::Mode::Eval`] the loss of an image must not depend on the other images of its
/// batch; attacks rely on it when they split a batch over threads.
pub trait Model: Send + Sync {
    /// What images are scored against.
    type Target: Target;

    /// Loss of each image, shape (N), differentiable in the pixels and in the parameters.
    ///
    /// # Errors
    /// When shapes do not fit the model.
    fn loss(&self, x: &Pixels, target: &Self::Target, pass: &Pass<'_>) -> Result<Tensor>;

    /// The loss and, from a model that can tell, whether it takes each image for its target.
    ///
    /// # Errors
    /// Those of [`Model::loss`].
    fn loss_and_hits(
        &self,
        x: &Pixels,
        target: &Self::Target,
        pass: &Pass<'_>,
    ) -> Result<(Tensor, Option<Vec<bool>>)> {
        Ok((self.loss(x, target, pass)?, None))
    }
}

/// A model with one logit for each class.
pub trait Classifier: Send + Sync {
    /// Logits before any softmax, shape (N, classes).
    ///
    /// # Errors
    /// When shapes do not fit the model.
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor>;

    /// Number of classes.
    fn classes(&self) -> usize;
}

/// A classifier's loss is the cross entropy `-log softmax(z)_y`.
impl<C: Classifier + ?Sized> Model for C {
    type Target = Labels;

    fn loss(&self, x: &Pixels, target: &Labels, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(theriac_ops::cross_entropy(
            &self.logits(x, pass)?,
            target.tensor(),
        )?)
    }

    fn loss_and_hits(
        &self,
        x: &Pixels,
        target: &Labels,
        pass: &Pass<'_>,
    ) -> Result<(Tensor, Option<Vec<bool>>)> {
        let logits = self.logits(x, pass)?;
        let loss = theriac_ops::cross_entropy(&logits, target.tensor())?;
        let predicted = Labels::most_likely(&logits)?.to_vec()?;
        let hits = predicted.iter().zip(target.to_vec()?);
        Ok((loss, Some(hits.map(|(a, b)| *a == b).collect())))
    }
}

impl<C: Classifier + ?Sized> Classifier for &C {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        (**self).logits(x, pass)
    }

    fn classes(&self) -> usize {
        (**self).classes()
    }
}

impl<C: Classifier + ?Sized> Classifier for Box<C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        (**self).logits(x, pass)
    }

    fn classes(&self) -> usize {
        (**self).classes()
    }
}

/// One class for each image, shape (N), u32.
#[derive(Clone, Debug)]
pub struct Labels(Tensor);

impl Labels {
    /// Labels 0..classes.
    ///
    /// # Errors
    /// [`Error::Label`] for a label that is not a class, [`Error::Empty`] for none.
    pub fn new(labels: &[u32], classes: usize, device: &Device) -> Result<Self> {
        if labels.is_empty() {
            return Err(Error::Empty { what: "labels" });
        }
        if let Some(position) = labels.iter().position(|&label| label as usize >= classes) {
            return Err(Error::Label {
                label: labels[position],
                position,
                classes,
            });
        }
        Ok(Self(Tensor::from_slice(labels, labels.len(), device)?))
    }

    /// The most likely class of each row of logits (N, classes); the first among equals.
    ///
    /// # Errors
    /// A candle error.
    pub fn most_likely(logits: &Tensor) -> Result<Self> {
        Ok(Self(logits.detach().argmax(1)?.to_dtype(DType::U32)?))
    }

    /// The tensor, shape (N), u32.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The labels on the host.
    ///
    /// # Errors
    /// A candle error.
    pub fn to_vec(&self) -> Result<Vec<u32>> {
        Ok(self.0.to_vec1()?)
    }

    /// One batch after the other.
    ///
    /// # Errors
    /// A candle error.
    pub fn cat(&self, other: &Labels) -> Result<Self> {
        Ok(Self(Tensor::cat(&[&self.0, &other.0], 0)?))
    }
}

impl Target for Labels {
    fn len(&self) -> usize {
        self.0.dims()[0]
    }

    fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self(self.0.narrow(0, start, len)?))
    }

    fn pick(&self, at: &[u32]) -> Result<Self> {
        Ok(Self(pick(&self.0, at)?))
    }
}

/// Logits of each image on the host, in f64: one counted forward pass, cut over threads as
/// [`crate::craft`] cuts its work.
///
/// # Errors
/// Those of [`Classifier::logits`]; [`Error::NotFinite`] for NaN or infinity, which a comparison
/// would pass off as class 0.
pub fn scores<C: Classifier + ?Sized>(
    model: &C,
    x: &Pixels,
    pass: &Pass<'_>,
) -> Result<Vec<Vec<f64>>> {
    in_chunks(x, pass, |_, x, pass| {
        pass.meter.forward(pass.samples);
        finite_rows(&model.logits(x, pass)?, pass.samples)
    })
}

/// The rows of a tensor (N, K) on the host.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity.
pub fn finite_rows(logits: &Tensor, samples: &[u32]) -> Result<Vec<Vec<f64>>> {
    let rows = logits.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let broken = |row: &Vec<f64>| row.iter().any(|value| !value.is_finite());
    crate::error::finite("the logits", rows.iter().map(broken), samples)?;
    Ok(rows)
}

/// The class of the largest of a row of logits; the first among equals.
pub fn largest(row: &[f64]) -> u32 {
    let mut best = 0;
    for (class, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = class;
        }
    }
    best as u32
}

/// The model's own label for each image.
///
/// # Errors
/// Those of [`scores`].
pub fn predict<C: Classifier + ?Sized>(model: &C, x: &Pixels, pass: &Pass<'_>) -> Result<Labels> {
    let labels: Vec<u32> = scores(model, x, pass)?
        .iter()
        .map(|row| largest(row))
        .collect();
    Labels::new(&labels, model.classes(), x.tensor().device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_classes() {
        let error = Labels::new(&[1, 12], 10, &Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("label 12") && error.contains("0..10"),
            "{error}"
        );
        assert!(Labels::new(&[], 10, &Device::Cpu).is_err());
    }
}
