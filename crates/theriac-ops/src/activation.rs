use crate::cpu::{View, for_dtype, has_kernels, tensor};
use crate::graph::{Node, if_tracked};
use crate::portable;
use candle_core::{Result, Tensor};

/// `max(x, 0)`, with derivative 0 at 0 as in PyTorch (candle's is 1). NaN stays NaN.
///
/// # Errors
///
/// If candle cannot compute with the tensor's element type.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return portable::relu(x);
    }
    let x = x.contiguous()?;
    for_dtype!(x.dtype(), T => {
        let node = {
            let input = View::new(&x)?;
            let input = input.slice::<T>()?;
            Node::new::<T>(
                "relu",
                x.shape(),
                |out| theriac_kernels::relu(input, out),
                |[x], grad| {
                    let grad_x = if_tracked(x, || {
                        let (x_view, grad) = (View::new(x)?, View::new(grad)?);
                        let (input, grad) = (x_view.slice::<T>()?, grad.slice::<T>()?);
                        tensor::<T>(x.shape(), |out| theriac_kernels::relu_grad(input, grad, out))
                    })?;
                    Ok([grad_x])
                },
            )?
        };
        x.apply_op1(node)
    })
}
