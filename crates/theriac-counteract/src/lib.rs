#![doc = include_str!("../README.md")]

mod add_back;
mod classifier;
mod settings;

pub use add_back::AddBack;
pub use classifier::Counteract;
pub use settings::{Kind, Pool, Settings, Start, Untargeted};
