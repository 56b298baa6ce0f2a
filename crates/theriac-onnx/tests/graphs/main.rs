//! Small graphs against closed forms; gradients against central differences.

mod errors;
mod pointwise;
mod shapes;
mod support;
mod windows;
