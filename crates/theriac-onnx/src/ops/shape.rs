//! Shapes, and all that only moves values.

use candle_core::{DType, Tensor};
use theriac::Result;

use crate::constant::{Constant, Ints, constant as read, room};
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Flow, Value};
use crate::node::{Node, axis, inner_axis};
use crate::proto::data_type;

/// Most whole numbers that a node makes.
const LIST: usize = 1 << 16;

pub(super) fn constant(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    if let Some(tensor) = node.tensor("value") {
        return Ok(vec![read(tensor, &b.place)?.into()]);
    }
    let whole = node.list("value_ints");
    if let Some(list) = whole {
        let values = list.iter().copied().map(Some).collect();
        return Ok(vec![Value::Ints(Ints::vector(values))]);
    }
    if let Some(list) = node.floats("value_floats").filter(|list| !list.is_empty()) {
        let tensor = Tensor::new(list, &b.place.device)?.to_dtype(b.place.dtype)?;
        return Ok(vec![Value::Float(tensor)]);
    }
    let given = |name: &str| node.proto.attribute.iter().any(|a| a.name == name);
    if given("value_int") {
        let (dims, values) = (Vec::new(), vec![Some(node.int("value_int", 0))]);
        return Ok(vec![Value::Ints(Ints { dims, values })]);
    }
    require!(
        given("value_float"),
        "a constant of a kind unknown here; export the model again"
    );
    let value = node.float("value_float", 0.0);
    let tensor = Tensor::new(value, &b.place.device)?.to_dtype(b.place.dtype)?;
    Ok(vec![Value::Float(tensor)])
}

pub(super) fn constant_of_shape(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Some(shape) = node.ints("shape", 0)? else {
        refuse!("its shape is missing");
    };
    let shape: Option<Vec<usize>> = shape
        .known()?
        .iter()
        .map(|d| usize::try_from(*d).ok())
        .collect();
    let Some(shape) = shape else {
        refuse!("a shape with negative dimensions");
    };
    let count = room(&shape)?;
    require!(count > 0, "it is empty, shape {shape:?}");
    let value = match node.tensor("value") {
        Some(tensor) => read(tensor, &b.place)?,
        None => {
            let zero = Tensor::new(0f64, &b.place.device)?.to_dtype(b.place.dtype)?;
            Constant::Float(zero)
        }
    };
    Ok(vec![match value {
        Constant::Float(value) if value.elem_count() == 1 => {
            Value::Float(value.flatten_all()?.broadcast_as(shape)?.contiguous()?)
        }
        Constant::Ints(ints) if ints.values.len() == 1 && count <= LIST => {
            let values = vec![ints.values[0]; count];
            Value::Ints(Ints {
                dims: shape,
                values,
            })
        }
        _ => refuse!("its value must be one number, and whole numbers at most {LIST}"),
    }])
}

/// Whole numbers from one to another.
pub(super) fn range(_: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let number = |at: usize| -> Said<i64> {
        match node.input(at)? {
            Value::Ints(ints) if ints.values.len() == 1 => Ok(ints.known()?[0]),
            _ => refuse!("input {at} must be one constant whole number"),
        }
    };
    let (start, limit, delta) = (number(0)?, number(1)?, number(2)?);
    let length = i128::from(limit) - i128::from(start);
    require!(
        delta > 0 && length / i128::from(delta) < LIST as i128,
        "from {start} to {limit} by {delta}; steps above 0 and at most {LIST} numbers are supported"
    );
    let values = (start..limit).step_by(delta as usize).map(Some).collect();
    Ok(vec![Value::Ints(Ints::vector(values))])
}

/// Dropout too: it does nothing in evaluation mode.
pub(super) fn identity(_: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    if let Some(Value::Ints(training)) = node.given(2) {
        require!(
            training.known()?.iter().all(|v| *v == 0),
            "it drops values at random; export the model in evaluation mode"
        );
    }
    Ok(vec![node.input(0)?.clone()])
}

