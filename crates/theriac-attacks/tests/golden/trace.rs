//! A watcher that remembers.

use std::sync::Mutex;

use candle_core::Tensor;
use theriac::{Iterate, Result, Watch};

use crate::reference::Reference;

/// The iterates of an attack on one batch, in their order.
pub(crate) struct Trace {
    /// Number of iterates to remember.
    limit: usize,
    seen: Mutex<Vec<Seen>>,
}

struct Seen {
    samples: Vec<u32>,
    images: Tensor,
    values: Vec<f64>,
    fooled: Vec<bool>,
}

impl Watch for Trace {
    fn see(&self, iterate: &Iterate<'_>) -> Result<()> {
        let mut seen = self.seen.lock().unwrap();
        if seen.len() < self.limit {
            seen.push(Seen {
                samples: iterate.samples.to_vec(),
                images: iterate.images.tensor().clone(),
                values: iterate.values.to_vec(),
                fooled: iterate.fooled.unwrap().to_vec(),
            });
        }
        Ok(())
    }
}

impl Trace {
    /// Remembers the first iterates.
    pub(crate) fn first(limit: usize) -> Self {
        let seen = Mutex::default();
        Self { limit, seen }
    }

    pub(crate) fn whole() -> Self {
        Self::first(usize::MAX)
    }

    /// The iterates from number `first` on, as many and of as many images as the reference has.
    pub(crate) fn iterates(&self, reference: &Reference, first: usize) -> Result<Option<Tensor>> {
        let Some(trajectory) = reference.find("traj") else {
            return Ok(None);
        };
        let (iterates, images) = (trajectory.dims()[0], trajectory.dims()[1]);
        let seen = self.seen.lock().unwrap();
        let of_sample = |seen: &Seen, sample: u32| {
            let at = seen.samples.iter().position(|s| *s == sample);
            seen.images
                .get(at.unwrap_or_else(|| panic!("image {sample} has left")))
        };
        let of_all = |seen: &Seen| {
            let samples = reference.batch.samples[..images].iter();
            let rows = samples.map(|&sample| of_sample(seen, sample));
            Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let rows = seen[first..first + iterates].iter().map(of_all);
        let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Some(Tensor::stack(&rows, 0)?))
    }

    /// Whether any iterate fooled the model, for a batch that nobody left.
    pub(crate) fn ever_fooled(&self) -> Vec<bool> {
        let seen = self.seen.lock().unwrap();
        let any = |i: usize| seen.iter().any(|seen| seen.fooled[i]);
        (0..seen[0].fooled.len()).map(any).collect()
    }

    /// The largest value of each image and the iterate that had it first, for a batch that nobody
    /// left.
    pub(crate) fn best(&self) -> Result<(Vec<f64>, Tensor)> {
        let seen = self.seen.lock().unwrap();
        let mut best = seen[0].values.clone();
        let mut at = vec![0; best.len()];
        for (k, seen) in seen.iter().enumerate() {
            for i in 0..best.len() {
                if seen.values[i] > best[i] {
                    (best[i], at[i]) = (seen.values[i], k);
                }
            }
        }
        let images = at.iter().enumerate().map(|(i, &k)| seen[k].images.get(i));
        let images = images.collect::<candle_core::Result<Vec<_>>>()?;
        Ok((best, Tensor::stack(&images, 0)?))
    }
}
