#![doc = include_str!("../README.md")]

mod losses;
mod objective;

pub use losses::{coral, margin, mmd, moved_centres};
pub use objective::Atda;
