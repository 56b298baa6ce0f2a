//! Everything about a call that is not its input.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use theriac_ops::network::{Key, PreparedCache};

use crate::{Error, Pixels, Result, Rng};

/// Training or evaluation: batch norm and dropout obey it, noise defences do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, dropout on.
    Train,
    /// Running statistics, dropout off.
    Eval,
}

/// Which set of normalisation statistics and affine parameters; 0 is the ordinary one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bank(pub u8);

/// Passes spent on one image, or on several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Forward passes without a gradient.
    pub forwards: u64,
    /// Forward and backward passes.
    pub gradients: u64,
    /// Gradients that were exactly zero everywhere.
    pub zero_gradients: u64,
}

/// Counts work in images, so that no count depends on how a batch was split.
#[derive(Debug, Default)]
pub struct Meter {
    forwards: AtomicU64,
    gradients: AtomicU64,
    zero_gradients: AtomicU64,
    images: Option<Mutex<BTreeMap<u32, Work>>>,
}

impl Meter {
    /// A meter that also counts for each image by its id.
    pub fn of_images() -> Self {
        Self {
            images: Some(Mutex::default()),
            ..Self::default()
        }
    }

    /// Records a forward pass over the images with these ids.
    pub fn forward(&self, samples: &[u32]) {
        self.forwards
            .fetch_add(samples.len() as u64, Ordering::Relaxed);
        self.each(samples, |work| work.forwards += 1);
    }

    /// Records a gradient pass (forward and backward) over the images with these ids; the images
    /// `zero` among them had a gradient that is exactly zero everywhere.
    pub fn gradient(&self, samples: &[u32], zero: &[u32]) {
        self.gradients
            .fetch_add(samples.len() as u64, Ordering::Relaxed);
        self.zero_gradients
            .fetch_add(zero.len() as u64, Ordering::Relaxed);
        self.each(samples, |work| work.gradients += 1);
        self.each(zero, |work| work.zero_gradients += 1);
    }

    /// Adds what another meter counted.
    pub fn add(&self, other: &Meter) {
        let total = other.total();
        self.forwards.fetch_add(total.forwards, Ordering::Relaxed);
        self.gradients.fetch_add(total.gradients, Ordering::Relaxed);
        self.zero_gradients
            .fetch_add(total.zero_gradients, Ordering::Relaxed);
        let (Some(mine), Some(others)) = (&self.images, &other.images) else {
            return;
        };
        let others = others
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut mine = mine.lock().unwrap_or_else(PoisonError::into_inner);
        for (sample, work) in others {
            let known = mine.entry(sample).or_default();
            known.forwards += work.forwards;
            known.gradients += work.gradients;
            known.zero_gradients += work.zero_gradients;
        }
    }

    /// All that was counted.
    pub fn total(&self) -> Work {
        Work {
            forwards: self.forwards(),
            gradients: self.gradients(),
            zero_gradients: self.zero_gradients(),
        }
    }

    /// What was counted for one image; nothing unless the meter is [`Meter::of_images`].
    pub fn of(&self, sample: u32) -> Work {
        let images = self.images.as_ref();
        let images = images.map(|all| all.lock().unwrap_or_else(PoisonError::into_inner));
        images
            .and_then(|all| all.get(&sample).copied())
            .unwrap_or_default()
    }

    /// Images that went forward without a gradient.
    pub fn forwards(&self) -> u64 {
        self.forwards.load(Ordering::Relaxed)
    }

    /// Images that went forward and backward.
    pub fn gradients(&self) -> u64 {
        self.gradients.load(Ordering::Relaxed)
    }

    /// Images whose gradient was exactly zero everywhere.
    pub fn zero_gradients(&self) -> u64 {
        self.zero_gradients.load(Ordering::Relaxed)
    }

    fn each(&self, samples: &[u32], record: impl Fn(&mut Work)) {
        if let Some(images) = &self.images {
            let mut images = images.lock().unwrap_or_else(PoisonError::into_inner);
            for sample in samples {
                record(images.entry(*sample).or_default());
            }
        }
    }
}

/// One iterate of an attack, as it passes.
#[derive(Clone, Copy, Debug)]
pub struct Iterate<'a> {
    /// Ids of the images still under attack.
    pub samples: &'a [u32],
    /// Where they are.
    pub images: &'a Pixels,
    /// The loss that the attack climbs, image by image: larger is better for the attacker.
    pub values: &'a [f64],
    /// Whether the model is fooled; `None` if it cannot tell.
    pub fooled: Option<&'a [bool]>,
}

