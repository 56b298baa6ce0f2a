//! Mixup at inference.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{
    Average, Batch, Classifier, Error, Executions, Labels, Pass, Pixels, Result, Transform,
};

/// Images of other classes to mix with.
#[derive(Clone, Debug)]
pub struct Pool {
    images: Pixels,
    /// Positions of the images of each class.
    of_class: Vec<Vec<u32>>,
}

impl Pool {
    /// From images and their labels, all of one shape. A pool of training images leaks nothing of
    /// the test set; the published code takes test images.
    ///
    /// # Errors
    /// [`Error::Empty`] without images, [`Error::Setting`] when a class has none.
    pub fn new(batches: &[Batch<Labels>], classes: usize) -> Result<Self> {
        let pixels: Vec<Pixels> = batches.iter().map(|batch| batch.pixels.clone()).collect();
        let images = Pixels::cat(&pixels)?;
        let mut of_class = vec![Vec::new(); classes];
        let mut position = 0;
        for batch in batches {
            for label in batch.target.to_vec()? {
                if let Some(positions) = of_class.get_mut(label as usize) {
                    positions.push(position);
                }
                position += 1;
            }
        }
        if let Some(class) = of_class.iter().position(Vec::is_empty) {
            return Err(Error::Setting {
                name: "pool",
                value: format!("no image of class {class}"),
                remedy: "give at least one image of each class",
            });
        }
        Ok(Self { images, of_class })
    }

    /// Number of images.
    #[allow(clippy::len_without_is_empty)] // Pixels cannot be empty
    pub fn len(&self) -> usize {
        self.images.len()
    }
}

/// Mixup inference with images of other labels.
///
/// ```text
/// c = argmax f(x);   x_k = l x + (1 - l) s_k,   s_k of a random class other than c
/// p(x) = 1/m sum_k softmax(f(x_k))
/// ```
///
/// Pang, Xu & Zhu, "Mixup inference: better exploiting mixup to defend adversarial attacks", ICLR
/// 2020, section 3 ("MI-OL"). Execution k of an image is a function of (seed, image, k). The
/// predicted label is that of what arrives here; [`MiOl::logits_given`] takes another.
#[derive(Clone, Copy, Debug)]
pub struct MiOl<'p, C, D, T> {
    /// Predicts the label that partners must not have.
    pub predictor: C,
    /// Classifies the mixtures.
    pub model: D,
    /// What happens to a mixture first: [`Unchanged`], or a random resize.
    pub then: T,
    /// Partners.
    pub pool: &'p Pool,
    /// Weight l of the image, in [0, 1].
    pub lambda: f64,
    /// Their number m.
    pub executions: u32,
    /// What is averaged.
    pub average: Average,
}

/// The transform that does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchanged;

impl Transform for Unchanged {
    fn apply(&self, x: &Pixels, _: &Pass<'_>) -> Result<Pixels> {
        Ok(x.clone())
    }
}

impl<'p, C: Classifier + Copy> MiOl<'p, C, C, Unchanged> {
    /// Thirty executions that average probabilities.
    pub fn new(model: C, pool: &'p Pool, lambda: f64) -> Self {
        Self {
            predictor: model,
            model,
            then: Unchanged,
            pool,
            lambda,
            executions: 30,
            average: Average::Softmax,
        }
    }
}

impl<C: Classifier, D: Classifier, T: Transform> MiOl<'_, C, D, T> {
    /// The logits, given the labels that partners must not have.
    ///
    /// # Errors
    /// [`Error::Setting`] for a weight outside [0, 1] or no executions; those of the classifier.
    pub fn logits_given(&self, x: &Pixels, labels: &Labels, pass: &Pass<'_>) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&self.lambda) {
            return Err(Error::Setting {
                name: "lambda",
                value: self.lambda.to_string(),
                remedy: "use a weight in [0, 1]",
            });
        }
        let mix = Partners {
            pool: self.pool,
            lambda: self.lambda,
            not: labels.to_vec()?,
        };
        let executions = Executions {
            average: self.average,
            ..Executions::new(&self.model, (mix, &self.then), self.executions)
        };
        executions.logits(x, pass)
    }
}

impl<C: Classifier, D: Classifier, T: Transform> Classifier for MiOl<'_, C, D, T> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let still = Pixels::clamp(x.tensor())?;
        pass.meter.forward(pass.samples);
        let labels = Labels::most_likely(&self.predictor.logits(&still, pass)?)?;
        self.logits_given(x, &labels, pass)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}

/// One draw of partners for each image.
struct Partners<'p> {
    pool: &'p Pool,
    lambda: f64,
    not: Vec<u32>,
}

impl Partners<'_> {
    fn positions(&self, pass: &Pass<'_>) -> Vec<u32> {
        let classes = self.pool.of_class.len() as u32;
        let draw = |(&sample, &not): (&u32, &u32)| {
            let below = |purpose, bound| pass.rng.below(purpose, u64::from(sample), bound);
            let other = below("partner class", classes.saturating_sub(1));
            let class = if other < not { other } else { other + 1 };
            // With a single class there is no other.
            let of_class = &self.pool.of_class[(class % classes) as usize];
            of_class[below("partner", of_class.len() as u32) as usize]
        };
        pass.samples.iter().zip(&self.not).map(draw).collect()
    }
}

