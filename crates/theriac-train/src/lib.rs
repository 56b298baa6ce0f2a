#![doc = include_str!("../README.md")]

mod fit;
mod mixture;
mod objective;
mod rule;
mod schedule;

pub use fit::{Epoch, Outcome, Plan, Progress, fit};
pub use mixture::{LabelSource, mixture};
pub use objective::{Clean, Objective};
pub use rule::{Adam, Group, Rule, Sgd};
pub use schedule::Schedule;
