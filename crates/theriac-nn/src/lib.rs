#![doc = include_str!("../README.md")]

mod chain;
mod conv;
mod error;
mod init;
mod layer_norm;
mod layers;
mod linear;
mod network;
mod noise;
mod norm;
mod normalised;
mod params;
mod saved;
mod twin;
mod weights;

pub use chain::Chain;
pub use conv::Conv;
pub use error::Error;
pub use init::Init;
pub use layer_norm::LayerNorm;
pub use layers::{Layer, Layers, Plain, Site};
pub use linear::Linear;
pub use network::{Form, Network, Operations, Value};
pub use noise::{Noise, Share};
pub use norm::BatchNorm;
pub use normalised::Normalised;
pub use params::Params;
pub use saved::{Entry, Saved, write};
pub use twin::Twin;
pub use weights::Affine;

pub use theriac_ops::network::Moments;

/// candle's path-based access to parameters, as [`Params`] hands it to constructors.
pub type VarBuilder = candle_nn::VarBuilder<'static>;
