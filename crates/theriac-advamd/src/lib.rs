#![doc = include_str!("../README.md")]

mod coefficients;
mod deltas;
mod layers;
mod objective;

pub use coefficients::{Alpha, Tally};
pub use deltas::Deltas;
pub use layers::{AUXILIARY, TwoBanks};
pub use objective::{AdvAmd, BnBatches, Settings, WeightedLoss};
