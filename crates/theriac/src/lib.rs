#![doc = include_str!("../README.md")]

mod attack;
mod batch;
mod budget;
#[cfg(feature = "contract")]
pub mod contract;
mod device;
mod ensemble;
mod error;
#[cfg(feature = "contract")]
pub mod gallery;
mod gradient;
mod model;
mod pass;
mod pixels;
mod rng;
mod transform;

pub use attack::{Aim, Attack, CHUNK, Cut, craft, in_chunks, over_chunks};
pub use batch::Batch;
pub use budget::{Budget, Eps, Norm};
pub use device::device;
pub use ensemble::Ensemble;
pub use error::{BoxError, Error, Result};
pub use gradient::{gradient, jacobian};
pub use model::{Classifier, Labels, Model, Target, finite_rows, largest, predict, scores};
pub use pass::{Bank, Iterate, Meter, Mode, Pass, Run, Watch, Work};
pub use pixels::Pixels;
pub use rng::Rng;
pub use theriac_ops::vjp;
pub use transform::{Average, Executions, Transform, Transformed};
