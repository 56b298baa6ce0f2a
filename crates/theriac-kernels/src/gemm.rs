//! The only `unsafe` code: calls into the `gemm` crate, behind a safe and checked function.
#![allow(unsafe_code)]

use crate::Real;

/// Longest inner dimension of one call.
///
/// `gemm` splits a longer one at places that depend on the other two dimensions. Cutting it here
/// makes the order of additions a matter of the inner dimension alone, so that an image's result
/// does not depend on how many images share the call.
const DEPTH: usize = 512;

/// How a matrix lies in a slice: element (r, c) is at `r * row + c * col`.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Strides {
    /// Rows one after the other, `width` elements apart.
    pub(crate) fn rows(width: usize) -> Self {
        Self { row: width, col: 1 }
    }

    /// Columns one after the other, `height` elements apart: the transpose of [`Self::rows`].
    pub(crate) fn cols(height: usize) -> Self {
        Self {
            row: 1,
            col: height,
        }
    }

    fn end(self, rows: usize, cols: usize) -> usize {
        (rows - 1) * self.row + (cols - 1) * self.col + 1
    }
}

/// `dst = lhs rhs`, or `dst += lhs rhs` if `accumulate`, for (m, k) x (k, n) matrices.
///
/// Runs on the calling thread. Without `accumulate`, `dst` is never read.
///
/// # Panics
///
/// If a matrix does not fit in its slice, a mistake of this crate.
pub(crate) fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: (&mut [T], Strides),
    lhs: (&[T], Strides),
    rhs: (&[T], Strides),
    accumulate: bool,
) {
    assert!(
        m > 0 && n > 0 && k > 0,
        "gemm: an empty matrix, {m} x {n} x {k}"
    );
    assert!(
        dst.1.end(m, n) <= dst.0.len(),
        "gemm: the destination does not fit"
    );
    assert!(
        lhs.1.end(m, k) <= lhs.0.len(),
        "gemm: the left matrix does not fit"
    );
    assert!(
        rhs.1.end(k, n) <= rhs.0.len(),
        "gemm: the right matrix does not fit"
    );
    assert!(
        (dst.1.row >= n * dst.1.col) || (dst.1.col >= m * dst.1.row),
        "gemm: the destination overlaps itself"
    );
    let mut start = 0;
    while start < k {
        let depth = DEPTH.min(k - start);
        // SAFETY: the assertions above keep every element that the strides reach inside its slice;
        // `start + depth <= k`. Slices are at most isize::MAX bytes, so the casts are exact. `dst`
        // is borrowed mutably, so it overlaps neither operand. T is f32 or f64 (Real is sealed),
        // which gemm accepts.
        unsafe {
            gemm::gemm(
                m,
                n,
                depth,
                dst.0.as_mut_ptr(),
                dst.1.col as isize,
                dst.1.row as isize,
                accumulate || start > 0,
                lhs.0.as_ptr().add(start * lhs.1.col),
                lhs.1.col as isize,
                lhs.1.row as isize,
                rhs.0.as_ptr().add(start * rhs.1.row),
                rhs.1.col as isize,
                rhs.1.row as isize,
                T::ONE,
                T::ONE,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        start += depth;
    }
}
