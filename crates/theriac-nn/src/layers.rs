//! Where a network gets its layers, so that a defence can change them.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_ops::network::Moments;

use crate::{BatchNorm, Conv, Form, LayerNorm, Linear, VarBuilder};

/// One layer of a network.
pub trait Layer: Send + Sync {
    /// Output for an input of shape (N, ...).
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;

    /// The same as data, so that a [`crate::Network`] can run the layer together with others. A
    /// layer that perturbs weights gives the perturbed ones; one that does anything else has none.
    ///
    /// # Errors
    /// When the parameters cannot be had.
    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        Ok(None)
    }

    /// Called after a network ran the layer's form, with what a norm over the batch found.
    ///
    /// # Errors
    /// When running statistics cannot be updated.
    fn observe(&self, _: &Moments, _: &Pass<'_>) -> Result<()> {
        Ok(())
    }
}

/// Where activations may be perturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// After the first convolution.
    Stem,
    /// After a convolution inside a block.
    Conv,
    /// After a block.
    Block,
}

/// Where a network gets its layers. The provided methods are plain; a defence that changes layers
/// overrides one of them and works with every network of the zoo.
pub trait Layers {
    /// A convolution.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    fn conv(&self, spec: &Conv, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        spec.layer(vb)
    }

    /// A fully connected layer.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    fn linear(&self, spec: &Linear, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        spec.layer(vb)
    }

    /// A batch norm.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    fn norm(&self, spec: &BatchNorm, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        spec.layer(vb)
    }

    /// A layer norm over the last dimension.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    fn layer_norm(&self, width: usize, eps: f64, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        Ok(Box::new(LayerNorm::new(width, eps, vb)?))
    }

    /// A place where an activation of shape (C, H, W) may be perturbed: the identity here.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    fn site(&self, _: Site, _: (usize, usize, usize), _: VarBuilder) -> Result<Box<dyn Layer>> {
        Ok(Box::new(Identity))
    }
}

/// Layers as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Layers for Plain {}

struct Identity;

impl Layer for Identity {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        Ok(Some(Form::stored(None, [const { None }; 4])))
    }
}
