//! How far an adversarial image may be from its clean image.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::pixels::per_image_sum;
use crate::{Error, Pixels, Result};

/// Floor under a gradient's L2 norm, small enough to leave the tiny gradients of confident
/// models their direction; advertorch and cleverhans use 1e-6, which does not.
const L2_FLOOR: f64 = 1e-12;

/// A norm on images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Norm {
    /// Euclidean norm over all values of an image.
    L2,
    /// Largest absolute value.
    Linf,
}

impl Norm {
    /// Norm of each image of a tensor (N, ...), in f64.
    ///
    /// # Errors
    /// A candle error.
    pub fn of(self, tensor: &Tensor) -> Result<Vec<f64>> {
        let flat = tensor.flatten_from(1)?.to_dtype(DType::F64)?;
        let norms = match self {
            Self::L2 => flat.sqr()?.sum(1)?.sqrt()?,
            Self::Linf => flat.abs()?.max(1)?,
        };
        Ok(norms.to_vec1()?)
    }

    /// The unit step of steepest ascent along a gradient g of shape (N, C, H, W):
    /// `sign(g)` for Linf (sign(0) = 0), `g / max(||g||_2, 1e-12)` for L2.
    ///
    /// # Errors
    /// A candle error.
    pub fn steepest(self, gradient: &Tensor) -> Result<Tensor> {
        self.steepest_above(gradient, L2_FLOOR)
    }

    /// [`Norm::steepest`] with another floor under the L2 norm (advertorch: 1e-6).
    ///
    /// # Errors
    /// A candle error.
    pub fn steepest_above(self, gradient: &Tensor, floor: f64) -> Result<Tensor> {
        match self {
            Self::Linf => Ok(gradient.sign()?),
            Self::L2 => {
                let norm = per_image_sum(&gradient.sqr()?)?.sqrt()?.maximum(floor)?;
                Ok(gradient.broadcast_div(&norm.reshape(((), 1, 1, 1))?)?)
            }
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L2 => "L2",
            Self::Linf => "Linf",
        })
    }
}

/// A perturbation or step size in units of the pixel range [0, 1].
///
/// There is no conversion from a bare number: the unit is said by the constructor.
///
/// ```
/// # use theriac::Eps;
/// let a = Eps::of_255(8.0)?;
/// let b: Eps = "8/255".parse()?;
/// assert_eq!(a, b);
/// # Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "f64")]
pub struct Eps(f64);

impl Eps {
    /// A size in [0, 1] pixels.
    ///
    /// # Errors
    /// [`Error::Eps`] when negative or not finite.
    pub fn unit(size: f64) -> Result<Self> {
        if size.is_finite() && size >= 0.0 {
            return Ok(Self(size));
        }
        let remedy = "expected a finite size >= 0 in units of [0,1] pixels";
        Err(Error::Eps {
            value: size.to_string(),
            remedy,
        })
    }

    /// A size in 0..255 pixels: `Eps::of_255(8.0)` is 8/255.
    ///
    /// # Errors
    /// [`Error::Eps`] when negative or not finite.
    pub fn of_255(size: f64) -> Result<Self> {
        Self::unit(size / 255.0)
    }

    /// The whole range of a pixel.
    pub fn one() -> Self {
        Self(1.0)
    }

    /// The size in [0, 1] pixels.
    pub fn get(self) -> f64 {
        self.0
    }

    /// The size divided by a whole number: `eps / 10`.
    ///
    /// # Errors
    /// [`Error::Eps`] for a division by zero.
    pub fn over(self, parts: u32) -> Result<Self> {
        Self::unit(self.0 / f64::from(parts))
    }

    /// The size times a factor.
    ///
    /// # Errors
    /// [`Error::Eps`] when the result is negative or not finite.
    pub fn times(self, factor: f64) -> Result<Self> {
        Self::unit(self.0 * factor)
    }
}

