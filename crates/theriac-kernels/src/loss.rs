use crate::Real;
use crate::error::{Error, Result, check_len, elements, geometry};
use crate::parallel::{CHUNK, split};

/// Length of the logits.
fn check_shape(samples: usize, classes: usize) -> Result<usize> {
    if classes == 0 {
        return Err(geometry(
            "cross_entropy: the logits' shape",
            format!("[{samples}, 0]"),
            "pass at least one class",
        ));
    }
    // Tasks have CHUNK * CHUNK samples, however few there are.
    elements(
        "cross_entropy: the logits' shape",
        &[samples.max(CHUNK * CHUNK), classes],
    )?;
    Ok(samples * classes)
}

fn check_labels(labels: &[u32], classes: usize) -> Result<()> {
    match labels.iter().position(|&label| label as usize >= classes) {
        None => Ok(()),
        Some(sample) => Err(Error::Label {
            sample,
            label: labels[sample],
            classes,
        }),
    }
}

/// Maximum of a row and the sum of `exp(z - maximum)`; the maximum is taken out so that the
/// exponential cannot overflow. The sum is in double precision.
fn shifted_exp_sum<T: Real>(row: &[T]) -> (T, f64) {
    let max = row
        .iter()
        .fold(T::NEG_INFINITY, |max, &z| if z > max { z } else { max });
    (max, row.iter().map(|&z| (z - max).exp().to_f64()).sum())
}

/// `log sum exp` of a row of logits.
fn log_sum_exp<T: Real>(row: &[T]) -> f64 {
    let (max, total) = shifted_exp_sum(row);
    max.to_f64() + total.ln()
}

/// Cross entropy with hard labels: `out[i] = log sum_j exp(z_ij) - z_{i, label_i}`, per sample.
///
/// # Errors
///
/// If there are no classes, a slice has the wrong length or a label is out of range.
pub fn cross_entropy<T: Real>(
    classes: usize,
    logits: &[T],
    labels: &[u32],
    out: &mut [T],
) -> Result<()> {
    let len = check_shape(labels.len(), classes)?;
    check_len("cross_entropy: logits", logits, len)?;
    check_len("cross_entropy: out", out, labels.len())?;
    check_labels(labels, classes)?;
    split(out, CHUNK * CHUNK, |block, out| {
        let start = block * CHUNK * CHUNK;
        let rows = logits[start * classes..]
            .chunks_exact(classes)
            .zip(&labels[start..]);
        for (o, (row, &label)) in out.iter_mut().zip(rows) {
            *o = T::from_f64(log_sum_exp(row) - row[label as usize].to_f64());
        }
    });
    Ok(())
}

/// Gradient of [`cross_entropy`] to the logits:
/// `grad_out[i] (softmax(z_i)_j - [j = label_i])`; `grad` is overwritten.
///
/// # Errors
///
/// If there are no classes, a slice has the wrong length or a label is out of range.
pub fn cross_entropy_grad<T: Real>(
    classes: usize,
    logits: &[T],
    labels: &[u32],
    grad_out: &[T],
    grad: &mut [T],
) -> Result<()> {
    let len = check_shape(labels.len(), classes)?;
    check_len("cross_entropy_grad: logits", logits, len)?;
    check_len("cross_entropy_grad: grad_out", grad_out, labels.len())?;
    check_len("cross_entropy_grad: grad", grad, logits.len())?;
    check_labels(labels, classes)?;
    softmax_rows(classes, logits, grad, |sample, probabilities| {
        probabilities[labels[sample] as usize] += -T::ONE;
        probabilities
            .iter_mut()
            .for_each(|p| *p = *p * grad_out[sample]);
    });
    Ok(())
}

/// Cross entropy with soft labels: `out[i] = sum_j p_ij (log sum_k exp(z_ik) - z_ij)`, per sample.
///
/// # Errors
///
/// If there are no classes or a slice has the wrong length.
pub fn cross_entropy_soft<T: Real>(
    classes: usize,
    logits: &[T],
    probabilities: &[T],
    out: &mut [T],
) -> Result<()> {
    let len = check_shape(out.len(), classes)?;
    check_len("cross_entropy_soft: logits", logits, len)?;
    check_len(
        "cross_entropy_soft: probabilities",
        probabilities,
        logits.len(),
    )?;
    split(out, CHUNK * CHUNK, |block, out| {
        let start = block * CHUNK * CHUNK * classes;
        let rows = logits[start..]
            .chunks_exact(classes)
            .zip(probabilities[start..].chunks_exact(classes));
        for (o, (row, target)) in out.iter_mut().zip(rows) {
            let lse = log_sum_exp(row);
            let terms = row
                .iter()
                .zip(target)
                .map(|(z, p)| p.to_f64() * (lse - z.to_f64()));
            *o = T::from_f64(terms.sum());
        }
    });
    Ok(())
}

