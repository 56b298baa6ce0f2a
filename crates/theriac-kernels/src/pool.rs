use crate::Real;
use crate::conv::MAX_STEP;
use crate::error::{Result, check_len, elements, geometry};
use crate::parallel::{CHUNK, split};
use rayon::prelude::*;
use std::ops::Range;

/// Geometry of two-dimensional pooling of x (N, C, H, W).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    n: usize,
    c: usize,
    h: usize,
    w: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Pool {
    /// Checks and records the geometry of pooling with square windows.
    ///
    /// # Errors
    ///
    /// If a dimension, the kernel or the stride is 0, if the padding is more than half the kernel
    /// (a window could then lie in the padding alone), if the window does not fit in the padded
    /// image, or if the image has 2^32 pixels or an array would be larger than any memory.
    pub fn new(x: [usize; 4], kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let [n, c, h, w] = x;
        if x.contains(&0) {
            return Err(geometry(
                "pooling: the input's shape",
                format!("{x:?}"),
                "pass a batch of at least one non-empty image",
            ));
        }
        for (what, value) in [("pooling: kernel", kernel), ("pooling: stride", stride)] {
            if value == 0 {
                return Err(geometry(what, value, "it must be at least 1"));
            }
        }
        if stride > MAX_STEP {
            return Err(geometry(
                "pooling: stride",
                stride,
                format!("it must be at most {MAX_STEP}"),
            ));
        }
        if padding > kernel / 2 {
            return Err(geometry(
                "pooling: padding",
                padding,
                format!("use at most {}", kernel / 2),
            ));
        }
        elements("pooling: the input's shape", &x)?;
        // The padding is at most half the kernel, so that doubling it cannot overflow.
        let padded = (h.checked_add(2 * padding), w.checked_add(2 * padding));
        if padded.0.is_none_or(|h| kernel > h) || padded.1.is_none_or(|w| kernel > w) {
            return Err(geometry(
                "pooling: kernel",
                kernel,
                format!("it must fit in ({h}, {w}) with {padding} on each side"),
            ));
        }
        if u32::try_from(h * w).is_err() {
            return Err(geometry(
                "pooling: the image",
                format!("({h}, {w})"),
                "use fewer than 2^32 pixels",
            ));
        }
        let pool = Self {
            n,
            c,
            h,
            w,
            kernel,
            stride,
            padding,
        };
        elements("pooling: the output's shape", &pool.out_shape())?;
        Ok(pool)
    }

    /// Height and width of the output; windows that do not fit are dropped.
    pub fn out_hw(&self) -> (usize, usize) {
        let out = |size: usize| (size + 2 * self.padding - self.kernel) / self.stride + 1;
        (out(self.h), out(self.w))
    }

    /// Shape of the output, (N, C, H_out, W_out).
    pub fn out_shape(&self) -> [usize; 4] {
        let (oh, ow) = self.out_hw();
        [self.n, self.c, oh, ow]
    }

    fn plane(&self) -> usize {
        self.h * self.w
    }

    fn out_plane(&self) -> usize {
        let (oh, ow) = self.out_hw();
        oh * ow
    }

    /// The part of the window at `out` inside an axis of length `size`.
    fn window(&self, out: usize, size: usize) -> Range<usize> {
        let start = out * self.stride;
        let end = (start + self.kernel).saturating_sub(self.padding).min(size);
        start.saturating_sub(self.padding)..end
    }

    /// Visits the windows of one plane in order: `f(output position, rows, columns)`.
    fn for_each_window(&self, mut f: impl FnMut(usize, Range<usize>, Range<usize>)) {
        let (oh, ow) = self.out_hw();
        for oy in 0..oh {
            let rows = self.window(oy, self.h);
            for ox in 0..ow {
                f(oy * ow + ox, rows.clone(), self.window(ox, self.w));
            }
        }
    }
}

/// Max pooling; padding counts as negative infinity.
///
/// `argmax` receives, for each output, the flat index in its (H, W) plane of the first maximum in
/// row-major order. A NaN wins over every number, as in PyTorch.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn max_pool2d<T: Real>(pool: &Pool, x: &[T], out: &mut [T], argmax: &mut [u32]) -> Result<()> {
    let planes = pool.n * pool.c;
    check_len("max_pool2d: x", x, planes * pool.plane())?;
    check_len("max_pool2d: out", out, planes * pool.out_plane())?;
    check_len("max_pool2d: argmax", argmax, planes * pool.out_plane())?;
    let chunk_len = CHUNK * pool.c * pool.out_plane();
    let chunk_task = |chunk: usize, out: &mut [T], argmax: &mut [u32]| {
        let x = x[chunk * CHUNK * pool.c * pool.plane()..].chunks_exact(pool.plane());
        let outputs = out
            .chunks_exact_mut(pool.out_plane())
            .zip(argmax.chunks_exact_mut(pool.out_plane()));
        for (x, (out, argmax)) in x.zip(outputs) {
            pool.for_each_window(|position, rows, columns| {
                let mut best = T::NEG_INFINITY;
                let mut best_at = rows.start * pool.w + columns.start;
                for y in rows {
                    let row = y * pool.w;
                    for (i, &v) in x[row..][columns.clone()].iter().enumerate() {
                        if v > best || v.is_nan() {
                            (best, best_at) = (v, row + columns.start + i);
                        }
                    }
                }
                out[position] = best;
                // Exact: the constructor bounds the plane.
                argmax[position] = best_at as u32;
            });
        }
    };
    if pool.n <= CHUNK {
        chunk_task(0, out, argmax);
    } else {
        out.par_chunks_mut(chunk_len)
            .zip(argmax.par_chunks_mut(chunk_len))
            .enumerate()
            .for_each(|(chunk, (out, argmax))| chunk_task(chunk, out, argmax));
    }
    Ok(())
}

