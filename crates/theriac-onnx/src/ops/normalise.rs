//! Means, sums, and what is normalised by them.

use candle_core::Tensor;
use theriac::Result;

use super::pool::mean_of;
use super::shape::flat;
use crate::error::{Said, require};
use crate::graph::{Builder, Value};
use crate::node::{Node, inner_axis};

/// The mean over axes.
pub(super) fn reduce_mean(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Some((axes, keep)) = axes(node)? else {
        return Ok(vec![node.input(0)?.clone()]);
    };
    let x = node.flow(0)?;
    if x.dims().len() == 4 && axes == [2, 3] {
        let mean = mean_of(b, x)?;
        return Ok(vec![match (&mean, keep) {
            (Value::Flow(mean), false) => flat(b, mean)?,
            _ => mean,
        }]);
    }
    let y = b.map(node.input(0)?, move |x| {
        drop_axes(x.mean_keepdim(&axes[..])?, &axes, keep)
    })?;
    Ok(vec![y])
}

/// The sum over axes.
pub(super) fn reduce_sum(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Some((axes, keep)) = axes(node)? else {
        return Ok(vec![node.input(0)?.clone()]);
    };
    let y = b.map(node.input(0)?, move |x| {
        drop_axes(x.sum_keepdim(&axes[..])?, &axes, keep)
    })?;
    Ok(vec![y])
}

fn drop_axes(mut x: Tensor, axes: &[usize], keep: bool) -> Result<Tensor> {
    if !keep {
        for axis in axes.iter().rev() {
            x = x.squeeze(*axis)?;
        }
    }
    Ok(x)
}

/// The axes in ascending order, and whether they stay with length 1; `None` where it does nothing.
fn axes(node: &Node<'_>) -> Said<Option<(Vec<usize>, bool)>> {
    let rank = node.flow(0)?.dims().len();
    let given = match node.ints("axes", 1)? {
        Some(ints) => ints.known()?,
        None => Vec::new(),
    };
    if given.is_empty() {
        require!(
            node.int("noop_with_empty_axes", 0) == 1,
            "it works along all axes, and so along the batch; images must stay apart"
        );
        return Ok(None);
    }
    let axes: Said<Vec<usize>> = given.iter().map(|a| inner_axis(*a, rank)).collect();
    let mut axes = axes?;
    axes.sort_unstable();
    axes.dedup();
    Ok(Some((axes, node.int("keepdims", 1) != 0)))
}

/// `scale (x - mean) / sqrt(var + eps) + bias` over the last axes of each image.
pub(super) fn layer_normalization(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let dims = node.flow(0)?.dims().to_vec();
    let first = inner_axis(node.int("axis", -1), dims.len())?;
    let scale = node.weight(1)?.clone();
    let bias = node.given(2).map(|_| node.weight(2).cloned()).transpose()?;
    for constant in [Some(&scale), bias.as_ref()].into_iter().flatten() {
        require!(
            constant.dims() == &dims[first..],
            "a constant of shape {:?} for entries of shape {:?}",
            constant.dims(),
            &dims[first..]
        );
    }
    let eps = node.float("epsilon", 1e-5);
    let axes: Vec<usize> = (first..dims.len()).collect();
    let y = b.map(node.input(0)?, move |x| {
        let centred = x.broadcast_sub(&x.mean_keepdim(&axes[..])?)?;
        let var = centred.sqr()?.mean_keepdim(&axes[..])?;
        let y = centred
            .broadcast_div(&(var + eps)?.sqrt()?)?
            .broadcast_mul(&scale)?;
        Ok(match &bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    })?;
    Ok(vec![y])
}

/// `x / (bias + alpha / size s)^beta`, where s sums the squares of the `size` channels around.
pub(super) fn lrn(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let dims = node.flow(0)?.dims().to_vec();
    let size = usize::try_from(node.int("size", 0)).unwrap_or_default();
    require!(
        dims.len() == 4 && size > 0 && size <= 2 * dims[1],
        "size = {size} for a value of shape {dims:?}; export the model again"
    );
    let (alpha, beta) = (node.float("alpha", 1e-4), node.float("beta", 0.75));
    let (bias, channels) = (node.float("bias", 1.0), dims[1]);
    let y = b.map(node.input(0)?, move |x| {
        let before = (size - 1) / 2;
        let squares = x.sqr()?.pad_with_zeros(1, before, size - 1 - before)?;
        let mut sum = squares.narrow(1, 0, channels)?;
        for i in 1..size {
            sum = (sum + squares.narrow(1, i, channels)?)?;
        }
        let scale = sum.affine(alpha / size as f64, bias)?.powf(-beta)?;
        Ok((x * scale)?)
    })?;
    Ok(vec![y])
}
