#![doc = include_str!("../README.md")]

mod certificate;
mod layers;
mod objective;
mod settings;

pub use certificate::{Certificate, binomial_interval, robust, votes};
pub use layers::NoisyFirst;
pub use objective::Bounded;
pub use settings::PixelDp;
