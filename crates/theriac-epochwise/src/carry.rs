//! The adversarial version of every training image, between epochs.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use theriac::{BoxError, Error, Pixels, Result};
use theriac_nn::{Entry, Saved};

/// How carried images are kept in host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// The image as it is, 4 bytes a value.
    #[default]
    F32,
    /// The perturbation, rounded to 255 levels between -eps and eps: 1 byte a value.
    U8,
}

/// One image a sample id, first the clean one. Ids are small whole numbers: memory is reserved up
/// to the largest seen.
#[derive(Clone, Debug)]
pub struct Carry {
    kept: Kept,
    eps: f32,
    seen: Vec<u8>,
    each: usize,
    expected: usize,
}

#[derive(Clone, Debug)]
enum Kept {
    F32(Vec<f32>),
    U8(Vec<u8>),
}

impl Carry {
    /// Nothing carried yet; `eps` bounds the perturbations that a [`Store::U8`] can hold.
    pub fn new(store: Store, eps: f64) -> Self {
        let kept = match store {
            Store::F32 => Kept::F32(Vec::new()),
            Store::U8 => Kept::U8(Vec::new()),
        };
        Self {
            kept,
            eps: eps as f32,
            seen: Vec::new(),
            each: 0,
            expected: 0,
        }
    }

    /// Announces ids 0..images, so that memory is taken once: growing holds old and new images
    /// side by side for a moment.
    pub fn expect(&mut self, images: usize) {
        self.expected = images;
    }

    /// Forgets everything: the next look-up of each image gives its clean version.
    pub fn reset(&mut self) {
        self.seen.fill(0);
    }

    /// Whether anything has been carried for this image since the last reset.
    pub fn has(&self, sample: u32) -> bool {
        self.seen.get(sample as usize) == Some(&1)
    }

    /// The current version of each image of a batch; clean where none is carried.
    ///
    /// # Errors
    /// [`Error::Samples`] when the ids are not one for each image.
    pub fn get(&self, samples: &[u32], clean: &Pixels) -> Result<Pixels> {
        check(samples, clean)?;
        let mut values = host(clean)?;
        for (image, &sample) in values.chunks_exact_mut(self.each.max(1)).zip(samples) {
            if !self.has(sample) {
                continue;
            }
            let at = sample as usize * self.each;
            match &self.kept {
                Kept::F32(kept) => image.copy_from_slice(&kept[at..at + self.each]),
                Kept::U8(kept) => {
                    for (value, level) in image.iter_mut().zip(&kept[at..at + self.each]) {
                        *value += (f32::from(*level) - 127.0) / 127.0 * self.eps;
                    }
                }
            }
        }
        let x = clean.tensor();
        Pixels::clamp(&Tensor::from_vec(values, x.shape(), x.device())?.to_dtype(x.dtype())?)
    }

    /// Keeps the new version of each image of a batch.
    ///
    /// # Errors
    /// [`Error::Samples`] when the ids are not one for each image, [`Error::Shape`] when the
    /// images are not as large as those carried before.
    pub fn put(&mut self, samples: &[u32], moved: &Pixels, clean: &Pixels) -> Result<()> {
        check(samples, moved)?;
        let values = host(moved)?;
        let each = values.len() / samples.len();
        if self.each == 0 {
            self.each = each;
        }
        if self.each != each {
            let got = moved.tensor().dims().to_vec();
            let expected = format!("images of {} values, as carried before", self.each);
            return Err(Error::Shape {
                what: "carried images",
                got,
                expected,
            });
        }
        self.reserve(samples);
        let clean = host(clean)?;
        for (i, &sample) in samples.iter().enumerate() {
            let (from, at) = (i * each, sample as usize * each);
            let image = &values[from..from + each];
            match &mut self.kept {
                Kept::F32(kept) => kept[at..at + each].copy_from_slice(image),
                Kept::U8(kept) => {
                    let deltas = image
                        .iter()
                        .zip(&clean[from..from + each])
                        .map(|(m, c)| m - c);
                    for (level, delta) in kept[at..at + each].iter_mut().zip(deltas) {
                        *level = (delta / self.eps * 127.0 + 127.0).round().clamp(0.0, 254.0) as u8;
                    }
                }
            }
            self.seen[sample as usize] = 1;
        }
        Ok(())
    }