impl fmt::Display for Eps {
    /// Short decimals as such, else multiples of 1/255 as fractions, else five digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (decimal, of_255) = (self.0.to_string(), self.0 * 255.0);
        let whole = of_255 < 100.0 && (of_255 - of_255.round()).abs() < 1e-9;
        if decimal.len() <= 5 {
            f.write_str(&decimal)
        } else if whole {
            write!(f, "{}/255", of_255.round())
        } else {
            write!(f, "{:.5}", self.0)
        }
    }
}

impl From<Eps> for f64 {
    fn from(eps: Eps) -> f64 {
        eps.0
    }
}

impl FromStr for Eps {
    type Err = Error;

    /// `"8/255"` or `"0.3"`.
    fn from_str(text: &str) -> Result<Self> {
        let remedy = "write \"8/255\" or a number in units of [0,1] pixels such as \"0.3\"";
        let wrong = || Error::Eps {
            value: format!("{text:?}"),
            remedy,
        };
        let number = |part: &str| part.trim().parse::<f64>().map_err(|_| wrong());
        let size = match text.split_once('/') {
            Some((over, under)) => number(over)? / number(under)?,
            None => number(text)?,
        };
        Self::unit(size).map_err(|_| wrong())
    }
}

/// How sizes stand in TOML and JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

impl TryFrom<Written> for Eps {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Number(size) => Self::unit(size),
            Written::Text(text) => text.parse(),
        }
    }
}

/// The threat model's set: a ball around the clean image, cut by the pixel cube.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Ball")]
pub struct Budget {
    norm: Norm,
    eps: Eps,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ball {
    norm: Norm,
    eps: Eps,
}

impl TryFrom<Ball> for Budget {
    type Error = Error;

    fn try_from(ball: Ball) -> Result<Self> {
        Self::new(ball.norm, ball.eps)
    }
}

impl Budget {
    /// A ball of radius `eps` in `norm`.
    ///
    /// # Errors
    /// [`Error::Eps`] for a Linf radius above 1, which no pixel can use: 8 meant 8/255.
    pub fn new(norm: Norm, eps: Eps) -> Result<Self> {
        if norm == Norm::Linf && eps.get() > 1.0 {
            let remedy = "a Linf size above 1 exceeds the pixel range [0,1]; for k levels of 255 \
                          write \"k/255\" or Eps::of_255(k)";
            return Err(Error::Eps {
                value: eps.get().to_string(),
                remedy,
            });
        }
        Ok(Self { norm, eps })
    }

    /// A Linf ball.
    ///
    /// # Errors
    /// Those of [`Budget::new`].
    pub fn linf(eps: Eps) -> Result<Self> {
        Self::new(Norm::Linf, eps)
    }

    /// A L2 ball.
    ///
    /// # Errors
    /// Those of [`Budget::new`].
    pub fn l2(eps: Eps) -> Result<Self> {
        Self::new(Norm::L2, eps)
    }

    /// The ball with its radius times a factor; a Linf radius stops at 1, the pixel range.
    ///
    /// # Errors
    /// [`Error::Eps`] when the factor is negative or not finite.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        let eps = self.eps.times(factor)?;
        match self.norm {
            Norm::Linf => Self::new(self.norm, Eps::unit(eps.get().min(1.0))?),
            Norm::L2 => Self::new(self.norm, eps),
        }
    }

    /// The norm.
    pub fn norm(&self) -> Norm {
        self.norm
    }

    /// The radius.
    pub fn eps(&self) -> Eps {
        self.eps
    }

