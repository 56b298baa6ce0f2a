//! Perturbations that are made once and kept, a byte a value.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use theriac::{Error, Pixels, Result};
use theriac_nn::{Entry, Saved, write};

/// The perturbations of many images: a byte for each value and the largest size for each image, so
/// that a perturbation comes back within 1/254 of its largest value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deltas {
    /// Channels, height, width.
    shape: Vec<usize>,
    ids: Vec<u32>,
    position: BTreeMap<u32, usize>,
    /// The largest absolute value of each image.
    sizes: Vec<f32>,
    /// 128 is 0; 1 and 255 are minus and plus the largest.
    levels: Vec<u8>,
}

const MIDDLE: f32 = 128.0;
const STEPS: f32 = 127.0;

impl Deltas {
    /// Keeps `moved - clean` of images with these ids.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes differ, from each other or from those kept before;
    /// [`Error::Setting`] for an id that was kept before.
    pub fn keep(&mut self, clean: &Pixels, moved: &Pixels, samples: &[u32]) -> Result<()> {
        let dims = clean.tensor().dims();
        let known = self.shape.is_empty() || self.shape == dims[1..];
        if dims != moved.tensor().dims() || samples.len() != dims[0] || !known {
            return Err(Error::Shape {
                what: "perturbations",
                got: moved.tensor().dims().to_vec(),
                expected: format!(
                    "{} images of {:?}, as all others",
                    samples.len(),
                    &dims[1..]
                ),
            });
        }
        let twice = |id: &&u32| self.position.contains_key(id);
        if let Some(id) = samples.iter().find(twice) {
            return Err(Error::Setting {
                name: "sample",
                value: id.to_string(),
                remedy: "keep one perturbation for each image",
            });
        }
        self.shape = dims[1..].to_vec();
        let delta = (moved.tensor() - clean.tensor())?.to_dtype(DType::F32)?;
        for (row, &id) in delta.flatten_from(1)?.to_vec2::<f32>()?.iter().zip(samples) {
            let size = row.iter().fold(0f32, |most, v| most.max(v.abs()));
            let scale = if size > 0.0 { STEPS / size } else { 0.0 };
            let level = |v: &f32| (v * scale + MIDDLE).round() as u8;
            self.levels.extend(row.iter().map(level));
            self.position.insert(id, self.ids.len());
            self.ids.push(id);
            self.sizes.push(size);
        }
        Ok(())
    }

