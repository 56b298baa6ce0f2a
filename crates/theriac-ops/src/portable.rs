//! The operations composed of candle's own, for every device and element type.
//!
//! The functions at the root of the crate call these where there is no kernel; they are public so
//! that the two can be compared. Shapes and values are as documented there. They check less: call
//! the ones at the root.

use crate::config::{ConvConfig, PoolConfig};
use candle_core::{Result, Tensor, Var};
use theriac_kernels::{Adam, Sgd};

/// See [`crate::conv2d`].
///
/// candle's gradient sizes the input's gradient by the height alone, so rows and columns that no
/// window reaches are cut first; then every size follows from the output's.
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvConfig,
) -> Result<Tensor> {
    let ConvConfig {
        stride,
        padding,
        dilation,
        groups,
    } = config;
    let (oh, ow) = config.geometry(x, weight)?.out_hw();
    let (_, _, kh, kw) = weight.dims4()?;
    let reach = |out: usize, kernel: usize| (out - 1) * stride + dilation * (kernel - 1) + 1;
    let x = x
        .pad_with_zeros(2, padding, padding)?
        .pad_with_zeros(3, padding, padding)?
        .narrow(2, 0, reach(oh, kh))?
        .narrow(3, 0, reach(ow, kw))?
        .contiguous()?;
    let y = x.conv2d(&weight.contiguous()?, 0, stride, dilation, groups)?;
    match bias {
        None => Ok(y),
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
    }
}

/// See [`crate::relu`].
///
/// # Errors
///
/// If candle cannot compute with the tensor's element type.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.le(0.0)?.where_cond(&x.zeros_like()?, x)
}

/// See [`crate::linear`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.contiguous()?.matmul(&weight.t()?)?;
    match bias {
        None => Ok(y),
        Some(bias) => y.broadcast_add(bias),
    }
}

/// See [`crate::max_pool2d`].
///
/// # Errors
///
/// If the window does not fit.
pub fn max_pool2d(x: &Tensor, config: PoolConfig) -> Result<Tensor> {
    let (oh, ow) = config.geometry(x)?.out_hw();
    let inside = pad(&x.ones_like()?, config)?.gt(0.0)?;
    let padded = pad(x, config)?;
    let lowest = Tensor::full(f32::NEG_INFINITY, padded.dims(), x.device())?.to_dtype(x.dtype())?;
    let padded = inside.where_cond(&padded, &lowest)?;
    let mut windows = window_pixels(&padded, config, (oh, ow));
    let mut best = match windows.next() {
        Some(first) => first?,
        None => candle_core::bail!("max_pool2d: the kernel is 0; it must be at least 1"),
    };
    for pixel in windows {
        let pixel = pixel?;
        // Strictly greater keeps the first of equal maxima; NaN differs from itself and wins.
        let wins = (pixel.gt(&best)? + pixel.ne(&pixel)?)?;
        best = wins.where_cond(&pixel, &best)?;
    }
    Ok(best)
}

/// See [`crate::avg_pool2d`].
///
/// # Errors
///
/// If the window does not fit.
pub fn avg_pool2d(x: &Tensor, config: PoolConfig, count_include_pad: bool) -> Result<Tensor> {
    let size = config.geometry(x)?.out_hw();
    let total = |x: &Tensor| -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for pixel in window_pixels(&pad(x, config)?, config, size) {
            total = Some(match total {
                None => pixel?,
                Some(total) => (total + pixel?)?,
            });
        }
        match total {
            Some(total) => Ok(total),
            None => candle_core::bail!("avg_pool2d: the kernel is 0; it must be at least 1"),
        }
    };
    if count_include_pad {
        total(x)? / (config.kernel * config.kernel) as f64
    } else {
        total(x)? / total(&x.ones_like()?)?
    }
}

fn pad(x: &Tensor, config: PoolConfig) -> Result<Tensor> {
    let p = config.padding;
    x.pad_with_zeros(2, p, p)?.pad_with_zeros(3, p, p)
}

/// For each pixel of the window, in row-major order, the tensor of that pixel of all windows.
fn window_pixels(
    padded: &Tensor,
    config: PoolConfig,
    (oh, ow): (usize, usize),
) -> impl Iterator<Item = Result<Tensor>> {
    let PoolConfig { kernel, stride, .. } = config;
    let index = move |start: usize, count: usize| {
        let last = (start + count * stride) as u32;
        Tensor::arange_step(start as u32, last, stride as u32, padded.device())
    };
    (0..kernel * kernel).map(move |i| {
        let rows = index(i / kernel, oh)?;
        let columns = index(i % kernel, ow)?;
        padded.index_select(&rows, 2)?.index_select(&columns, 3)
    })
}

