//! Parts of values, and values with an edge around them.

use candle_core::{DType, Tensor};
use theriac::Result;

use crate::constant::{Ints, room};
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Value};
use crate::node::{Node, axis, inner_axis};

pub(super) fn slice(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let list = |name: &str, at: usize| -> Said<Option<Vec<i64>>> {
        node.ints(name, at)?.map(|ints| ints.known()).transpose()
    };
    let (Some(starts), Some(ends)) = (list("starts", 1)?, list("ends", 2)?) else {
        refuse!("its starts or ends are missing");
    };
    let axes = list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    require!(
        [ends.len(), axes.len(), steps.len()] == [starts.len(); 3] && steps.iter().all(|s| *s > 0),
        "starts {starts:?}, ends {ends:?}, axes {axes:?}, steps {steps:?}; they must be as many of \
         each, and the steps above 0"
    );
    let mut x = node.input(0)?.clone();
    for i in 0..starts.len() {
        x = slice_of(b, &x, axes[i], (starts[i], ends[i], steps[i]))?;
    }
    Ok(vec![x])
}

fn slice_of(
    b: &mut Builder<'_>,
    x: &Value,
    along: i64,
    (start, end, step): (i64, i64, i64),
) -> Said<Value> {
    let dims = match x {
        Value::Flow(flow) => flow.dims().to_vec(),
        Value::Float(tensor) => tensor.dims().to_vec(),
        Value::Ints(ints) => ints.dims.clone(),
    };
    let axis = axis(along, dims.len())?;
    let len = dims[axis] as i64;
    let place = |i: i64| if i < 0 { i.saturating_add(len) } else { i }.clamp(0, len) as usize;
    let (start, end) = (place(start), place(end));
    let picked: Vec<usize> = (start..end).step_by(step as usize).collect();
    match x {
        Value::Ints(ints) if dims.len() == 1 => {
            let values = picked.iter().map(|i| ints.values[*i]).collect();
            return Ok(Value::Ints(Ints::vector(values)));
        }
        Value::Ints(_) => refuse!("whole numbers of shape {dims:?}; lists are supported"),
        Value::Flow(_) if axis == 0 => {
            // The length of the batch is not known here; everything is what stays everything.
            require!(
                start == 0 && end == 1 && step == 1,
                "it picks images out of the batch; images must stay apart"
            );
            return Ok(x.clone());
        }
        _ => {}
    }
    require!(
        !picked.is_empty(),
        "it leaves nothing of axis {axis} of a value of shape {dims:?}"
    );
    select(b, x, axis, picked)
}

/// The entries at these places along an axis.
fn select(b: &mut Builder<'_>, x: &Value, axis: usize, places: Vec<usize>) -> Said<Value> {
    let (first, count) = (places[0], places.len());
    if places.iter().copied().eq(first..first + count) {
        return b.map(x, move |x| Ok(x.narrow(axis, first, count)?));
    }
    let places: Vec<u32> = places.into_iter().map(|i| i as u32).collect();
    b.map(x, move |x| {
        let places = Tensor::new(&places[..], x.device())?;
        Ok(x.contiguous()?.index_select(&places, axis)?)
    })
}

