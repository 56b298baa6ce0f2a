use std::cell::Cell;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use std::thread::LocalKey;

/// The element types of the kernels: `f32` for work, `f64` for checking. Sealed.
pub trait Real:
    sealed::Scratch
    + Copy
    + Debug
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// The nearest value to `v`.
    fn from_f64(v: f64) -> Self;
    /// The same value in double precision.
    fn to_f64(self) -> f64;
    /// Exponential.
    fn exp(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Whether the value is NaN.
    fn is_nan(self) -> bool;
    /// 0 for a subnormal number, else the value.
    fn flush(self) -> Self;
}

mod sealed {
    use super::{Cell, LocalKey};

    /// Per-thread storage for intermediate buffers; private, which seals `Real`.
    pub trait Scratch: Sized + 'static {
        fn slot() -> &'static LocalKey<Cell<Vec<Self>>>;
    }
}

macro_rules! real {
    ($t:ident, $slot:ident) => {
        thread_local!(static $slot: Cell<Vec<$t>> = const { Cell::new(Vec::new()) });

        impl sealed::Scratch for $t {
            fn slot() -> &'static LocalKey<Cell<Vec<Self>>> {
                &$slot
            }
        }

        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            #[inline]
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            #[inline]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline]
            fn exp(self) -> Self {
                $t::exp(self)
            }
            #[inline]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline]
            fn flush(self) -> Self {
                if self.abs() < $t::MIN_POSITIVE {
                    0.0
                } else {
                    self
                }
            }
            #[inline]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
        }
    };
}

real!(f32, SCRATCH_F32);
real!(f64, SCRATCH_F64);

/// Runs `f` on buffers of the given lengths, reused from call to call on each thread.
///
/// Their contents are whatever the last user left. The buffer is taken out of its slot meanwhile,
/// so that a nested call gets another one instead of a panic.
pub(crate) fn with_scratch<T: Real, R, const N: usize>(
    lens: [usize; N],
    f: impl FnOnce([&mut [T]; N]) -> R,
) -> R {
    let mut buffer = T::slot().take();
    let total = lens.iter().sum();
    if buffer.len() < total {
        buffer.resize(total, T::ZERO);
    }
    let mut rest = &mut buffer[..];
    let result = f(lens.map(|len| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
        rest = tail;
        part
    }));
    T::slot().set(buffer);
    result
}