/// See [`crate::batch_norm_train`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn batch_norm_train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let count = (x.elem_count() / x.dim(1)?) as f64;
    let mean = x.mean_keepdim((0, 2, 3))?;
    let centred = x.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
    let inv_std = (&var + eps)?.sqrt()?.recip()?;
    let y = affine(&centred.broadcast_mul(&inv_std)?, gamma, beta)?;
    let unbiased = (var.detach().flatten_all()? * (count / (count - 1.0)))?;
    Ok((y, mean.detach().flatten_all()?, unbiased))
}

/// See [`crate::batch_norm_eval`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let inv_std = (var.detach() + eps)?
        .sqrt()?
        .recip()?
        .reshape((1, (), 1, 1))?;
    let centred = x.broadcast_sub(&mean.detach().reshape((1, (), 1, 1))?)?;
    affine(&centred.broadcast_mul(&inv_std)?, gamma, beta)
}

fn affine(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&gamma.reshape((1, (), 1, 1))?)?
        .broadcast_add(&beta.reshape((1, (), 1, 1))?)
}

/// See [`crate::cross_entropy`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (z, log_sum_exp) = shifted(logits)?;
    let picked = z.gather(&labels.unsqueeze(1)?.contiguous()?, 1)?;
    (log_sum_exp - picked)?.squeeze(1)
}

/// See [`crate::cross_entropy_soft`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn cross_entropy_soft(logits: &Tensor, probabilities: &Tensor) -> Result<Tensor> {
    let (z, log_sum_exp) = shifted(logits)?;
    let surprise = log_sum_exp.broadcast_sub(&z)?;
    (surprise * probabilities.detach())?.sum(1)
}

/// The logits minus their maximum, and the logarithm of the sum of their exponentials (N, 1).
fn shifted(logits: &Tensor) -> Result<(Tensor, Tensor)> {
    let z = logits
        .broadcast_sub(&logits.detach().max_keepdim(1)?)?
        .contiguous()?;
    let log_sum_exp = z.exp()?.sum_keepdim(1)?.log()?;
    Ok((z, log_sum_exp))
}

/// See [`crate::sgd_step`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn sgd_step(
    sgd: &Sgd,
    param: &Var,
    grad: &Tensor,
    buffer: Option<&Var>,
    first: bool,
) -> Result<()> {
    let value = param.as_detached_tensor();
    let d = (grad.detach() + (&value * sgd.weight_decay)?)?;
    let direction = match buffer {
        None => d,
        Some(buffer) => {
            if first {
                buffer.set(&d)?;
            } else {
                let kept = (buffer.as_detached_tensor() * sgd.momentum)?;
                buffer.set(&(kept + (&d * (1.0 - sgd.dampening))?)?)?;
            }
            if sgd.nesterov {
                (d + (buffer.as_detached_tensor() * sgd.momentum)?)?
            } else {
                buffer.as_detached_tensor()
            }
        }
    };
    param.set(&(value - (direction * sgd.lr)?)?)
}

/// See [`crate::adam_step`].
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn adam_step(
    adam: &Adam,
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    step: usize,
) -> Result<()> {
    let mut value = param.as_detached_tensor();
    let mut grad = grad.detach();
    if adam.decoupled {
        value = (value * (1.0 - adam.lr * adam.weight_decay))?;
    } else {
        grad = (grad + (&value * adam.weight_decay)?)?;
    }
    let exponent = step as f64;
    let (old_m, old_v) = (m.as_detached_tensor(), v.as_detached_tensor());
    m.set(&(&old_m + ((&grad - &old_m)? * (1.0 - adam.beta1))?)?)?;
    v.set(&((old_v * adam.beta2)? + (grad.sqr()? * (1.0 - adam.beta2))?)?)?;
    let root2 = (1.0 - adam.beta2.powf(exponent)).sqrt();
    let denominator = ((v.as_detached_tensor().sqrt()? / root2)? + adam.eps)?;
    let step_size = adam.lr / (1.0 - adam.beta1.powf(exponent));
    param.set(&(value - ((m.as_detached_tensor() / denominator)? * step_size)?)?)
}
