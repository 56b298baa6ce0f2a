//! A data set from a seed, for tests and examples.

use theriac::Rng;

use crate::dataset::volume;
use crate::{Error, Images, Result};

/// `n` images of `shape` [C, H, W], their labels 0, 1, .. in turn: one bright spot on noise, its
/// place told by the class.
///
/// The spots of the classes stand on a square grid. With the distance `d` from the spot's centre
/// and its radius `r`, both in pixels, a pixel is `0.2 u + 0.8 max(0, 1 - d^2 / r^2)`, `u` uniform
/// in [0, 1). Only sums, products and quotients are used, so every machine makes the same bytes.
///
/// # Errors
/// [`Error::Setting`] as in [`Images::new`].
///
/// ```
/// use theriac::Rng;
/// let images = theriac_data::synthetic(10, [3, 8, 8], 2, &Rng::new(0))?;
/// assert_eq!(images.labels()[..4], [0, 1, 0, 1]);
/// # Ok::<(), theriac_data::Error>(())
/// ```
pub fn synthetic(n: usize, shape: [usize; 3], classes: usize, rng: &Rng) -> Result<Images> {
    let [channels, height, width] = shape;
    if volume(shape)
        .and_then(|pixels| pixels.checked_mul(n))
        .is_none()
    {
        let remedy = format!("{n} such images do not fit in memory, ask for fewer or smaller");
        return Err(Error::Setting {
            name: "shape",
            value: format!("{shape:?}"),
            remedy,
        });
    }
    let side = (1..=classes)
        .find(|side| side * side >= classes)
        .unwrap_or(1) as f32;
    let (cell_h, cell_w) = (height as f32 / side, width as f32 / side);
    let radius = 0.75 * cell_h.min(cell_w).max(1.0);
    let mut bytes = Vec::with_capacity(n * channels * height * width);
    let mut labels = Vec::with_capacity(n);
    for i in 0..n {
        let class = i % classes.max(1);
        labels.push(class as u32);
        let (row, column) = (class / side as usize, class % side as usize);
        let centre = ((row as f32 + 0.5) * cell_h, (column as f32 + 0.5) * cell_w);
        let mut noise = rng
            .uniform("synthetic", i as u64, channels * height * width)
            .into_iter();
        for _ in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let dy = y as f32 + 0.5 - centre.0;
                    let dx = x as f32 + 0.5 - centre.1;
                    let spot = (1.0 - (dy * dy + dx * dx) / (radius * radius)).max(0.0);
                    let value = 0.2 * noise.next().unwrap_or(0.0) + 0.8 * spot;
                    bytes.push((255.0 * value) as u8);
                }
            }
        }
    }
    Images::new("synthetic", bytes, labels, shape, classes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;

    #[test]
    fn a_function_of_the_seed_and_no_longer_data_set_changes_it() {
        let make = |n, seed| synthetic(n, [1, 6, 6], 3, &Rng::new(seed)).unwrap();
        assert_eq!(make(9, 1), make(9, 1));
        assert_ne!(make(9, 1), make(9, 2));
        assert_eq!(make(30, 1).take(9).unwrap(), make(9, 1));
    }

    #[test]
    fn classes_can_be_told_apart() {
        let images = synthetic(100, [2, 9, 9], 10, &Rng::new(3)).unwrap();
        let pixels = 2 * 9 * 9;
        let image = |i: usize| &images.bytes()[i * pixels..(i + 1) * pixels];
        let distance = |a: &[u8], b: &[u8]| -> u32 {
            a.iter()
                .zip(b)
                .map(|(&a, &b)| u32::from(a.abs_diff(b)).pow(2))
                .sum()
        };
        // Nearest neighbour among the first image of each class.
        for i in 10..images.len() {
            let nearest = (0..10).min_by_key(|&k| distance(image(i), image(k)));
            assert_eq!(nearest, Some(images.labels()[i] as usize));
        }
    }

    #[test]
    fn bad_settings_are_errors() {
        for (n, shape, classes) in [
            (0, [1, 2, 2], 2),
            (2, [1, 0, 2], 2),
            (2, [1, 2, 2], 0),
            (2, [usize::MAX, 2, 2], 2),
        ] {
            assert!(
                synthetic(n, shape, classes, &Rng::new(0)).is_err(),
                "{n} {shape:?} {classes}"
            );
        }
    }
}
