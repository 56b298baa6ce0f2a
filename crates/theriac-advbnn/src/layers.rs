//! Layers whose parameters are drawn.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_nn::{Affine, BatchNorm, Conv, Init, Layer, Layers, Linear, VarBuilder};

/// End of the path of a logarithm of a deviation: that of `weight` is `weight_log_std`.
pub(crate) const SUFFIX: &str = "_log_std";

/// A normal posterior of every weight, bias and affine value of a norm:
/// `w = mu + exp(s) n`, n from N(0, 1), drawn once for all images of a pass, in both modes. mu stands
/// where the plain layer has its parameter, s beside it at `weight_log_std` and `bias_log_std`.
///
/// mu starts uniform in 1 / sqrt(fan_in), whatever the network asks for; that of a norm's gamma in
/// [0, 1), of its beta at 0: the authors' code.
#[derive(Clone, Copy, Debug)]
pub struct Posterior {
    /// exp(s) at the start.
    pub init_std: f64,
}

impl Layers for Posterior {
    fn conv(&self, spec: &Conv, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let means = spec.clone().init(Init::Torch).weights(vb.clone())?;
        let drawn = self.drawn(means, &vb)?;
        Ok(spec.drawn(move |pass| drawn.draw(pass)))
    }

    fn linear(&self, spec: &Linear, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let means = spec.clone().init(Init::Torch).weights(vb.clone())?;
        let drawn = self.drawn(means, &vb)?;
        Ok(spec.drawn(move |pass| drawn.draw(pass)))
    }

    fn norm(&self, spec: &BatchNorm, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let unit = candle_nn::Init::Uniform { lo: 0.0, up: 1.0 };
        let weight = vb.get_with_hints(spec.channels, "weight", unit)?;
        let bias = vb.get_with_hints(spec.channels, "bias", candle_nn::init::ZERO)?;
        let drawn = self.drawn((weight, Some(bias)), &vb)?;
        spec.drawn(vb, move |pass| drawn.draw(pass))
    }
}

impl Posterior {
    fn drawn(&self, (weight, bias): Affine, vb: &VarBuilder) -> Result<Drawn> {
        let normal = |mean: Tensor, name: &str| -> Result<Normal> {
            let start = candle_nn::Init::Const(self.init_std.ln());
            let log_std = vb.get_with_hints(mean.dims(), &format!("{name}{SUFFIX}"), start)?;
            let purpose = format!("{}.{name}", vb.prefix());
            Ok(Normal {
                mean,
                log_std,
                purpose,
            })
        };
        Ok(Drawn {
            weight: normal(weight, "weight")?,
            bias: bias.map(|bias| normal(bias, "bias")).transpose()?,
        })
    }
}

struct Drawn {
    weight: Normal,
    bias: Option<Normal>,
}

impl Drawn {
    fn draw(&self, pass: &Pass<'_>) -> Result<Affine> {
        let bias = self.bias.as_ref().map(|bias| bias.draw(pass));
        Ok((self.weight.draw(pass)?, bias.transpose()?))
    }
}

struct Normal {
    mean: Tensor,
    log_std: Tensor,
    purpose: String,
}

impl Normal {
    fn draw(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let noise = pass.shared_gaussian(&self.purpose, &self.mean)?;
        Ok((&self.mean + (self.log_std.exp()? * noise)?)?)
    }
}
