#![doc = include_str!("../README.md")]

mod layers;
mod objective;
mod settings;
mod theta;

pub use layers::Injection;
pub use objective::Alternating;
pub use settings::{
    Learn2Perturb, Placement, RegRate, RegReduce, ThetaMomentum, ThetaShape, ThetaUpdate,
};
