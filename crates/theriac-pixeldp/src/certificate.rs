//! What the votes of many draws prove.
//!
//! ```text
//! p(x + a) <= e^eps p(x) + delta           for every class and |a|_2 <= L
//! p_k > e^(2 eps) p_i + (1 + e^eps) delta  for all i: class k wins at x + a as well
//! ```
//!
//! Lecuyer et al. 2019, lemma 1 and propositions 1 and 2; p_k is bounded from below and p_i from
//! above by intervals that hold together. The second line follows from the first one, read in both
//! directions: `p_k(x + a) >= (p_k - delta) / e^eps` and `p_i(x + a) <= e^eps p_i + delta`.

use theriac::{Classifier, Error, Pass, Pixels, Result, predict};

use crate::PixelDp;
use crate::settings::mechanism;

/// What is proved of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Certificate {
    /// The class with most votes; the first among equals.
    pub label: u32,
    /// No perturbation of at most this L2 size changes it, with the confidence of the settings; 0
    /// where nothing is proved.
    pub radius: f64,
}

/// How often each class was predicted for each image, over passes forked by 0, 1, ...: the authors
/// take 2,000.
///
/// # Errors
/// Those of the classifier.
pub fn votes<C: Classifier>(
    model: &C,
    x: &Pixels,
    draws: u32,
    pass: &Pass<'_>,
) -> Result<Vec<Vec<u32>>> {
    let mut votes = vec![vec![0; model.classes()]; x.len()];
    for draw in 0..draws {
        let labels = predict(model, x, &pass.fork(u64::from(draw)))?.to_vec()?;
        for (votes, label) in votes.iter_mut().zip(labels) {
            votes[label as usize] += 1;
        }
    }
    Ok(votes)
}

/// Whether (eps, delta)-privacy and these bounds of the probabilities prove that the class wins.
pub fn robust(lower: f64, upper_of_others: f64, eps: f64, delta: f64) -> bool {
    lower > (2.0 * eps).exp() * upper_of_others + (1.0 + eps.exp()) * delta
}

impl PixelDp {
    /// The largest radius that these votes of one image prove for a first convolution of sensitivity
    /// 1: noise of one deviation is (eps, delta)-private at many sizes, and the best of them counts.
    ///
    /// # Errors
    /// Those of [`PixelDp::check`]; [`Error::Empty`] without votes.
    pub fn certify(&self, votes: &[u32]) -> Result<Certificate> {
        self.check()?;
        let n: u32 = votes.iter().sum();
        if n == 0 {
            return Err(Error::Empty { what: "votes" });
        }
        let label = (0..votes.len()).rev().max_by_key(|&class| votes[class]);
        let label = label.unwrap_or_default();
        // All classes' intervals hold together.
        let error = (1.0 - self.confidence) / votes.len() as f64;
        let (lower, _) = binomial_interval(votes[label], n, error);
        let others = votes
            .iter()
            .enumerate()
            .filter(|(class, _)| *class != label);
        let upper = others.map(|(_, &count)| binomial_interval(count, n, error).1);
        let radius = self.radius(lower, upper.fold(0.0, f64::max));
        Ok(Certificate {
            label: label as u32,
            radius,
        })
    }

    /// The largest radius for which some (eps, delta) with eps at most 1 proves the class.
    pub fn radius(&self, lower: f64, upper_of_others: f64) -> f64 {
        let mut best = 0f64;
        // delta over ten decades, in steps of 2 %.
        for i in 0..1200 {
            let delta = 0.5 * 0.98f64.powi(i);
            if !robust(lower, upper_of_others, 0.0, delta) {
                continue;
            }
            let (mut proved, mut open) = (0.0, 1.0);
            if robust(lower, upper_of_others, open, delta) {
                proved = open;
            }
            while open - proved > 1e-9 {
                let middle = 0.5 * (proved + open);
                match robust(lower, upper_of_others, middle, delta) {
                    true => proved = middle,
                    false => open = middle,
                }
            }
            best = best.max(self.std() * proved / mechanism(delta));
        }
        best
    }
}