    fn reserve(&mut self, samples: &[u32]) {
        let images = samples
            .iter()
            .max()
            .map_or(0, |&largest| largest as usize + 1);
        if images <= self.seen.len() {
            return;
        }
        let images = images.max(self.expected);
        self.seen.resize(images, 0);
        let values = images * self.each;
        match &mut self.kept {
            Kept::F32(kept) => {
                kept.reserve_exact(values - kept.len());
                kept.resize(values, 0.0);
            }
            Kept::U8(kept) => {
                kept.reserve_exact(values - kept.len());
                kept.resize(values, 0);
            }
        }
    }

    /// For a file, without a copy of the images.
    pub(crate) fn state(&self) -> Vec<Entry<'_>> {
        let shape = [self.seen.len(), self.each];
        let images = match &self.kept {
            Kept::F32(kept) => Entry::f32("carry.images", &shape, kept),
            Kept::U8(kept) => Entry::u8("carry.images", &shape, kept),
        };
        vec![images, Entry::u8("carry.seen", &shape[..1], &self.seen)]
    }

    pub(crate) fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        let name = format!("{prefix}carry.images");
        let shape = saved.shape(&name).unwrap_or_default();
        let &[images, each] = shape else {
            let text = format!("{}: no carried images; delete it", saved.path().display());
            return Err(BoxError::from(text).into());
        };
        let seen = saved.u8(&format!("{prefix}carry.seen"))?;
        if seen.len() != images {
            let text = format!(
                "{}: {images} images, {} marks",
                saved.path().display(),
                seen.len()
            );
            return Err(BoxError::from(text).into());
        }
        match &mut self.kept {
            Kept::F32(kept) => *kept = saved.f32(&name)?,
            Kept::U8(kept) => *kept = saved.u8(&name)?,
        }
        (self.each, self.seen) = (each, seen);
        Ok(())
    }
}

fn check(samples: &[u32], images: &Pixels) -> Result<()> {
    let (samples, images) = (samples.len(), images.len());
    if samples == images {
        Ok(())
    } else {
        Err(Error::Samples { samples, images })
    }
}

fn host(pixels: &Pixels) -> Result<Vec<f32>> {
    Ok(pixels
        .tensor()
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn images(values: &[f32]) -> Pixels {
        let shape = (values.len() / 2, 1, 1, 2);
        Pixels::new(Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn values(pixels: &Pixels) -> Vec<f32> {
        host(pixels).unwrap()
    }

    #[test]
    fn images_are_found_by_id_in_any_order() -> Result<()> {
        let clean = images(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        let moved = images(&[0.2, 0.1, 0.4, 0.3, 0.6, 0.5]);
        let mut carry = Carry::new(Store::F32, 0.1);
        assert_eq!(values(&carry.get(&[4, 0, 2], &clean)?), values(&clean));
        carry.put(&[4, 0, 2], &moved, &clean)?;
        let got = carry.get(&[2, 9, 0], &images(&[0.5, 0.6, 0.9, 0.9, 0.3, 0.4]))?;
        assert_eq!(values(&got), [0.6, 0.5, 0.9, 0.9, 0.4, 0.3]);
        carry.reset();
        assert_eq!(values(&carry.get(&[4, 0, 2], &clean)?), values(&clean));
        assert!(carry.get(&[1], &clean).is_err());
        Ok(())
    }

    #[test]
    fn a_byte_holds_a_perturbation_to_half_a_level() -> Result<()> {
        let clean = images(&[0.1, 0.2, 0.3, 0.4]);
        let moved = images(&[0.13, 0.1, 0.2, 0.5]);
        let mut carry = Carry::new(Store::U8, 0.1);
        carry.put(&[0, 1], &moved, &clean)?;
        let got = values(&carry.get(&[0, 1], &clean)?);
        let half = 0.1 / 127.0 / 2.0 + 1e-6;
        assert!(
            got.iter()
                .zip(values(&moved))
                .all(|(a, b)| (a - b).abs() <= half),
            "{got:?}"
        );
        Ok(())
    }
}
