//! Layer norm.

use candle_core::{D, Tensor};
use theriac::{Pass, Result};

use crate::{Layer, VarBuilder};

/// `y = gamma (x - mean) / sqrt(var + eps) + beta` over the last dimension, of `width` values, with
/// the biased variance, as in PyTorch. Parameters: `weight`, `bias`.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// gamma 1, beta 0.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        use candle_nn::init::{ONE, ZERO};
        Ok(Self {
            weight: vb.get_with_hints(width, "weight", ONE)?,
            bias: vb.get_with_hints(width, "bias", ZERO)?,
            eps,
        })
    }
}

impl Layer for LayerNorm {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(var + self.eps)?.sqrt()?)?;
        let scaled = normed.broadcast_mul(&self.weight)?;
        Ok(scaled.broadcast_add(&self.bias)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::{Rng, Run};

    use super::*;
    use crate::Params;

    /// In plain numbers, with gamma 2 and beta -1.
    #[test]
    fn normalises_the_last_dimension() -> Result<()> {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let norm = LayerNorm::new(5, 1e-6, params.live())?;
        for (path, var) in params.all() {
            let to = if path == "weight" { 2.0 } else { -1.0 };
            var.set(&var.ones_like()?.affine(to, 0.0)?)?;
        }
        let values = Rng::new(1).normal("x", 0, 30);
        let x = Tensor::from_vec(values, (2, 3, 5), &Device::Cpu)?.to_dtype(DType::F64)?;
        let run = Run::new(0, &Device::Cpu);
        let y = norm
            .forward(&x, &run.eval(&[0, 1]))?
            .flatten_all()?
            .to_vec1::<f64>()?;
        let x = x.flatten_all()?.to_vec1::<f64>()?;
        for (x, y) in x.chunks(5).zip(y.chunks(5)) {
            let mean = x.iter().sum::<f64>() / 5.0;
            let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5.0;
            for (x, y) in x.iter().zip(y) {
                let expected = 2.0 * (x - mean) / (var + 1e-6).sqrt() - 1.0;
                assert!((y - expected).abs() < 1e-9, "{y} against {expected}");
            }
        }
        Ok(())
    }
}
