use crate::config::{check_alike, check_shape, dims};
use crate::cpu::{Float, View, for_dtype, has_kernels};
use crate::graph::Node;
use crate::portable;
use candle_core::{Device, Result, Tensor, bail};
use theriac_kernels::{BatchNorm, BatchNormGrads, Statistics};

/// Batch normalisation of x (N, C, H, W) with the statistics of the batch.
///
/// Returns `gamma (x - mean) / sqrt(var + eps) + beta`, where `var` is the biased variance, with
/// the mean (C) and the unbiased variance (C) that PyTorch's running averages take, both detached.
/// The first is differentiable in x, gamma (C) and beta (C), through the statistics as well.
///
/// # Errors
///
/// If the shapes do not fit together, a channel has a single value, `eps` is not positive, or the
/// element types or devices differ.
pub fn batch_norm_train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let norm = check(x, &[("gamma", gamma), ("beta", beta)], eps)?;
    if norm.count() < 2 {
        bail!(
            "batch_norm_train: x has shape {:?}, one value per channel, which has no variance; \
             pass a larger batch or use batch_norm_eval",
            x.dims()
        );
    }
    if !has_kernels(x) {
        return portable::batch_norm_train(x, gamma, beta, eps);
    }
    let x = x.contiguous()?;
    for_dtype!(x.dtype(), T => {
        let statistics = {
            let input = View::new(&x)?;
            norm.statistics(input.slice::<T>()?).map_err(candle_core::Error::wrap)?
        };
        let vector = |values: &[f64]| {
            let values: Vec<T> = values.iter().map(|&v| v as T).collect();
            Tensor::from_vec(values, gamma.dims(), &Device::Cpu)
        };
        let mean = vector(&statistics.mean)?;
        let var = vector(&statistics.unbiased_var(norm.count()))?;
        Ok((apply::<T>(norm, &x, gamma, beta, statistics, true)?, mean, var))
    })
}

/// Batch normalisation of x (N, C, H, W) with the fixed statistics `mean` and `var` (C).
///
/// Differentiable in x, gamma and beta.
///
/// # Errors
///
/// If the shapes do not fit together, `eps` is not positive, or the element types or devices
/// differ.
pub fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let vectors = [
        ("gamma", gamma),
        ("beta", beta),
        ("mean", mean),
        ("var", var),
    ];
    let norm = check(x, &vectors, eps)?;
    if !has_kernels(x) {
        return portable::batch_norm_eval(x, gamma, beta, mean, var, eps);
    }
    let (x, mean, var) = (x.contiguous()?, mean.contiguous()?, var.contiguous()?);
    for_dtype!(x.dtype(), T => {
        let statistics = {
            let (mean, var) = (View::new(&mean)?, View::new(&var)?);
            Statistics::fixed(mean.slice::<T>()?, var.slice::<T>()?, eps)
                .map_err(candle_core::Error::wrap)?
        };
        apply::<T>(norm, &x, gamma, beta, statistics, false)
    })
}

fn check(x: &Tensor, vectors: &[(&str, &Tensor)], eps: f64) -> Result<BatchNorm> {
    let shape = dims("batch norm: x", x)?;
    check_alike("batch norm", x, vectors)?;
    for (name, vector) in vectors {
        check_shape(&format!("batch norm: {name}"), vector, &[shape[1]])?;
    }
    BatchNorm::new(shape, eps).map_err(candle_core::Error::wrap)
}

fn apply<T: Float>(
    norm: BatchNorm,
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    statistics: Statistics,
    train: bool,
) -> Result<Tensor> {
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let out = {
        let (x, gamma, beta) = (View::new(x)?, View::new(&gamma)?, View::new(&beta)?);
        let (x, gamma, beta) = (x.slice::<T>()?, gamma.slice::<T>()?, beta.slice::<T>()?);
        crate::cpu::fill::<T>(x.len(), |out| {
            norm.forward(x, gamma, beta, &statistics, out)
        })?
    };
    let node = Node::from_vec(
        "batch_norm",
        x.shape(),
        out,
        move |[x, gamma, beta], grad| {
            let buffer = |t: &Tensor| t.track_op().then(|| vec![T::ZERO; t.elem_count()]);
            let mut grads = [buffer(x), buffer(gamma), buffer(beta)];
            {
                let (x, gamma, grad) = (View::new(x)?, View::new(gamma)?, View::new(grad)?);
                let (x, gamma, grad) = (x.slice()?, gamma.slice()?, grad.slice()?);
                let [grad_x, grad_gamma, grad_beta] = &mut grads;
                let grads = BatchNormGrads {
                    x: grad_x.as_deref_mut(),
                    gamma: grad_gamma.as_deref_mut(),
                    beta: grad_beta.as_deref_mut(),
                };
                if train {
                    norm.train_grad(x, grad, gamma, &statistics, grads)
                } else {
                    norm.eval_grad(x, grad, gamma, &statistics, grads)
                }
                .map_err(candle_core::Error::wrap)?;
            }
            let wrap = |grad: Option<Vec<T>>, arg: &Tensor| {
                grad.map(|grad| Tensor::from_vec(grad, arg.shape(), &Device::Cpu))
                    .transpose()
            };
            let [grad_x, grad_gamma, grad_beta] = grads;
            Ok([
                wrap(grad_x, x)?,
                wrap(grad_gamma, gamma)?,
                wrap(grad_beta, beta)?,
            ])
        },
    );
    x.apply_op3(&gamma, &beta, node)
}