/// Gradient of [`max_pool2d`]: each output's gradient goes to its recorded maximum; `grad_x` is
/// overwritten.
///
/// # Errors
///
/// If a slice has the wrong length or an index lies outside the plane.
pub fn max_pool2d_grad<T: Real>(
    pool: &Pool,
    argmax: &[u32],
    grad_out: &[T],
    grad_x: &mut [T],
) -> Result<()> {
    let planes = pool.n * pool.c;
    check_len("max_pool2d_grad: argmax", argmax, planes * pool.out_plane())?;
    check_len(
        "max_pool2d_grad: grad_out",
        grad_out,
        planes * pool.out_plane(),
    )?;
    check_len("max_pool2d_grad: grad_x", grad_x, planes * pool.plane())?;
    if let Some(index) = argmax.iter().find(|&&index| index as usize >= pool.plane()) {
        return Err(geometry(
            "an argmax of max_pool2d",
            index,
            format!(
                "pass the indices of the forward pass, below {}",
                pool.plane()
            ),
        ));
    }
    split(grad_x, CHUNK * pool.c * pool.plane(), |chunk, grad_x| {
        let start = chunk * CHUNK * pool.c * pool.out_plane();
        let outputs = argmax[start..]
            .chunks_exact(pool.out_plane())
            .zip(grad_out[start..].chunks_exact(pool.out_plane()));
        for (grad_x, (argmax, grad_out)) in grad_x.chunks_exact_mut(pool.plane()).zip(outputs) {
            grad_x.fill(T::ZERO);
            for (&index, &g) in argmax.iter().zip(grad_out) {
                grad_x[index as usize] += g;
            }
        }
    });
    Ok(())
}

/// Average pooling; padding counts as zeros.
///
/// The divisor is the window's size, or the number of its pixels inside the image if
/// `count_include_pad` is false.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn avg_pool2d<T: Real>(
    pool: &Pool,
    count_include_pad: bool,
    x: &[T],
    out: &mut [T],
) -> Result<()> {
    let planes = pool.n * pool.c;
    check_len("avg_pool2d: x", x, planes * pool.plane())?;
    check_len("avg_pool2d: out", out, planes * pool.out_plane())?;
    split(out, CHUNK * pool.c * pool.out_plane(), |chunk, out| {
        let x = x[chunk * CHUNK * pool.c * pool.plane()..].chunks_exact(pool.plane());
        for (x, out) in x.zip(out.chunks_exact_mut(pool.out_plane())) {
            pool.for_each_window(|position, rows, columns| {
                let divisor = divisor(pool, count_include_pad, &rows, &columns);
                let mut total = T::ZERO;
                for y in rows {
                    for &v in &x[y * pool.w..][columns.clone()] {
                        total += v;
                    }
                }
                out[position] = total / T::from_f64(divisor);
            });
        }
    });
    Ok(())
}

/// Gradient of [`avg_pool2d`]; `grad_x` is overwritten.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn avg_pool2d_grad<T: Real>(
    pool: &Pool,
    count_include_pad: bool,
    grad_out: &[T],
    grad_x: &mut [T],
) -> Result<()> {
    let planes = pool.n * pool.c;
    check_len(
        "avg_pool2d_grad: grad_out",
        grad_out,
        planes * pool.out_plane(),
    )?;
    check_len("avg_pool2d_grad: grad_x", grad_x, planes * pool.plane())?;
    split(grad_x, CHUNK * pool.c * pool.plane(), |chunk, grad_x| {
        let start = chunk * CHUNK * pool.c * pool.out_plane();
        let grad_out = grad_out[start..].chunks_exact(pool.out_plane());
        for (grad_x, grad_out) in grad_x.chunks_exact_mut(pool.plane()).zip(grad_out) {
            grad_x.fill(T::ZERO);
            pool.for_each_window(|position, rows, columns| {
                let divisor = divisor(pool, count_include_pad, &rows, &columns);
                let share = grad_out[position] / T::from_f64(divisor);
                for y in rows {
                    for g in &mut grad_x[y * pool.w..][columns.clone()] {
                        *g += share;
                    }
                }
            });
        }
    });
    Ok(())
}

