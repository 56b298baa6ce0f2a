//! The three distances between clean and adversarial logits, as ATDA's code has them.

use candle_core::Tensor;
use theriac::Result;

/// `mean over the k x k entries of |S_a - S_b|` with the centred scatter matrices
/// `S = (X - mean)^T (X - mean)` of two batches of logits (m, k), not divided by m - 1.
///
/// # Errors
/// A candle error when the shapes differ.
pub fn coral(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(abs(&(scatter(a)? - scatter(b)?)?)?.mean_all()?)
}

fn scatter(x: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
    Ok(centred.t()?.contiguous()?.matmul(&centred)?)
}

/// `mean over the k logits of |mean_batch(a) - mean_batch(b)|`.
///
/// # Errors
/// A candle error when the shapes differ.
pub fn mmd(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(abs(&(a.mean(0)? - b.mean(0)?)?)?.mean_all()?)
}

/// Pulls logits to the centre of their class and away from the others:
/// `sum over rows f and classes j != y of softplus(||f - c_y||_1 - ||f - c_j||_1) / (rows (k - 1))`
/// for logits (rows, k), centres (k, k) and one-hot labels (rows, k). Gradients flow to f alone.
///
/// # Errors
/// A candle error when the shapes differ.
pub fn margin(logits: &Tensor, centres: &Tensor, one_hot: &Tensor) -> Result<Tensor> {
    let (rows, k) = logits.dims2()?;
    let distances = logits
        .unsqueeze(1)?
        .broadcast_sub(&centres.detach().unsqueeze(0)?)?;
    let distances = abs(&distances)?.sum(2)?;
    let own = (&distances * one_hot)?.sum_keepdim(1)?;
    let gap = own.broadcast_sub(&distances)?;
    let others = one_hot.affine(-1.0, 1.0)?;
    Ok(((softplus(&gap)? * others)?.sum_all()? / (rows * (k - 1)) as f64)?)
}

/// |x| with derivative 0 at 0; candle's is 1 there.
fn abs(x: &Tensor) -> Result<Tensor> {
    Ok((x * x.detach().sign()?)?)
}

/// `log(1 + e^x)` without overflow: `max(x, 0) + log(1 + e^-|x|)`.
fn softplus(x: &Tensor) -> Result<Tensor> {
    let positive = (x * x.detach().gt(0f64)?.to_dtype(x.dtype())?)?;
    let magnitude = abs(x)?.neg()?.exp()?;
    Ok((positive + (magnitude + 1.0)?.log()?)?)
}

/// The centres after one step: `c_y <- c_y - alpha (c_y - f) / (1 + n_y)` accumulated over the
/// rows f of class y, n_y of them.
///
/// # Errors
/// A candle error when the shapes differ.
pub fn moved_centres(
    centres: &Tensor,
    logits: &Tensor,
    one_hot: &Tensor,
    alpha: f64,
) -> Result<Tensor> {
    let counts = one_hot.sum(0)?.unsqueeze(1)?;
    let sums = one_hot.t()?.contiguous()?.matmul(&logits.detach())?;
    // Over the rows of a class, the differences add to n c - sum f.
    let difference = (centres.broadcast_mul(&counts)? - sums)?;
    Ok((centres - (difference.broadcast_div(&(counts + 1.0)?)? * alpha)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(rows: &[[f64; 2]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    fn scalar(t: Result<Tensor>) -> f64 {
        t.unwrap().to_scalar().unwrap()
    }

    #[test]
    fn distances_vanish_between_equals() {
        let a = tensor(&[[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]]);
        assert_eq!(scalar(coral(&a, &a)), 0.0);
        assert_eq!(scalar(mmd(&a, &a)), 0.0);
    }

    #[test]
    fn distances_by_hand() {
        // Means (2, 0) and (0, 0); scatters [[2, -2], [-2, 2]] and [[2, 2], [2, 2]].
        let a = tensor(&[[1.0, 1.0], [3.0, -1.0]]);
        let b = tensor(&[[1.0, 1.0], [-1.0, -1.0]]);
        assert_eq!(scalar(mmd(&a, &b)), 1.0);
        assert_eq!(scalar(coral(&a, &b)), 2.0);
    }

    #[test]
    fn margin_by_hand() {
        let centres = tensor(&[[0.0, 0.0], [1.0, 1.0]]);
        let f = tensor(&[[0.0, 0.5], [1.0, 2.0]]);
        let one_hot = tensor(&[[1.0, 0.0], [0.0, 1.0]]);
        // Row 1: own 0.5, other 1.5. Row 2: own 1, other 3.
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let expected = (softplus(-1.0) + softplus(-2.0)) / 2.0;
        assert!((scalar(margin(&f, &centres, &one_hot)) - expected).abs() < 1e-12);
    }

    #[test]
    fn centres_move_towards_their_rows() {
        let centres = tensor(&[[0.0, 0.0], [1.0, 1.0]]);
        let rows = tensor(&[[1.0, 0.0], [3.0, 0.0], [1.0, 2.0]]);
        let one_hot = tensor(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]);
        let moved = moved_centres(&centres, &rows, &one_hot, 0.1).unwrap();
        let moved = moved.to_vec2::<f64>().unwrap();
        // Class 0: 0 - 0.1 (0 - 4) / 3. Class 1: 1 - 0.1 (1 - 2) / 2.
        let expected = [[0.4 / 3.0, 0.0], [1.0, 1.05]];
        for (row, want) in moved.iter().zip(expected) {
            assert!(
                row.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12),
                "{moved:?}"
            );
        }
    }

    #[test]
    fn softplus_is_stable() {
        let x = Tensor::new(&[-800.0, -1.0, 0.0, 2.0, 800.0], &Device::Cpu).unwrap();
        let y = softplus(&x).unwrap().to_vec1::<f64>().unwrap();
        for (x, y) in [-800.0f64, -1.0, 0.0, 2.0].iter().zip(&y) {
            assert!((y - x.exp().ln_1p()).abs() < 1e-12);
        }
        assert_eq!(y[4], 800.0);
    }
}