/// Gradient of [`cross_entropy_soft`] to the logits:
/// `grad_out[i] (softmax(z_i)_j sum_k p_ik - p_ij)`; `grad` is overwritten.
///
/// # Errors
///
/// If there are no classes or a slice has the wrong length.
pub fn cross_entropy_soft_grad<T: Real>(
    classes: usize,
    logits: &[T],
    probabilities: &[T],
    grad_out: &[T],
    grad: &mut [T],
) -> Result<()> {
    let len = check_shape(grad_out.len(), classes)?;
    check_len("cross_entropy_soft_grad: logits", logits, len)?;
    check_len(
        "cross_entropy_soft_grad: probabilities",
        probabilities,
        logits.len(),
    )?;
    check_len("cross_entropy_soft_grad: grad", grad, logits.len())?;
    softmax_rows(classes, logits, grad, |sample, softmax| {
        let target = &probabilities[sample * classes..][..classes];
        let mass = T::from_f64(target.iter().map(|p| p.to_f64()).sum());
        for (s, &p) in softmax.iter_mut().zip(target) {
            *s = (*s * mass - p) * grad_out[sample];
        }
    });
    Ok(())
}

/// Writes the softmax of each row into `out` and hands it to `finish(sample, row)`.
fn softmax_rows<T: Real>(
    classes: usize,
    logits: &[T],
    out: &mut [T],
    finish: impl Fn(usize, &mut [T]) + Sync,
) {
    split(out, CHUNK * CHUNK * classes, |block, out| {
        let start = block * CHUNK * CHUNK;
        let rows = logits[start * classes..].chunks_exact(classes);
        for (i, (row, out)) in rows.zip(out.chunks_exact_mut(classes)).enumerate() {
            let (max, total) = shifted_exp_sum(row);
            let scale = T::from_f64(1.0 / total);
            out.iter_mut()
                .zip(row)
                .for_each(|(o, &z)| *o = (z - max).exp() * scale);
            finish(start + i, out);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, data, same_for_threads};

    #[test]
    fn equals_the_definition() {
        let logits: Vec<f64> = data(1, 12);
        let labels = [2, 0, 3];
        let (mut loss, mut grad) = ([0.0; 3], [0.0; 12]);
        cross_entropy(4, &logits, &labels, &mut loss).unwrap();
        cross_entropy_grad(4, &logits, &labels, &[1.0, 2.0, -3.0], &mut grad).unwrap();
        for (i, row) in logits.chunks_exact(4).enumerate() {
            let total: f64 = row.iter().map(|z| z.exp()).sum();
            let softmax = row.iter().map(|z| z.exp() / total);
            let label = labels[i] as usize;
            assert_close(&loss[i..=i], &[-(row[label].exp() / total).ln()], 1e-14, &i);
            let scale = [1.0, 2.0, -3.0][i];
            let expected: Vec<f64> = softmax
                .enumerate()
                .map(|(j, s)| scale * (s - f64::from(u8::from(j == label))))
                .collect();
            assert_close(&grad[i * 4..][..4], &expected, 1e-14, &i);
        }
    }

    #[test]
    fn soft_labels_extend_hard_ones() {
        let logits: Vec<f64> = data(1, 8);
        let one_hot = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let mut loss = [[0.0; 2]; 2];
        cross_entropy(4, &logits, &[1, 3], &mut loss[0]).unwrap();
        cross_entropy_soft(4, &logits, &one_hot, &mut loss[1]).unwrap();
        assert_close(&loss[0], &loss[1], 1e-15, &"loss");
        let mut grad = [[0.0; 8]; 2];
        cross_entropy_grad(4, &logits, &[1, 3], &[1.0, 5.0], &mut grad[0]).unwrap();
        cross_entropy_soft_grad(4, &logits, &one_hot, &[1.0, 5.0], &mut grad[1]).unwrap();
        assert_close(&grad[0], &grad[1], 1e-15, &"gradient");
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let logits = [1000f32, 0.0, -1000.0];
        let (mut loss, mut grad) = ([0.0], [0.0; 3]);
        cross_entropy(3, &logits, &[1], &mut loss).unwrap();
        cross_entropy_grad(3, &logits, &[1], &[1.0], &mut grad).unwrap();
        assert_eq!((loss, grad), ([1000.0], [1.0, -1.0, 0.0]));
    }

    #[test]
    fn thread_count_changes_nothing() {
        let logits: Vec<f32> = data(1, 6000);
        let labels: Vec<u32> = (0..600).map(|i| i % 10).collect();
        same_for_threads(|| {
            let (mut loss, mut grad) = (vec![0.0; 600], vec![0.0; 6000]);
            cross_entropy(10, &logits, &labels, &mut loss).unwrap();
            cross_entropy_grad(10, &logits, &labels, &loss, &mut grad).unwrap();
            [loss, grad].concat()
        });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let error = cross_entropy(3, &[0f32; 6], &[0, 3], &mut [0.0; 2]).unwrap_err();
        assert!(error.to_string().contains("label 3 of sample 1"), "{error}");
        assert!(cross_entropy::<f32>(0, &[], &[], &mut []).is_err());
        assert!(cross_entropy_soft(2, &[0f32; 2], &[0.0], &mut [0.0]).is_err());
    }
}
