//! Several values to one, and one to several.

use candle_core::Tensor;

use super::affine::sum_of;
use crate::constant::Ints;
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Value};
use crate::node::{Node, axis, inner_axis};

/// The sum of any number of values.
pub(super) fn sum(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let mut total = node.input(0)?.clone();
    for at in 1..node.inputs.len() {
        total = sum_of(b, &total, node.input(at)?)?;
    }
    Ok(vec![total])
}

/// One behind the other along an axis.
pub(super) fn concat(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let count = node.inputs.len();
    let all: Said<Vec<&Value>> = (0..count).map(|at| node.input(at)).collect();
    let all = all?;
    let ints: Option<Vec<&Ints>> = all
        .iter()
        .map(|value| match value {
            Value::Ints(ints) => Some(ints),
            _ => None,
        })
        .collect();
    if let Some(ints) = ints {
        let values = ints
            .iter()
            .flat_map(|ints| ints.values.iter().copied())
            .collect();
        return Ok(vec![Value::Ints(Ints::vector(values))]);
    }
    let mut rank = 0;
    let mut fixed = true;
    for value in &all {
        rank = rank.max(match value {
            Value::Flow(flow) => {
                fixed = false;
                flow.dims().len()
            }
            Value::Float(tensor) => tensor.rank(),
            Value::Ints(_) => refuse!("it joins whole numbers with floats; cast one of them"),
        });
    }
    let along = node.int("axis", 0);
    let along = if fixed {
        axis(along, rank)?
    } else {
        inner_axis(along, rank)?
    };
    let y = b.join(&all, move |values| {
        // Constants are the same for every image.
        let images = values
            .iter()
            .map(|v| v.dims().first().copied().unwrap_or(1))
            .max();
        let wide = |v: &Tensor| match (fixed, images) {
            (false, Some(images)) if v.dims().first() == Some(&1) && images > 1 => {
                let mut dims = v.dims().to_vec();
                dims[0] = images;
                v.broadcast_as(dims)
            }
            _ => Ok(v.clone()),
        };
        let values: candle_core::Result<Vec<Tensor>> = values.iter().map(wide).collect();
        Ok(Tensor::cat(&values?, along)?)
    })?;
    Ok(vec![y])
}

/// Pieces along an axis.
pub(super) fn split(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let dims = node.flow(0)?.dims().to_vec();
    let along = inner_axis(node.int("axis", 0), dims.len())?;
    let (len, pieces) = (dims[along], node.proto.output.len());
    require!(pieces > 0, "it gives nothing");
    let sizes = match node.ints("split", 1)? {
        Some(ints) => ints.known()?,
        None => {
            let each = len.div_ceil(pieces);
            let size = |i: usize| len.saturating_sub(i * each).min(each) as i64;
            (0..pieces).map(size).collect()
        }
    };
    let sizes: Option<Vec<usize>> = sizes.iter().map(|s| usize::try_from(*s).ok()).collect();
    let sizes = sizes.filter(|sizes| {
        let total = sizes.iter().try_fold(0usize, |sum, s| sum.checked_add(*s));
        sizes.len() == pieces && !sizes.contains(&0) && total == Some(len)
    });
    let Some(sizes) = sizes else {
        refuse!("its pieces do not add up to the {len} entries along axis {along}");
    };
    let mut start = 0;
    let mut results = Vec::new();
    for size in sizes {
        let from = start;
        results.push(b.map(node.input(0)?, move |x| Ok(x.narrow(along, from, size)?))?);
        start += size;
    }
    Ok(results)
}
