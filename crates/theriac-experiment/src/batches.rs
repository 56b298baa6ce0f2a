//! Images in order, in batches.

use candle_core::DType;
use theriac::{Batch, Error, Labels, Run};
use theriac_data::{Images, Loader, Order, Partial};
use theriac_tables::{BoxError, Interrupted, Lab};

use crate::into_theriac;

/// All images in order, in f32, `size` at a time, until the user stops the run.
///
/// # Errors
/// For batches of no images; each batch fails if it cannot be made, or as [`Interrupted`].
pub fn batches<'a>(
    data: &'a Images,
    size: usize,
    run: &Run,
    lab: &'a Lab,
) -> Result<impl Iterator<Item = theriac::Result<Batch<Labels>>> + use<'a>, BoxError> {
    let loader = Loader::new(data, size, Order::Sequential, Partial::Keep)?;
    let loader = loader.dtype(DType::F32).device(run.device());
    Ok((0..loader.batches()).map(move |batch| {
        if lab.interrupted() {
            return Err(Error::Other(Interrupted.into()));
        }
        let next = loader.epoch_from(0, batch).next();
        let next = next.ok_or(Error::Empty { what: "batch" })?;
        next.map_err(into_theriac)
    }))
}
