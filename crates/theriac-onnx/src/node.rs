//! One node of a graph and its settings.

use crate::constant::Ints;
use crate::error::{Said, refuse, require};
use crate::graph::{Flow, Value};
use crate::proto::{AttributeProto, NodeProto, TensorProto};
use candle_core::Tensor;

/// A node with the values that it reads; `None` where an optional one is left out.
pub(crate) struct Node<'a> {
    pub(crate) proto: &'a NodeProto,
    /// Version of the operators.
    pub(crate) opset: i64,
    pub(crate) inputs: Vec<Option<Value>>,
    /// The size of the batch, where the file fixes it.
    pub(crate) batch: Option<usize>,
}

/// Operation and name, as people find the node in a viewer.
pub(crate) fn called(node: &NodeProto) -> String {
    let name = match (&node.name[..], node.output.first()) {
        ("", Some(output)) => format!("that gives {output:?}"),
        (name, _) => format!("{name:?}"),
    };
    match &node.domain[..] {
        "" | "ai.onnx" => format!("{} {name}", node.op_type),
        domain => format!("{domain}.{} {name}", node.op_type),
    }
}

impl Node<'_> {
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name == name)
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> f64 {
        f64::from(self.attribute(name).map_or(default, |a| a.f))
    }

    pub(crate) fn text(&self, name: &str, default: &str) -> String {
        let text = self.attribute(name).map(|a| String::from_utf8_lossy(&a.s));
        text.map_or_else(|| default.to_owned(), |text| text.into_owned())
    }

    pub(crate) fn list(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| &a.ints[..])
    }

    pub(crate) fn floats(&self, name: &str) -> Option<&[f32]> {
        self.attribute(name).map(|a| &a.floats[..])
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name).and_then(|a| a.t.as_ref())
    }

    /// Numbers of at least `least`, `count` of them.
    pub(crate) fn sizes(&self, name: &str, count: usize, least: i64) -> Said<Option<Vec<usize>>> {
        let Some(list) = self.list(name) else {
            return Ok(None);
        };
        let fits = |v: &i64| (least..=MOST).contains(v);
        require!(
            list.len() == count && list.iter().all(fits),
            "{name} = {list:?}; {count} numbers from {least} to {MOST} are supported (images, two \
             dimensions)"
        );
        Ok(Some(list.iter().map(|v| *v as usize).collect()))
    }

    pub(crate) fn given(&self, at: usize) -> Option<&Value> {
        self.inputs.get(at).and_then(Option::as_ref)
    }

    pub(crate) fn input(&self, at: usize) -> Said<&Value> {
        match self.given(at) {
            Some(value) => Ok(value),
            None => refuse!("input {at} is missing; export the model again"),
        }
    }

    /// An input that follows from the image.
    pub(crate) fn flow(&self, at: usize) -> Said<&Flow> {
        match self.input(at)? {
            Value::Flow(flow) => Ok(flow),
            _ => refuse!("input {at} is a constant; it must follow from the image here"),
        }
    }

    /// An input that is a constant of floats.
    pub(crate) fn weight(&self, at: usize) -> Said<&Tensor> {
        match self.input(at)? {
            Value::Float(tensor) => Ok(tensor),
            Value::Flow(_) => refuse!("input {at} follows from the image; it must be a constant"),
            Value::Ints(_) => refuse!("input {at} holds whole numbers; it must hold floats"),
        }
    }

    /// Whole numbers that older versions of an operator keep in a setting and newer ones in an
    /// input.
    pub(crate) fn ints(&self, name: &str, at: usize) -> Said<Option<Ints>> {
        if let Some(list) = self.list(name) {
            return Ok(Some(Ints::vector(list.iter().copied().map(Some).collect())));
        }
        match self.given(at) {
            None => Ok(None),
            Some(Value::Ints(ints)) => Ok(Some(ints.clone())),
            Some(_) => refuse!("its {name} must be constant whole numbers"),
        }
    }
}

/// Bound of kernels, strides, padding and dilation: far above any use.
const MOST: i64 = 1 << 16;

/// An axis counted from the front; negative ones count from the back.
pub(crate) fn axis(axis: i64, rank: usize) -> Said<usize> {
    let from_front = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    match usize::try_from(from_front) {
        Ok(found) if found < rank => Ok(found),
        _ => refuse!("axis {axis} of a value with {rank} dimensions; export the model again"),
    }
}

/// An axis that is not that of the batch.
pub(crate) fn inner_axis(of: i64, rank: usize) -> Said<usize> {
    let found = axis(of, rank)?;
    require!(
        found > 0,
        "it works along the batch (axis {of}); images must stay apart"
    );
    Ok(found)
}
