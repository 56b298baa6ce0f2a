#![doc = include_str!("../README.md")]

mod coefficients;
mod deltas;
mod layers;
mod objective;

pub use coefficients::{Alpha, Ladder, Tally};
pub use deltas::Deltas;
pub use layers::{AUXILIARY, Through, TwoBanks};
pub use objective::{AdvAmd, Adversary, BnBatches, EachBatch, OnTheWay, Settings, WeightedLoss};
