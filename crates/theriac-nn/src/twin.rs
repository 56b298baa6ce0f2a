//! The same network twice over one storage.

use theriac::Result;

use crate::{Params, VarBuilder};

/// One network to train and one to attack, over the same parameters.
///
/// The frozen one holds detached views: it follows every optimiser step, and crafting with it
/// computes no gradient for any weight.
#[derive(Debug)]
pub struct Twin<M> {
    /// Built from the variables.
    pub live: M,
    /// Built from detached views of them.
    pub frozen: M,
    /// The parameters of both.
    pub params: Params,
}

impl<M> Twin<M> {
    /// Calls a network's constructor twice.
    ///
    /// # Errors
    /// Those of the constructor.
    pub fn build(params: &Params, make: impl Fn(VarBuilder) -> Result<M>) -> Result<Self> {
        let (live, frozen) = (make(params.live())?, make(params.frozen())?);
        Ok(Self {
            live,
            frozen,
            params: params.clone(),
        })
    }
}
