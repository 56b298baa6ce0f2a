use crate::error::{Result, check_len, elements, geometry};
use crate::gemm::{Strides, gemm};
use crate::parallel::{CHUNK, split};
use crate::real::{Real, with_scratch};

fn check_dims(rows: usize, inputs: usize, outputs: usize) -> Result<()> {
    if rows == 0 || inputs == 0 || outputs == 0 {
        return Err(geometry(
            "linear: (rows, inputs, outputs)",
            format!("({rows}, {inputs}, {outputs})"),
            "each must be at least 1",
        ));
    }
    elements("linear: the input's shape", &[rows, inputs])?;
    elements("linear: the weight's shape", &[outputs, inputs])?;
    elements("linear: the output's shape", &[rows, outputs])?;
    Ok(())
}

/// Linear layer, `out = x w^T + bias`, for x (rows, inputs) and w (outputs, inputs).
///
/// A chunk of [`CHUNK`] rows is transposed and filled up with zeros, so that every product has the
/// same shape and a row's result does not depend on its neighbours.
///
/// # Errors
///
/// If a dimension is 0, an array would be larger than any memory, or a slice has the wrong length.
pub fn linear<T: Real>(
    (rows, inputs, outputs): (usize, usize, usize),
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) -> Result<()> {
    check_dims(rows, inputs, outputs)?;
    check_len("linear: x", x, rows * inputs)?;
    check_len("linear: weight", weight, outputs * inputs)?;
    check_len("linear: out", out, rows * outputs)?;
    if let Some(bias) = bias {
        check_len("linear: bias", bias, outputs)?;
    }
    split(out, CHUNK * outputs, |chunk, out| {
        let x = &x[chunk * CHUNK * inputs..][..out.len() / outputs * inputs];
        with_scratch([inputs * CHUNK, outputs * CHUNK], |[x_t, out_t]| {
            transpose_rows(x, inputs, x_t);
            gemm(
                (CHUNK, outputs, inputs),
                (out_t, Strides::cols(CHUNK)),
                (x_t, Strides::cols(CHUNK)),
                (weight, Strides::cols(inputs)),
                false,
            );
            for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
                for (j, o) in out.iter_mut().enumerate() {
                    let product = out_t[j * CHUNK + row];
                    *o = bias.map_or(product, |bias| product + bias[j]);
                }
            }
        });
    });
    Ok(())
}

/// Writes up to [`CHUNK`] rows as columns, with zeros for the missing ones.
fn transpose_rows<T: Real>(x: &[T], inputs: usize, x_t: &mut [T]) {
    let rows = x.len() / inputs;
    for (j, column) in x_t.chunks_exact_mut(CHUNK).enumerate() {
        for (row, v) in column[..rows].iter_mut().enumerate() {
            *v = x[row * inputs + j];
        }
        column[rows..].fill(T::ZERO);
    }
}

/// Gradient of [`linear`] to its input, `grad_x = grad_out w`; `grad_x` is overwritten.
///
/// # Errors
///
/// If a dimension is 0, an array would be larger than any memory, or a slice has the wrong length.
pub fn linear_input_grad<T: Real>(
    (rows, inputs, outputs): (usize, usize, usize),
    grad_out: &[T],
    weight: &[T],
    grad_x: &mut [T],
) -> Result<()> {
    check_dims(rows, inputs, outputs)?;
    check_len("linear_input_grad: grad_out", grad_out, rows * outputs)?;
    check_len("linear_input_grad: weight", weight, outputs * inputs)?;
    check_len("linear_input_grad: grad_x", grad_x, rows * inputs)?;
    let product = |grad_out: &[T], grad_x: &mut [T]| {
        gemm(
            (CHUNK, inputs, outputs),
            (grad_x, Strides::rows(inputs)),
            (grad_out, Strides::rows(outputs)),
            (weight, Strides::rows(inputs)),
            false,
        );
    };
    split(grad_x, CHUNK * inputs, |chunk, grad_x| {
        let rows = grad_x.len() / inputs;
        let grad_out = &grad_out[chunk * CHUNK * outputs..][..rows * outputs];
        if rows == CHUNK {
            product(grad_out, grad_x);
            return;
        }
        // A short chunk is filled up with zeros, for the same reason as in `linear`.
        with_scratch([CHUNK * outputs, CHUNK * inputs], |[full, full_x]| {
            full[..grad_out.len()].copy_from_slice(grad_out);
            full[grad_out.len()..].fill(T::ZERO);
            product(full, full_x);
            grad_x.copy_from_slice(&full_x[..grad_x.len()]);
        });
    });
    Ok(())
}

/// Gradient of [`linear`] to its weight, `grad_w = grad_out^T x`; `grad_w` is overwritten.
///
/// Split over blocks of [`CHUNK`] output rows, each of which sums over the whole batch.
///
/// # Errors
///
/// If a dimension is 0, an array would be larger than any memory, or a slice has the wrong length.
pub fn linear_weight_grad<T: Real>(
    (rows, inputs, outputs): (usize, usize, usize),
    x: &[T],
    grad_out: &[T],
    grad_w: &mut [T],
) -> Result<()> {
    check_dims(rows, inputs, outputs)?;
    check_len("linear_weight_grad: x", x, rows * inputs)?;
    check_len("linear_weight_grad: grad_out", grad_out, rows * outputs)?;
    check_len("linear_weight_grad: grad_w", grad_w, outputs * inputs)?;
    split(grad_w, CHUNK * inputs, |block, grad_w| {
        gemm(
            (grad_w.len() / inputs, inputs, rows),
            (grad_w, Strides::rows(inputs)),
            (&grad_out[block * CHUNK..], Strides::cols(outputs)),
            (x, Strides::rows(inputs)),
            false,
        );
    });
    Ok(())
}

