//! Images that change from epoch to epoch.

use candle_core::{DType, Tensor};
use theriac::{Pixels, Rng};

use crate::{Error, Result};

/// The usual augmentation of small photographs: a random place in the image padded with black, then
/// its mirror image half of the time.
///
/// What an image becomes is a function of the seed, the epoch and the image's id: neither the size
/// and order of batches nor the number of threads matter. Both are off by default.
///
/// Padding adds `padding` black pixels (0 in [0, 1]) on every side before the cut to the old size, as
/// in PyTorch's `RandomCrop(size, padding)` in front of any normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Pixels on every side; 4 is usual for images of 32 x 32.
    pub padding: usize,
    /// Mirror left and right with probability 1/2.
    pub flip: bool,
}

impl Augment {
    /// Four pixels and mirroring: what papers do with CIFAR.
    pub const CIFAR: Self = Self {
        padding: 4,
        flip: true,
    };

    /// The images (N, C, H, W) with these ids, as they are in an epoch: `rng` must be that of the
    /// epoch.
    ///
    /// # Errors
    /// [`Error::Setting`] unless there is one id for each image, or a candle error.
    pub fn apply(&self, images: &Pixels, samples: &[u32], rng: Rng) -> Result<Pixels> {
        if *self == Self::default() {
            return Ok(images.clone());
        }
        let x = images.tensor();
        let (n, c, h, w) = x.dims4()?;
        if samples.len() != n {
            return Err(Error::Setting {
                name: "samples",
                value: samples.len().to_string(),
                remedy: format!("give one id for each of the {n} images"),
            });
        }
        let moved = match x.dtype() {
            DType::F64 => self.moved(x.flatten_all()?.to_vec1::<f64>()?, [c, h, w], samples, rng),
            _ => {
                let values = x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                let values = values.into_iter().map(f64::from).collect();
                self.moved(values, [c, h, w], samples, rng)
            }
        };
        // Every value is one of the image or 0, exact in f64 and back.
        let moved = Tensor::from_vec(moved, (n, c, h, w), x.device())?.to_dtype(x.dtype())?;
        Ok(Pixels::clamp(&moved)?)
    }

    fn moved(&self, x: Vec<f64>, shape: [usize; 3], samples: &[u32], rng: Rng) -> Vec<f64> {
        let [c, h, w] = shape;
        let mut out = vec![0.0; x.len()];
        let images = x.chunks_exact(c * h * w).zip(samples);
        for ((from, &sample), to) in images.zip(out.chunks_exact_mut(c * h * w)) {
            let (top, left, flip) = self.draw(sample, rng);
            for (from, to) in from.chunks_exact(h * w).zip(to.chunks_exact_mut(h * w)) {
                for y in 0..h {
                    // Row y of the cut is row y + top of the padded image.
                    let Some(row) = (y + top).checked_sub(self.padding).filter(|&row| row < h)
                    else {
                        continue;
                    };
                    for x in 0..w {
                        let at = if flip { w - 1 - x } else { x };
                        let column = (at + left).checked_sub(self.padding);
                        if let Some(column) = column.filter(|&column| column < w) {
                            to[y * w + x] = from[row * w + column];
                        }
                    }
                }
            }
        }
        out
    }

    /// Offsets in the padded image, and whether to mirror.
    fn draw(&self, sample: u32, rng: Rng) -> (usize, usize, bool) {
        let below = |purpose, bound| rng.below(purpose, u64::from(sample), bound);
        let places = 2 * self.padding as u32 + 1;
        let (top, left) = (below("crop row", places), below("crop column", places));
        let flip = self.flip && below("flip", 2) == 1;
        (top as usize, left as usize, flip)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn images(n: usize, dtype: DType) -> Pixels {
        let values: Vec<f32> = (0..n * 2 * 4 * 5)
            .map(|i| (1 + i % 97) as f32 / 100.0)
            .collect();
        let x = Tensor::from_vec(values, (n, 2, 4, 5), &Device::Cpu).unwrap();
        Pixels::new(x.to_dtype(dtype).unwrap()).unwrap()
    }

    fn values(x: &Pixels) -> Vec<f64> {
        let x = x.tensor().to_dtype(DType::F64).unwrap();
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn an_image_moves_alone_as_it_does_in_a_batch() {
        for dtype in [DType::F32, DType::F64] {
            let (augment, rng) = (Augment::CIFAR, Rng::new(3).at(7));
            let together = augment.apply(&images(3, dtype), &[5, 9, 2], rng).unwrap();
            let one = images(3, dtype).narrow(1, 1).unwrap();
            let alone = augment.apply(&one, &[9], rng).unwrap();
            assert_eq!(values(&together)[40..80], values(&alone));
            let other = augment.apply(&one, &[9], Rng::new(3).at(8)).unwrap();
            assert_ne!(values(&alone), values(&other), "another epoch, same image");
        }
    }

    /// Against padding, cutting and mirroring by tensor operations.
    #[test]
    fn a_place_of_the_padded_image_and_its_mirror() {
        let (augment, rng) = (
            Augment {
                padding: 2,
                flip: true,
            },
            Rng::new(1),
        );
        let (mut flips, mut places) = (0, std::collections::BTreeSet::new());
        for sample in 0..200 {
            let x = images(1, DType::F32);
            let (top, left, flip) = augment.draw(sample, rng);
            places.insert((top, left));
            flips += usize::from(flip);
            let padded = x.tensor().pad_with_zeros(2, 2, 2).unwrap();
            let padded = padded.pad_with_zeros(3, 2, 2).unwrap();
            let cut = padded
                .narrow(2, top, 4)
                .unwrap()
                .narrow(3, left, 5)
                .unwrap();
            let mirror = Tensor::new(&[4u32, 3, 2, 1, 0], &Device::Cpu).unwrap();
            let cut = match flip {
                true => cut.contiguous().unwrap().index_select(&mirror, 3).unwrap(),
                false => cut,
            };
            let moved = augment.apply(&x, &[sample], rng).unwrap();
            assert_eq!(values(&moved), values(&Pixels::new(cut).unwrap()));
        }
        assert_eq!(places.len(), 25);
        assert!((80..120).contains(&flips), "{flips}");
    }

    #[test]
    fn nothing_asked_nothing_done() {
        let x = images(2, DType::F32);
        let same = Augment::default().apply(&x, &[], Rng::new(0)).unwrap();
        assert_eq!(values(&same), values(&x));
        let error = Augment::CIFAR.apply(&x, &[1], Rng::new(0)).unwrap_err();
        assert!(
            error.to_string().contains("each of the 2 images"),
            "{error}"
        );
    }
}
