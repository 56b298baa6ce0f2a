//! Vectors of the machine, chosen when the program runs.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// The vector instructions that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// 16 lanes, 32 registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, 16 registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 lanes, 32 registers.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// One lane; the reference that the others are tested against.
    Portable,
}

impl Level {
    /// The best one of this machine.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All of this machine, best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                levels.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Self::Neon);
        levels.push(Self::Portable);
        levels
    }
}

/// A register of `f32` lanes.
///
/// The methods compile to single instructions once they are inlined into a function that has the
/// target feature; [`dispatch`] makes such functions.
///
/// # Safety
///
/// Every method needs the instruction set of its implementation; `load` and `store` need `WIDTH`
/// elements behind the pointer.
pub(crate) trait Vector: Copy {
    /// Number of lanes.
    const WIDTH: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self + a b`, rounded once.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    /// `self` where it is above 0 or NaN, else 0: the rule of ReLU.
    unsafe fn positive(self) -> Self;
}

impl Vector for f32 {
    const WIDTH: usize = 1;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { from.read() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.write(self) }
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        a.mul_add(b, self)
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        self - other
    }
    #[inline(always)]
    unsafe fn positive(self) -> Self {
        if self > 0.0 || self.is_nan() {
            self
        } else {
            0.0
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    impl Vector for __m512 {
        const WIDTH: usize = 16;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's, as in every method here.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see splat.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see splat.
            unsafe { _mm512_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm512_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm512_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn positive(self) -> Self {
            // max returns its second operand if one is NaN.
            // SAFETY: see splat.
            unsafe { _mm512_max_ps(_mm512_setzero_ps(), self) }
        }
    }

    impl Vector for __m256 {
        const WIDTH: usize = 8;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's, as in every method here.
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see splat.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see splat.
            unsafe { _mm256_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm256_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm256_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn positive(self) -> Self {
            // SAFETY: see splat.
            unsafe { _mm256_max_ps(_mm256_setzero_ps(), self) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::Vector;
    use std::arch::aarch64::*;

    impl Vector for float32x4_t {
        const WIDTH: usize = 4;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: NEON is part of the architecture; pointers are the caller's.
            unsafe { vdupq_n_f32(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see splat.
            unsafe { vld1q_f32(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see splat.
            unsafe { vst1q_f32(to, self) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see splat.
            unsafe { vfmaq_f32(self, a, b) }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: see splat.
            unsafe { vaddq_f32(self, other) }
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: see splat.
            unsafe { vsubq_f32(self, other) }
        }
        #[inline(always)]
        unsafe fn positive(self) -> Self {
            // Unlike maxnm, max passes NaN on.
            // SAFETY: see splat.
            unsafe { vmaxq_f32(vdupq_n_f32(0.0), self) }
        }
    }
}

/// Calls `$body::<V, ...>(args)` for the vectors of a level, inside a function that has its target
/// feature: `dispatch!(level, (wide, narrow, neon, portable generics), function(args: types))`.
macro_rules! dispatch {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident;
        avx512 <$($a:tt),*>, avx2 <$($b:tt),*>, neon <$($c:tt),*>
    ) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::lanes::simd::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $ty),*) {
                // SAFETY: this function has the vectors' target feature.
                unsafe { $body::<std::arch::x86_64::__m512, $($a),*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                // SAFETY: this function has the vectors' target features.
                unsafe { $body::<std::arch::x86_64::__m256, $($b),*>($($arg),*) }
            }
            match level {
                // SAFETY: a level is only made where its instructions are detected.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: NEON is part of the architecture.
                #[cfg(target_arch = "aarch64")]
                $crate::lanes::simd::Level::Neon => unsafe {
                    $body::<std::arch::aarch64::float32x4_t, $($c),*>($($arg),*)
                },
                // SAFETY: plain numbers need no instructions.
                $crate::lanes::simd::Level::Portable => unsafe {
                    $body::<f32, $($c),*>($($arg),*)
                },
            }
        }
    };
}
pub(crate) use dispatch;

/// Compiles a plain function once for each level, so that its loops over lanes become vectors of
/// that level. Sums must not be reordered, and are not: the compiler keeps to IEEE arithmetic.
macro_rules! each_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::lanes::simd::Level, $($arg: $ty),*) {
            #[inline(always)]
            fn plain($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $ty),*) {
                plain($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                plain($($arg),*);
            }
            match level {
                // SAFETY: a level is only made where its instructions are detected.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => plain($($arg),*),
            }
        }
    };
}
pub(crate) use each_level;