    /// The nearest allowed image: into the ball, then into [0, 1], outside any graph.
    ///
    /// Linf: `clip(clip(moved, x - eps, x + eps), 0, 1)`; the order does not matter.
    /// L2: `clip(x + d * min(1, eps / ||d||), 0, 1)` with d = moved - x. Ball before box as in
    /// foolbox, torchattacks and AutoAttack; advertorch and ART take the other order and reach
    /// other points of the same set.
    ///
    /// # Errors
    /// A candle error when the shapes differ.
    pub fn project(&self, moved: &Tensor, clean: &Pixels) -> Result<Pixels> {
        let (moved, eps) = (moved.detach(), self.eps.get());
        let clean = clean.tensor();
        match self.norm {
            Norm::Linf => {
                let floor = (clean - eps)?;
                let ceiling = (clean + eps)?;
                Pixels::clamp(&moved.maximum(&floor)?.minimum(&ceiling)?)
            }
            Norm::L2 => {
                let delta = (moved - clean)?;
                let norm = per_image_sum(&delta.sqr()?)?.sqrt()?;
                let factor = (norm.maximum(L2_FLOOR)?.recip()? * eps)?.minimum(1f64)?;
                let inside = delta.broadcast_mul(&factor.reshape(((), 1, 1, 1))?)?;
                Pixels::clamp(&(clean + inside)?)
            }
        }
    }

    /// Distance of each image from its clean image, in f64.
    ///
    /// # Errors
    /// A candle error when the shapes differ.
    pub fn spent(&self, moved: &Pixels, clean: &Pixels) -> Result<Vec<f64>> {
        let moved = moved.tensor().to_dtype(DType::F64)?;
        self.norm
            .of(&(moved - clean.tensor().to_dtype(DType::F64)?)?)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.norm, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_say_their_unit() {
        assert_eq!("8/255".parse::<Eps>().unwrap(), Eps::of_255(8.0).unwrap());
        assert_eq!("0.3".parse::<Eps>().unwrap().get(), 0.3);
        assert_eq!(Eps::of_255(8.0).unwrap().to_string(), "8/255");
        assert_eq!(Eps::unit(0.3).unwrap().to_string(), "0.3");
        assert_eq!(
            Eps::unit(0.1).unwrap().over(3).unwrap().to_string(),
            "0.03333"
        );
        for wrong in ["", "eight", "8/0", "-0.1", "NaN", "1/2/3"] {
            assert!(wrong.parse::<Eps>().is_err(), "{wrong:?} was taken");
        }
        let eight = Budget::linf(Eps::unit(8.0).unwrap())
            .unwrap_err()
            .to_string();
        assert!(eight.contains("/255"), "{eight}");
        assert!(Budget::l2(Eps::unit(8.0).unwrap()).is_ok());
    }

    fn image(values: Vec<f64>) -> Tensor {
        let n = values.len();
        Tensor::from_vec(values, (1, 1, 1, n), &Device::Cpu).unwrap()
    }

    proptest! {
        #[test]
        fn projection_stays_in_ball_and_box(
            clean in prop::collection::vec(0f64..=1.0, 6),
            step in prop::collection::vec(-2f64..2.0, 6),
            eps in 0f64..1.0,
            l2 in any::<bool>(),
        ) {
            let norm = if l2 { Norm::L2 } else { Norm::Linf };
            let budget = Budget::new(norm, Eps::unit(eps).unwrap()).unwrap();
            let clean = Pixels::new(image(clean)).unwrap();
            let moved = (clean.tensor() + image(step)).unwrap();
            let inside = budget.project(&moved, &clean).unwrap();
            prop_assert!(Pixels::new(inside.tensor().clone()).is_ok());
            prop_assert!(budget.spent(&inside, &clean).unwrap()[0] <= eps + 1e-12);
            // A point of the set is its own projection.
            let again = budget.project(inside.tensor(), &clean).unwrap();
            let drift = budget.spent(&again, &inside).unwrap()[0];
            prop_assert!(drift < 1e-12);
        }
    }

    #[test]
    fn steepest_ascent_has_unit_norm() {
        let g = image(vec![3.0, -4.0, 0.0]);
        let linf: Vec<f64> = Norm::Linf
            .steepest(&g)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!(linf, [1.0, -1.0, 0.0]);
        let l2: Vec<f64> = Norm::L2
            .steepest(&g)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!(l2, [0.6, -0.8, 0.0]);
        let tiny = Norm::L2.steepest(&(g * 1e-9).unwrap()).unwrap();
        assert!((Norm::L2.of(&tiny).unwrap()[0] - 1.0).abs() < 1e-6);
    }
}
