//! Convolution.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_ops::network::Op;
use theriac_ops::{ConvConfig, conv2d};

use crate::weights::{Affine, Weights};
use crate::{Form, Init, Layer, VarBuilder};

/// A square 2-d convolution: weight (out, in / groups, k, k) at `weight`, bias (out) at `bias`.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride, padding, dilation and groups.
    pub config: ConvConfig,
    /// Whether there is a bias.
    pub bias: bool,
    /// Where weight and bias start.
    pub init: Init,
}

impl Conv {
    /// Stride 1, no padding, with a bias, PyTorch's initial values.
    pub fn new(inputs: usize, outputs: usize, kernel: usize) -> Self {
        let config = ConvConfig::default();
        Self {
            inputs,
            outputs,
            kernel,
            config,
            bias: true,
            init: Init::default(),
        }
    }

    /// With another stride.
    pub fn stride(mut self, stride: usize) -> Self {
        self.config.stride = stride;
        self
    }

    /// With zeros around the image.
    pub fn padding(mut self, padding: usize) -> Self {
        self.config.padding = padding;
        self
    }

    /// Without a bias.
    pub fn no_bias(mut self) -> Self {
        self.bias = false;
        self
    }

    /// With other initial values.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    pub(crate) fn layer(&self, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        Ok(self.over(Weights::Stored(self.weights(vb)?)))
    }

    /// The layer whose weight and bias are a function of the pass: for weights that are drawn.
    pub fn drawn(
        &self,
        weights: impl Fn(&Pass<'_>) -> Result<Affine> + Send + Sync + 'static,
    ) -> Box<dyn Layer> {
        self.over(Weights::Drawn(Box::new(weights)))
    }

    fn over(&self, weights: Weights) -> Box<dyn Layer> {
        let config = self.config;
        Box::new(Convolution { weights, config })
    }

    /// The stored weight and bias.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn weights(&self, vb: VarBuilder) -> Result<Affine> {
        let area = self.kernel * self.kernel;
        let fan_in = self.inputs / self.config.groups * area;
        let fan_out = self.outputs / self.config.groups * area;
        let shape = (
            self.outputs,
            self.inputs / self.config.groups,
            self.kernel,
            self.kernel,
        );
        let weight = vb.get_with_hints(shape, "weight", self.init.weight(fan_in, fan_out))?;
        let bias = self.init.bias(fan_in);
        let bias = self
            .bias
            .then(|| vb.get_with_hints(self.outputs, "bias", bias))
            .transpose()?;
        Ok((weight, bias))
    }
}

struct Convolution {
    weights: Weights,
    config: ConvConfig,
}

impl Layer for Convolution {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (weight, bias) = self.weights.of(pass)?;
        Ok(conv2d(x, &weight, bias.as_ref(), self.config)?)
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        let ConvConfig {
            stride,
            padding,
            dilation,
            groups,
        } = self.config;
        if groups != 1 {
            return Ok(None);
        }
        let (weight, bias) = self.weights.of(pass)?;
        let (outputs, _, height, width) = weight.dims4()?;
        let op = Op::Conv {
            outputs,
            kernel: (height, width),
            stride,
            padding,
            dilation,
        };
        Ok(Some(
            self.weights.form(op, [Some(weight), bias, None, None]),
        ))
    }
}
