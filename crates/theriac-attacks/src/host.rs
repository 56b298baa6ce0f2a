//! Images as numbers on the host, for attacks that move few pixels at a time.

use candle_core::{DType, Tensor};
use theriac::{Pixels, Result};

/// The images, C * H * W values each.
pub(crate) fn rows(x: &Tensor) -> Result<Vec<Vec<f64>>> {
    Ok(x.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2()?)
}

/// Images from rows, clipped to the cube, in the shape, type and place of `like`; any number of
/// them.
pub(crate) fn images(rows: &[Vec<f64>], like: &Pixels) -> Result<Pixels> {
    let [_, c, h, w] = dims(like);
    let (shape, like) = ((rows.len(), c, h, w), like.tensor());
    let x = match like.dtype() {
        // Half the bytes to move.
        DType::F32 => Tensor::from_vec(joined(rows, |v| v as f32), shape, like.device())?,
        dtype => Tensor::from_vec(joined(rows, |v| v), shape, like.device())?.to_dtype(dtype)?,
    };
    Pixels::clamp(&x)
}

/// One row after the other; row by row, which the compiler turns into vector code.
fn joined<V>(rows: &[Vec<f64>], convert: impl Fn(f64) -> V) -> Vec<V> {
    let mut values = Vec::with_capacity(rows.iter().map(Vec::len).sum());
    for row in rows {
        values.extend(row.iter().map(|&v| convert(v)));
    }
    values
}

/// (N, C, H, W).
pub(crate) fn dims(x: &Pixels) -> [usize; 4] {
    let dims = x.tensor().dims();
    [dims[0], dims[1], dims[2], dims[3]]
}

/// A column of numbers, one an image, that broadcasts over (N, C, H, W).
pub(crate) fn column(values: &[f64], like: &Tensor) -> Result<Tensor> {
    let column = Tensor::from_slice(values, (values.len(), 1, 1, 1), like.device())?;
    Ok(column.to_dtype(like.dtype())?)
}
