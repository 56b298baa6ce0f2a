//! Proportions with their intervals.
//!
//! ```text
//! centre = (p + z^2 / 2n) / (1 + z^2 / n)
//! half   = z * sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n),      p = k / n
//! ```
//!
//! Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
//! Unlike the normal approximation it stays in [0, 1] and is not empty at 0 or n successes,
//! which is where robust accuracies often lie.

use std::fmt;

use serde::Serialize;

/// The normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.96;

/// Wilson score interval of `successes` out of `n`; (0, 1) when nothing was seen.
///
/// ```
/// let (low, high) = theriac_eval::wilson(0, 10, 1.96);
/// assert!(low == 0.0 && (high - 0.2775).abs() < 1e-4);
/// ```
pub fn wilson(successes: usize, n: usize, z: f64) -> (f64, f64) {
    interval(successes as f64, n, z)
}

fn interval(successes: f64, n: usize, z: f64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let n = n as f64;
    let k = successes.min(n);
    let (p, z2) = (k / n, z * z);
    let scale = 1.0 + z2 / n;
    let centre = (p + z2 / (2.0 * n)) / scale;
    let half = z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt() / scale;
    // At 0 and n the interval touches the end exactly; rounding would leave a crumb.
    let low = if k == 0.0 { 0.0 } else { centre - half };
    let high = if k == n { 1.0 } else { centre + half };
    (low, high)
}

/// A share of images that are classified correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    /// Images classified correctly.
    pub correct: usize,
    /// Images seen.
    pub n: usize,
}

impl Accuracy {
    /// Counts the images for which `correct` holds.
    pub(crate) fn over<T>(items: &[T], correct: impl Fn(&T) -> bool) -> Self {
        Self {
            correct: items.iter().filter(|item| correct(item)).count(),
            n: items.len(),
        }
    }

    /// `correct / n` in [0, 1]; NaN without images.
    pub fn value(&self) -> f64 {
        self.correct as f64 / self.n as f64
    }

    /// Wilson score interval at 95 %.
    pub fn interval(&self) -> (f64, f64) {
        wilson(self.correct, self.n, Z)
    }
}

/// The mean of shares, one an image: an accuracy of a model that draws random numbers, and of any
/// other where every share is 0 or 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Mean {
    /// Sum of the shares.
    pub sum: f64,
    /// Images.
    pub n: usize,
}

impl Mean {
    pub(crate) fn over(shares: impl Iterator<Item = f64>) -> Self {
        let mut mean = Self::default();
        for share in shares {
            mean.sum += share;
            mean.n += 1;
        }
        mean
    }

    /// The mean, in [0, 1]; NaN without images.
    pub fn value(&self) -> f64 {
        self.sum / self.n as f64
    }

    /// Wilson score interval at 95 %, as if each image were drawn once: the images' spread, which is
    /// larger than that of the draws.
    pub fn interval(&self) -> (f64, f64) {
        interval(self.sum, self.n, Z)
    }
}

impl fmt::Display for Mean {
    /// `97.31 % [96.9, 97.7], n = 10000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.value(), self.interval(), self.n)
    }
}

impl fmt::Display for Accuracy {
    /// `97.31 % [96.9, 97.7], n = 10000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.value(), self.interval(), self.n)
    }
}

fn show(f: &mut fmt::Formatter<'_>, value: f64, (low, high): (f64, f64), n: usize) -> fmt::Result {
    if n == 0 {
        return f.write_str("no images");
    }
    let (value, low, high) = (100.0 * value, 100.0 * low, 100.0 * high);
    write!(f, "{value:.2} % [{low:.1}, {high:.1}], n = {n}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_intervals() {
        // The last two are the worked examples of Newcombe, Statistics in Medicine 17 (1998).
        for (k, n, low, high) in [
            (0, 10, 0.0, 0.2775),
            (5, 10, 0.2366, 0.7634),
            (10, 10, 0.7225, 1.0),
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
        ] {
            let (l, h) = wilson(k, n, 1.96);
            assert!(
                (l - low).abs() < 1e-4 && (h - high).abs() < 1e-4,
                "{k}/{n}: {l} {h}"
            );
        }
        assert_eq!(wilson(0, 0, 1.96), (0.0, 1.0));
    }

    #[test]
    fn prints_with_its_interval() {
        let accuracy = Accuracy {
            correct: 9731,
            n: 10_000,
        };
        assert_eq!(accuracy.to_string(), "97.31 % [97.0, 97.6], n = 10000");
        assert_eq!(Accuracy { correct: 0, n: 0 }.to_string(), "no images");
    }
}