pub(super) fn gather(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Value::Ints(at) = node.input(1)? else {
        refuse!("its indices must be constants");
    };
    let (dims, at) = (&at.dims, at.known()?);
    let places = |len: usize| -> Said<Vec<usize>> { at.iter().map(|i| axis(*i, len)).collect() };
    require!(
        dims.len() <= 1 && !at.is_empty(),
        "indices of shape {dims:?}; one index or a list is supported"
    );
    let along = node.int("axis", 0);
    Ok(vec![match node.input(0)? {
        Value::Ints(ints) => {
            require!(
                ints.dims.len() == 1,
                "whole numbers of shape {:?}; lists are supported",
                ints.dims
            );
            let values = places(ints.values.len())?
                .iter()
                .map(|i| ints.values[*i])
                .collect();
            let dims = dims.clone();
            Value::Ints(Ints { dims, values })
        }
        x => {
            let (shape, axis) = match x {
                Value::Flow(flow) => (flow.dims(), inner_axis(along, flow.dims().len())?),
                Value::Float(tensor) => (tensor.dims(), axis(along, tensor.rank())?),
                Value::Ints(_) => refuse!("whole numbers"),
            };
            let mut result = shape.to_vec();
            result[axis] = at.len();
            room(&result)?;
            let y = select(b, x, axis, places(shape[axis])?)?;
            match dims[..] {
                [] => b.map(&y, move |y| Ok(y.squeeze(axis)?))?,
                _ => y,
            }
        }
    }])
}

pub(super) fn pad(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let rank = node.flow(0)?.dims().len();
    let mode = node.text("mode", "constant");
    require!(
        mode == "constant" || mode.is_empty(),
        "mode = {mode}; padding with a constant is supported"
    );
    let Some(pads) = node.ints("pads", 1)? else {
        refuse!("its pads are missing");
    };
    let pads = pads.known()?;
    let axes = match node.given(3) {
        None => (0..rank).collect(),
        Some(Value::Ints(axes)) => {
            let axes: Said<Vec<usize>> = axes.known()?.iter().map(|a| axis(*a, rank)).collect();
            axes?
        }
        Some(_) => refuse!("its axes must be constant whole numbers"),
    };
    let fits = |p: &i64| (0..=1 << 16).contains(p);
    require!(
        pads.len() == 2 * axes.len() && pads.iter().all(fits),
        "pads = {pads:?} along axes {axes:?}; two numbers from 0 on for each axis are supported"
    );
    let fill = match node.given(2) {
        None => node.float("value", 0.0),
        Some(Value::Float(value)) if value.elem_count() == 1 => value
            .flatten_all()?
            .to_dtype(DType::F64)?
            .to_vec1::<f64>()?[0],
        Some(_) => refuse!("its value must be a constant of one number"),
    };
    let side =
        |(i, axis): (usize, &usize)| (*axis, pads[i] as usize, pads[i + axes.len()] as usize);
    let sides: Vec<(usize, usize, usize)> = axes.iter().enumerate().map(side).collect();
    let batch = sides
        .iter()
        .any(|(axis, before, after)| *axis == 0 && before + after > 0);
    require!(
        !batch,
        "it adds images to the batch; images must stay apart"
    );
    Ok(vec![padded(b, node.input(0)?, sides, fill)?])
}

/// A value with a constant around it: (axis, before, after).
pub(super) fn padded(
    b: &mut Builder<'_>,
    x: &Value,
    mut sides: Vec<(usize, usize, usize)>,
    fill: f64,
) -> Said<Value> {
    sides.retain(|(_, before, after)| before + after > 0);
    let Value::Flow(flow) = x else {
        refuse!("it pads a constant, which is not supported");
    };
    if sides.is_empty() {
        return Ok(x.clone());
    }
    let mut dims = flow.dims().to_vec();
    for (axis, before, after) in &sides {
        dims[*axis] += before + after;
    }
    room(&dims)?;
    b.map(x, move |x| {
        let mut x = x.clone();
        for (axis, before, after) in &sides {
            x = around(&x, *axis, *before, *after, fill)?;
        }
        Ok(x)
    })
}

fn around(x: &Tensor, axis: usize, before: usize, after: usize, fill: f64) -> Result<Tensor> {
    let edge = |len: usize| -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        dims[axis] = len;
        Ok(Tensor::full(fill, dims, x.device())?.to_dtype(x.dtype())?)
    };
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(edge(before)?);
    }
    parts.push(x.clone());
    if after > 0 {
        parts.push(edge(after)?);
    }
    Ok(Tensor::cat(&parts, axis)?)
}
