#![doc = include_str!("../README.md")]

mod constant;
mod error;
mod graph;
mod model;
mod node;
mod ops;
pub mod proto;

pub use error::Error;
pub use model::{OnnxModel, Options, Summary};
