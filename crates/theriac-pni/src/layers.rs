//! Layers with noise on their weights.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_nn::{Conv, Layer, Layers, Linear, VarBuilder};

use crate::Granularity;

/// Last component of the path of an alpha.
pub(crate) const NAME: &str = "alpha";

/// Noise on the weights of every convolution and fully connected layer, of size `alpha`, a parameter
/// beside `weight`. The draw is that of the pass, so all parts of a batch have one.
#[derive(Clone, Copy, Debug)]
pub struct WeightNoise {
    /// Values of alpha.
    pub granularity: Granularity,
    /// Where alpha starts.
    pub init: f64,
}

impl Layers for WeightNoise {
    fn conv(&self, spec: &Conv, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let (weight, bias) = spec.weights(vb.clone())?;
        let noisy = self.noisy(weight, &vb)?;
        Ok(spec.drawn(move |pass| Ok((noisy.draw(pass)?, bias.clone()))))
    }

    fn linear(&self, spec: &Linear, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let (weight, bias) = spec.weights(vb.clone())?;
        let noisy = self.noisy(weight, &vb)?;
        Ok(spec.drawn(move |pass| Ok((noisy.draw(pass)?, bias.clone()))))
    }
}

impl WeightNoise {
    fn noisy(&self, weight: Tensor, vb: &VarBuilder) -> Result<Noisy> {
        let mut shape = weight.dims().to_vec();
        match self.granularity {
            Granularity::Layer => shape.fill(1),
            Granularity::Channel => shape[1..].fill(1),
            Granularity::Element => {}
        }
        let alpha = vb.get_with_hints(shape, NAME, candle_nn::Init::Const(self.init))?;
        Ok(Noisy {
            weight,
            alpha,
            purpose: vb.prefix(),
        })
    }
}

struct Noisy {
    weight: Tensor,
    alpha: Tensor,
    purpose: String,
}

impl Noisy {
    fn draw(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let still = self.weight.detach();
        let std = still.flatten_all()?.var(0)?.sqrt()?;
        let noise = pass.shared_gaussian(&self.purpose, &still)?;
        let noise = noise.broadcast_mul(&std)?.broadcast_mul(&self.alpha)?;
        Ok((&self.weight + noise)?)
    }
}
