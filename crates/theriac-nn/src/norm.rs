//! Batch norm.

use candle_core::{Tensor, Var};
use theriac::{Error, Mode, Pass, Result};
use theriac_ops::network::{Moments, Op};
use theriac_ops::{batch_norm_eval, batch_norm_train};

use crate::weights::{Affine, Weights};
use crate::{Form, Layer, VarBuilder};

/// A batch norm over each channel of (N, C, H, W): `y = gamma (x - mean) / sqrt(var + eps) + beta`.
///
/// In training mode mean and biased variance are those of the batch, and the running statistics
/// move by `running <- (1 - m) running + m batch` with the unbiased variance, as in PyTorch. In
/// evaluation mode they are the running ones. Parameters: `weight`, `bias`, `running_mean`,
/// `running_var`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Channels.
    pub channels: usize,
    /// m, the batch's part in the running statistics; TensorFlow's momentum is 1 - m.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
}

impl BatchNorm {
    /// PyTorch's defaults: momentum 0.1, eps 1e-5.
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            momentum: 0.1,
            eps: 1e-5,
        }
    }

    /// With another momentum.
    pub fn momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// With another eps.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    pub(crate) fn layer(&self, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        self.over(Weights::Stored(self.weights(vb.clone())?), vb)
    }

    /// The layer whose gamma and beta are a function of the pass: for those that are drawn.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn drawn(
        &self,
        vb: VarBuilder,
        weights: impl Fn(&Pass<'_>) -> Result<Affine> + Send + Sync + 'static,
    ) -> Result<Box<dyn Layer>> {
        self.over(Weights::Drawn(Box::new(weights)), vb)
    }

    /// The stored gamma and beta.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn weights(&self, vb: VarBuilder) -> Result<Affine> {
        let weight = vb.get_with_hints(self.channels, "weight", candle_nn::init::ONE)?;
        let bias = vb.get_with_hints(self.channels, "bias", candle_nn::init::ZERO)?;
        Ok((weight, Some(bias)))
    }

    fn over(&self, weights: Weights, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        use candle_nn::init::{ONE, ZERO};
        let statistic =
            |name, start| Var::from_tensor(&vb.get_with_hints(self.channels, name, start)?);
        Ok(Box::new(Normalisation {
            weights,
            running_mean: statistic("running_mean", ZERO)?,
            running_var: statistic("running_var", ONE)?,
            momentum: self.momentum,
            eps: self.eps,
        }))
    }
}

struct Normalisation {
    weights: Weights,
    running_mean: Var,
    running_var: Var,
    momentum: f64,
    eps: f64,
}

impl Normalisation {
    /// Gamma and beta in this pass.
    fn affine(&self, pass: &Pass<'_>) -> Result<(Tensor, Tensor)> {
        let (weight, bias) = self.weights.of(pass)?;
        let bias = match bias {
            Some(bias) => bias,
            None => weight.zeros_like()?,
        };
        Ok((weight, bias))
    }
}

