#![doc = include_str!("../README.md")]

mod augment;
mod bytes;
mod cifar;
mod dataset;
mod error;
mod folder;
mod idx;
mod loader;
mod synthetic;
mod tiny_imagenet;

pub use augment::Augment;
pub use dataset::{Dataset, Images};
pub use error::{Error, Result};
pub use folder::{Corrupt, Filter, ImageFolder, Prepare};
pub use loader::{Loader, Order, Partial};
pub use synthetic::synthetic;
