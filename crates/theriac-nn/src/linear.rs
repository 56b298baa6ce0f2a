//! Fully connected layer.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_ops::network::Op;

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
        let init = self.init.weight(self.inputs, self.outputs);
        let weight = vb.get_with_hints((self.outputs, self.inputs), "weight", init)?;
        let bias = self.init.bias(self.inputs);
        let bias = self
            .bias
            .then(|| vb.get_with_hints(self.outputs, "bias", bias))
            .transpose()?;
        Ok(Box::new(Affine { weight, bias }))
    }
}

struct Affine {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Layer for Affine {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        Ok(theriac_ops::linear(x, &self.weight, self.bias.as_ref())?)
    }

    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        let outputs = self.weight.dim(0)?;
        let parameters = [Some(self.weight.clone()), self.bias.clone(), None, None];
        Ok(Some(Form::stored(Some(Op::Linear { outputs }), parameters)))
    }
}