/// Looks over an attack's shoulder: sees every iterate that the attack scores, and cannot change
/// anything. Tasks of one batch call it from several threads.
pub trait Watch: Sync {
    /// The next iterate.
    ///
    /// # Errors
    /// Those of the implementation; they end the attack.
    fn see(&self, iterate: &Iterate<'_>) -> Result<()>;
}

/// One seeded run on one device: owns the generator and the meter.
#[derive(Debug)]
pub struct Run {
    rng: Rng,
    device: Device,
    meter: Meter,
}

impl Run {
    /// A run with all its randomness fixed by `seed`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self {
            rng: Rng::new(seed),
            device: device.clone(),
            meter: Meter::default(),
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The generator.
    pub fn rng(&self) -> Rng {
        self.rng
    }

    /// The counters.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// A pass in evaluation mode over the images with these ids.
    pub fn eval<'r>(&'r self, samples: &'r [u32]) -> Pass<'r> {
        let bank = Bank::default();
        Pass {
            mode: Mode::Eval,
            bank,
            rng: self.rng,
            samples,
            meter: &self.meter,
            prepared: None,
            watch: None,
            draws: 1,
        }
    }

    /// A pass in training mode over the images with these ids.
    pub fn train<'r>(&'r self, samples: &'r [u32]) -> Pass<'r> {
        Pass {
            mode: Mode::Train,
            ..self.eval(samples)
        }
    }
}

/// In the place of a sample id where all images share a draw; ids have 32 bits.
const SHARED: u64 = u64::MAX;

/// Everything about a call that is not its input: mode, normalisation bank, randomness, the ids
/// of the images (they key the random numbers) and the counters.
///
/// `Copy`, and passed by reference: there is no state in a model that could be left wrong.
#[derive(Clone, Copy)]
pub struct Pass<'r> {
    /// Training or evaluation.
    pub mode: Mode,
    /// The set of normalisation statistics.
    pub bank: Bank,
    /// The generator at this point of the work.
    pub rng: Rng,
    /// Ids of the images of the batch in their data set, one for each image.
    pub samples: &'r [u32],
    /// The counters of the run.
    pub meter: &'r Meter,
    /// Parameters arranged for the kernels, if none changes during the work that this pass
    /// belongs to: [`crate::craft`] sets it.
    pub prepared: Option<&'r PreparedCache>,
    /// Who looks at the iterates of an attack, if anyone.
    pub watch: Option<&'r dyn Watch>,
    /// Passes with fresh noise over which an attack averages what it learns of a model that draws
    /// random numbers (expectation over transformation); 1 for all others.
    pub draws: u32,
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass")
            .field("mode", &self.mode)
            .field("bank", &self.bank)
            .field("rng", &self.rng)
            .field("samples", &self.samples)
            .finish_non_exhaustive()
    }
}

impl<'r> Pass<'r> {
    /// The same pass in evaluation mode: for crafting inside training.
    pub fn eval(&self) -> Self {
        Self {
            mode: Mode::Eval,
            ..*self
        }
    }

    /// The same pass at step `step` of an iteration: noise is drawn afresh.
    pub fn at(&self, step: u64) -> Self {
        Self {
            rng: self.rng.at(step),
            ..*self
        }
    }

    /// The same pass for an independent part of the work.
    pub fn fork(&self, tag: u64) -> Self {
        Self {
            rng: self.rng.fork(tag),
            ..*self
        }
    }

    /// The same pass over other images: those that an attack still works on.
    pub fn over<'s>(&'s self, samples: &'s [u32]) -> Pass<'s> {
        Pass { samples, ..*self }
    }

    /// The passes over which an attack averages: this one alone, or one for each draw.
    pub fn each_draw(&self) -> impl Iterator<Item = Self> {
        let (pass, draws) = (Self { draws: 1, ..*self }, self.draws.max(1));
        (0..draws).map(move |draw| match draws {
            1 => pass,
            _ => pass.fork(u64::from(draw)),
        })
    }

