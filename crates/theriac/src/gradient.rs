//! The only place that differentiates by pixels.

use candle_core::{DType, Tensor, Var};

use crate::error::finite;
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
    let mut gradients = Vec::with_capacity(1);
    let value = gradients_of(x, pass, &mut gradients, |x| {
        let value = f(x)?;
        expect(&value, &[x.len()], "one value for each image")?;
        Ok((value.clone(), vec![value]))
    })?;
    match gradients.pop() {
        Some(gradient) => Ok((value, gradient)),
        None => Ok((value, x.tensor().zeros_like()?)),
    }
}

/// The values of `f` for each image, shape (N, K), and the gradient of each column at `x`, K
/// tensors of shape (N, C, H, W), from one forward pass and K backward passes.
///
/// # Errors
/// Those of [`gradient`].
pub fn jacobian(
    x: &Pixels,
    pass: &Pass<'_>,
    f: impl FnOnce(&Pixels) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let mut gradients = Vec::new();
    let value = gradients_of(x, pass, &mut gradients, |x| {
        let value = f(x)?;
        let columns = value.dims().get(1).copied().unwrap_or(0);
        expect(
            &value,
            &[x.len(), columns],
            "one row of values for each image",
        )?;
        let columns = (0..columns).map(|k| Ok(value.narrow(1, k, 1)?));
        let columns = columns.collect::<Result<_>>()?;
        Ok((value, columns))
    })?;
    Ok((value, gradients))
}

fn expect(value: &Tensor, dims: &[usize], words: &str) -> Result<()> {
    if value.dims() == dims {
        return Ok(());
    }
    Err(Error::Shape {
        what: "loss",
        got: value.dims().to_vec(),
        expected: format!("{dims:?}, {words}"),
    })
}

/// The value of `f`, without its graph, and the gradient of the sum of each of its parts.
fn gradients_of(
    x: &Pixels,
    pass: &Pass<'_>,
    gradients: &mut Vec<Tensor>,
    f: impl FnOnce(&Pixels) -> Result<(Tensor, Vec<Tensor>)>,
) -> Result<Tensor> {
    let (samples, images) = (pass.samples.len(), x.len());
    if samples != images {
        return Err(Error::Samples { samples, images });
    }
    let variable = Var::from_tensor(&x.tensor().detach())?;
    let (value, parts) = f(&Pixels::trusted(variable.as_tensor().clone()))?;
    let value = value.detach();
    let rows = value
        .reshape((images, ()))?
        .to_dtype(DType::F64)?
        .to_vec2::<f64>()?;
    let broken = |row: &Vec<f64>| row.iter().any(|v| !v.is_finite());
    finite("the loss", rows.iter().map(broken), pass.samples)?;
    for part in parts {
        let gradient = match part.sum_all()?.backward()?.remove(variable.as_tensor()) {
            Some(gradient) => gradient.detach(),
            None => variable.zeros_like()?,
        };
        // The L1 norm is zero only for a zero gradient and finite only for a finite one.
        let l1 = per_image_sum(&gradient.abs()?)?
            .to_dtype(DType::F64)?
            .to_vec1::<f64>()?;
        let broken = l1.iter().map(|norm| !norm.is_finite());
        finite("the gradient by the pixels", broken, pass.samples)?;
        let zero = l1.iter().zip(pass.samples);
        let zero: Vec<u32> = zero
            .filter(|(l1, _)| **l1 == 0.0)
            .map(|(_, id)| *id)
            .collect();
        pass.meter.gradient(pass.samples, &zero);
        gradients.push(gradient);
    }
    Ok(value)
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
