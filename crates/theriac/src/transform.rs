//! What stands between the pixels and a classifier.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Classifier, Error, Pass, Pixels, Result};

/// Pixels to other pixels, in front of a classifier: a resize, noise, a counter-perturbation.
///
/// Random numbers come from the pass, keyed by its sample ids, so what becomes of an image does not
/// depend on the others. The result carries a gradient to `x`, the true one or that of a stand-in
/// (the identity for rounding), so that an attack can go through the defence. A pair of transforms
/// is a transform: the first, then the second.
pub trait Transform: Send + Sync {
    /// The images after one application, shape (N, C, H, W).
    ///
    /// # Errors
    /// When a setting does not fit the images.
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels>;
}

impl<T: Transform + ?Sized> Transform for &T {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        (**self).apply(x, pass)
    }
}

impl<T: Transform + ?Sized> Transform for Box<T> {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        (**self).apply(x, pass)
    }
}

impl<A: Transform, B: Transform> Transform for (A, B) {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        let first = self.0.apply(x, &pass.fork(0))?;
        self.1.apply(&first, &pass.fork(1))
    }
}

/// A classifier behind a transform: `f(T(x))`, one application.
#[derive(Clone, Copy, Debug)]
pub struct Transformed<C, T> {
    /// What sees the transformed images.
    pub model: C,
    /// What happens to the images first.
    pub transform: T,
}

impl<C: Classifier, T: Transform> Classifier for Transformed<C, T> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.model.logits(&self.transform.apply(x, pass)?, pass)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}

/// What is averaged over executions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Average {
    /// Probabilities.
    #[default]
    Softmax,
    /// Logits.
    Logits,
}

impl Average {
    /// Of logits (m, N, classes), as logits (N, classes).
    pub(crate) fn of(self, logits: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Logits => logits.mean(0)?,
            Self::Softmax => {
                let each = log_softmax(logits)?;
                let largest = each.max_keepdim(0)?.detach();
                let sum = each.broadcast_sub(&largest)?.exp()?.sum(0)?;
                let log_mean = sum.affine(1.0 / logits.dim(0)? as f64, 0.0)?.log()?;
                (log_mean + largest.squeeze(0)?)?
            }
        })
    }
}

/// A classifier behind a random transform, averaged over executions with independent draws.
///
/// ```text
/// p(x) = 1/m sum_j softmax(f(T_j(x))),   logits = log p(x)
/// ```
///
/// ([`Average::Logits`]: the mean of the logits.) Execution j of image i is a function of (seed, i,
/// j). Transformed copies go through the classifier together, `chunk` images at most unless one
/// execution has more: that bounds memory, and no result depends on it. The classifier itself
/// should draw no random numbers: copies of an image that go through it together share them
/// ([`crate::Ensemble`] is for one that does). The meter counts every execution but the first, which whoever asks for logits counts.
#[derive(Clone, Copy, Debug)]
pub struct Executions<C, T> {
    /// What sees the transformed images.
    pub model: C,
    /// What happens to the images first, drawn afresh in each execution.
    pub transform: T,
    /// Their number m.
    pub executions: u32,
    /// What is averaged.
    pub average: Average,
    /// Images that go through the classifier together.
    pub chunk: usize,
}

impl<C, T> Executions<C, T> {
    /// So many executions, averaging probabilities, 256 images at a time.
    pub fn new(model: C, transform: T, executions: u32) -> Self {
        Self {
            model,
            transform,
            executions,
            average: Average::Softmax,
            chunk: 256,
        }
    }
}

impl<C: Classifier, T: Transform> Classifier for Executions<C, T> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        if self.executions == 0 {
            return Err(Error::Setting {
                name: "executions",
                value: "0".to_owned(),
                remedy: "use at least 1",
            });
        }
        let n = x.len();
        let together = (self.chunk / n).max(1) as u32;
        let mut all = Vec::new();
        for first in (0..self.executions).step_by(together as usize) {
            let some = first..self.executions.min(first + together);
            let copies = some.len();
            let moved = some.map(|j| self.transform.apply(x, &pass.fork(u64::from(j))));
            let moved = Pixels::cat(&moved.collect::<Result<Vec<_>>>()?)?;
            let samples = pass.samples.repeat(copies);
            let logits = self.model.logits(&moved, &pass.over(&samples))?;
            let classes = logits.dim(1)?;
            all.push(logits.reshape((copies, n, classes))?);
        }
        // Who asked for the logits counts one pass.
        for _ in 1..self.executions {
            pass.meter.forward(pass.samples);
        }
        let logits = Tensor::cat(&all, 0)?;
        self.average.of(&logits)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}

