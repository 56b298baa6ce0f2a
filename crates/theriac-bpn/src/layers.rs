//! Fully connected layers with a beneficial bias.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_nn::{Form, Layer, Layers, Linear, Plain, VarBuilder};

use crate::BiasInit;

/// Last component of the path of a beneficial bias.
pub(crate) const NAME: &str = "beneficial";

/// Gives every fully connected layer a beneficial bias, at `beneficial`: in place of its own, or
/// beside it. All other layers are plain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beneficial {
    /// Whether the ordinary bias stays.
    pub keep_bias: bool,
    /// Where the beneficial one starts.
    pub init: BiasInit,
}

impl Layers for Beneficial {
    fn linear(&self, spec: &Linear, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let init = match self.init {
            BiasInit::Zero => candle_nn::init::ZERO,
            BiasInit::Uniform => {
                let up = 1.0 / (spec.inputs as f64).sqrt();
                candle_nn::Init::Uniform { lo: -up, up }
            }
        };
        let beneficial = vb.get_with_hints(spec.outputs, NAME, init)?;
        let spec = Linear {
            bias: self.keep_bias && spec.bias,
            ..spec.clone()
        };
        let plain = Plain.linear(&spec, vb)?;
        Ok(Box::new(Biased { plain, beneficial }))
    }
}

struct Biased {
    plain: Box<dyn Layer>,
    beneficial: Tensor,
}

impl Layer for Biased {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(self
            .plain
            .forward(x, pass)?
            .broadcast_add(&self.beneficial)?)
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        let Some(mut form) = self.plain.form(pass)? else {
            return Ok(None);
        };
        let bias = &mut form.parameters[1];
        match bias.take() {
            None => *bias = Some(self.beneficial.clone()),
            Some(own) => {
                *bias = Some((own + &self.beneficial)?);
                form.stored = false;
            }
        }
        Ok(Some(form))
    }
}
