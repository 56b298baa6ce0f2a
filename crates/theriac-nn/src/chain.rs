//! Layers in a row as one layer.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_ops::network::Moments;

use crate::{Form, Layer};

/// The first layer, then the next: noise in front of a convolution, or behind it. At most one of
/// them may normalise over the batch.
pub struct Chain(Vec<Box<dyn Layer>>);

impl Chain {
    /// In this order; none is the identity.
    pub fn new(layers: Vec<Box<dyn Layer>>) -> Self {
        Self(layers)
    }
}

impl Layer for Chain {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let mut layers = self.0.iter();
        layers.try_fold(x.clone(), |x, layer| layer.forward(&x, pass))
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        let mut whole = Form::stored(None, [const { None }; 4]);
        for layer in &self.0 {
            match layer.form(pass)? {
                Some(form) => whole = whole.then(form),
                None => return Ok(None),
            }
        }
        Ok(Some(whole))
    }

    fn observe(&self, moments: &Moments, pass: &Pass<'_>) -> Result<()> {
        let mut layers = self.0.iter();
        layers.try_for_each(|layer| layer.observe(moments, pass))
    }
}