fn divisor(
    pool: &Pool,
    count_include_pad: bool,
    rows: &Range<usize>,
    columns: &Range<usize>,
) -> f64 {
    if count_include_pad {
        (pool.kernel as f64).powi(2)
    } else {
        (rows.len() * columns.len()) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, data, same_for_threads};

    fn max<T: Real>(pool: &Pool, x: &[T]) -> (Vec<T>, Vec<u32>) {
        let len = pool.out_shape().iter().product();
        let (mut out, mut argmax) = (vec![T::ZERO; len], vec![9; len]);
        max_pool2d(pool, x, &mut out, &mut argmax).unwrap();
        (out, argmax)
    }

    #[test]
    fn first_maximum_takes_the_gradient() {
        let pool = Pool::new([1, 1, 2, 4], 2, 2, 0).unwrap();
        let (out, argmax) = max(&pool, &[0f32, 1.0, 3.0, 3.0, 1.0, 1.0, 3.0, 3.0]);
        assert_eq!((out, argmax.clone()), (vec![1.0, 3.0], vec![1, 2]));
        let mut grad = [f32::NAN; 8];
        max_pool2d_grad(&pool, &argmax, &[5.0, 7.0], &mut grad).unwrap();
        assert_eq!(grad, [0.0, 5.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(max_pool2d_grad(&pool, &[0, 8], &[5.0, 7.0], &mut grad).is_err());
    }

    #[test]
    fn overlapping_windows_add_up() {
        let pool = Pool::new([1, 1, 3, 3], 2, 1, 0).unwrap();
        let (_, argmax) = max(&pool, &[0f64, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let mut grad = [0.0; 9];
        max_pool2d_grad(&pool, &argmax, &[1.0, 2.0, 3.0, 4.0], &mut grad).unwrap();
        assert_eq!(grad[4], 10.0);
        assert_eq!(grad.iter().sum::<f64>(), 10.0);
    }

    #[test]
    fn padding_loses_and_nan_wins() {
        let pool = Pool::new([1, 1, 2, 2], 2, 2, 1).unwrap();
        let (out, argmax) = max(&pool, &[-1.0, -2.0, f32::NAN, f32::NEG_INFINITY]);
        assert_eq!((out[0], out[1], out[3]), (-1.0, -2.0, f32::NEG_INFINITY));
        assert!(out[2].is_nan());
        assert_eq!(argmax, [0, 1, 2, 3]);
        let pool = Pool::new([1, 1, 1, 4], 1, 1, 0).unwrap();
        assert_eq!(max(&pool, &[1f64, 2.0, 3.0, 4.0]).0, [1.0, 2.0, 3.0, 4.0]);
        let pool = Pool::new([1, 1, 2, 2], 2, 1, 0).unwrap();
        let (out, argmax) = max(&pool, &[1.0, f64::NAN, 5.0, f64::INFINITY]);
        assert!(out[0].is_nan() && argmax == [1]);
    }

    #[test]
    fn average_divides_by_the_window_or_its_inside() {
        let pool = Pool::new([1, 1, 2, 3], 3, 2, 1).unwrap();
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for (include, expected) in [
            (true, [12.0 / 9.0, 16.0 / 9.0]),
            (false, [12.0 / 4.0, 16.0 / 4.0]),
        ] {
            let (mut out, mut grad) = ([0.0; 2], [f64::NAN; 6]);
            avg_pool2d(&pool, include, &x, &mut out).unwrap();
            assert_close(&out, &expected, 1e-15, &include);
            avg_pool2d_grad(&pool, include, &[9.0, 18.0], &mut grad).unwrap();
            let share = if include { 1.0 } else { 9.0 / 4.0 };
            let both = 3.0 * share;
            let expected = [share, both, 2.0 * share, share, both, 2.0 * share];
            assert_close(&grad, &expected, 1e-15, &include);
        }
    }

    #[test]
    fn thread_count_changes_nothing() {
        let pool = Pool::new([40, 3, 9, 8], 3, 2, 1).unwrap();
        let x: Vec<f32> = data(1, 40 * 3 * 72);
        same_for_threads(|| {
            let (out, argmax) = max(&pool, &x);
            let (mut average, mut grad, mut average_grad) = (out.clone(), x.clone(), x.clone());
            max_pool2d_grad(&pool, &argmax, &out, &mut grad).unwrap();
            avg_pool2d(&pool, true, &x, &mut average).unwrap();
            avg_pool2d_grad(&pool, false, &out, &mut average_grad).unwrap();
            [out, average, grad, average_grad].concat()
        });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        for (x, kernel, stride, padding) in [
            ([0, 1, 4, 4], 2, 2, 0),
            ([1, 1, 4, 4], 0, 2, 0),
            ([1, 1, 4, 4], 2, 0, 0),
            ([1, 1, 4, 4], 2, 2, 2),
            ([1, 1, 4, 4], 5, 1, 0),
        ] {
            assert!(Pool::new(x, kernel, stride, padding).is_err());
        }
    }
}
