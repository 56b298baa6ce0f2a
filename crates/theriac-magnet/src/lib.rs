#![doc = include_str!("../README.md")]

mod auto_encoder;
mod detector;
mod evasion;
mod magnet;

pub use auto_encoder::{AutoEncoder, Denoise, Part, auto_encoder};
pub use detector::{Detector, Divergence, Reconstruction, threshold};
pub use evasion::Evasion;
pub use magnet::{Judgement, MagNet, Rejecting, Score};
