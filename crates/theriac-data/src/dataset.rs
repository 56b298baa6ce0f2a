//! What a loader reads from, and images in memory.

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Labels, Pixels};

use crate::{Error, Result};

/// Images with targets, by position.
pub trait Dataset {
    /// What images are scored against.
    type Target;

    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images at `indices`, in that order, as pixels of `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Index`] past the end; [`Error::Batch`] or [`Error::Candle`] if `indices` is empty
    /// or `dtype` is neither f32 nor f64.
    fn batch(&self, indices: &[u32], dtype: DType, device: &Device) -> Result<Batch<Self::Target>>;
}

/// Labelled images in memory: bytes of shape (N, C, H, W), never expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    name: String,
    bytes: Vec<u8>,
    labels: Vec<u32>,
    ids: Vec<u32>,
    shape: [usize; 3],
    classes: usize,
}

impl Images {
    /// From bytes of shape (N, C, H, W), labels of shape (N) and the `shape` [C, H, W]. The id of
    /// an image is its position; see [`Images::with_ids`].
    ///
    /// # Errors
    /// [`Error::Setting`] for no images, an image without pixels or no classes,
    /// [`Error::Counts`] if `bytes` and `labels` do not pair up, [`Error::Label`] for a label
    /// outside `0..classes`.
    pub fn new(
        name: &str,
        bytes: Vec<u8>,
        labels: impl IntoIterator<Item = impl Into<u32>>,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self> {
        let setting = |name, value, remedy: &str| {
            Err(Error::Setting {
                name,
                value,
                remedy: remedy.to_owned(),
            })
        };
        let labels: Vec<u32> = labels.into_iter().map(Into::into).collect();
        let Some(pixels) = volume(shape).filter(|&pixels| pixels > 0) else {
            return setting(
                "shape",
                format!("{shape:?}"),
                "channels, height, width from 1 up",
            );
        };
        if labels.is_empty() {
            return setting(
                "images",
                format!("none in {name}"),
                "read at least one image",
            );
        }
        if classes == 0 {
            return setting("classes", classes.to_string(), "use at least 1");
        }
        let origin = name.to_owned();
        if !bytes.len().is_multiple_of(pixels) || bytes.len() / pixels != labels.len() {
            let (images, entries) = (bytes.len() / pixels, labels.len());
            return Err(Error::Counts {
                origin,
                images,
                entries,
                what: "labels",
            });
        }
        let Ok(n) = u32::try_from(labels.len()) else {
            return setting(
                "images",
                labels.len().to_string(),
                "at most 2^32 - 1 have ids",
            );
        };
        check_labels(name, &labels, classes)?;
        Ok(Self {
            name: origin,
            bytes,
            labels,
            ids: (0..n).collect(),
            shape,
            classes,
        })
    }

    /// Gives each image an id: for a part of a data set, its index in the whole. Ids key random
    /// numbers and carried perturbations, so the same image keeps them in every part.
    ///
    /// # Errors
    /// [`Error::Counts`] unless there is one id an image.
    pub fn with_ids(self, ids: Vec<u32>) -> Result<Self> {
        if ids.len() != self.len() {
            return Err(Error::Counts {
                origin: self.name,
                images: self.labels.len(),
                entries: ids.len(),
                what: "ids",
            });
        }
        Ok(Self { ids, ..self })
    }

    /// The images at `indices`, in that order, with their ids.
    ///
    /// # Errors
    /// [`Error::Index`] past the end, [`Error::Setting`] for no indices.
    pub fn subset(&self, indices: &[u32]) -> Result<Self> {
        let (bytes, labels, ids) = self.gather(indices)?;
        Self::new(&self.name, bytes, labels, self.shape, self.classes)?.with_ids(ids)
    }

    /// The first `n` images.
    ///
    /// # Errors
    /// [`Error::Setting`] if `n` is 0 or more than there are.
    pub fn take(&self, n: usize) -> Result<Self> {
        if n == 0 || n > self.len() {
            return Err(Error::Setting {
                name: "take",
                value: n.to_string(),
                remedy: format!(
                    "{} has {} images, take 1 to that many",
                    self.name,
                    self.len()
                ),
            });
        }
        let bytes = self.bytes[..n * self.pixels()].to_vec();
        Self::new(
            &self.name,
            bytes,
            self.labels[..n].to_vec(),
            self.shape,
            self.classes,
        )?
        .with_ids(self.ids[..n].to_vec())
    }

    /// Name of the data set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pixels as bytes, shape (N, C, H, W).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Class of each image, shape (N).
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Id of each image, shape (N).
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Channels, height, width.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    fn pixels(&self) -> usize {
        self.shape.iter().product()
    }

    fn gather(&self, indices: &[u32]) -> Result<(Vec<u8>, Vec<u32>, Vec<u32>)> {
        let pixels = self.pixels();
        let mut bytes = Vec::with_capacity(indices.len() * pixels);
        let (mut labels, mut ids) = (Vec::new(), Vec::new());
        for &index in indices {
            let i = index as usize;
            let Some(&label) = self.labels.get(i) else {
                return Err(Error::Index {
                    origin: self.name.clone(),
                    index,
                    len: self.len(),
                });
            };
            bytes.extend_from_slice(&self.bytes[i * pixels..(i + 1) * pixels]);
            labels.push(label);
            ids.push(self.ids[i]);
        }
        Ok((bytes, labels, ids))
    }
}

impl Dataset for Images {
    type Target = Labels;

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn batch(&self, indices: &[u32], dtype: DType, device: &Device) -> Result<Batch<Labels>> {
        let (bytes, labels, samples) = self.gather(indices)?;
        let [c, h, w] = self.shape;
        // Bytes cross to the device and widen there: a quarter of the traffic of f32.
        let bytes = Tensor::from_vec(bytes, (indices.len(), c, h, w), device)?;
        let target = Labels::new(&labels, self.classes, device)?;
        Ok(Batch {
            pixels: Pixels::from_bytes(&bytes, dtype)?,
            target,
            samples,
        })
    }
}

/// Number of values of an image.
pub(crate) fn volume(shape: [usize; 3]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
}

pub(crate) fn check_labels<L: Copy + Into<u32>>(
    origin: &str,
    labels: &[L],
    classes: usize,
) -> Result<()> {
    let outside = |label: &L| (*label).into() as usize >= classes;
    match labels.iter().position(outside) {
        None => Ok(()),
        Some(position) => {
            let (origin, label) = (origin.to_owned(), labels[position].into());
            Err(Error::Label {
                origin,
                label,
                position,
                classes,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use theriac_datasets::embedded;

    use super::*;

    fn four() -> Images {
        let bytes = (0..8).map(|i| i * 17).collect();
        Images::new("four", bytes, [0u8, 1, 1, 0], [1, 1, 2], 2).unwrap()
    }

    #[test]
    fn a_batch_has_the_asked_order_exact_pixels_and_ids() {
        let images = four().with_ids(vec![40, 30, 20, 10]).unwrap();
        let batch = images.batch(&[3, 1], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(batch.samples, [10, 30]);
        assert_eq!(batch.target.to_vec().unwrap(), [0, 1]);
        let pixels: Vec<f32> = batch
            .pixels
            .tensor()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!(
            pixels,
            [102.0 / 255.0, 119.0 / 255.0, 34.0 / 255.0, 51.0 / 255.0]
        );
        let batch = images.batch(&[0], DType::F64, &Device::Cpu).unwrap();
        assert_eq!(batch.pixels.tensor().dtype(), DType::F64);
    }

    #[test]
    fn parts_keep_their_ids() {
        let part = four().subset(&[2, 0]).unwrap();
        assert_eq!((part.ids(), part.labels()), (&[2, 0][..], &[1, 0][..]));
        assert_eq!(part.bytes(), [68, 85, 0, 17]);
        assert_eq!(part.subset(&[0]).unwrap().ids(), [2]);
        assert_eq!(four().take(2).unwrap(), four().subset(&[0, 1]).unwrap());
    }

    #[test]
    fn bad_input_is_named() {
        let text = |result: Result<Images>| result.unwrap_err().to_string();
        let new =
            |bytes, labels: Vec<u32>, shape| Images::new("d", vec![0; bytes], labels, shape, 2);
        assert!(text(new(3, vec![0, 1], [1, 1, 2])).contains("1 images but 2 labels"));
        assert!(text(new(4, vec![0, 2], [1, 1, 2])).contains("label 2 of image 1"));
        assert!(text(new(0, vec![], [1, 1, 2])).contains("none in d"));
        assert!(text(new(4, vec![0, 1], [0, 1, 2])).contains("[0, 1, 2]"));
        assert!(text(new(4, vec![0, 1], [usize::MAX, 2, 2])).contains("shape"));
        assert!(text(four().with_ids(vec![1])).contains("4 images but 1 ids"));
        assert!(text(four().subset(&[4])).contains("no image 4, it has 4"));
        assert!(text(four().take(5)).contains("take = 5"));
        assert!(four().batch(&[9], DType::F32, &Device::Cpu).is_err());
        assert!(four().batch(&[], DType::F32, &Device::Cpu).is_err());
        assert!(four().batch(&[0], DType::U8, &Device::Cpu).is_err());
    }

    #[test]
    fn the_embedded_sample_loads() {
        let sample = embedded("fashion-mnist").unwrap();
        let (shape, classes) = (sample.shape, sample.classes);
        for (split, per_class) in [(sample.train, 600), (sample.test, 100)] {
            let images = Images::new("fashion-mnist", split.images, split.labels, shape, classes)
                .and_then(|images| images.with_ids(split.indices))
                .unwrap();
            let mut histogram = [0; 10];
            images
                .labels()
                .iter()
                .for_each(|&label| histogram[label as usize] += 1);
            assert_eq!(histogram, [per_class; 10]);
            let last = images.len() as u32 - 1;
            let batch = images.batch(&[0, last], DType::F32, &Device::Cpu).unwrap();
            assert_eq!(batch.pixels.tensor().dims(), [2, 1, 28, 28]);
            // The first images of each class lie beyond position `last` of the whole.
            assert!(batch.samples[0] == 0 && batch.samples[1] > last);
        }
    }
}
