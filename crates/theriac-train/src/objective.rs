//! What a batch teaches.

use candle_core::Tensor;
use theriac::{Batch, Model, Pass, Result};
use theriac_nn::{Entry, Saved, Twin};

/// What a batch teaches: the paper's training step up to its loss.
///
/// Anything an objective keeps between batches (carried perturbations, class centres) belongs in
/// [`Objective::state`], so that an interrupted run continues bit for bit.
pub trait Objective<M: Model> {
    /// The scalar loss of a batch on the live network. Adversarial images are crafted on the
    /// frozen one, with `pass.eval()` unless the paper crafts in training mode.
    ///
    /// # Errors
    /// When the model or an attack fails.
    fn loss(&mut self, twin: &Twin<M>, batch: &Batch<M::Target>, pass: &Pass<'_>)
    -> Result<Tensor>;

    /// Called before each epoch, 0 first.
    ///
    /// # Errors
    /// When a reset fails.
    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        let _ = epoch;
        Ok(())
    }

    /// Called after the update that a batch led to, with the same batch and pass.
    ///
    /// # Errors
    /// When the model or an attack fails.
    fn after_update(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let _ = (twin, batch, pass);
        Ok(())
    }

    /// What is kept between batches, for a file.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    fn state(&self) -> Result<Vec<Entry<'_>>> {
        Ok(Vec::new())
    }

    /// Takes up what [`Objective::state`] wrote, found in the file behind `prefix`.
    ///
    /// # Errors
    /// When an entry is missing.
    fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        let _ = (saved, prefix);
        Ok(())
    }
}

impl<M: Model, O: Objective<M> + ?Sized> Objective<M> for Box<O> {
    fn loss(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        (**self).loss(twin, batch, pass)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        (**self).begin_epoch(epoch)
    }

    fn after_update(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<()> {
        (**self).after_update(twin, batch, pass)
    }

    fn state(&self) -> Result<Vec<Entry<'_>>> {
        (**self).state()
    }

    fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        (**self).restore(saved, prefix)
    }
}

/// Ordinary training: the mean loss on clean images.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clean;

impl<M: Model> Objective<M> for Clean {
    fn loss(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        Ok(twin
            .live
            .loss(&batch.pixels, &batch.target, pass)?
            .mean_all()?)
    }
}
