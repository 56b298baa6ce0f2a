//! Which images are mixed, and how much of each.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Batch, Error, Labels, Pass, Pixels, Result, Rng, Target as _};
use theriac_ops::cross_entropy;

/// Whether each mixed image has a weight of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lambda {
    /// One for each image, as in the code of Pang et al. 2020.
    #[default]
    PerSample,
    /// One for the whole batch, as in the code of Zhang et al. 2018.
    PerBatch,
}

/// Which images are mixed with which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pair {
    /// Those of two independent permutations of the batch, as in the code of Pang et al. 2020.
    #[default]
    Permutations,
    /// Each image with that of one permutation, as in the code of Zhang et al. 2018.
    Identity,
}

/// How a batch is mixed.
///
/// ```text
/// x = l x_a + (1 - l) x_b,    loss = l CE(z(x), y_a) + (1 - l) CE(z(x), y_b),    l ~ Beta(a, a)
/// ```
///
/// which is the cross entropy with the mixed one-hot labels. Zhang, Cisse, Dauphin & Lopez-Paz,
/// "mixup: Beyond empirical risk minimization", ICLR 2018.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Parameter a of the distribution of the weight; 1 is uniform.
    pub alpha: f64,
    /// One weight or many.
    pub lambda: Lambda,
    /// Partners.
    pub pair: Pair,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            lambda: Lambda::PerSample,
            pair: Pair::Permutations,
        }
    }
}

/// A mixed batch: images, and what their loss is made of.
#[derive(Clone, Debug)]
pub struct Mixed {
    /// l x_a + (1 - l) x_b.
    pub pixels: Pixels,
    /// Labels y_a.
    pub first: Labels,
    /// Labels y_b.
    pub second: Labels,
    /// Weights l, shape (N).
    pub weights: Tensor,
}

impl Mix {
    /// Mixes a batch; the same pass mixes the same way. `purpose` keeps the draws of several
    /// mixtures in one step apart.
    ///
    /// # Errors
    /// [`Error::Setting`] for an alpha that is not above 0; a candle error.
    pub fn batch(&self, batch: &Batch<Labels>, purpose: &str, pass: &Pass<'_>) -> Result<Mixed> {
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::Setting {
                name: "alpha",
                value: self.alpha.to_string(),
                remedy: "use a finite number above 0",
            });
        }
        let n = batch.pixels.len();
        let order = |which: u64| {
            let purpose = format!("mixup order {purpose}");
            pass.rng.permutation(&purpose, which, n as u32)
        };
        let first: Vec<u32> = match self.pair {
            Pair::Permutations => order(0),
            Pair::Identity => (0..n as u32).collect(),
        };
        let second = order(1);
        let purpose = format!("mixup weight {purpose}");
        let weight = |of: u64| beta(self.alpha, &purpose, of, pass.rng);
        let weights: Vec<f64> = match self.lambda {
            Lambda::PerSample => (0..n as u64).map(weight).collect(),
            Lambda::PerBatch => vec![weight(0); n],
        };
        let dtype = batch.pixels.tensor().dtype();
        let weights = Tensor::new(weights, batch.pixels.tensor().device())?.to_dtype(dtype)?;
        let of_each = weights.reshape((n, 1, 1, 1))?;
        let a = batch.pixels.pick(&first)?;
        let b = batch.pixels.pick(&second)?;
        // b + l (a - b): exact where both are equal.
        let mixed = (b.tensor() + (a.tensor() - b.tensor())?.broadcast_mul(&of_each)?)?;
        Ok(Mixed {
            pixels: Pixels::clamp(&mixed)?,
            first: batch.target.pick(&first)?,
            second: batch.target.pick(&second)?,
            weights,
        })
    }
}

impl Mixed {
    /// Loss of each image from logits (N, K), shape (N).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn losses(&self, logits: &Tensor) -> Result<Tensor> {
        let first = (cross_entropy(logits, self.first.tensor())? * &self.weights)?;
        let rest = self.weights.affine(-1.0, 1.0)?;
        let second = (cross_entropy(logits, self.second.tensor())? * rest)?;
        Ok((first + second)?)
    }
}

/// A draw from Beta(a, a) by Jöhnk's rejection: with uniform u and v, `u^(1/a) / (u^(1/a) + v^(1/a))`
/// where the sum is at most 1. Half the draws are kept at a = 1, where it is uniform; for large a it
/// would be slow, and the weights useless.
fn beta(alpha: f64, purpose: &str, of: u64, rng: Rng) -> f64 {
    if alpha == 1.0 {
        return f64::from(rng.uniform(purpose, of, 1)[0]);
    }
    for attempt in 0..10_000 {
        let draw = rng.fork(attempt).uniform(purpose, of, 2);
        let [u, v] = [draw[0], draw[1]].map(|u| (1.0 - f64::from(u)).powf(1.0 / alpha));
        if u + v <= 1.0 && u + v > 0.0 {
            return u / (u + v);
        }
    }
    0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean 1/2 and variance 1 / (4 (2 a + 1)).
    #[test]
    fn weights_have_the_moments_of_the_beta_distribution() {
        for alpha in [0.2, 0.5, 1.0, 2.0] {
            let draws: Vec<f64> = (0..4000)
                .map(|i| beta(alpha, "w", i, Rng::new(1)))
                .collect();
            let mean = draws.iter().sum::<f64>() / 4000.0;
            let var = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 4000.0;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.02, "{alpha}: mean {mean}");
            assert!(
                (var / expected - 1.0).abs() < 0.06,
                "{alpha}: {var} against {expected}"
            );
        }
    }
}
