//! Shared by the unit tests.

use crate::Real;
use crate::real::with_scratch;
use std::fmt::Debug;

/// `len` values in [-1, 1), different for each `seed`, always the same.
pub(crate) fn data<T: Real>(seed: u64, len: usize) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            T::from_f64((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
        })
        .collect()
}

/// Asserts agreement within `tolerance` of the largest entry.
pub(crate) fn assert_close<T: Real>(
    actual: &[T],
    expected: &[f64],
    tolerance: f64,
    case: &impl Debug,
) {
    assert_eq!(actual.len(), expected.len(), "{case:?}");
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (a.to_f64() - e).abs();
        assert!(
            error <= tolerance * largest,
            "{case:?}, element {i}: {a:?}, expected {e}"
        );
    }
}

/// Asserts equality bit by bit (an exact conversion to `f64` keeps the bits apart).
pub(crate) fn assert_same_bits<T: Real>(actual: &[T], expected: &[T]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(
            a.to_f64().to_bits(),
            e.to_f64().to_bits(),
            "element {i}: {a:?}, {e:?}"
        );
    }
}

/// Asserts that `f` gives the same bits in thread pools of 1, 2 and 3 threads.
pub(crate) fn same_for_threads<T: Real>(f: impl Fn() -> Vec<T> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(&f)
    };
    let one = run(1);
    assert!(!one.is_empty());
    for threads in [2, 3] {
        assert_same_bits(&run(threads), &one);
    }
}

/// Leaves NaN in this thread's scratch buffer.
pub(crate) fn dirty_scratch<T: Real>() {
    with_scratch([1 << 20], |[buffer]| buffer.fill(T::from_f64(f64::NAN)));
}
