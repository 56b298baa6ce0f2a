//! Batches of an epoch, in an order that can be replayed.

use candle_core::{DType, Device};
use theriac::{Batch, Rng};

use crate::{Augment, Dataset, Error, Result};

/// The order of the images of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As in the data set.
    Sequential,
    /// A permutation that is a function of the seed and the epoch.
    Shuffled(Rng),
}

/// What becomes of the last batch when the images do not fill it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial {
    /// It is shorter.
    Keep,
    /// Its images are left out of this epoch.
    Drop,
    /// The first images of the data set (in its own order, not that of the epoch) fill it, so
    /// that those images are seen twice. The published trainers of ATDA do so.
    FillWithFirst,
}

/// Cuts a data set into batches.
#[derive(Debug, Clone)]
pub struct Loader<'d, D: ?Sized> {
    dataset: &'d D,
    size: usize,
    order: Order,
    partial: Partial,
    dtype: DType,
    device: Device,
    augment: Option<(Augment, Rng)>,
}

impl<'d, D: Dataset + ?Sized> Loader<'d, D> {
    /// Batches of `size` images, in f32 on the CPU until told otherwise.
    ///
    /// # Errors
    /// [`Error::Setting`] if `size` is 0, if the data set is empty or has more than 2^32 - 1
    /// images, or if [`Partial::Drop`] would leave no batch.
    pub fn new(dataset: &'d D, size: usize, order: Order, partial: Partial) -> Result<Self> {
        let n = dataset.len();
        let setting = |name, value: usize, remedy: String| {
            Err(Error::Setting {
                name,
                value: value.to_string(),
                remedy,
            })
        };
        if size == 0 {
            return setting("batch size", size, "use at least 1".to_owned());
        }
        if n == 0 || u32::try_from(n).is_err() {
            return setting(
                "images",
                n,
                "use a data set of 1 to 2^32 - 1 images".to_owned(),
            );
        }
        if partial == Partial::Drop && size > n {
            let remedy = format!("dropping the partial batch of {n} images leaves none, use {n}");
            return setting("batch size", size, remedy);
        }
        Ok(Self {
            dataset,
            size,
            order,
            partial,
            dtype: DType::F32,
            device: Device::Cpu,
            augment: None,
        })
    }

    /// Pixels of this type, f32 or f64.
    pub fn dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// Batches on this device.
    pub fn device(self, device: &Device) -> Self {
        Self {
            device: device.clone(),
            ..self
        }
    }

    /// Images that change from epoch to epoch, as functions of the seed.
    pub fn augment(self, augment: Augment, rng: Rng) -> Self {
        Self {
            augment: Some((augment, rng)),
            ..self
        }
    }

    /// Number of batches of an epoch.
    pub fn batches(&self) -> usize {
        match self.partial {
            Partial::Drop => self.dataset.len() / self.size,
            Partial::Keep | Partial::FillWithFirst => self.dataset.len().div_ceil(self.size),
        }
    }

    /// Positions in the data set in the order of epoch `n`, batch after batch: a function of the
    /// seed and of `n`, computed without running the epochs before.
    pub fn indices(&self, n: u64) -> Vec<u32> {
        let len = self.dataset.len() as u32; // checked in `new`
        let mut indices = match &self.order {
            Order::Sequential => (0..len).collect(),
            Order::Shuffled(rng) => rng.permutation("order", n, len),
        };
        match self.partial {
            Partial::Keep => {}
            Partial::Drop => indices.truncate(self.batches() * self.size),
            Partial::FillWithFirst => {
                let missing = self.batches() * self.size - indices.len();
                indices.extend((0..len).cycle().take(missing));
            }
        }
        indices
    }