pub(super) fn cast(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let to = node.int("to", 0) as i32;
    Ok(vec![match (node.input(0)?, data_type::is_float(to)) {
        (Value::Flow(_), false) => refuse!(
            "it turns floats into {}, which has no gradient to attack",
            data_type::name(to)
        ),
        (Value::Ints(ints), true) => {
            let values: Vec<f64> = ints.known()?.iter().map(|v| *v as f64).collect();
            require!(!values.is_empty(), "it is empty");
            let tensor = Tensor::from_vec(values, &ints.dims[..], &b.place.device)?;
            Value::Float(tensor.to_dtype(b.place.dtype)?)
        }
        (Value::Float(tensor), false) => {
            let values = tensor
                .flatten_all()?
                .to_dtype(DType::F64)?
                .to_vec1::<f64>()?;
            let values = values.iter().map(|v| Some(*v as i64)).collect();
            let dims = tensor.dims().to_vec();
            Value::Ints(Ints { dims, values })
        }
        (value, _) => value.clone(),
    }])
}

/// The shape of a value; the size of the batch stays open.
pub(super) fn shape(_: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let known = |dims: &[usize]| dims.iter().map(|d| Some(*d as i64)).collect::<Vec<_>>();
    let mut dims = match node.input(0)? {
        Value::Flow(flow) => known(flow.dims()),
        Value::Float(tensor) => known(tensor.dims()),
        Value::Ints(ints) => known(&ints.dims),
    };
    if let (Value::Flow(_), Some(batch)) = (node.input(0)?, dims.first_mut()) {
        *batch = None;
    }
    let rank = dims.len() as i64;
    let from_front =
        |i: i64| if i < 0 { i.saturating_add(rank) } else { i }.clamp(0, rank) as usize;
    let (start, end) = (
        from_front(node.int("start", 0)),
        from_front(node.int("end", rank)),
    );
    let part = dims.get(start..end).unwrap_or_default().to_vec();
    Ok(vec![Value::Ints(Ints::vector(part))])
}

/// (N, C, H, W) as (N, C H W).
pub(super) fn flat(b: &mut Builder<'_>, x: &Flow) -> Said<Value> {
    match x.dims() {
        [_, _] => Ok(Value::Flow(x.clone())),
        [_, _, height, width] => {
            let folded = height * width > 1;
            let sample = x.sample.flatten_from(1)?;
            b.step(sample, folded, |net| net.flatten(x.at))
        }
        _ => b.map(&Value::Flow(x.clone()), |x| Ok(x.flatten_from(1)?)),
    }
}

/// A value in another shape, that of one image.
fn reshaped(b: &mut Builder<'_>, x: &Flow, image: Vec<usize>) -> Said<Value> {
    let (have, want): (usize, usize) = (x.dims().iter().product(), room(&image)?);
    require!(
        have == want,
        "{have} values for one image in the shape {image:?}; images must stay apart"
    );
    if image == x.dims()[1..] {
        return Ok(Value::Flow(x.clone()));
    }
    if image.len() == 1 {
        return flat(b, x);
    }
    b.map(&Value::Flow(x.clone()), move |x| {
        let mut dims = vec![x.dim(0)?];
        dims.extend(&image);
        Ok(x.reshape(dims)?)
    })
}

pub(super) fn flatten(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let x = node.flow(0)?;
    let rank = x.dims().len();
    let first = match node.int("axis", 1) {
        whole if whole == rank as i64 => rank,
        inner => axis(inner, rank)?,
    };
    require!(
        first > 0 && x.dims()[1..first].iter().all(|d| *d == 1),
        "it flattens a value of shape {:?} from axis {first} on; images must stay apart: use axis 1",
        x.dims()
    );
    Ok(vec![flat(b, x)?])
}

pub(super) fn reshape(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Some(target) = node.ints("shape", 1)? else {
        refuse!("its shape is missing");
    };
    let target = &target.values[..];
    let copies = node.int("allowzero", 0) == 0;
    Ok(vec![match node.input(0)? {
        Value::Flow(x) => {
            let image = image_shape(x.dims(), target, node.batch, copies)?;
            reshaped(b, x, image)?
        }
        Value::Float(tensor) => {
            let dims = whole_shape(tensor.dims(), target, copies)?;
            Value::Float(tensor.reshape(dims)?)
        }
        Value::Ints(ints) => {
            let dims = whole_shape(&ints.dims, target, copies)?;
            let values = ints.values.clone();
            Value::Ints(Ints { dims, values })
        }
    }])
}

