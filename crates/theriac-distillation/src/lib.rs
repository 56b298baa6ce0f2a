#![doc = include_str!("../README.md")]

mod objective;

pub use objective::{Distillation, Tempered};
