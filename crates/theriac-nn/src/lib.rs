#![doc = include_str!("../README.md")]

mod conv;
mod error;
mod init;
mod layers;
mod linear;
mod network;
mod norm;
mod normalised;
mod params;
mod saved;
mod twin;

pub use conv::Conv;
pub use error::Error;
pub use init::Init;
pub use layers::{Layer, Layers, Plain, Site};
pub use linear::Linear;
pub use network::{Form, Network, Operations, Value};
pub use norm::BatchNorm;
pub use normalised::Normalised;
pub use params::Params;
pub use saved::{Entry, Saved, write};
pub use twin::Twin;

/// candle's path-based access to parameters, as [`Params`] hands it to constructors.
pub type VarBuilder = candle_nn::VarBuilder<'static>;
