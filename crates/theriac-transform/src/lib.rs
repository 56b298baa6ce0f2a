#![doc = include_str!("../README.md")]

mod crop_pad;
mod crop_resize;
mod noise;
mod quantise;
mod rotation;
mod taps;

pub use crop_pad::RandomCropPad;
pub use crop_resize::RandomCropResize;
pub use noise::GaussianNoise;
pub use quantise::Quantise;
pub use rotation::RandomRotation;
