#![doc = include_str!("../README.md")]

mod carry;
mod objective;

pub use carry::{Carry, Store};
pub use objective::{AfterCap, EpochWise, Limit, Reading};
