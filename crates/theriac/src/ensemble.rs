//! The mean over a classifier's own random numbers.

use candle_core::Tensor;

use crate::{Average, Classifier, Error, Pass, Pixels, Result};

/// A classifier that draws random numbers, averaged over passes with independent draws.
///
/// ```text
/// p(x) = 1/m sum_j softmax(f_j(x)),   logits = log p(x)
/// ```
///
/// ([`Average::Logits`]: the mean of the logits.) Member j is the classifier in the pass forked by
/// j. An attack on an ensemble goes through all members; to attack one member at a time, attack the
/// classifier inside. The meter counts every member but the first, which whoever asks for logits
/// counts.
#[derive(Clone, Copy, Debug)]
pub struct Ensemble<C> {
    /// Draws random numbers from the pass.
    pub model: C,
    /// Their number m.
    pub members: u32,
    /// What is averaged.
    pub average: Average,
}

impl<C> Ensemble<C> {
    /// So many members, averaging probabilities.
    pub fn new(model: C, members: u32) -> Self {
        Self {
            model,
            members,
            average: Average::Softmax,
        }
    }
}

impl<C: Classifier> Classifier for Ensemble<C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        if self.members == 0 {
            return Err(Error::Setting {
                name: "members",
                value: "0".to_owned(),
                remedy: "use at least 1",
            });
        }
        let member = |j| self.model.logits(x, &pass.fork(u64::from(j)));
        let all = (0..self.members).map(member).collect::<Result<Vec<_>>>()?;
        for _ in 1..self.members {
            pass.meter.forward(pass.samples);
        }
        self.average.of(&Tensor::stack(&all, 0)?)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Run;

    /// Two classes: a number from N(0, 1) of each image, and 0.
    struct Coin;

    impl Classifier for Coin {
        fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
            let none = x.tensor().flatten_from(1)?.narrow(1, 0, 1)?.zeros_like()?;
            Ok(Tensor::cat(&[&pass.normal("coin", &none)?, &none], 1)?)
        }

        fn classes(&self) -> usize {
            2
        }
    }

    /// By the formula, in plain numbers, and each image as if it were alone.
    #[test]
    fn members_average_probabilities_or_logits() -> Result<()> {
        let run = Run::new(3, &Device::Cpu);
        let x = Pixels::new(Tensor::zeros(
            (2, 1, 1, 1),
            candle_core::DType::F64,
            &Device::Cpu,
        )?)?;
        let pass = run.eval(&[4, 9]);
        for average in [Average::Softmax, Average::Logits] {
            let model = Ensemble {
                average,
                ..Ensemble::new(Coin, 5)
            };
            let rows = model.logits(&x, &pass)?.to_vec2::<f64>()?;
            for (row, sample) in rows.iter().zip([4, 9]) {
                let draw = |j| f64::from(pass.fork(j).rng.normal("coin", sample, 1)[0]);
                let of = |z: f64| match average {
                    Average::Logits => z,
                    Average::Softmax => z.exp() / (1.0 + z.exp()),
                };
                let mean = (0..5).map(|j| of(draw(j))).sum::<f64>() / 5.0;
                let expected = match average {
                    Average::Logits => mean,
                    Average::Softmax => mean.ln(),
                };
                assert!((row[0] - expected).abs() < 1e-12, "{average:?}");
            }
        }
        let before = run.meter().forwards();
        Ensemble::new(Coin, 5).logits(&x, &pass)?;
        assert_eq!(run.meter().forwards() - before, 2 * 4);
        let none = Ensemble::new(Coin, 0).logits(&x, &pass).unwrap_err();
        assert!(none.to_string().contains("members"), "{none}");
        Ok(())
    }
}
