//! What a loader gives and an objective takes.

use crate::{Pixels, Target};

/// Images with their targets and their ids.
#[derive(Clone, Debug)]
pub struct Batch<T> {
    /// The images, shape (N, C, H, W).
    pub pixels: Pixels,
    /// What they are scored against.
    pub target: T,
    /// Index of each image in its data set: keys random numbers and carried perturbations.
    pub samples: Vec<u32>,
}

impl<T: Target> Batch<T> {
    /// Number of images.
    #[allow(clippy::len_without_is_empty)] // Pixels cannot be empty
    pub fn len(&self) -> usize {
        self.pixels.len()
    }
}