    /// Shows an iterate to the watcher.
    ///
    /// # Errors
    /// Those of the watcher.
    pub fn show(&self, images: &Pixels, values: &[f64], fooled: Option<&[bool]>) -> Result<()> {
        let Some(watch) = self.watch else {
            return Ok(());
        };
        watch.see(&Iterate {
            samples: self.samples,
            images,
            values,
            fooled,
        })
    }

    /// The same pass over the images `start .. start + len` of the batch.
    ///
    /// # Errors
    /// [`Error::Samples`] when the range leaves the batch.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let (samples, images) = (self.samples.len(), start + len);
        let samples = self
            .samples
            .get(start..images)
            .ok_or(Error::Samples { samples, images })?;
        Ok(Self { samples, ..*self })
    }

    /// Noise uniform in [-1, 1), shaped and placed like `like`, one stream for each sample id.
    ///
    /// # Errors
    /// [`Error::Samples`] when the ids are not one for each image.
    pub fn uniform(&self, purpose: &str, like: &Pixels) -> Result<Tensor> {
        self.noise(like.tensor(), |sample, n| {
            self.rng.uniform(purpose, sample, n)
        })?
        .affine(2.0, -1.0)
        .map_err(Error::from)
    }

    /// Noise from N(0, 1), shaped (N, ...) and placed like `like`, one stream for each sample id.
    ///
    /// # Errors
    /// [`Error::Samples`] when the ids are not one for each image.
    pub fn normal(&self, purpose: &str, like: &Tensor) -> Result<Tensor> {
        self.noise(like, |sample, n| self.rng.normal(purpose, sample, n))
    }

    /// Noise from N(0, 1) by [`Rng::gaussian`], shaped (N, ...) and placed like `like`, one stream
    /// for each sample id.
    ///
    /// # Errors
    /// [`Error::Samples`] when the ids are not one for each image.
    pub fn gaussian(&self, purpose: &str, like: &Tensor) -> Result<Tensor> {
        self.noise(like, |sample, n| self.rng.gaussian(purpose, sample, n))
    }

    /// [`Pass::gaussian`] that all images share: shaped and placed like `like`, the same for every
    /// part of a batch.
    ///
    /// # Errors
    /// A candle error.
    pub fn shared_gaussian(&self, purpose: &str, like: &Tensor) -> Result<Tensor> {
        let values = self.rng.gaussian(purpose, SHARED, like.elem_count());
        let noise = Tensor::from_vec(values, like.shape(), like.device())?;
        Ok(noise.to_dtype(like.dtype())?)
    }

    /// The keys of [`Pass::gaussian`], one for each sample id.
    pub fn keys(&self, purpose: &str) -> Vec<Key> {
        let key = |&sample: &u32| self.rng.key(purpose, u64::from(sample));
        self.samples.iter().map(key).collect()
    }

    /// The key of [`Pass::shared_gaussian`], once for each sample id.
    pub fn shared_keys(&self, purpose: &str) -> Vec<Key> {
        vec![self.rng.key(purpose, SHARED); self.samples.len()]
    }

    fn noise(&self, like: &Tensor, draw: impl Fn(u64, usize) -> Vec<f32> + Sync) -> Result<Tensor> {
        let (samples, images) = (
            self.samples.len(),
            like.dims().first().copied().unwrap_or(0),
        );
        if samples != images || images == 0 {
            return Err(Error::Samples { samples, images });
        }
        let each = like.elem_count() / images;
        let mut values = vec![0f32; like.elem_count()];
        let parts = values.par_chunks_mut(each.max(1)).zip(self.samples);
        parts.for_each(|(to, &sample)| to.copy_from_slice(&draw(u64::from(sample), each)));
        let noise = Tensor::from_vec(values, like.shape(), like.device())?;
        Ok(noise.to_dtype(like.dtype())?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn noise_belongs_to_the_sample_not_to_the_batch() -> Result<()> {
        let run = Run::new(3, &Device::Cpu);
        let three = Pixels::new(Tensor::zeros((3, 1, 2, 2), DType::F32, &Device::Cpu)?)?;
        let one = three.narrow(0, 1)?;
        let together = run
            .eval(&[5, 9, 2])
            .uniform("start", &three)?
            .narrow(0, 1, 1)?;
        let alone = run.eval(&[9]).uniform("start", &one)?;
        let values = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>());
        assert_eq!(values(&together)?, values(&alone)?);
        assert!(run.eval(&[1, 2]).uniform("start", &three).is_err());
        Ok(())
    }
}
