#![doc = include_str!("../README.md")]

mod active;
mod apgd;
mod auto_attack;
mod bim;
mod bpda;
mod carlini_wagner;
mod ddn;
mod declared;
mod deep_fool;
mod eot;
mod fab;
mod few_pixel;
mod fgsm;
mod fmn;
mod hop_skip_jump;
mod host;
mod loss;
mod mi_fgsm;
mod pgd;
mod report;
mod restarts;
#[cfg(test)] // what `cargo xtask new attack` writes is right as it stands
#[allow(unreachable_pub)] // public where it is written to
#[path = "../../../xtask/src/templates/attack.rs"]
mod skeleton;
mod spec;
mod spsa;
mod square;
mod start;
#[cfg(test)]
mod testing;
mod transfer;
mod within;
mod worst_of;

pub use apgd::{Apgd, ApgdT};
pub use auto_attack::{AutoAttack, Version};
pub use bim::bim;
pub use bpda::Bpda;
pub use carlini_wagner::CarliniWagner;
pub use ddn::Ddn;
pub use declared::{Access, Declare, Declared};
pub use deep_fool::DeepFool;
pub use eot::Eot;
pub use fab::Fab;
pub use few_pixel::FewPixel;
pub use fgsm::Fgsm;
pub use fmn::Fmn;
pub use hop_skip_jump::HopSkipJump;
pub use loss::Loss;
pub use mi_fgsm::MiFgsm;
pub use pgd::{Keep, Pgd};
pub use report::{Report, Row, report};
pub use restarts::Restarts;
pub use spec::Spec;
pub use spsa::Spsa;
pub use square::Square;
pub use start::Start;
pub use transfer::{Transfer, Transferred, transferred};
pub use within::Within;
pub use worst_of::WorstOf;
