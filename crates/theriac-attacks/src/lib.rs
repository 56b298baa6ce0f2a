#![doc = include_str!("../README.md")]

mod active;
mod apgd;
mod bim;
mod bpda;
mod declared;
mod eot;
mod fab;
mod fgsm;
mod host;
mod loss;
mod mi_fgsm;
mod pgd;
mod report;
mod restarts;
mod spec;
mod start;
#[cfg(test)]
mod testing;
mod transfer;
mod within;
mod worst_of;

pub use apgd::{Apgd, ApgdT};
pub use bim::bim;
pub use bpda::Bpda;
pub use declared::{Access, Declare, Declared};
pub use eot::Eot;
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use loss::Loss;
pub use mi_fgsm::MiFgsm;
pub use pgd::{Keep, Pgd};
pub use report::{Report, Row, report};
pub use restarts::Restarts;
pub use spec::Spec;
pub use start::Start;
pub use transfer::{Transfer, Transferred, transferred};
pub use within::Within;
pub use worst_of::WorstOf;
