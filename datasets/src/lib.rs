#![doc = include_str!("../README.md")]

mod description;
mod error;
mod files;
mod format;
#[cfg(feature = "hub")]
mod hub;
mod picture;
mod sample;

pub use description::{Description, File, Format, Role, SampleSize, Source, Split};
pub use error::Error;
pub use files::{Event, Files, LocalFile, Options, resolve};
pub use sample::{Sample, SampleSplit, embedded};
