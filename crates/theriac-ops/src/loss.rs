use crate::config::{check_alike, check_shape, dims};
use crate::cpu::{View, for_dtype, has_kernels, tensor};
use crate::graph::{Node, if_tracked};
use crate::portable;
use candle_core::{DType, Result, Tensor, bail};
use theriac_kernels::{cross_entropy_grad, cross_entropy_soft_grad};

/// Cross entropy per sample, `-log softmax(logits)[label]`, of logits (N, K) and `u32` labels (N).
///
/// Returns (N); take the mean or sum outside. Differentiable in the logits.
///
/// # Errors
///
/// If the shapes do not fit together, the batch is empty, or a label is not below K. On devices
/// other than the CPU this check copies the labels to the host.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let [samples, classes] = check_logits(logits)?;
    check_shape("cross_entropy: labels", labels, &[samples])?;
    if labels.dtype() != DType::U32 {
        bail!(
            "cross_entropy: labels are {:?}; convert them to U32",
            labels.dtype()
        );
    }
    let host = labels.to_vec1::<u32>()?;
    if let Some(sample) = host.iter().position(|&label| label as usize >= classes) {
        bail!(
            "cross_entropy: label {} of sample {sample} is out of range; the logits have \
             {classes} classes",
            host[sample]
        );
    }
    if !has_kernels(logits) {
        return portable::cross_entropy(logits, labels);
    }
    let logits = logits.contiguous()?;
    for_dtype!(logits.dtype(), T => {
        let node = {
            let view = View::new(&logits)?;
            let z = view.slice::<T>()?;
            let out = crate::cpu::fill::<T>(samples, |out| {
                theriac_kernels::cross_entropy(classes, z, &host, out)
            })?;
            Node::from_vec("cross_entropy", samples, out, move |[logits], grad| {
                let grad = if_tracked(logits, || {
                    let (z, grad) = (View::new(logits)?, View::new(grad)?);
                    let (z, grad) = (z.slice::<T>()?, grad.slice::<T>()?);
                    tensor::<T>(logits.shape(), |out| {
                        cross_entropy_grad(classes, z, &host, grad, out)
                    })
                })?;
                Ok([grad])
            })
        };
        logits.apply_op1(node)
    })
}

/// Cross entropy per sample, `-sum_k p_k log softmax(logits)_k`, of logits and probabilities, both
/// (N, K).
///
/// Returns (N). Differentiable in the logits only: the probabilities are taken as constants. They
/// need not sum to 1.
///
/// # Errors
///
/// If the shapes do not fit together, the batch is empty, or the element types or devices differ.
pub fn cross_entropy_soft(logits: &Tensor, probabilities: &Tensor) -> Result<Tensor> {
    let [samples, classes] = check_logits(logits)?;
    check_alike(
        "cross_entropy_soft",
        logits,
        &[("probabilities", probabilities)],
    )?;
    check_shape(
        "cross_entropy_soft: probabilities",
        probabilities,
        logits.dims(),
    )?;
    if !has_kernels(logits) {
        return portable::cross_entropy_soft(logits, probabilities);
    }
    let logits = logits.contiguous()?;
    let target = probabilities.detach().contiguous()?;
    for_dtype!(logits.dtype(), T => {
        let out = {
            let (z, target) = (View::new(&logits)?, View::new(&target)?);
            let (z, target) = (z.slice::<T>()?, target.slice::<T>()?);
            crate::cpu::fill::<T>(samples, |out| {
                theriac_kernels::cross_entropy_soft(classes, z, target, out)
            })?
        };
        let node = Node::from_vec("cross_entropy_soft", samples, out, move |[logits], grad| {
            let grad = if_tracked(logits, || {
                let (z, target) = (View::new(logits)?, View::new(&target)?);
                let grad = View::new(grad)?;
                let (z, target, grad) =
                    (z.slice::<T>()?, target.slice::<T>()?, grad.slice::<T>()?);
                tensor::<T>(logits.shape(), |out| {
                    cross_entropy_soft_grad(classes, z, target, grad, out)
                })
            })?;
            Ok([grad])
        });
        logits.apply_op1(node)
    })
}

fn check_logits(logits: &Tensor) -> Result<[usize; 2]> {
    let shape: [usize; 2] = dims("cross entropy: logits", logits)?;
    if shape.contains(&0) {
        bail!("cross entropy: logits have shape {shape:?}; pass at least one sample and class");
    }
    Ok(shape)
}
