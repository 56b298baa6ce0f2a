//! Learning rates over epochs.

use serde::{Deserialize, Serialize};

/// Learning rate as a function of the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same throughout.
    Constant {
        /// The rate.
        rate: f64,
    },
    /// `rate * factor^k` where k is the number of milestones at or before the epoch.
    Steps {
        /// The first rate.
        rate: f64,
        /// Epochs, counted from 0, from which the next factor holds.
        milestones: Vec<usize>,
        /// What each milestone multiplies by.
        factor: f64,
    },
    /// `rate * (1 + cos(pi * epoch / epochs)) / 2`.
    Cosine {
        /// The first rate.
        rate: f64,
        /// Epochs until zero.
        epochs: usize,
    },
}

impl Schedule {
    /// The rate of an epoch, counted from 0.
    pub fn at(&self, epoch: usize) -> f64 {
        match self {
            Self::Constant { rate } => *rate,
            Self::Steps {
                rate,
                milestones,
                factor,
            } => {
                let passed = milestones.iter().filter(|&&m| m <= epoch).count();
                rate * factor.powi(passed as i32)
            }
            Self::Cosine { rate, epochs } => {
                let done = epoch.min(*epochs) as f64 / (*epochs).max(1) as f64;
                rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let steps = Schedule::Steps {
            rate: 0.1,
            milestones: vec![2, 4],
            factor: 0.1,
        };
        let rates: Vec<String> = (0..5).map(|e| format!("{:.4}", steps.at(e))).collect();
        assert_eq!(rates, ["0.1000", "0.1000", "0.0100", "0.0100", "0.0010"]);
        let cosine = Schedule::Cosine {
            rate: 1.0,
            epochs: 10,
        };
        assert_eq!(cosine.at(0), 1.0);
        assert!((cosine.at(5) - 0.5).abs() < 1e-12 && cosine.at(10).abs() < 1e-12);
        assert_eq!(Schedule::Constant { rate: 0.3 }.at(99), 0.3);
    }
}
