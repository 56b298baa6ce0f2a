//! Convolution.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_nn::{Form, Layer};
use theriac_ops::network::Op;
use theriac_ops::{ConvConfig, conv2d};

use super::cut::padded;
use super::pool::Window;
use crate::constant::room;
use crate::error::{Said, require};
use crate::graph::{Builder, Value};
use crate::node::Node;

struct Convolution {
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvConfig,
}

impl Layer for Convolution {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, self.bias.as_ref(), self.config)?)
    }

    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        let ConvConfig {
            stride,
            padding,
            dilation,
            groups,
        } = self.config;
        let (outputs, _, height, width) = self.weight.dims4()?;
        let op = Op::Conv {
            outputs,
            kernel: (height, width),
            stride,
            padding,
            dilation,
        };
        let parameters = [Some(self.weight.clone()), self.bias.clone(), None, None];
        Ok((groups == 1).then(|| Form::stored(Some(op), parameters)))
    }
}

/// The kernels here have one stride, padding and dilation for both sides. Of others, padding is a
/// step before, strides a choice of rows and columns after, and dilation zeros in the weight.
pub(super) fn conv(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let (x, weight) = (node.flow(0)?, node.weight(1)?);
    let shapes = (x.dims().to_vec(), weight.dims().to_vec());
    let ([_, channels, height, width], [outputs, inputs, kh, kw]) = (&shapes.0[..], &shapes.1[..])
    else {
        crate::error::refuse!(
            "a value of shape {:?} and a weight of shape {:?}; convolutions of images (N, C, H, W) \
             are supported",
            shapes.0,
            shapes.1
        );
    };
    let groups = usize::try_from(node.int("group", 1)).unwrap_or_default();
    require!(
        groups > 0 && groups <= *channels && inputs.checked_mul(groups) == Some(*channels),
        "{groups} groups of {inputs} channels for a value of {channels}; export the model again"
    );
    let window = Window::of(node, [*kh, *kw], [*height, *width])?;
    require!(
        window.kernel == [*kh, *kw],
        "kernel_shape {:?} for a weight of shape {:?}",
        window.kernel,
        shapes.1
    );
    let [rows, columns] = window.outputs([*height, *width], false)?;
    room(&[*outputs, rows, columns])?;
    let bias = node.given(2).map(|_| node.weight(2)).transpose()?;

    let mut dilation = window.dilation;
    for side in 0..2 {
        if window.kernel[side] == 1 {
            dilation[side] = dilation[1 - side];
        }
    }
    let (weight, dilation) = match dilation {
        [d, e] if d == e => (weight.clone(), d),
        [d, e] => (spread(&spread(weight, 2, d)?, 3, e)?, 1),
    };
    let [top, left, ..] = window.pads;
    let even = window.pads == [top; 4];
    let x = match even {
        true => node.input(0)?.clone(),
        false => padded(b, node.input(0)?, window.sides(), 0.0)?,
    };
    let (Value::Flow(x), padding) = (x, if even { left } else { 0 }) else {
        crate::error::refuse!("its input is a constant");
    };
    let stride = gcd(window.stride[0], window.stride[1]);
    let layer = Convolution {
        weight: weight.contiguous()?,
        bias: bias.cloned(),
        config: ConvConfig {
            stride,
            padding,
            dilation,
            groups,
        },
    };
    // With the smaller stride the result is larger.
    let finer = Window {
        stride: [stride; 2],
        ..window
    };
    let [finer_rows, finer_columns] = finer.outputs([*height, *width], false)?;
    room(&[*outputs, finer_rows, finer_columns])?;
    let mut y = b.layer(&x, layer)?;
    for (axis, count, whole) in [(2, rows, window.stride[0]), (3, columns, window.stride[1])] {
        if whole != stride {
            y = every(b, &y, axis, whole / stride, count)?;
        }
    }
    Ok(vec![y])
}

/// Each `step`-th entry along an axis, `count` of them.
fn every(b: &mut Builder<'_>, x: &Value, axis: usize, step: usize, count: usize) -> Said<Value> {
    b.map(x, move |x| {
        let at: Vec<u32> = (0..count).map(|i| (i * step) as u32).collect();
        let at = Tensor::from_vec(at, count, x.device())?;
        Ok(x.contiguous()?.index_select(&at, axis)?)
    })
}

/// A weight with `dilation - 1` zeros between its entries along an axis.
fn spread(weight: &Tensor, axis: usize, dilation: usize) -> Said<Tensor> {
    let len = weight.dims()[axis];
    if dilation == 1 || len == 1 {
        return Ok(weight.clone());
    }
    let mut dims = weight.dims().to_vec();
    dims[axis] = (len - 1) * dilation + 1;
    room(&dims)?;
    dims[axis] = dilation - 1;
    let zeros = Tensor::zeros(&dims[..], weight.dtype(), weight.device())?;
    let mut parts = Vec::new();
    for i in 0..len {
        if i > 0 {
            parts.push(zeros.clone());
        }
        parts.push(weight.narrow(axis, i, 1)?);
    }
    Ok(Tensor::cat(&parts, axis)?)
}

fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}
