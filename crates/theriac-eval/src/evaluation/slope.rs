//! Gradients against finite differences.

use candle_core::Tensor;
use theriac::{
    Aim, Classifier, Labels, Norm, Pass, Pixels, Result, Target, gradient, in_chunks, scores,
};
use theriac_attacks::Loss;

use super::stages::lead;

/// Directions compared for each image.
const DIRECTIONS: u64 = 6;
/// Half of a difference, in pixels: large against rounding in f32, small against the pieces of a
/// network of ReLUs.
const H: f64 = 1e-3;

/// For each image the cosine between the slopes of the margin along random directions, by autodiff
/// and by finite differences; none where both vanish. Images are drawn together by `H` first, so
/// that both sides of a difference are images.
pub(crate) fn cosines<C: Classifier + ?Sized>(
    model: &C,
    x: &Pixels,
    labels: &Labels,
    pass: &Pass<'_>,
) -> Result<Vec<Option<f64>>> {
    in_chunks(x, pass, |start, x, pass| {
        let y = labels.narrow(start, x.len())?;
        let inner = Pixels::clamp(&x.tensor().affine(1.0 - 2.0 * H, H)?)?;
        let loss = |x: &Pixels| Loss::Margin.of(&model.logits(x, pass)?, Aim::Away(&y));
        let (_, g) = gradient(&inner, pass, loss)?;
        let wanted = y.to_vec()?;
        let margins = |step: &Tensor, side: f64| -> Result<Vec<f64>> {
            let moved = Pixels::clamp(&(inner.tensor() + (step * (side * H))?)?)?;
            let rows = scores(model, &moved, pass)?;
            let rows = rows.iter().zip(&wanted);
            Ok(rows.map(|(row, label)| -lead(row, *label)).collect())
        };
        let mut products = vec![(0.0, 0.0, 0.0); x.len()];
        for direction in 0..DIRECTIONS {
            let step = pass.at(direction).uniform("slope", &inner)?;
            let step = Norm::Linf.steepest(&step)?;
            let exact = (&g * &step)?.flatten_from(1)?.sum(1)?;
            let exact = exact.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
            let (up, down) = (margins(&step, 1.0)?, margins(&step, -1.0)?);
            for (i, sums) in products.iter_mut().enumerate() {
                let measured = (up[i] - down[i]) / (2.0 * H);
                sums.0 += exact[i] * measured;
                sums.1 += exact[i] * exact[i];
                sums.2 += measured * measured;
            }
        }
        let cosine = |(both, exact, measured): (f64, f64, f64)| match (exact, measured) {
            (0.0, 0.0) => None,
            (0.0, _) | (_, 0.0) => Some(0.0),
            (exact, measured) => Some(both / (exact.sqrt() * measured.sqrt())),
        };
        Ok(products.into_iter().map(cosine).collect())
    })
}
