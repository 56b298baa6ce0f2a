//! The only place that differentiates by pixels.

use candle_core::{DType, Tensor, Var};

use crate::pixels::per_image_sum;
use crate::{Error, Pass, Pixels, Result};

/// The value of `f` for each image, shape (N), and its gradient at `x`, shape (N, C, H, W).
///
/// The values are summed before differentiating, so the gradient of an image does not depend on
/// the batch size. `f` runs on the images as they are: clamping and projection happen outside the
/// graph, because candle's clamp has gradient one half exactly at 0 and 1.
///
/// A function that does not depend on the pixels, or depends on them through a step, has a zero
/// gradient; such images are counted by the pass's meter and make an evaluation say so.
///
/// # Errors
/// [`Error::NotFinite`] when a loss or a gradient is NaN or infinite: candle's `sign(NaN)` is 0
/// and would hide it. [`Error::Shape`] when `f` does not give one value an image.
pub fn gradient(
    x: &Pixels,
    pass: &Pass<'_>,
    f: impl FnOnce(&Pixels) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let variable = Var::from_tensor(&x.tensor().detach())?;
    let value = f(&Pixels::trusted(variable.as_tensor().clone()))?;
    if value.dims() != [x.len()] {
        let expected = format!("({}), one value for each image", x.len());
        return Err(Error::Shape {
            what: "loss",
            got: value.dims().to_vec(),
            expected,
        });
    }
    let gradient = match value.sum_all()?.backward()?.remove(variable.as_tensor()) {
        Some(gradient) => gradient,
        None => variable.zeros_like()?,
    };
    // The L1 norm is zero only for a zero gradient and finite only for a finite one.
    let l1 = per_image_sum(&gradient.abs()?)?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()?;
    let remedy = "check the model's weights and its last layers for overflow";
    let count = l1.iter().filter(|norm| !norm.is_finite()).count();
    if count > 0 {
        return Err(Error::NotFinite {
            what: "the gradient by the pixels",
            count,
            remedy,
        });
    }
    let value = value.detach();
    let values = value.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let count = values.iter().filter(|value| !value.is_finite()).count();
    if count > 0 {
        return Err(Error::NotFinite {
            what: "the loss",
            count,
            remedy,
        });
    }
    pass.meter
        .gradient(x.len(), l1.iter().filter(|&&norm| norm == 0.0).count());
    Ok((value, gradient.detach()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Run;

    #[test]
    fn sums_over_the_batch_and_counts_zero_gradients() -> Result<()> {
        let run = Run::new(0, &Device::Cpu);
        let x = Tensor::from_slice(&[0f64, 0.5, 1.0, 0.25], (4, 1, 1, 1), &Device::Cpu)?;
        let x = Pixels::new(x)?;
        let pass = run.eval(&[0, 1, 2, 3]);
        let (value, g) = gradient(&x, &pass, |x| per_image_sum(&x.tensor().sqr()?))?;
        assert_eq!(value.to_vec1::<f64>()?, [0.0, 0.25, 1.0, 0.0625]);
        assert_eq!(g.flatten_all()?.to_vec1::<f64>()?, [0.0, 1.0, 2.0, 0.5]);
        assert_eq!(
            (run.meter().gradients(), run.meter().zero_gradients()),
            (4, 1)
        );
        Ok(())
    }

    #[test]
    fn a_constant_has_a_zero_gradient_and_nan_is_an_error() -> Result<()> {
        let run = Run::new(0, &Device::Cpu);
        let x = Pixels::new(Tensor::zeros((2, 1, 1, 1), DType::F64, &Device::Cpu)?)?;
        let pass = run.eval(&[0, 1]);
        let constant = Tensor::ones(2, DType::F64, &Device::Cpu)?;
        let (_, g) = gradient(&x, &pass, |_| Ok(constant))?;
        assert_eq!(g.flatten_all()?.to_vec1::<f64>()?, [0.0, 0.0]);
        assert_eq!(run.meter().zero_gradients(), 2);
        let log = gradient(&x, &pass, |x| Ok(per_image_sum(x.tensor())?.log()?));
        assert!(log.unwrap_err().to_string().contains("not finite"));
        Ok(())
    }
}
