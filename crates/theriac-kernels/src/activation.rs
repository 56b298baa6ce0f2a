use crate::Real;
use crate::error::{Result, check_len};
use crate::parallel::{BLOCK, split};

/// `out = max(x, 0)`; NaN stays NaN.
///
/// # Errors
///
/// If the slices differ in length.
pub fn relu<T: Real>(x: &[T], out: &mut [T]) -> Result<()> {
    check_len("relu: out", out, x.len())?;
    split(out, BLOCK, |block, out| {
        for (o, &v) in out.iter_mut().zip(&x[block * BLOCK..]) {
            *o = if v <= T::ZERO { T::ZERO } else { v };
        }
    });
    Ok(())
}

/// Gradient of [`relu`]: `grad_x = grad_out` where x > 0, else 0; the derivative at 0 is 0.
///
/// # Errors
///
/// If the slices differ in length.
pub fn relu_grad<T: Real>(x: &[T], grad_out: &[T], grad_x: &mut [T]) -> Result<()> {
    check_len("relu_grad: grad_out", grad_out, x.len())?;
    check_len("relu_grad: grad_x", grad_x, x.len())?;
    split(grad_x, BLOCK, |block, grad_x| {
        let inputs = x[block * BLOCK..].iter().zip(&grad_out[block * BLOCK..]);
        for (o, (&v, &g)) in grad_x.iter_mut().zip(inputs) {
            *o = if v <= T::ZERO { T::ZERO } else { g };
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{data, same_for_threads};

    #[test]
    fn zero_has_value_and_derivative_zero() {
        let x = [
            -1.0,
            -0.0,
            0.0,
            f64::MIN_POSITIVE,
            2.0,
            f64::NAN,
            f64::INFINITY,
        ];
        let (mut y, mut grad) = ([7.0; 7], [7.0; 7]);
        relu(&x, &mut y).unwrap();
        relu_grad(&x, &[3.0; 7], &mut grad).unwrap();
        assert_eq!(y[..5], [0.0, 0.0, 0.0, f64::MIN_POSITIVE, 2.0]);
        assert!(y[5].is_nan() && y[6] == f64::INFINITY);
        assert_eq!(grad[..5], [0.0, 0.0, 0.0, 3.0, 3.0]);
        assert!(relu(&x, &mut y[..6]).is_err());
    }

    #[test]
    fn thread_count_changes_nothing() {
        let x: Vec<f32> = data(1, 3 * BLOCK + 5);
        same_for_threads(|| {
            let (mut y, mut grad) = (x.clone(), x.clone());
            relu(&x, &mut y).unwrap();
            relu_grad(&x, &x, &mut grad).unwrap();
            [y, grad].concat()
        });
    }
}