/// Gradient of [`linear`] to its bias: the sum over the rows, taken in double precision.
///
/// # Errors
///
/// If a dimension is 0, an array would be larger than any memory, or a slice has the wrong length.
pub fn linear_bias_grad<T: Real>(
    rows: usize,
    outputs: usize,
    grad_out: &[T],
    grad_bias: &mut [T],
) -> Result<()> {
    check_dims(rows, 1, outputs)?;
    check_len("linear_bias_grad: grad_out", grad_out, rows * outputs)?;
    check_len("linear_bias_grad: grad_bias", grad_bias, outputs)?;
    let mut sums = vec![0f64; outputs];
    for row in grad_out.chunks_exact(outputs) {
        sums.iter_mut().zip(row).for_each(|(s, g)| *s += g.to_f64());
    }
    grad_bias
        .iter_mut()
        .zip(sums)
        .for_each(|(g, s)| *g = T::from_f64(s));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_bits, data, dirty_scratch, same_for_threads};

    struct Results<T> {
        out: Vec<T>,
        grad_x: Vec<T>,
        grad_w: Vec<T>,
        grad_bias: Vec<T>,
    }

    fn run<T: Real>(dims: (usize, usize, usize), [x, w, bias, grad]: [&[T]; 4]) -> Results<T> {
        let dirt = |len| vec![T::from_f64(f64::NAN); len];
        let mut r = Results {
            out: dirt(grad.len()),
            grad_x: dirt(x.len()),
            grad_w: dirt(w.len()),
            grad_bias: dirt(bias.len()),
        };
        linear(dims, x, w, Some(bias), &mut r.out).unwrap();
        linear_input_grad(dims, grad, w, &mut r.grad_x).unwrap();
        linear_weight_grad(dims, x, grad, &mut r.grad_w).unwrap();
        linear_bias_grad(dims.0, dims.2, grad, &mut r.grad_bias).unwrap();
        r
    }

    fn inputs<T: Real>((rows, inputs, outputs): (usize, usize, usize)) -> [Vec<T>; 4] {
        [
            data(1, rows * inputs),
            data(2, outputs * inputs),
            data(3, outputs),
            data(4, rows * outputs),
        ]
    }

    fn against_definition<T: Real>(tolerance: f64) {
        let sizes = [
            (1, 1, 1),
            (5, 3, 2),
            (16, 20, 10),
            (17, 1, 40),
            (35, 600, 19),
            (2, 1568, 100),
        ];
        for dims @ (rows, ins, outs) in sizes {
            let [x, w, bias, grad] = inputs::<T>(dims);
            dirty_scratch::<T>();
            let actual = run(dims, [&x, &w, &bias, &grad]);
            let mut out: Vec<f64> = (0..rows * outs).map(|i| bias[i % outs].to_f64()).collect();
            let (mut grad_x, mut grad_w) = (vec![0.0; x.len()], vec![0.0; w.len()]);
            let mut grad_bias = vec![0.0; outs];
            for r in 0..rows {
                for o in 0..outs {
                    let g = grad[r * outs + o].to_f64();
                    grad_bias[o] += g;
                    for i in 0..ins {
                        out[r * outs + o] += x[r * ins + i].to_f64() * w[o * ins + i].to_f64();
                        grad_x[r * ins + i] += g * w[o * ins + i].to_f64();
                        grad_w[o * ins + i] += g * x[r * ins + i].to_f64();
                    }
                }
            }
            assert_close(&actual.out, &out, tolerance, &dims);
            assert_close(&actual.grad_x, &grad_x, tolerance, &dims);
            assert_close(&actual.grad_w, &grad_w, tolerance, &dims);
            assert_close(&actual.grad_bias, &grad_bias, tolerance, &dims);
        }
    }

    #[test]
    fn equals_the_definition() {
        against_definition::<f64>(1e-13);
        against_definition::<f32>(2e-6);
    }

    #[test]
    fn thread_count_changes_nothing() {
        let dims = (50, 70, 40);
        let [x, w, bias, grad] = inputs::<f32>(dims);
        same_for_threads(|| {
            let r = run(dims, [&x, &w, &bias, &grad]);
            [r.out, r.grad_x, r.grad_w, r.grad_bias].concat()
        });
    }

    fn batch_changes_nothing<T: Real>() {
        for (ins, outs) in [(1568, 100), (100, 10), (3, 1), (1, 5), (700, 2)] {
            let [x, w, bias, grad] = inputs::<T>((37, ins, outs));
            let expected = run((37, ins, outs), [&x, &w, &bias, &grad]);
            for rows in 1..=20 {
                let (x, grad) = (&x[..rows * ins], &grad[..rows * outs]);
                let actual = run((rows, ins, outs), [x, &w, &bias, grad]);
                assert_same_bits(&actual.out, &expected.out[..grad.len()]);
                assert_same_bits(&actual.grad_x, &expected.grad_x[..x.len()]);
            }
        }
    }

    #[test]
    fn the_batch_changes_no_row() {
        batch_changes_nothing::<f32>();
        batch_changes_nothing::<f64>();
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(linear((0, 1, 1), &[0f32; 0], &[0.0], None, &mut []).is_err());
        assert!(linear((2, 1, 1), &[0f32; 2], &[0.0], None, &mut [0.0]).is_err());
        assert!(linear((1, 1, 1), &[0f32], &[0.0], Some(&[]), &mut [0.0]).is_err());
    }
}