impl Layer for Normalisation {
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
        let (weight, bias) = self.affine(pass)?;
        match pass.mode {
            Mode::Eval => {
                let (mean, var) = (self.running_mean.detach(), self.running_var.detach());
                Ok(batch_norm_eval(x, &weight, &bias, &mean, &var, self.eps)?)
            }
            Mode::Train => {
                let (y, mean, var) = batch_norm_train(x, &weight, &bias, self.eps)?;
                self.observe(&Moments { mean, var }, pass)?;
                Ok(y)
            }
        }
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        // `forward` refuses other banks.
        if pass.bank.0 != 0 {
            return Ok(None);
        }
        let (weight, bias) = self.affine(pass)?;
        let eps = self.eps;
        let (op, statistics) = match pass.mode {
            Mode::Train => (Op::BatchNorm { eps }, [None, None]),
            Mode::Eval => {
                let statistics = [&self.running_mean, &self.running_var];
                (Op::Norm { eps }, statistics.map(|var| Some(var.detach())))
            }
        };
        let [mean, var] = statistics;
        let parameters = [Some(weight), Some(bias), mean, var];
        Ok(Some(self.weights.form(op, parameters)))
    }

    fn observe(&self, batch: &Moments, _: &Pass<'_>) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::{Bank, Run};

    use super::*;
    use crate::{Conv, Layers, Network, Params, Plain};

    const DTYPES: [DType; 2] = [DType::F32, DType::F64];

    type Forward = fn(&Network, &Tensor, &Pass<'_>) -> Result<Tensor>;

    /// In f32 as one operation with the convolution in front, and as an operation of its own.
    const WAYS: [Forward; 2] = [Network::forward, Network::step_by_step];

    /// A norm over two channels, gamma (2, 3) and beta (1, -1), behind a convolution that is the
    /// identity.
    fn network(dtype: DType, frozen: bool) -> Result<(Params, Network)> {
        let params = Params::new(0, dtype, &Device::Cpu);
        let vb = match frozen {
            true => params.frozen(),
            false => params.live(),
        };
        let mut net = Network::new(2);
        let conv = Conv::new(2, 2, 1).no_bias();
        let h = net.layer(net.image(), Plain.conv(&conv, vb.pp("conv"))?);
        net.layer(h, Plain.norm(&BatchNorm::new(2), vb.pp("norm"))?);
        set(&params, "conv.weight", &[1.0, 0.0, 0.0, 1.0])?;
        set(&params, "norm.weight", &[2.0, 3.0])?;
        set(&params, "norm.bias", &[1.0, -1.0])?;
        Ok((params, net))
    }

    fn set(params: &Params, path: &str, to: &[f64]) -> Result<()> {
        let (_, var) = params.all().into_iter().find(|(p, _)| p == path).unwrap();
        let to = Tensor::new(to, &Device::Cpu)?.to_dtype(var.dtype())?;
        Ok(var.set(&to.reshape(var.shape())?)?)
    }

    /// Running mean and variance.
    fn statistics(params: &Params) -> Result<Vec<f64>> {
        let all = params.all().into_iter();
        let running = all.filter(|(path, _)| path.contains("running"));
        let each = running
            .map(|(_, var)| values(&var))
            .collect::<Result<Vec<_>>>();
        Ok(each?.concat())
    }

    fn values(t: &Tensor) -> Result<Vec<f64>> {
        Ok(t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
    }

    /// Two images of 1 x 2: 0, 1, 2, 3 in one channel, 4, 4, 8, 8 in the other.
    fn images(dtype: DType) -> Result<Tensor> {
        let values = [0f64, 1.0, 4.0, 4.0, 2.0, 3.0, 8.0, 8.0];
        Ok(Tensor::from_slice(&values, (2, 2, 1, 2), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn assert_close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 2e-6, "{actual:?} against {expected:?}");
        }
    }

    /// The equations of `torch.nn.BatchNorm2d`: the biased variance normalises, the unbiased one
    /// moves the running average, momentum 0.1.
    #[test]
    fn training_normalises_by_the_batch_and_moves_the_running_statistics() -> Result<()> {
        // Mean 1.5 and 6, biased variance 5 / 4 and 4, unbiased 5 / 3 and 16 / 3.
        let z = [[-1.5, -0.5, 0.5, 1.5].map(|d| d / 1.25001f64.sqrt()), {
            let z = 2.0 / 4.00001f64.sqrt();
            [-z, -z, z, z]
        }];
        let at = |c: usize, i: usize| [2.0, 3.0][c] * z[c][i] + [1.0, -1.0][c];
        let expected = [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
            (0, 2),
            (0, 3),
            (1, 2),
            (1, 3),
        ];
        let expected = expected.map(|(c, i)| at(c, i));
        let once = |kept: f64, batch: f64| 0.9 * kept + 0.1 * batch;
        for (dtype, forward, frozen) in DTYPES
            .into_iter()
            .flat_map(|dtype| WAYS.map(|way| (dtype, way)))
            .flat_map(|(dtype, way)| [true, false].map(|frozen| (dtype, way, frozen)))
        {
            let (params, net) = network(dtype, frozen)?;
            let (x, run) = (images(dtype)?, Run::new(0, &Device::Cpu));
            let mut running = [0.0, 0.0, 1.0, 1.0];
            for _ in 0..3 {
                let y = forward(&net, &x, &run.train(&[0, 1]))?;
                assert_close(&values(&y)?, &expected);
                let batch = [1.5, 6.0, 5.0 / 3.0, 16.0 / 3.0];
                running = std::array::from_fn(|i| once(running[i], batch[i]));
                assert_close(&statistics(&params)?, &running);
            }
        }
        Ok(())
    }

    #[test]
    fn evaluation_normalises_by_the_running_statistics_and_leaves_them() -> Result<()> {
        for (dtype, forward) in DTYPES
            .into_iter()
            .flat_map(|dtype| WAYS.map(|way| (dtype, way)))
        {
            let (params, net) = network(dtype, false)?;
            set(&params, "norm.running_mean", &[0.5, -2.0])?;
            set(&params, "norm.running_var", &[4.0, 0.25])?;
            let before = statistics(&params)?;
            let (x, run) = (images(dtype)?, Run::new(0, &Device::Cpu));
            let first = |x: f64| 2.0 * (x - 0.5) / 4.00001f64.sqrt() + 1.0;
            let second = |x: f64| 3.0 * (x + 2.0) / 0.25001f64.sqrt() - 1.0;
            let mut expected = values(&x)?;
            for image in expected.chunks_exact_mut(4) {
                image[..2].iter_mut().for_each(|x| *x = first(*x));
                image[2..].iter_mut().for_each(|x| *x = second(*x));
            }
            // Within 2e-6 of values up to 60: relative here.
            let y = values(&forward(&net, &x, &run.train(&[0, 1]).eval())?)?;
            let relative: Vec<f64> = y.iter().zip(&expected).map(|(y, e)| y / e).collect();
            assert_close(&relative, &[1.0; 8]);
            assert_eq!(statistics(&params)?, before);
        }
        Ok(())
    }

    #[test]
    fn one_value_a_channel_has_no_variance() -> Result<()> {
        for (dtype, forward) in DTYPES
            .into_iter()
            .flat_map(|dtype| WAYS.map(|way| (dtype, way)))
        {
            let (params, net) = network(dtype, false)?;
            let before = statistics(&params)?;
            let x = Tensor::ones((1, 2, 1, 1), dtype, &Device::Cpu)?;
            let run = Run::new(0, &Device::Cpu);
            let text = forward(&net, &x, &run.train(&[0])).unwrap_err().to_string();
            assert!(text.contains("channel") && text.contains("norm"), "{text}");
            assert_eq!(statistics(&params)?, before);
            // Two images, or evaluation, have one.
            forward(&net, &x, &run.eval(&[0]))?;
            forward(&net, &Tensor::cat(&[&x, &x], 0)?, &run.train(&[0, 1]))?;
        }
        Ok(())
    }

    #[test]
    fn another_bank_is_refused() -> Result<()> {
        for forward in WAYS {
            let (_, net) = network(DType::F32, false)?;
            let run = Run::new(0, &Device::Cpu);
            let pass = Pass {
                bank: Bank(1),
                ..run.eval(&[0, 1])
            };
            let text = forward(&net, &images(DType::F32)?, &pass)
                .unwrap_err()
                .to_string();
            assert!(text.contains("bank"), "{text}");
        }
        Ok(())
    }
}
