//! Fully connected layers and products of matrices.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_nn::{Form, Layer};
use theriac_ops::linear;
use theriac_ops::network::Op;

use crate::constant::room;
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Value};
use crate::node::Node;

/// `y = x W^T + b`.
struct Dense {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Layer for Dense {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        Ok(linear(x, &self.weight, self.bias.as_ref())?)
    }

    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        let outputs = self.weight.dim(0)?;
        let parameters = [Some(self.weight.clone()), self.bias.clone(), None, None];
        Ok(Some(Form::stored(Some(Op::Linear { outputs }), parameters)))
    }
}

/// `alpha A B + beta C`, B maybe transposed, with A from the image.
pub(super) fn gemm(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let (x, weight) = (node.flow(0)?, node.weight(1)?);
    require!(
        node.int("transA", 0) == 0,
        "it transposes what follows from the image, and so mixes images; export with transA = 0"
    );
    require!(
        x.dims().len() == 2 && weight.rank() == 2,
        "a value of shape {:?} and a weight of shape {:?}; both must have two dimensions",
        x.dims(),
        weight.dims()
    );
    let weight = match node.int("transB", 0) {
        0 => weight.t()?,
        _ => weight.clone(),
    };
    let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
    let weight = if alpha == 1.0 {
        weight
    } else {
        (weight * alpha)?
    };
    let outputs = weight.dim(0)?;
    let bias = match node.given(2) {
        None => None,
        Some(_) => {
            let bias = node.weight(2)?;
            let shape = bias.dims().to_vec();
            let wide = match shape[..] {
                [] | [1] | [1, 1] => bias.reshape(1)?.broadcast_as(outputs)?,
                [n] | [1, n] if n == outputs => bias.reshape(n)?,
                _ => refuse!("a bias of shape {shape:?} for {outputs} outputs"),
            };
            Some(if beta == 1.0 { wide } else { (wide * beta)? })
        }
    };
    let layer = Dense {
        weight: weight.contiguous()?,
        bias: bias.map(|bias| bias.contiguous()).transpose()?,
    };
    Ok(vec![b.layer(x, layer)?])
}

/// The product of two matrices, or of as many as the leading dimensions hold.
pub(super) fn matmul(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    Ok(vec![match (node.input(0)?, node.input(1)?) {
        (Value::Flow(x), Value::Float(weight)) => {
            let (dims, shape) = (x.dims().to_vec(), weight.dims().to_vec());
            let ([.., last], [inputs, outputs]) = (&dims[..], &shape[..]) else {
                refuse!("values of shapes {dims:?} and {shape:?}; the constant must be a matrix");
            };
            let (inputs, outputs) = (*inputs, *outputs);
            require!(
                dims.len() >= 2 && *last == inputs,
                "values of shapes {dims:?} and {shape:?} do not fit together"
            );
            let weight = weight.t()?.contiguous()?;
            if dims.len() == 2 {
                return Ok(vec![b.layer(x, Dense { weight, bias: None })?]);
            }
            room(&[dims.iter().product::<usize>() / inputs, outputs])?;
            b.map(node.input(0)?, move |x| {
                let mut dims = x.dims().to_vec();
                let rows = x.elem_count() / inputs;
                if let Some(last) = dims.last_mut() {
                    *last = outputs;
                }
                Ok(linear(&x.reshape((rows, inputs))?, &weight, None)?.reshape(dims)?)
            })?
        }
        (Value::Flow(x), Value::Flow(y)) => {
            let (a, c) = (x.dims(), y.dims());
            let rank = a.len();
            require!(
                rank >= 3
                    && rank == c.len()
                    && a[..rank - 2] == c[..rank - 2]
                    && a[rank - 1] == c[rank - 2],
                "values of shapes {a:?} and {c:?} for one image do not fit together"
            );
            let mut dims = a.to_vec();
            dims[rank - 1] = c[rank - 1];
            room(&dims)?;
            b.join(&[node.input(0)?, node.input(1)?], |v| {
                Ok(v[0].contiguous()?.matmul(&v[1].contiguous()?)?)
            })?
        }
        (Value::Float(x), Value::Float(y)) if x.rank() == 2 && y.rank() == 2 => {
            room(&[x.dim(0)?, y.dim(1)?])?;
            Value::Float(x.contiguous()?.matmul(&y.contiguous()?)?)
        }
        _ => refuse!(
            "a constant on the left; products with what follows from the image on the left are supported"
        ),
    }])
}