/// Over the last dimension.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let sum = shifted.exp()?.sum_keepdim(D::Minus1)?;
    Ok(shifted.broadcast_sub(&sum.log()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{Run, gradient};

    /// Two classes: z = (s, 2 - 3 s) of the sum s of the pixels.
    struct Sums;

    impl Classifier for Sums {
        fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
            let sum = x.tensor().flatten_from(1)?.sum_keepdim(1)?;
            Ok(Tensor::cat(&[&sum, &sum.affine(-3.0, 2.0)?], 1)?)
        }

        fn classes(&self) -> usize {
            2
        }
    }

    /// Times a random number of each image in [1/2, 1).
    struct Dim;

    impl Dim {
        fn factors(pass: &Pass<'_>) -> Vec<f64> {
            let draw = |&sample: &u32| {
                let u = pass.rng.uniform("dim", u64::from(sample), 1)[0];
                0.5 + 0.5 * f64::from(u)
            };
            pass.samples.iter().map(draw).collect()
        }
    }

    impl Transform for Dim {
        fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
            let factors = Self::factors(pass);
            let factors = Tensor::new(factors, x.tensor().device())?.reshape(((), 1, 1, 1))?;
            x.through(|x| Ok(x.broadcast_mul(&factors)?))
        }
    }

    fn images() -> Result<Pixels> {
        let values: Vec<f64> = (0..12).map(|i| 0.05 + f64::from(i) / 20.0).collect();
        Pixels::new(Tensor::from_vec(values, (3, 1, 2, 2), &Device::Cpu)?)
    }

    /// By the formula, in plain numbers.
    #[test]
    fn executions_average_probabilities_or_logits() -> Result<()> {
        let (run, x) = (Run::new(4, &Device::Cpu), images()?);
        let pass = run.eval(&[7, 8, 9]);
        let sums = x.tensor().flatten_from(1)?.sum(1)?.to_vec1::<f64>()?;
        let draws: Vec<Vec<f64>> = (0..5).map(|j| Dim::factors(&pass.fork(j))).collect();
        for average in [Average::Softmax, Average::Logits] {
            let expected = |i: usize| -> [f64; 2] {
                let each = draws.iter().map(|draw| {
                    let s = sums[i] * draw[i];
                    let (a, b) = (s, 2.0 - 3.0 * s);
                    match average {
                        Average::Logits => [a, b],
                        Average::Softmax => [a, b].map(|z| z.exp() / (a.exp() + b.exp())),
                    }
                });
                let total = each.fold([0.0, 0.0], |t, z| [t[0] + z[0], t[1] + z[1]]);
                total.map(|t| match average {
                    Average::Logits => t / 5.0,
                    Average::Softmax => (t / 5.0).ln(),
                })
            };
            for chunk in [1, 3, 7, 256] {
                let model = Executions {
                    average,
                    chunk,
                    ..Executions::new(Sums, Dim, 5)
                };
                let rows = model.logits(&x, &pass)?.to_vec2::<f64>()?;
                for (i, row) in rows.iter().enumerate() {
                    for (a, e) in row.iter().zip(expected(i)) {
                        assert!(
                            (a - e).abs() < 1e-12,
                            "{average:?} {chunk}: {a} against {e}"
                        );
                    }
                }
            }
        }
        let before = run.meter().forwards();
        Executions::new(Sums, Dim, 5).logits(&x, &pass)?;
        assert_eq!(run.meter().forwards() - before, 3 * 4);
        let none = Executions::new(Sums, Dim, 0).logits(&x, &pass).unwrap_err();
        assert!(none.to_string().contains("executions"), "{none}");
        Ok(())
    }

    #[test]
    fn an_image_alone_is_an_image_in_a_batch_and_gradients_pass() -> Result<()> {
        let (run, x) = (Run::new(4, &Device::Cpu), images()?);
        let model = Executions::new(Sums, (Dim, Dim), 4);
        let together = model.logits(&x, &run.eval(&[7, 8, 9]))?.to_vec2::<f64>()?;
        let alone = model.logits(&x.narrow(1, 1)?, &run.eval(&[8]))?;
        assert_eq!(alone.to_vec2::<f64>()?[0], together[1]);
        // The two draws of a pair are independent.
        let pass = run.eval(&[7, 8, 9]);
        let twice = (Dim, Dim).apply(&x, &pass)?;
        let once = Dim.apply(&x, &pass.fork(0))?;
        let factors = Tensor::new(Dim::factors(&pass.fork(1)), &Device::Cpu)?;
        let expected = once
            .tensor()
            .broadcast_mul(&factors.reshape(((), 1, 1, 1))?)?;
        let difference = (twice.tensor() - expected)?.abs()?.max_all()?;
        assert!(difference.to_scalar::<f64>()? < 1e-12);
        assert_ne!(Dim::factors(&pass.fork(0)), Dim::factors(&pass.fork(1)));
        // Finite differences of the first logit.
        let value = |x: &Pixels| -> Result<Tensor> {
            Ok(model.logits(x, &pass)?.narrow(1, 0, 1)?.squeeze(1)?)
        };
        let (at, slopes) = gradient(&x, &pass, value)?;
        let step = 1e-6;
        let moved = Pixels::new((x.tensor() + step)?)?;
        let difference = ((value(&moved)? - at)? / step)?.to_vec1::<f64>()?;
        let slopes = slopes.flatten_from(1)?.sum(1)?.to_vec1::<f64>()?;
        for (a, e) in slopes.iter().zip(difference) {
            assert!((a - e).abs() < 1e-4, "{a} against {e}");
        }
        let single = Transformed {
            model: Sums,
            transform: Dim,
        };
        let expected = Sums.logits(&Dim.apply(&x, &pass)?, &pass)?;
        assert_eq!(
            single.logits(&x, &pass)?.to_vec2::<f64>()?,
            expected.to_vec2::<f64>()?
        );
        assert_eq!((single.classes(), model.classes()), (2, 2));
        assert_eq!(x.tensor().dtype(), DType::F64);
        Ok(())
    }
}
