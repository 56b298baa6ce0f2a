use crate::config::PoolConfig;
use crate::cpu::{View, for_dtype, has_kernels, tensor};
use crate::graph::{Node, if_tracked};
use crate::portable;
use candle_core::{Result, Tensor};
use theriac_kernels::{avg_pool2d_grad, max_pool2d_grad};

/// Max pooling of x (N, C, H, W); padding counts as negative infinity.
///
/// The gradient goes to the first maximum of each window in row-major order, as in PyTorch.
///
/// # Errors
///
/// If the window does not fit or the batch is empty.
pub fn max_pool2d(x: &Tensor, config: PoolConfig) -> Result<Tensor> {
    let pool = config.geometry(x)?;
    if !has_kernels(x) {
        return portable::max_pool2d(x, config);
    }
    let x = x.contiguous()?;
    for_dtype!(x.dtype(), T => {
        let node = {
            let input = View::new(&x)?;
            let input = input.slice::<T>()?;
            let shape = pool.out_shape();
            let mut out = vec![<T as theriac_kernels::Real>::ZERO; shape.iter().product()];
            let mut argmax = vec![0u32; out.len()];
            theriac_kernels::max_pool2d(&pool, input, &mut out, &mut argmax)
                .map_err(candle_core::Error::wrap)?;
            Node::from_vec("max_pool2d", &shape[..], out, move |[x], grad| {
                let grad_x = if_tracked(x, || {
                    let grad = View::new(grad)?;
                    let grad = grad.slice::<T>()?;
                    tensor::<T>(x.shape(), |out| max_pool2d_grad(&pool, &argmax, grad, out))
                })?;
                Ok([grad_x])
            })
        };
        x.apply_op1(node)
    })
}

/// Average pooling of x (N, C, H, W); padding counts as zeros.
///
/// The divisor is the window's size, or the number of its pixels inside the image if
/// `count_include_pad` is false (PyTorch's default is true).
///
/// # Errors
///
/// If the window does not fit or the batch is empty.
pub fn avg_pool2d(x: &Tensor, config: PoolConfig, count_include_pad: bool) -> Result<Tensor> {
    let pool = config.geometry(x)?;
    if !has_kernels(x) {
        return portable::avg_pool2d(x, config, count_include_pad);
    }
    let x = x.contiguous()?;
    for_dtype!(x.dtype(), T => {
        let node = {
            let input = View::new(&x)?;
            let input = input.slice::<T>()?;
            Node::new::<T>(
                "avg_pool2d",
                &pool.out_shape()[..],
                |out| theriac_kernels::avg_pool2d(&pool, count_include_pad, input, out),
                move |[x], grad| {
                    let grad_x = if_tracked(x, || {
                        let grad = View::new(grad)?;
                        let grad = grad.slice::<T>()?;
                        tensor::<T>(x.shape(), |out| {
                            avg_pool2d_grad(&pool, count_include_pad, grad, out)
                        })
                    })?;
                    Ok([grad_x])
                },
            )?
        };
        x.apply_op1(node)
    })
}
