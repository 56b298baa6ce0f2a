use crate::config::{ConvConfig, check_alike, check_shape};
use crate::cpu::{Float, View, for_dtype, has_kernels, tensor};
use crate::graph::{Node, if_tracked};
use crate::portable;
use candle_core::{Result, Tensor};
use theriac_kernels::{Conv, conv2d_bias_grad, conv2d_input_grad, conv2d_weight_grad};

/// Two-dimensional convolution of x (N, C_in, H, W) with weight (C_out, C_in / groups, K_h, K_w)
/// and bias (C_out); the formula is that of [`theriac_kernels::Conv`].
///
/// Differentiable in all three; nothing is computed for those that are not tracked.
///
/// # Errors
///
/// If the shapes do not fit together, the batch is empty, or the element types or devices differ.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvConfig,
) -> Result<Tensor> {
    let conv = config.geometry(x, weight)?;
    check_alike("conv2d", x, &[("weight", weight)])?;
    if let Some(bias) = bias {
        check_alike("conv2d", x, &[("bias", bias)])?;
        check_shape("conv2d: bias", bias, &[weight.dim(0)?])?;
    }
    if !has_kernels(x) {
        return portable::conv2d(x, weight, bias, config);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    for_dtype!(x.dtype(), T => match &bias {
        None => {
            let node = node::<T, 2>(conv, [&x, &weight], move |[x, weight], grad| {
                Ok([input::<T>(conv, x, weight, grad)?, filter::<T>(conv, x, weight, grad)?])
            })?;
            x.apply_op2(&weight, node)
        }
        Some(bias) => {
            let node = node::<T, 3>(conv, [&x, &weight, bias], move |[x, weight, bias], grad| {
                Ok([
                    input::<T>(conv, x, weight, grad)?,
                    filter::<T>(conv, x, weight, grad)?,
                    offset::<T>(conv, bias, grad)?,
                ])
            })?;
            x.apply_op3(&weight, bias, node)
        }
    })
}

fn node<T: Float, const N: usize>(
    conv: Conv,
    args: [&Tensor; N],
    backward: impl Fn([&Tensor; N], &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Result<Node<N>> {
    let (x, weight) = (View::new(args[0])?, View::new(args[1])?);
    let (x, weight) = (x.slice::<T>()?, weight.slice::<T>()?);
    let bias = args.get(2).map(|bias| View::new(bias)).transpose()?;
    let bias = bias.as_ref().map(View::slice::<T>).transpose()?;
    Node::new::<T>(
        "conv2d",
        &conv.out_shape()[..],
        |out| theriac_kernels::conv2d(&conv, x, weight, bias, out),
        backward,
    )
}

fn input<T: Float>(
    conv: Conv,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<Option<Tensor>> {
    if_tracked(x, || {
        let (weight, grad) = (View::new(weight)?, View::new(grad)?);
        let (weight, grad) = (weight.slice::<T>()?, grad.slice::<T>()?);
        tensor::<T>(x.shape(), |out| conv2d_input_grad(&conv, grad, weight, out))
    })
}

fn filter<T: Float>(
    conv: Conv,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<Option<Tensor>> {
    if_tracked(weight, || {
        let (x, grad) = (View::new(x)?, View::new(grad)?);
        let (x, grad) = (x.slice::<T>()?, grad.slice::<T>()?);
        tensor::<T>(weight.shape(), |out| {
            conv2d_weight_grad(&conv, x, grad, out)
        })
    })
}

fn offset<T: Float>(conv: Conv, bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if_tracked(bias, || {
        let grad = View::new(grad)?;
        let grad = grad.slice::<T>()?;
        tensor::<T>(bias.shape(), |out| conv2d_bias_grad(&conv, grad, out))
    })
}
