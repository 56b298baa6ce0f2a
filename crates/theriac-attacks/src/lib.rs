#![doc = include_str!("../README.md")]

mod bim;
mod declared;
mod fgsm;
mod mi_fgsm;
mod pgd;
mod restarts;
mod spec;
mod start;
#[cfg(test)]
mod testing;

pub use bim::bim;
pub use declared::{Declare, Declared};
pub use fgsm::Fgsm;
pub use mi_fgsm::MiFgsm;
pub use pgd::{Keep, Pgd};
pub use restarts::Restarts;
pub use spec::Spec;
pub use start::Start;
