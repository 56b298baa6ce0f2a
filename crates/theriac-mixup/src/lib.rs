#![doc = include_str!("../README.md")]

mod classifier;
mod mix;
mod objective;

pub use classifier::{MiOl, Pool, Unchanged};
pub use mix::{Lambda, Mix, Mixed, Pair};
pub use objective::{InterpolatedAdversarial, Mixup};
