//! Constants, and what is computed of shapes.

use candle_core::{DType, Tensor};

use crate::constant::{Constant, Ints, constant as read, room};
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Value};
use crate::node::Node;
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
