//! The sensitivity of a convolution, and how it is held.

use candle_core::{DType, Tensor, Var};
use theriac::{Batch, Model, Pass, Result};
use theriac_nn::{Entry, Params, Saved, Twin};
use theriac_train::Objective;

use crate::PixelDp;

/// An objective whose network's first convolution has a sensitivity of 1 at most, made by
/// [`PixelDp::objective`].
///
/// ```text
/// after each update, V = ceil(k / stride) W as a matrix (outputs, inputs k^2):
/// V <- (1 + b) V - b V V^T V     some times, which leads all singular values to 1
/// V <- V / max(1, |V|_2)
/// ```
///
/// The first is the projection of Parseval networks (Cisse et al. 2017), as in the authors' code.
/// The second is ours: the certificate needs the bound, and steps only come near it.
#[derive(Debug)]
pub struct Bounded<O> {
    method: PixelDp,
    objective: O,
    weight: Var,
}

impl<O> Bounded<O> {
    pub(crate) fn new(method: PixelDp, objective: O, weight: Var) -> Result<Self> {
        let bounded = Self {
            method,
            objective,
            weight,
        };
        bounded.bound()?;
        Ok(bounded)
    }

    fn bound(&self) -> Result<()> {
        let factor = copies(&self.weight, self.method.stride)?;
        let mut v = (matrix(&self.weight)? * factor)?;
        for _ in 0..self.method.parseval_loops {
            let cube = v.matmul(&v.t()?)?.matmul(&v)?;
            let step = self.method.parseval_step;
            v = ((v * (1.0 + step))? - (cube * step)?)?;
        }
        // Rounding to the type of the parameters may add its own error.
        let most = largest_singular_value(&v)?.max(1.0) * (1.0 + 1e-6);
        let w = (v * (1.0 / (most * factor)))?.reshape(self.weight.shape())?;
        Ok(self.weight.set(&w.to_dtype(self.weight.dtype())?)?)
    }
}

impl PixelDp {
    /// A bound of the first convolution's sensitivity: how far its result moves in L2 for pixels that
    /// move by 1. A pixel is in ceil(k / stride)^2 windows at most, so the bound is
    /// ceil(k / stride) |W|_2.
    ///
    /// # Errors
    /// Those of [`PixelDp::first`].
    pub fn sensitivity(&self, params: &Params) -> Result<f64> {
        let weight = self.first(params)?;
        Ok(copies(&weight, self.stride)? * largest_singular_value(&matrix(&weight)?)?)
    }
}

/// ceil(k / stride).
fn copies(weight: &Var, stride: usize) -> Result<f64> {
    let (_, _, height, width) = weight.dims4()?;
    let times = |side: usize| side.div_ceil(stride) as f64;
    Ok((times(height) * times(width)).sqrt())
}

/// (outputs, inputs k^2) in f64.
fn matrix(weight: &Var) -> Result<Tensor> {
    let flat = weight.as_detached_tensor().flatten_from(1)?;
    Ok(flat.to_dtype(DType::F64)?)
}

/// An upper bound of |V|_2 that is at most 0.4 % above it for 256 rows: with A = V V^T,
/// `|A|_2 <= (tr A^q)^(1 / q)`, here for q = 1024.
fn largest_singular_value(v: &Tensor) -> Result<f64> {
    const SQUARINGS: i32 = 10;
    let mut power = v.matmul(&v.t()?)?;
    let mut log = 0.0;
    for i in 0..=SQUARINGS {
        let size = trace(&power)?;
        if size == 0.0 {
            return Ok(0.0);
        }
        // Each power is divided by its trace, whose logarithms add up to that of (tr A^q)^(1 / q).
        log += size.ln() / 2f64.powi(i);
        power = (power * (1.0 / size))?;
        if i < SQUARINGS {
            power = power.matmul(&power)?;
        }
    }
    Ok((0.5 * log).exp())
}

fn trace(square: &Tensor) -> Result<f64> {
    let rows = square.to_vec2::<f64>()?;
    Ok(rows.iter().enumerate().map(|(i, row)| row[i]).sum())
}

impl<M: Model, O: Objective<M>> Objective<M> for Bounded<O> {
    fn loss(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.objective.loss(twin, batch, pass)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.objective.begin_epoch(epoch)
    }

    fn after_update(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<()> {
        self.bound()?;
        self.objective.after_update(twin, batch, pass)
    }

    fn state(&self) -> Result<Vec<Entry<'_>>> {
        self.objective.state()
    }

    fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        self.objective.restore(saved, prefix)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_bound_lies_above_the_largest_singular_value_and_near_it() -> Result<()> {
        // Rotations around a diagonal: singular values 3, 2, 0.
        let rotation = |a: f64| {
            Tensor::new(
                &[
                    [a.cos(), -a.sin(), 0.0],
                    [a.sin(), a.cos(), 0.0],
                    [0.0, 0.0, 1.0],
                ],
                &Device::Cpu,
            )
        };
        let diagonal = Tensor::new(
            &[[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]],
            &Device::Cpu,
        )?;
        let v = rotation(0.7)?.matmul(&diagonal)?.matmul(&rotation(-1.9)?)?;
        let bound = largest_singular_value(&v)?;
        assert!((3.0 - 1e-9..3.001).contains(&bound), "{bound}");
        // Equal singular values are the worst case: 256^(1 / 2048).
        let bound = largest_singular_value(&Tensor::eye(256, DType::F64, &Device::Cpu)?)?;
        assert!((1.0..1.004).contains(&bound), "{bound}");
        assert_eq!(largest_singular_value(&(v * 0.0)?)?, 0.0);
        Ok(())
    }
}
