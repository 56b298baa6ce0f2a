#![doc = include_str!("../README.md")]

mod attack;
mod batch;
mod budget;
#[cfg(feature = "contract")]
pub mod contract;
mod device;
mod error;
mod gradient;
mod model;
mod pass;
mod pixels;
mod rng;

pub use attack::{Aim, Attack, CHUNK, craft, over_chunks};
pub use batch::Batch;
pub use budget::{Budget, Eps, Norm};
pub use device::device;
pub use error::{BoxError, Error, Result};
pub use gradient::gradient;
pub use model::{Classifier, Labels, Model, Target, predict};
pub use pass::{Bank, Meter, Mode, Pass, Run};
pub use pixels::Pixels;
pub use rng::Rng;
pub use theriac_ops::vjp;