impl Transform for Partners<'_> {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        if self.not.len() != x.len() {
            return Err(Error::Samples {
                samples: self.not.len(),
                images: x.len(),
            });
        }
        let partners = self.pool.images.pick(&self.positions(pass))?;
        let partners = partners.to_device(x.tensor().device())?;
        let partners = partners.to_dtype(x.tensor().dtype())?;
        // A weighted mean stays in [0, 1] up to rounding, which the mean of weights l and 1 - l of
        // values at most 1 cannot exceed in round-to-nearest.
        x.through(|x| Ok(((x * self.lambda)? + (partners.tensor() * (1.0 - self.lambda))?)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::Run;

    use super::*;

    /// Ten classes by the pixel's value in tenths.
    struct Tenths;

    impl Classifier for Tenths {
        fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
            let value = x.tensor().flatten_from(1)?.narrow(1, 0, 1)?;
            let centres: Vec<f32> = (0..10).map(|k| 0.05 + k as f32 / 10.0).collect();
            let centres = Tensor::new(centres, x.tensor().device())?.reshape((1, 10))?;
            Ok(value.broadcast_sub(&centres)?.sqr()?.affine(-50.0, 0.0)?)
        }

        fn classes(&self) -> usize {
            10
        }
    }

    /// Ten images a class; an image's value says its class and its number.
    fn pool() -> Result<Pool> {
        let device = Device::Cpu;
        let values: Vec<f32> = (0..100).map(|i| i as f32 / 100.0).collect();
        let pixels = Pixels::new(Tensor::from_vec(values, (100, 1, 1, 1), &device)?)?;
        let labels: Vec<u32> = (0..100).map(|i| i / 10).collect();
        let target = Labels::new(&labels, 10, &device)?;
        let samples = (0..100).collect();
        let batch = Batch {
            pixels,
            target,
            samples,
        };
        Pool::new(&[batch], 10)
    }

    #[test]
    fn partners_are_of_every_other_class_and_never_of_the_predicted() -> Result<()> {
        let (pool, run) = (pool()?, Run::new(2, &Device::Cpu));
        let partners = Partners {
            pool: &pool,
            lambda: 0.5,
            not: vec![0, 4, 9],
        };
        let mut seen = vec![vec![0; 10]; 3];
        for k in 0..900 {
            let positions = partners.positions(&run.eval(&[3, 4, 5]).fork(k));
            for (image, position) in positions.into_iter().enumerate() {
                seen[image][position as usize / 10] += 1;
            }
        }
        for (image, not) in [(0, 0), (1, 4), (2, 9)] {
            for (class, &count) in seen[image].iter().enumerate() {
                assert_eq!(count == 0, class == not, "image {image}, class {class}");
                assert!(count == 0 || (60..140).contains(&count), "{count}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_weight_of_one_is_the_bare_classifier() -> Result<()> {
        let (pool, run) = (pool()?, Run::new(2, &Device::Cpu));
        let x = Pixels::new(Tensor::new(&[0.33f32, 0.71], &Device::Cpu)?.reshape((2, 1, 1, 1))?)?;
        let pass = run.eval(&[0, 1]);
        let bare = Tenths.logits(&x, &pass)?;
        let bare = candle_nn::ops::softmax(&bare, 1)?.to_vec2::<f32>()?;
        let rows = MiOl::new(&Tenths, &pool, 1.0).logits(&x, &pass)?.exp()?;
        for (a, e) in rows
            .to_vec2::<f32>()?
            .iter()
            .flatten()
            .zip(bare.iter().flatten())
        {
            assert!((a - e).abs() < 1e-5, "{a} against {e}");
        }
        // Half of 0.33 and half of a partner in [0, 1) lies in [0.165, 0.665).
        let model = MiOl {
            average: Average::Logits,
            ..MiOl::new(&Tenths, &pool, 0.5)
        };
        let mixed = model.logits(&x, &pass)?.to_vec2::<f32>()?;
        assert!(mixed[0][9] < mixed[0][4]);
        assert_eq!(x.tensor().dtype(), DType::F32);
        let wrong = MiOl::new(&Tenths, &pool, 1.5)
            .logits(&x, &pass)
            .unwrap_err();
        assert!(wrong.to_string().contains("lambda"), "{wrong}");
        Ok(())
    }

    #[test]
    fn a_pool_has_images_of_every_class() -> Result<()> {
        let labels = Labels::new(&[0, 2], 3, &Device::Cpu)?;
        let pixels = Pixels::new(Tensor::zeros((2, 1, 1, 1), DType::F32, &Device::Cpu)?)?;
        let batch = Batch {
            pixels,
            target: labels,
            samples: vec![0, 1],
        };
        let error = Pool::new(&[batch], 3).unwrap_err().to_string();
        assert!(error.contains("class 1"), "{error}");
        assert!(Pool::new(&[], 3).is_err());
        assert_eq!(pool()?.len(), 100);
        Ok(())
    }
}
