//! A network behind its normalisation.

use candle_core::Tensor;
use theriac::{Classifier, Error, Pass, Pixels, Result};

use crate::Network;

/// A network that was trained on normalised images: takes pixels in [0, 1] and hands on
/// `(x - mean) / std`, channel by channel. Attacks work on the pixels.
///
/// ```
/// # use theriac_nn::{Network, Normalised};
/// # fn f(network: Network) -> Result<(), theriac::Error> {
/// let model = Normalised::new(network, &[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616])?;
/// # let _ = model; Ok(()) }
/// ```
pub struct Normalised {
    network: Network,
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Normalised {
    /// `mean` and `std` have one value for each channel, or one for all.
    ///
    /// # Errors
    /// [`Error::Setting`] for lists of different lengths, or a deviation that is not above 0.
    pub fn new(network: Network, mean: &[f64], std: &[f64]) -> Result<Self> {
        let wrong = |name, value: &[f64], remedy| {
            let value = format!("{value:?}");
            Err(Error::Setting {
                name,
                value,
                remedy,
            })
        };
        if mean.is_empty() || mean.len() != std.len() {
            return wrong("std", std, "give as many deviations as means");
        }
        if !mean.iter().all(|m| m.is_finite()) {
            return wrong("mean", mean, "give finite numbers");
        }
        if !std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return wrong("std", std, "give deviations above 0, for pixels in [0, 1]");
        }
        Ok(Self {
            network,
            mean: mean.to_vec(),
            std: std.to_vec(),
        })
    }
}

impl Classifier for Normalised {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let x = x.tensor();
        let (channels, given) = (x.dim(1)?, self.mean.len());
        if given != 1 && given != channels {
            return Err(Error::Shape {
                what: "image",
                got: x.dims().to_vec(),
                expected: format!("{given} channels, one for each mean"),
            });
        }
        let place = |values: &[f64]| -> Result<Tensor> {
            let tensor = Tensor::new(values, x.device())?.to_dtype(x.dtype())?;
            Ok(tensor.reshape((1, (), 1, 1))?)
        };
        let centred = x.broadcast_sub(&place(&self.mean)?)?;
        let normalised = centred.broadcast_div(&place(&self.std)?)?;
        self.network.forward(&normalised, pass)
    }

    fn classes(&self) -> usize {
        self.network.classes()
    }
}