    /// The images with these ids, moved by `share` of their perturbation: 1 is the adversarial image,
    /// 0 the clean one, what lies between is a mediate sample.
    ///
    /// # Errors
    /// [`Error::Setting`] for an id without perturbation, or a share outside [0, 1].
    pub fn moved(&self, clean: &Pixels, samples: &[u32], share: f64) -> Result<Pixels> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Setting {
                name: "phi",
                value: share.to_string(),
                remedy: "use a share of the perturbation from 0 to 1",
            });
        }
        let volume: usize = self.shape.iter().product();
        let mut values = Vec::with_capacity(samples.len() * volume);
        for id in samples {
            let at = *self.position.get(id).ok_or_else(|| Error::Setting {
                name: "sample",
                value: id.to_string(),
                remedy: "it was not attacked: attack all training images first",
            })?;
            let unit = self.sizes[at] / STEPS;
            let levels = &self.levels[at * volume..(at + 1) * volume];
            values.extend(
                levels
                    .iter()
                    .map(|&level| (f32::from(level) - MIDDLE) * unit),
            );
        }
        let x = clean.tensor();
        let delta = Tensor::from_vec(values, x.shape(), x.device())?.to_dtype(x.dtype())?;
        Pixels::clamp(&(x + (delta * share)?)?)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Adds the perturbations of other images.
    ///
    /// # Errors
    /// Those of [`Deltas::keep`].
    pub fn add(&mut self, other: Self) -> Result<()> {
        if self.is_empty() {
            *self = other;
            return Ok(());
        }
        if self.shape != other.shape {
            return Err(Error::Shape {
                what: "perturbations",
                got: other.shape,
                expected: format!("{:?}, as all others", self.shape),
            });
        }
        let volume: usize = self.shape.iter().product();
        let rows = other
            .ids
            .iter()
            .zip(&other.sizes)
            .zip(other.levels.chunks(volume));
        for ((&id, &size), levels) in rows {
            if self.position.insert(id, self.ids.len()).is_some() {
                return Err(Error::Setting {
                    name: "sample",
                    value: id.to_string(),
                    remedy: "keep one perturbation for each image",
                });
            }
            self.ids.push(id);
            self.sizes.push(size);
            self.levels.extend_from_slice(levels);
        }
        Ok(())
    }

    /// Writes a safetensors file, under a temporary name first: `ids` (N), `sizes` (N) and `levels`
    /// (N, C, H, W).
    ///
    /// # Errors
    /// [`theriac_nn::Error::Io`]; [`Error::Empty`] without any.
    pub fn save(&self, path: &Path) -> Result<()> {
        if self.is_empty() {
            return Err(Error::Empty { what: "deltas" });
        }
        let n = self.len();
        let shape = [&[n], &self.shape[..]].concat();
        let cpu = &Device::Cpu;
        let entries = [
            ("ids", Tensor::from_slice(&self.ids, n, cpu)?),
            ("sizes", Tensor::from_slice(&self.sizes, n, cpu)?),
            ("levels", Tensor::from_slice(&self.levels, shape, cpu)?),
        ];
        let entries = entries
            .iter()
            .map(|(name, t)| Entry::tensor((*name).to_owned(), t));
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        Ok(write(path, entries, &BTreeMap::new())?)
    }

    /// Reads what [`Deltas::save`] wrote.
    ///
    /// # Errors
    /// Those of the file; [`Error::Shape`] when its parts do not fit.
    pub fn load(path: &Path) -> Result<Self> {
        let saved = Saved::read(path)?;
        let cpu = &Device::Cpu;
        let (ids, sizes, levels) = (
            saved.tensor("ids", cpu)?,
            saved.tensor("sizes", cpu)?,
            saved.tensor("levels", cpu)?,
        );
        let n = ids.elem_count();
        if levels.rank() != 4 || levels.dim(0)? != n || sizes.elem_count() != n {
            return Err(Error::Shape {
                what: "perturbations",
                got: levels.dims().to_vec(),
                expected: format!("({n}, C, H, W), one for each id"),
            });
        }
        let ids = ids.to_vec1::<u32>()?;
        Ok(Self {
            shape: levels.dims()[1..].to_vec(),
            position: ids.iter().copied().zip(0..).collect(),
            ids,
            sizes: sizes.to_vec1()?,
            levels: levels.flatten_all()?.to_vec1()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use theriac::Rng;

    use super::*;

    fn images(purpose: &str, n: usize) -> Pixels {
        let values = Rng::new(1).uniform(purpose, 0, n * 12);
        Pixels::new(Tensor::from_vec(values, (n, 3, 2, 2), &Device::Cpu).unwrap()).unwrap()
    }

    fn values(x: &Pixels) -> Vec<f32> {
        x.tensor().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_byte_holds_a_perturbation_to_half_a_level() {
        let (clean, moved) = (images("a", 4), images("b", 4));
        let mut deltas = Deltas::default();
        deltas.keep(&clean, &moved, &[7, 3, 9, 1]).unwrap();
        assert_eq!(deltas.len(), 4);
        let back = deltas.moved(&clean, &[7, 3, 9, 1], 1.0).unwrap();
        let rows = values(&clean)
            .into_iter()
            .zip(values(&moved))
            .zip(values(&back));
        for (row, ((c, m), b)) in rows.enumerate() {
            let size = deltas.sizes[row / 12];
            assert!(
                (m - b).abs() <= size / 254.0 + 1e-6,
                "{c}: {m} came back as {b}"
            );
        }
        // Nothing, part and all of it; ids in another order.
        assert_eq!(
            values(&deltas.moved(&clean, &[7, 3, 9, 1], 0.0).unwrap()),
            values(&clean)
        );
        let half = deltas.moved(&clean, &[7, 3, 9, 1], 0.5).unwrap();
        let all = values(&clean)
            .into_iter()
            .zip(values(&half))
            .zip(values(&back));
        for ((c, h), b) in all {
            assert!((h - (c + b) / 2.0).abs() < 1e-6);
        }
        let one = deltas
            .moved(&clean.narrow(2, 1).unwrap(), &[9], 1.0)
            .unwrap();
        assert_eq!(values(&one), values(&back)[24..36]);
    }

    #[test]
    fn files_and_parts_give_the_same() {
        let (clean, moved) = (images("a", 4), images("b", 4));
        let mut whole = Deltas::default();
        whole.keep(&clean, &moved, &[7, 3, 9, 1]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Deltas::default();
        for (part, ids) in [[7, 3], [9, 1]].iter().enumerate() {
            let cut = |x: &Pixels| x.narrow(2 * part, 2).unwrap();
            let mut deltas = Deltas::default();
            deltas.keep(&cut(&clean), &cut(&moved), ids).unwrap();
            let path = folder.path().join(format!("{part}.safetensors"));
            deltas.save(&path).unwrap();
            parts.add(Deltas::load(&path).unwrap()).unwrap();
        }
        assert_eq!(parts, whole);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (clean, moved) = (images("a", 2), images("b", 2));
        let mut deltas = Deltas::default();
        deltas.keep(&clean, &moved, &[7, 3]).unwrap();
        let text = |result: Result<Pixels>| result.unwrap_err().to_string();
        assert!(text(deltas.moved(&clean, &[7, 4], 1.0)).contains("sample = 4"));
        assert!(text(deltas.moved(&clean, &[7, 3], 1.5)).contains("phi"));
        let twice = deltas
            .keep(&clean, &moved, &[3, 4])
            .unwrap_err()
            .to_string();
        assert!(twice.contains("sample = 3"), "{twice}");
        assert!(deltas.keep(&clean, &images("b", 3), &[5, 6]).is_err());
        assert!(deltas.add(deltas.clone()).is_err());
        let empty = Deltas::default().save(Path::new("nowhere")).unwrap_err();
        assert!(empty.to_string().contains("deltas"));
    }
}
