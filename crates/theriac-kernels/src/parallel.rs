use crate::Real;
use rayon::prelude::*;

/// Number of images (or batch rows) in one parallel task.
///
/// Fixed, and not derived from the number of threads, because the split decides the order in which
/// partial sums are added: a split that follows the thread count makes results depend on the
/// machine. 16 images of a small network are work enough to pay for a task, and batches of 64 and
/// more still fill several cores. A batch of one chunk runs on the calling thread, which leaves the
/// other cores to attacks that run side by side.
pub const CHUNK: usize = 16;

/// Number of elements in one parallel task of an elementwise kernel.
pub(crate) const BLOCK: usize = 1 << 15;

/// Calls `f(index, block)` for every block of `len` elements, in parallel if there are several.
pub(crate) fn split<T: Send>(out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.len() <= len {
        if !out.is_empty() {
            f(0, out);
        }
        return;
    }
    out.par_chunks_mut(len)
        .enumerate()
        .for_each(|(i, block)| f(i, block));
}

/// Collects `f(0), ..., f(count - 1)`, in parallel if `parallel`.
pub(crate) fn collect<R: Send>(
    count: usize,
    parallel: bool,
    f: impl Fn(usize) -> R + Sync + Send,
) -> Vec<R> {
    if parallel {
        (0..count).into_par_iter().map(f).collect()
    } else {
        (0..count).map(f).collect()
    }
}

/// Sum of `f(a)` in double precision.
///
/// Eight running sums, so that the additions overlap; their number is fixed, hence the order too.
pub(crate) fn sum<T: Real>(a: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let (blocks, rest) = a.as_chunks::<8>();
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane += f(v.to_f64());
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(v.to_f64());
    }
    lanes.iter().sum()
}

/// Sum of `f(a, b)` in double precision, like [`sum`].
pub(crate) fn sum2<T: Real>(a: &[T], b: &[T], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f(a.to_f64(), b.to_f64());
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(a.to_f64(), b.to_f64());
    }
    lanes.iter().sum()
}
