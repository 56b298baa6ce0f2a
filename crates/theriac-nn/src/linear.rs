//! Fully connected layer.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_ops::network::Op;

use crate::weights::{Affine, Weights};
use crate::{Form, Init, Layer, VarBuilder};

/// `y = x W^T + b`: weight (out, in) at `weight`, bias (out) at `bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Where weight and bias start.
    pub init: Init,
}

impl Linear {
    /// With a bias and PyTorch's initial values.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs,
            outputs,
            bias: true,
            init: Init::default(),
        }
    }

    /// With other initial values.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    pub(crate) fn layer(&self, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        Ok(Box::new(Dense(Weights::Stored(self.weights(vb)?))))
    }

    /// The layer whose weight and bias are a function of the pass: for weights that are drawn.
    pub fn drawn(
        &self,
        weights: impl Fn(&Pass<'_>) -> Result<Affine> + Send + Sync + 'static,
    ) -> Box<dyn Layer> {
        Box::new(Dense(Weights::Drawn(Box::new(weights))))
    }

    /// The stored weight and bias.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn weights(&self, vb: VarBuilder) -> Result<Affine> {
        let init = self.init.weight(self.inputs, self.outputs);
        let weight = vb.get_with_hints((self.outputs, self.inputs), "weight", init)?;
        let bias = self.init.bias(self.inputs);
        let bias = self
            .bias
            .then(|| vb.get_with_hints(self.outputs, "bias", bias))
            .transpose()?;
        Ok((weight, bias))
    }
}

struct Dense(Weights);

impl Layer for Dense {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (weight, bias) = self.0.of(pass)?;
        Ok(theriac_ops::linear(x, &weight, bias.as_ref())?)
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        let (weight, bias) = self.0.of(pass)?;
        let outputs = weight.dim(0)?;
        let op = Op::Linear { outputs };
        Ok(Some(self.0.form(op, [Some(weight), bias, None, None])))
    }
}
