//! Batch norm.

use candle_core::{Tensor, Var};
use theriac::{Error, Mode, Pass, Result};
use theriac_ops::network::{Moments, Op};
use theriac_ops::{batch_norm_eval, batch_norm_train};

use crate::{Form, Layer, VarBuilder};

/// `y = gamma (x - mean) / sqrt(var + eps) + beta` over each channel of (N, C, H, W).
///
/// In training mode mean and biased variance are those of the batch, and the running statistics
/// move by `running <- (1 - m) running + m batch` with the unbiased variance, as in PyTorch. In
/// evaluation mode they are the running ones. Parameters: `weight`, `bias`, `running_mean`,
/// `running_var`.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    momentum: f64,
    eps: f64,
}

impl BatchNorm {
    /// PyTorch's defaults: momentum 0.1, eps 1e-5.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(channels, 0.1, 1e-5, vb)
    }

    /// Another momentum or eps.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn with(channels: usize, momentum: f64, eps: f64, vb: VarBuilder) -> Result<Self> {
        use candle_nn::init::{ONE, ZERO};
        Ok(Self {
            weight: vb.get_with_hints(channels, "weight", ONE)?,
            bias: vb.get_with_hints(channels, "bias", ZERO)?,
            running_mean: Var::from_tensor(&vb.get_with_hints(channels, "running_mean", ZERO)?)?,
            running_var: Var::from_tensor(&vb.get_with_hints(channels, "running_var", ONE)?)?,
            momentum,
            eps,
        })
    }
}

impl Layer for BatchNorm {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        if pass.bank.0 != 0 {
            let value = pass.bank.0.to_string();
            let remedy = "this batch norm has one bank, number 0";
            return Err(Error::Setting {
                name: "bank",
                value,
                remedy,
            });
        }
        match pass.mode {
            Mode::Eval => {
                let (mean, var) = (self.running_mean.detach(), self.running_var.detach());
                Ok(batch_norm_eval(
                    x,
                    &self.weight,
                    &self.bias,
                    &mean,
                    &var,
                    self.eps,
                )?)
            }
            Mode::Train => {
                let (y, mean, var) = batch_norm_train(x, &self.weight, &self.bias, self.eps)?;
                self.observe(&Moments { mean, var })?;
                Ok(y)
            }
        }
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        // `forward` refuses other banks.
        if pass.bank.0 != 0 {
            return Ok(None);
        }
        let (weight, bias) = (Some(self.weight.clone()), Some(self.bias.clone()));
        let eps = self.eps;
        let (op, statistics) = match pass.mode {
            Mode::Train => (Op::BatchNorm { eps }, [None, None]),
            Mode::Eval => {
                let statistics = [&self.running_mean, &self.running_var];
                (Op::Norm { eps }, statistics.map(|var| Some(var.detach())))
            }
        };
        let [mean, var] = statistics;
        Ok(Some(Form::stored(Some(op), [weight, bias, mean, var])))
    }

    fn observe(&self, batch: &Moments) -> Result<()> {
        let pairs = [
            (&self.running_mean, &batch.mean),
            (&self.running_var, &batch.var),
        ];
        for (running, batch) in pairs {
            let kept = running
                .as_tensor()
                .detach()
                .affine(1.0 - self.momentum, 0.0)?;
            running.set(&(kept + (batch * self.momentum)?)?)?;
        }
        Ok(())
    }
}
