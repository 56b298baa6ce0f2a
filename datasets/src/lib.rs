#![doc = include_str!("../README.md")]

#[cfg(feature = "weights")]
mod client;
mod description;
mod error;
mod files;
mod format;
#[cfg(feature = "hub")]
mod hub;
mod picture;
mod sample;
#[cfg(feature = "weights")]
mod weights;

pub use description::{Description, File, Format, Role, SampleSize, Source, Split};
pub use error::Error;
pub use files::{Event, Files, LocalFile, Options, resolve};
pub use sample::{Sample, SampleSplit, embedded};
#[cfg(feature = "weights")]
pub use weights::{Hub, Weights};
