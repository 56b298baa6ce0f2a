use crate::config::{check_alike, check_shape, dims};
use crate::cpu::{Float, View, for_dtype, has_kernels, tensor};
use crate::graph::{Node, if_tracked};
use crate::portable;
use candle_core::{Result, Tensor};
use theriac_kernels::{linear_bias_grad, linear_input_grad, linear_weight_grad};

/// (rows, inputs, outputs)
type Sizes = (usize, usize, usize);

/// Linear layer, `x weight^T + bias`, for x (N, inputs), weight (outputs, inputs), bias (outputs).
///
/// Differentiable in all three; nothing is computed for those that are not tracked.
///
/// # Errors
///
/// If the shapes do not fit together, the batch is empty, or the element types or devices differ.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let [rows, inputs] = dims("linear: x", x)?;
    let [outputs, _] = dims("linear: weight", weight)?;
    check_shape("linear: weight", weight, &[outputs, inputs])?;
    check_alike("linear", x, &[("weight", weight)])?;
    if let Some(bias) = bias {
        check_alike("linear", x, &[("bias", bias)])?;
        check_shape("linear: bias", bias, &[outputs])?;
    }
    if rows == 0 || inputs == 0 || outputs == 0 {
        candle_core::bail!(
            "linear: x has shape {:?} and weight {:?}; every dimension must be at least 1",
            x.dims(),
            weight.dims()
        );
    }
    if !has_kernels(x) {
        return portable::linear(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let sizes = (rows, inputs, outputs);
    for_dtype!(x.dtype(), T => match &bias {
        None => {
            let node = node::<T, 2>(sizes, [&x, &weight], move |[x, weight], grad| {
                Ok([input::<T>(sizes, x, weight, grad)?, matrix::<T>(sizes, x, weight, grad)?])
            })?;
            x.apply_op2(&weight, node)
        }
        Some(bias) => {
            let node = node::<T, 3>(sizes, [&x, &weight, bias], move |[x, weight, bias], grad| {
                Ok([
                    input::<T>(sizes, x, weight, grad)?,
                    matrix::<T>(sizes, x, weight, grad)?,
                    offset::<T>(sizes, bias, grad)?,
                ])
            })?;
            x.apply_op3(&weight, bias, node)
        }
    })
}

fn node<T: Float, const N: usize>(
    sizes: Sizes,
    args: [&Tensor; N],
    backward: impl Fn([&Tensor; N], &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Result<Node<N>> {
    let (x, weight) = (View::new(args[0])?, View::new(args[1])?);
    let (x, weight) = (x.slice::<T>()?, weight.slice::<T>()?);
    let bias = args.get(2).map(|bias| View::new(bias)).transpose()?;
    let bias = bias.as_ref().map(View::slice::<T>).transpose()?;
    Node::new::<T>(
        "linear",
        (sizes.0, sizes.2),
        |out| theriac_kernels::linear(sizes, x, weight, bias, out),
        backward,
    )
}

fn input<T: Float>(
    sizes: Sizes,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<Option<Tensor>> {
    if_tracked(x, || {
        let (weight, grad) = (View::new(weight)?, View::new(grad)?);
        let (weight, grad) = (weight.slice::<T>()?, grad.slice::<T>()?);
        tensor::<T>(x.shape(), |out| linear_input_grad(sizes, grad, weight, out))
    })
}

fn matrix<T: Float>(
    sizes: Sizes,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<Option<Tensor>> {
    if_tracked(weight, || {
        let (x, grad) = (View::new(x)?, View::new(grad)?);
        let (x, grad) = (x.slice::<T>()?, grad.slice::<T>()?);
        tensor::<T>(weight.shape(), |out| {
            linear_weight_grad(sizes, x, grad, out)
        })
    })
}

fn offset<T: Float>(sizes: Sizes, bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if_tracked(bias, || {
        let grad = View::new(grad)?;
        let grad = grad.slice::<T>()?;
        tensor::<T>(bias.shape(), |out| {
            linear_bias_grad(sizes.0, sizes.2, grad, out)
        })
    })
}
