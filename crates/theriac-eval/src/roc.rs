//! How well a detector tells adversarial images from clean ones.

use serde::Serialize;
use theriac::{Pass, Pixels, Result};

/// A part of a defence that may refuse an image.
pub trait Detector {
    /// How suspicious each image is: larger is more.
    ///
    /// # Errors
    /// Those of the model behind it.
    fn suspicion(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Vec<f64>>;
}

/// Receiver operating characteristic of a detector.
///
/// ```
/// let roc = theriac_eval::Roc::of(&[0.1, 0.2, 0.3], &[0.25, 0.9]);
/// assert!((roc.area - 5.0 / 6.0).abs() < 1e-12);
/// assert_eq!(roc.caught(0.0), 0.5);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Roc {
    /// Share of clean images refused and share of adversarial images refused, for every threshold,
    /// from (0, 0) to (1, 1).
    pub points: Vec<(f64, f64)>,
    /// Area under the points: the chance that an adversarial image is more suspicious than a clean
    /// one, ties counting one half. NaN without images of either kind.
    pub area: f64,
}

impl Roc {
    /// From the suspicion of clean and of adversarial images.
    pub fn of(clean: &[f64], adversarial: &[f64]) -> Self {
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(|a, b| b.total_cmp(a));
            values
        };
        let (clean, adversarial) = (sorted(clean), sorted(adversarial));
        let mut thresholds: Vec<f64> = clean.iter().chain(&adversarial).copied().collect();
        thresholds.sort_by(|a, b| b.total_cmp(a));
        thresholds.dedup();
        let share = |values: &[f64], threshold: f64| {
            let above = values.partition_point(|value| *value >= threshold);
            above as f64 / values.len() as f64
        };
        let mut points = vec![(0.0, 0.0)];
        for threshold in thresholds {
            points.push((share(&clean, threshold), share(&adversarial, threshold)));
        }
        let trapezia = points.windows(2);
        let area = trapezia
            .map(|pair| (pair[1].0 - pair[0].0) * f64::midpoint(pair[0].1, pair[1].1))
            .sum();
        Self { points, area }
    }

    /// Share of adversarial images refused by the strictest threshold that refuses at most this
    /// share of the clean ones.
    pub fn caught(&self, refused: f64) -> f64 {
        let allowed = self.points.iter().filter(|point| point.0 <= refused);
        allowed.map(|point| point.1).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separated_mixed_and_equal_scores() {
        let area = |clean: &[f64], adversarial: &[f64]| Roc::of(clean, adversarial).area;
        assert!((area(&[0.0, 1.0], &[2.0, 3.0]) - 1.0).abs() < 1e-12);
        assert!((area(&[2.0, 3.0], &[0.0, 1.0])).abs() < 1e-12);
        assert!((area(&[1.0, 1.0], &[1.0]) - 0.5).abs() < 1e-12);
        assert!(area(&[], &[1.0]).is_nan());
        let roc = Roc::of(&[1.0, 2.0, 3.0, 4.0], &[3.5, 5.0]);
        assert_eq!(
            (roc.caught(0.0), roc.caught(0.25), roc.caught(1.0)),
            (0.5, 1.0, 1.0)
        );
        assert_eq!(roc.points.last(), Some(&(1.0, 1.0)));
    }
}
