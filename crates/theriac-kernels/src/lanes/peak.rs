//! The multiply-adds that the machine does when nothing else limits it: the yardstick of benchmarks.
#![allow(unsafe_code)]

use super::simd::{Level, Vector, dispatch};

/// Most values that are summed side by side, in any level.
const MOST: usize = 24 * super::LANES;

/// `rounds` fused multiply-adds on each of the registers' sums, on the calling thread, with the
/// instructions that [`crate::network`] uses. Returns the number of floating-point operations (two
/// for each product and lane) and a value that depends on all of them.
pub fn fused_multiply_adds(rounds: usize) -> (f64, f32) {
    // Different starts: equal sums would be computed once.
    let mut values: [f32; MOST] = std::array::from_fn(|i| i as f32);
    let mut width = 0;
    chains(
        Level::best(),
        std::hint::black_box(rounds),
        &mut values,
        &mut width,
    );
    let operations = 2.0 * rounds as f64 * width as f64;
    (operations, values[..width].iter().sum())
}

dispatch! {
    fn chains(rounds: usize, values: &mut [f32; MOST], width: &mut usize) = add_products;
    avx512 <24>, avx2 <12>, neon <24>
}

#[inline(always)]
unsafe fn add_products<V: Vector, const N: usize>(
    rounds: usize,
    values: &mut [f32; MOST],
    width: &mut usize,
) {
    *width = N * V::WIDTH;
    // SAFETY: N vectors are at most MOST values; the vectors' features are the caller's.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = V::load(values.as_ptr().add(i * V::WIDTH));
        }
        let (a, b) = (V::splat(1.0 / 1024.0), V::load(values.as_ptr()));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = sum.plus_product(a, b);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            sum.store(values.as_mut_ptr().add(i * V::WIDTH));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sum_takes_part_in_every_round() {
        for level in Level::available() {
            let start: [f32; MOST] = std::array::from_fn(|i| i as f32);
            let (mut values, mut width) = (start, 0);
            chains(level, 1024, &mut values, &mut width);
            let lanes = match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => 16,
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => 8,
                #[cfg(target_arch = "aarch64")]
                Level::Neon => 4,
                Level::Portable => 1,
            };
            assert_eq!(width % lanes, 0);
            for (i, (value, start)) in values.iter().zip(&start).enumerate() {
                // 1024 times a 1024th of the first vector; exact.
                let added = if i < width { (i % lanes) as f32 } else { 0.0 };
                assert_eq!(*value, start + added, "{level:?}, value {i}");
            }
        }
    }
}