/// The shape of one image after a reshape to `target`, whose first entry must be the batch: its
/// size itself, 0 for the same, -1 for the rest, or the number that the file fixes.
fn image_shape(
    dims: &[usize],
    target: &[Option<i64>],
    batch: Option<usize>,
    copies: bool,
) -> Said<Vec<usize>> {
    let Some((first, rest)) = target.split_first() else {
        refuse!("it reshapes a batch to nothing");
    };
    let fixed = batch.unwrap_or(1) as i64;
    let whole: usize = dims.iter().product();
    // A target without a place for the rest: then the first entry is that place.
    let known = |rest: &[Option<i64>]| !rest.contains(&Some(-1));
    let is_batch = match first {
        None => true,
        Some(0) => copies,
        Some(-1) => known(rest),
        Some(n) => *n == fixed || *n == 1,
    };
    require!(
        is_batch,
        "it reshapes a batch of images {:?} to {}; the first dimension must stay that of the batch",
        &dims[1..],
        spelt(target)
    );
    resolve(dims, rest, 1, whole, copies)
}

fn whole_shape(dims: &[usize], target: &[Option<i64>], copies: bool) -> Said<Vec<usize>> {
    let whole = dims.iter().product();
    let shape = resolve(dims, target, 0, whole, copies)?;
    require!(
        room(&shape)? == whole,
        "a constant of shape {dims:?} does not fit in the shape {}",
        spelt(target)
    );
    Ok(shape)
}

/// A target with its 0 (`skip` places further in `dims`) and -1 replaced.
fn resolve(
    dims: &[usize],
    target: &[Option<i64>],
    skip: usize,
    whole: usize,
    copies: bool,
) -> Said<Vec<usize>> {
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (i, entry) in target.iter().enumerate() {
        shape.push(match entry {
            Some(-1) if open.is_none() => {
                open = Some(i);
                1
            }
            Some(0) if copies && i + skip < dims.len() => dims[i + skip],
            Some(n) if *n > 0 => *n as usize,
            _ => refuse!(
                "it reshapes a value of shape {dims:?} to {}; export the model again",
                spelt(target)
            ),
        });
    }
    if let Some(open) = open {
        let others = room(&shape)?;
        require!(
            others > 0 && whole.is_multiple_of(others),
            "{whole} values do not fit in the shape {}",
            spelt(target)
        );
        shape[open] = whole / others;
    }
    Ok(shape)
}

fn spelt(target: &[Option<i64>]) -> String {
    let spelt = target
        .iter()
        .map(|n| n.map_or("N".to_owned(), |n| n.to_string()));
    format!("[{}]", spelt.collect::<Vec<_>>().join(", "))
}

pub(super) fn transpose(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let dims = match node.input(0)? {
        Value::Flow(flow) => flow.dims().to_vec(),
        Value::Float(tensor) => tensor.dims().to_vec(),
        Value::Ints(_) => refuse!("it transposes whole numbers, which is not supported"),
    };
    let rank = dims.len();
    let backwards: Vec<i64> = (0..rank as i64).rev().collect();
    let order = node.list("perm").unwrap_or(&backwards);
    let order: Said<Vec<usize>> = order.iter().map(|a| axis(*a, rank)).collect();
    let order = order?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    require!(
        sorted.into_iter().eq(0..rank),
        "perm = {order:?} for {rank} dimensions"
    );
    require!(
        !matches!(node.input(0)?, Value::Flow(_)) || order.first() == Some(&0),
        "perm = {order:?} moves the dimension of the batch; images must stay apart: export with the \
         batch first"
    );
    Ok(vec![b.map(node.input(0)?, move |x| {
        Ok(x.permute(&order[..])?)
    })?])
}

