//! Skeleton, as a training objective.
//!
//! ```text
//! loss = weight * mean L(x, y)
//! ```
//!
//! Cite the paper here, and say where its text and its code disagree.

use candle_core::Tensor;
use theriac::{Batch, Model, Pass, Result};
use theriac_nn::Twin;
use theriac_train::Objective;

/// The loss on clean images, times a weight: the place to begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Skeleton {
    /// Factor of the loss.
    pub weight: f64,
}

impl<M: Model> Objective<M> for Skeleton {
    fn loss(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let clean = twin.live.loss(&batch.pixels, &batch.target, pass)?;
        Ok((clean.mean_all()? * self.weight)?)
    }
}
