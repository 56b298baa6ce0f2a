//! PixelDP: noise behind a layer of bounded sensitivity.
//!
//! ```text
//! h <- conv(x) + s n,   n ~ N(0, 1),   s = L sqrt(2 ln(1.25 / delta)) / eps
//! |conv(x) - conv(x')|_2 <= |x - x'|_2
//! ```
//!
//! Lecuyer, Atlidakis, Geambasu, Hsu & Jana, "Certified robustness to adversarial examples with
//! differential privacy", IEEE S&P 2019, section III. By the Gaussian mechanism (eps at most 1) all
//! that follows is (eps, delta)-private in pixels that move by L in L2, whatever the layers behind.
//! As in the authors' networks the noise comes right behind the first convolution, in front of the
//! activation (their flag `noise_after_activation` notwithstanding) and here of the norm, which would
//! scale by its own deviation. Their Laplace noise (L1) is not here.

use candle_core::Var;
use serde::{Deserialize, Serialize};
use theriac::{Error, Result};
use theriac_nn::Params;

use crate::{Bounded, NoisyFirst};

/// The settings of the method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PixelDp {
    /// L, the L2 size of the perturbation for which the noise is made, in units of [0, 1] pixels.
    pub size: f64,
    /// eps of differential privacy, at most 1.
    pub eps: f64,
    /// delta of differential privacy.
    pub delta: f64,
    /// Confidence with which a certificate holds over the draws of noise.
    pub confidence: f64,
    /// Channels of the images: the convolution that reads so many is the first.
    pub channels: usize,
    /// Stride of that convolution.
    pub stride: usize,
    /// Step of the Parseval projection.
    pub parseval_step: f64,
    /// Its steps after each update.
    pub parseval_loops: usize,
}

impl Default for PixelDp {
    fn default() -> Self {
        Self {
            size: 0.1,
            eps: 1.0,
            delta: 0.05,
            confidence: 0.95,
            channels: 3,
            stride: 1,
            parseval_step: 3e-4,
            parseval_loops: 10,
        }
    }
}

impl PixelDp {
    /// Refuses numbers for which the Gaussian mechanism promises nothing.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let wrong = |name, value: f64, remedy| {
            let value = value.to_string();
            Err(Error::Setting {
                name,
                value,
                remedy,
            })
        };
        let inside = |value: f64| value > 0.0 && value < 1.0;
        if !(self.size > 0.0 && self.size.is_finite()) {
            return wrong("size", self.size, "use a finite L2 size above 0");
        }
        if !(self.eps > 0.0 && self.eps <= 1.0) {
            return wrong(
                "eps",
                self.eps,
                "the Gaussian mechanism needs one in (0, 1]",
            );
        }
        if !inside(self.delta) {
            return wrong("delta", self.delta, "use one in (0, 1)");
        }
        if !inside(self.confidence) {
            return wrong("confidence", self.confidence, "use one in (0, 1)");
        }
        if self.stride == 0 {
            return wrong("stride", 0.0, "give the stride of the first convolution");
        }
        if !(0.0..=0.1).contains(&self.parseval_step) {
            return wrong("parseval_step", self.parseval_step, "use one in [0, 0.1]");
        }
        Ok(())
    }

    /// Deviation of the noise.
    pub fn std(&self) -> f64 {
        self.size * mechanism(self.delta) / self.eps
    }

    /// Where a network gets its layers.
    pub fn hook(&self) -> NoisyFirst {
        NoisyFirst(*self)
    }

    /// The objective that holds the sensitivity at 1 at most, around another one.
    ///
    /// # Errors
    /// Those of [`PixelDp::check`]; [`Error::Setting`] for a network without a first convolution.
    pub fn objective<O>(&self, objective: O, params: &Params) -> Result<Bounded<O>> {
        self.check()?;
        Bounded::new(*self, objective, self.first(params)?)
    }

    /// The weight of the first convolution.
    ///
    /// # Errors
    /// [`Error::Setting`] unless there is exactly one that reads [`PixelDp::channels`].
    pub fn first(&self, params: &Params) -> Result<Var> {
        let all = params.trainable().into_iter();
        let reads = |var: &Var| var.rank() == 4 && var.dims()[1] == self.channels;
        let mut first: Vec<(String, Var)> = all.filter(|(_, var)| reads(var)).collect();
        match (first.pop(), first.is_empty()) {
            (Some((_, var)), true) => Ok(var),
            (found, _) => Err(Error::Setting {
                name: "channels",
                value: format!(
                    "{}, which {} convolutions read",
                    self.channels,
                    first.len() + usize::from(found.is_some())
                ),
                remedy: "give the channels of the images, which the first convolution alone reads",
            }),
        }
    }
}

/// sqrt(2 ln(1.25 / delta)): deviation of the noise for size 1 and eps 1.
pub(crate) fn mechanism(delta: f64) -> f64 {
    (2.0 * (1.25 / delta).ln()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_promises_nothing_and_reads_text() {
        let base = PixelDp::default;
        for (name, wrong) in [
            (
                "size",
                PixelDp {
                    size: 0.0,
                    ..base()
                },
            ),
            ("eps", PixelDp { eps: 1.5, ..base() }),
            (
                "delta",
                PixelDp {
                    delta: 1.0,
                    ..base()
                },
            ),
            (
                "confidence",
                PixelDp {
                    confidence: 1.0,
                    ..base()
                },
            ),
            (
                "stride",
                PixelDp {
                    stride: 0,
                    ..base()
                },
            ),
            (
                "parseval_step",
                PixelDp {
                    parseval_step: 1.0,
                    ..base()
                },
            ),
        ] {
            let text = wrong.check().unwrap_err().to_string();
            assert!(text.starts_with(name), "{text}");
        }
        let read: PixelDp = toml::from_str("size = 0.3\nstride = 2").unwrap();
        assert_eq!((read.size, read.stride, read.eps), (0.3, 2, 1.0));
        assert!(toml::from_str::<PixelDp>("epsilon = 1").is_err());
    }

    /// 0.1 sqrt(2 ln 25) by hand.
    #[test]
    fn the_deviation_is_that_of_the_gaussian_mechanism() {
        assert!((PixelDp::default().std() - 0.2537).abs() < 5e-5);
    }
}
