//! The skeleton of a defence, which `cargo xtask new` writes, is right as it stands.

#[path = "../../xtask/src/templates/defence/contract.rs"]
mod contract;
#[allow(unreachable_pub)] // public in the crate that it becomes
#[path = "../../xtask/src/templates/defence/objective.rs"]
mod objective;

pub(crate) use objective::Skeleton;