pub(super) fn squeeze(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let axes = node.ints("axes", 1)?.map(|ints| ints.known()).transpose()?;
    // Which dimensions stay.
    let rest = |dims: &[usize], least: usize| -> Said<Vec<usize>> {
        let gone: Vec<usize> = match &axes {
            Some(axes) => {
                let gone: Said<Vec<usize>> = axes.iter().map(|a| axis(*a, dims.len())).collect();
                gone?
            }
            None => (least..dims.len()).filter(|i| dims[*i] == 1).collect(),
        };
        require!(
            gone.iter().all(|i| *i >= least && dims[*i] == 1),
            "axes {gone:?} of a value of shape {dims:?}; those of length 1 can go, but not that of \
             the batch"
        );
        let stays = |(i, d): (usize, &usize)| (!gone.contains(&i)).then_some(*d);
        Ok(dims.iter().enumerate().filter_map(stays).collect())
    };
    Ok(vec![match node.input(0)? {
        Value::Flow(x) => {
            let dims = rest(x.dims(), 1)?;
            reshaped(b, x, dims[1..].to_vec())?
        }
        Value::Float(tensor) => Value::Float(tensor.reshape(rest(tensor.dims(), 0)?)?),
        Value::Ints(ints) => Value::Ints(Ints {
            dims: rest(&ints.dims, 0)?,
            values: ints.values.clone(),
        }),
    }])
}

pub(super) fn unsqueeze(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Some(axes) = node.ints("axes", 1)? else {
        refuse!("its axes are missing");
    };
    let axes = axes.known()?;
    let grown = |dims: &[usize]| -> Said<Vec<usize>> {
        let rank = dims.len() + axes.len();
        let new: Said<Vec<usize>> = axes.iter().map(|a| axis(*a, rank)).collect();
        let new = new?;
        let mut old = dims.iter();
        let dims: Option<Vec<usize>> = (0..rank)
            .map(|i| {
                if new.contains(&i) {
                    Some(1)
                } else {
                    old.next().copied()
                }
            })
            .collect();
        match dims {
            Some(dims) if old.next().is_none() => Ok(dims),
            _ => refuse!("axes {axes:?} name one dimension twice"),
        }
    };
    Ok(vec![match node.input(0)? {
        Value::Flow(x) => {
            let rank = x.dims().len() + axes.len();
            for new in &axes {
                inner_axis(*new, rank)?;
            }
            reshaped(b, x, grown(x.dims())?[1..].to_vec())?
        }
        Value::Float(tensor) => Value::Float(tensor.reshape(grown(tensor.dims())?)?),
        Value::Ints(ints) => Value::Ints(Ints {
            dims: grown(&ints.dims)?,
            values: ints.values.clone(),
        }),
    }])
}

/// A constant stretched to a shape; the dimension of the batch stays 1.
pub(super) fn expand(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let Some(target) = node.ints("shape", 1)? else {
        refuse!("its shape is missing");
    };
    let mut target = target.values;
    if let Some(batch @ None) = target.first_mut() {
        *batch = Some(1);
    }
    let target = Ints::vector(target).known()?;
    let (dims, wide) = match node.input(0)? {
        Value::Flow(x) => (x.dims().to_vec(), None),
        Value::Float(tensor) => (tensor.dims().to_vec(), Some(tensor)),
        Value::Ints(_) => refuse!("it stretches whole numbers, which is not supported"),
    };
    let rank = dims.len().max(target.len());
    let mut shape = Vec::new();
    for i in 0..rank {
        let have = (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
        let want = (i + target.len())
            .checked_sub(rank)
            .map_or(1, |i| target[i]);
        shape.push(match usize::try_from(want) {
            Ok(want) if want == have || want == 1 => have,
            Ok(want) if have == 1 && want > 0 => want,
            _ => refuse!("a value of shape {dims:?} does not stretch to {target:?}"),
        });
    }
    room(&shape)?;
    Ok(vec![match wide {
        Some(tensor) => Value::Float(tensor.broadcast_as(shape)?.contiguous()?),
        None if shape == dims => node.input(0)?.clone(),
        None => {
            require!(
                shape.len() == dims.len() && shape[0] == 1,
                "it stretches a value of shape {dims:?} to {target:?}; images must stay apart"
            );
            b.map(node.input(0)?, move |x| {
                let mut shape = shape.clone();
                shape[0] = x.dim(0)?;
                Ok(x.broadcast_as(shape)?)
            })?
        }
    }])
}

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
