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
    let values: Vec<f64> = rows.iter().flatten().copied().collect();
    let like = like.tensor();
    let x = match like.dtype() {
        // Half the bytes to move.
        DType::F32 => {
            let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
            Tensor::from_vec(values, (rows.len(), c, h, w), like.device())?
        }
        dtype => Tensor::from_vec(values, (rows.len(), c, h, w), like.device())?.to_dtype(dtype)?,
    };
    Pixels::clamp(&x)
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
