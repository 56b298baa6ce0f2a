//! Sixteen images side by side.
//!
//! An activation of 16 images is stored as (channels, rows, columns, 16): one vector for each
//! pixel, with one image in each lane, and a border of zeros as wide as the convolutions that read
//! it ask for. In this layout every layer is plain arithmetic on vectors: a convolution of any
//! kernel, stride or padding needs no copies and wastes no lane, pooling needs no shuffles, and an
//! image's result cannot depend on its neighbours.

mod conv;
mod dense;
mod elementwise;
pub mod network;
pub(crate) mod normal;
pub(crate) mod peak;
mod plane;
mod pool;
mod products;
mod simd;
mod tiles;

/// Images side by side.
pub(crate) const LANES: usize = 16;