/// The interval of Clopper & Pearson (1934) of a probability that was met `count` times out of `n`:
/// it misses with probability `error` at most.
pub fn binomial_interval(count: u32, n: u32, error: f64) -> (f64, f64) {
    // P(X >= count) and P(X <= count) at p, by sums of logarithms.
    let logs: Vec<f64> = (1..=n).map(|i| f64::from(i).ln()).collect();
    let factorial: Vec<f64> = std::iter::once(0.0)
        .chain(logs.iter().scan(0.0, |sum, log| {
            *sum += log;
            Some(*sum)
        }))
        .collect();
    let term = |i: u32, p: f64| {
        let (k, m) = (i as usize, (n - i) as usize);
        let choose = factorial[n as usize] - factorial[k] - factorial[m];
        (choose + f64::from(i) * p.ln() + f64::from(n - i) * (-p).ln_1p()).exp()
    };
    let search = |above: &dyn Fn(f64) -> bool| {
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..50 {
            let middle = 0.5 * (low + high);
            match above(middle) {
                true => high = middle,
                false => low = middle,
            }
        }
        (low, high)
    };
    // Rounded outward.
    let low = match count {
        0 => 0.0,
        _ => search(&|p| (count..=n).map(|i| term(i, p)).sum::<f64>() > error / 2.0).0,
    };
    let high = match count == n {
        true => 1.0,
        false => search(&|p| (0..=count).map(|i| term(i, p)).sum::<f64>() < error / 2.0).1,
    };
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P(N(0, 1) > t), by quadrature.
    fn tail(t: f64) -> f64 {
        let step = 1e-4;
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let terms = (0..((10.0 - t) / step) as usize).map(|i| density(t + (i as f64 + 0.5) * step));
        terms.sum::<f64>() * step
    }

    /// A linear function of noise: the probability of a class is a tail of the normal distribution,
    /// and a perturbation of size r moves its threshold by r / std.
    #[test]
    fn noise_of_the_given_deviation_is_private() {
        for (eps, delta) in [(1.0, 0.05), (0.5, 0.01), (0.1, 0.2)] {
            let method = PixelDp {
                eps,
                delta,
                size: 0.3,
                ..PixelDp::default()
            };
            let shift = method.size / method.std();
            for i in -40..60 {
                let t = f64::from(i) / 10.0;
                let (before, after) = (tail(t), tail(t + shift));
                assert!(before <= eps.exp() * after + delta + 1e-9);
                assert!(after <= eps.exp() * before + delta + 1e-9);
            }
        }
    }

    /// For two classes with a linear boundary the true radius is std times the quantile of p.
    #[test]
    fn no_radius_is_larger_than_the_true_one() {
        let method = PixelDp::default();
        let mut last = 0.0;
        for quantile in [0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] {
            let p = tail(-quantile);
            let radius = method.radius(p, 1.0 - p);
            let truth = method.std() * quantile;
            assert!(radius <= truth, "{radius} above {truth}");
            assert!(radius >= last);
            last = radius;
        }
        // Certain classes: (1 + e^eps) delta < 1 is all that is asked, and eps = 1 is the best
        // there, or nearly.
        let largest = method.std() / mechanism(1.0 / (1.0 + 1f64.exp()));
        let radius = method.radius(1.0, 0.0);
        assert!(
            radius <= largest + 1e-9 && radius > 0.98 * largest,
            "{radius} {largest}"
        );
        // At the size of the noise, the settings' own (eps, delta) prove the same.
        let (eps, delta) = (method.eps, method.delta);
        for (lower, upper) in [(0.999, 0.001), (0.95, 0.05), (0.9, 0.1), (0.8, 0.2)] {
            if robust(lower, upper, eps, delta) {
                assert!(method.radius(lower, upper) >= 0.99 * method.size);
            }
        }
        assert!(robust(0.95, 0.05, eps, delta) && !robust(0.8, 0.2, eps, delta));
        assert_eq!(method.radius(0.5, 0.5), 0.0);
    }

    /// By hand: none of n gives 1 - (error / 2)^(1 / n).
    #[test]
    fn intervals_are_clopper_and_pearsons() {
        let (low, high) = binomial_interval(0, 20, 0.05);
        assert_eq!(low, 0.0);
        assert!((high - (1.0 - 0.025f64.powf(0.05))).abs() < 1e-9, "{high}");
        let (low, high) = binomial_interval(20, 20, 0.05);
        assert!((low - 0.025f64.powf(0.05)).abs() < 1e-9 && high == 1.0);
        // One of two: P(X >= 1) = 1 - (1 - p)^2 = 0.025.
        let (low, high) = binomial_interval(1, 2, 0.05);
        assert!((low - (1.0 - 0.975f64.sqrt())).abs() < 1e-9);
        assert!((high - 0.975f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn votes_prove_no_more_than_their_shares() {
        let method = PixelDp::default();
        let certificate = method.certify(&[10, 1980, 10]).unwrap();
        assert_eq!(certificate.label, 1);
        let shares = method.radius(0.99, 0.005);
        assert!(certificate.radius > 0.0 && certificate.radius < shares);
        // More draws of the same shares prove more.
        assert!(method.certify(&[100, 19_800, 100]).unwrap().radius > certificate.radius);
        let open = method.certify(&[5, 5]).unwrap();
        assert_eq!((open.label, open.radius), (0, 0.0));
        assert!(method.certify(&[0, 0]).is_err());
    }
}
