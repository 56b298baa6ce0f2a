//! Values in other shapes and orders.

use crate::constant::{Ints, room};
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Flow, Value};
use crate::node::{Node, axis, inner_axis};

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