    /// The batches of epoch `n`.
    pub fn epoch(&self, n: u64) -> impl ExactSizeIterator<Item = Result<Batch<D::Target>>> + '_ {
        self.epoch_from(n, 0)
    }

    /// The batches of epoch `n` from batch `first` on, the same as in the whole epoch; none if
    /// `first` is past the end.
    pub fn epoch_from(
        &self,
        n: u64,
        first: usize,
    ) -> impl ExactSizeIterator<Item = Result<Batch<D::Target>>> + '_ {
        let indices = self.indices(n);
        (first..self.batches().max(first)).map(move |batch| {
            let end = ((batch + 1) * self.size).min(indices.len());
            let indices = &indices[batch * self.size..end];
            let mut batch = self.dataset.batch(indices, self.dtype, &self.device)?;
            if let Some((augment, rng)) = self.augment {
                batch.pixels = augment.apply(&batch.pixels, &batch.samples, rng.at(n))?;
            }
            Ok(batch)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Images;

    fn seven() -> Images {
        Images::new("seven", (0..7).collect(), [0u8; 7], [1, 1, 1], 1).unwrap()
    }

    fn samples<D: Dataset>(loader: &Loader<'_, D>, epoch: u64) -> Vec<Vec<u32>> {
        loader
            .epoch(epoch)
            .map(|batch| batch.unwrap().samples)
            .collect()
    }

    #[test]
    fn partial_batches() {
        let images = seven();
        let with = |partial| Loader::new(&images, 3, Order::Sequential, partial).unwrap();
        let (keep, drop) = (with(Partial::Keep), with(Partial::Drop));
        assert_eq!(samples(&keep, 0), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!(samples(&drop, 0), [[0, 1, 2], [3, 4, 5]]);
        assert_eq!(samples(&with(Partial::FillWithFirst), 0)[2], [6, 0, 1]);
        assert_eq!((keep.epoch(0).len(), drop.batches()), (3, 2));
        let wide = Loader::new(&images, 16, Order::Sequential, Partial::FillWithFirst).unwrap();
        assert_eq!(samples(&wide, 0)[0][7..], [0, 1, 2, 3, 4, 5, 6, 0, 1]);
    }

    #[test]
    fn filling_takes_the_first_of_the_data_set_not_of_the_epoch() {
        let images = seven();
        let order = Order::Shuffled(Rng::new(5));
        let loader = Loader::new(&images, 4, order, Partial::FillWithFirst).unwrap();
        assert_eq!(samples(&loader, 2)[1][3], 0);
    }

    #[test]
    fn order_is_a_function_of_seed_and_epoch() {
        let images = seven();
        let loader =
            |seed| Loader::new(&images, 2, Order::Shuffled(Rng::new(seed)), Partial::Keep).unwrap();
        let one = loader(1);
        let last_first = samples(&one, 9);
        assert_eq!(samples(&one, 3), samples(&loader(1), 3));
        assert_eq!(samples(&one, 9), last_first);
        assert_ne!(one.indices(3), one.indices(4));
        assert_ne!(one.indices(3), loader(2).indices(3));
        let mut all = one.indices(3);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..7));
        // The batch size cuts the order, it does not change it.
        let wide = Loader::new(&images, 5, Order::Shuffled(Rng::new(1)), Partial::Keep).unwrap();
        assert_eq!(wide.indices(3), one.indices(3));
    }

    #[test]
    fn any_position_can_be_replayed() {
        let images = seven();
        let order = Order::Shuffled(Rng::new(1));
        let loader = Loader::new(&images, 2, order, Partial::Keep).unwrap();
        let whole = samples(&loader, 6);
        for first in 0..=4 {
            let rest: Vec<_> = loader
                .epoch_from(6, first)
                .map(|batch| batch.unwrap().samples)
                .collect();
            assert_eq!(rest, whole[first..]);
        }
        assert_eq!(loader.epoch_from(6, 99).len(), 0);
    }

    #[test]
    fn images_change_from_epoch_to_epoch_and_can_be_replayed() {
        let bytes = (0..7 * 12).map(|i| 1 + i).collect();
        let images = Images::new("seven", bytes, [0u8; 7], [1, 3, 4], 1).unwrap();
        let with = |size| {
            let loader = Loader::new(&images, size, Order::Sequential, Partial::Keep).unwrap();
            loader.augment(Augment::CIFAR, Rng::new(2))
        };
        let pixels = |size, epoch| -> Vec<f32> {
            let loader = with(size);
            let batches = loader.epoch(epoch).map(|batch| batch.unwrap().pixels);
            batches
                .flat_map(|x| x.tensor().flatten_all().unwrap().to_vec1().unwrap())
                .collect()
        };
        assert_eq!(pixels(2, 5), pixels(7, 5));
        assert_ne!(pixels(2, 5), pixels(2, 6));
    }

    #[test]
    fn bad_settings_are_named() {
        let images = seven();
        let text = |size, partial| {
            Loader::new(&images, size, Order::Sequential, partial)
                .unwrap_err()
                .to_string()
        };
        assert!(text(0, Partial::Keep).contains("batch size = 0"));
        assert!(text(8, Partial::Drop).contains("leaves none"));
        let loader = Loader::new(&images, 7, Order::Sequential, Partial::Keep).unwrap();
        assert!(loader.dtype(DType::U8).epoch(0).all(|batch| batch.is_err()));
    }
}
