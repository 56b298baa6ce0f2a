#![doc = include_str!("../README.md")]

mod accuracy;
mod checks;
mod doubled;
pub mod evaluation;
mod evaluator;
mod interval;
mod robust;
mod roc;
#[cfg(test)]
mod testing;

pub use accuracy::{Prediction, clean_accuracy};
pub use checks::{Check, Checks, Finding, Verdict};
pub use evaluation::{Evaluation, Measure};
pub use evaluator::Evaluator;
pub use interval::{Accuracy, Mean, wilson};
pub use robust::{Knowledge, Outcome, Reference, Robust, ThreatModel};
pub use roc::{Detector, Roc};
pub use theriac_attacks::Declared;
