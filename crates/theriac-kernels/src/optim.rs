use crate::Real;
use crate::error::{Result, check_len};
use crate::parallel::BLOCK;
use rayon::prelude::*;

/// Hyper-parameters of stochastic gradient descent, in PyTorch's order of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; 0 for none.
    pub momentum: f64,
    /// Damping of the gradient in the momentum buffer.
    pub dampening: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
}

/// Hyper-parameters of Adam and AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the weight decay shrinks the parameter directly (AdamW) instead of entering the
    /// gradient (Adam).
    pub decoupled: bool,
}

/// One step of stochastic gradient descent, in place.
///
/// `d = grad + weight_decay param`; with a buffer, `buffer = d` at the first step and
/// `buffer = momentum buffer + (1 - dampening) d` later, then `d = buffer`, or
/// `d = d + momentum buffer` with `nesterov`; `param = param - lr d`. Without a buffer the momentum
/// settings have no effect. A subnormal number in the buffer becomes 0.
///
/// # Errors
///
/// If the slices differ in length.
pub fn sgd_step<T: Real>(
    sgd: &Sgd,
    param: &mut [T],
    grad: &[T],
    buffer: Option<&mut [T]>,
    first: bool,
) -> Result<()> {
    check_len("sgd_step: grad", grad, param.len())?;
    let (lr, decay) = (T::from_f64(sgd.lr), T::from_f64(sgd.weight_decay));
    let Some(buffer) = buffer else {
        for_blocks(param, grad, |param, grad| {
            for (p, &g) in param.iter_mut().zip(grad) {
                *p = *p - lr * (g + decay * *p);
            }
        });
        return Ok(());
    };
    check_len("sgd_step: buffer", buffer, param.len())?;
    if param.len() <= BLOCK {
        momentum_step(sgd, param, grad, buffer, first);
    } else {
        param
            .par_chunks_mut(BLOCK)
            .zip(grad.par_chunks(BLOCK))
            .zip(buffer.par_chunks_mut(BLOCK))
            .for_each(|((param, grad), buffer)| momentum_step(sgd, param, grad, buffer, first));
    }
    Ok(())
}

/// The velocity of a weight without gradient decays to subnormal numbers and stays there, which
/// costs a hundred cycles at each step. Flushed, no weight of ordinary size changes by it.
fn momentum_step<T: Real>(sgd: &Sgd, param: &mut [T], grad: &[T], buffer: &mut [T], first: bool) {
    let (lr, decay) = (T::from_f64(sgd.lr), T::from_f64(sgd.weight_decay));
    let (momentum, nesterov) = (T::from_f64(sgd.momentum), sgd.nesterov);
    let keep = T::from_f64(1.0 - sgd.dampening);
    for ((p, &g), b) in param.iter_mut().zip(grad).zip(buffer) {
        let d = g + decay * *p;
        let v = if first { d } else { momentum * *b + keep * d };
        *b = v.flush();
        *p = *p - lr * if nesterov { d + momentum * *b } else { *b };
    }
}

fn for_blocks<T: Real>(param: &mut [T], grad: &[T], f: impl Fn(&mut [T], &[T]) + Sync) {
    crate::parallel::split(param, BLOCK, |block, param| {
        f(param, &grad[block * BLOCK..][..param.len()]);
    });
}

/// One step of Adam or AdamW, in place; `step` counts from 1.
///
/// With `g = grad` (plus `weight_decay param` if the decay is not decoupled):
/// `m = m + (1 - beta1) (g - m)`, `v = beta2 v + (1 - beta2) g^2`,
/// `param = param - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)`;
/// decoupled decay multiplies param by `1 - lr weight_decay` first. Subnormal moments become 0.
///
/// # Errors
///
/// If the slices differ in length or `step` is 0.
pub fn adam_step<T: Real>(
    adam: &Adam,
    param: &mut [T],
    grad: &[T],
    m: &mut [T],
    v: &mut [T],
    step: usize,
) -> Result<()> {
    check_len("adam_step: grad", grad, param.len())?;
    check_len("adam_step: m", m, param.len())?;
    check_len("adam_step: v", v, param.len())?;
    if step == 0 {
        return Err(crate::error::geometry(
            "adam_step: step",
            0,
            "count steps from 1",
        ));
    }
    let exponent = step as f64;
    let root2 = T::from_f64((1.0 - adam.beta2.powf(exponent)).sqrt());
    let step_size = T::from_f64(adam.lr / (1.0 - adam.beta1.powf(exponent)));
    let (rest1, beta2) = (T::from_f64(1.0 - adam.beta1), T::from_f64(adam.beta2));
    let (rest2, eps) = (T::from_f64(1.0 - adam.beta2), T::from_f64(adam.eps));
    let (decay, shrink) = if adam.decoupled {
        (T::ZERO, T::from_f64(1.0 - adam.lr * adam.weight_decay))
    } else {
        (T::from_f64(adam.weight_decay), T::ONE)
    };
    let update = |param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T]| {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g + decay * *p;
            *m = (*m + rest1 * (g - *m)).flush();
            *v = (beta2 * *v + rest2 * g * g).flush();
            *p = shrink * *p - step_size * (*m / (v.sqrt() / root2 + eps));
        }
    };
    if param.len() <= BLOCK {
        update(param, grad, m, v);
    } else {
        param
            .par_chunks_mut(BLOCK)
            .zip(grad.par_chunks(BLOCK))
            .zip(m.par_chunks_mut(BLOCK))
            .zip(v.par_chunks_mut(BLOCK))
            .for_each(|(((param, grad), m), v)| update(param, grad, m, v));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, data, same_for_threads};

    const SGD: Sgd = Sgd {
        lr: 0.5,
        momentum: 0.5,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    };
    const ADAM: Adam = Adam {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
    };

    #[test]
    fn momentum_by_hand() {
        let (mut param, mut buffer) = ([1.0f64], [f64::NAN]);
        sgd_step(&SGD, &mut param, &[2.0], Some(&mut buffer), true).unwrap();
        assert_eq!((param, buffer), ([0.0], [2.0]));
        sgd_step(&SGD, &mut param, &[1.0], Some(&mut buffer), false).unwrap();
        assert_eq!((param, buffer), ([-1.0], [2.0]));
        let nesterov = Sgd {
            nesterov: true,
            dampening: 0.5,
            weight_decay: 1.0,
            ..SGD
        };
        // d = 1 - 1 = 0, buffer = 1, direction = 0 + 0.5.
        sgd_step(&nesterov, &mut param, &[1.0], Some(&mut buffer), false).unwrap();
        assert_eq!((param, buffer), ([-1.25], [1.0]));
        sgd_step(&SGD, &mut param, &[1.0], None, false).unwrap();
        assert_eq!(param, [-1.75]);
    }

    #[test]
    fn subnormal_moments_become_zero() {
        let tiny = 1e-38f32;
        let (mut param, mut buffer) = ([1.0, 1.0], [tiny, -2.0 * f32::MIN_POSITIVE]);
        sgd_step(&SGD, &mut param, &[0.0; 2], Some(&mut buffer), false).unwrap();
        assert_eq!((param, buffer), ([1.0, 1.0], [0.0, -f32::MIN_POSITIVE]));
        let (mut m, mut v) = ([tiny], [tiny]);
        adam_step(&ADAM, &mut [1.0], &[0.0], &mut m, &mut v, 2).unwrap();
        assert_eq!((m, v), ([0.0], [0.0]));
        let mut nan = [f32::NAN];
        sgd_step(&SGD, &mut [1.0], &[0.0], Some(&mut nan), false).unwrap();
        assert!(nan[0].is_nan());
    }

    #[test]
    fn first_adam_step_has_the_size_of_the_learning_rate() {
        let (mut param, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        adam_step(&ADAM, &mut param, &[1e-3, -50.0], &mut m, &mut v, 1).unwrap();
        assert_close(&param, &[0.9, 1.1], 1e-5, &"step");
        let decoupled = Adam {
            weight_decay: 2.0,
            decoupled: true,
            ..ADAM
        };
        let (mut param, mut m, mut v) = ([1.0], [0.0], [0.0]);
        adam_step(&decoupled, &mut param, &[0.0], &mut m, &mut v, 1).unwrap();
        assert_close(&param, &[0.8], 1e-15, &"decay");
        assert!(adam_step(&ADAM, &mut param, &[0.0], &mut m, &mut v, 0).is_err());
    }

    #[test]
    fn thread_count_changes_nothing() {
        let len = 2 * BLOCK + 3;
        let (start, grad): (Vec<f32>, Vec<f32>) = (data(1, len), data(2, len));
        same_for_threads(|| {
            let (mut plain, mut heavy, mut adam) = (start.clone(), start.clone(), start.clone());
            let (mut buffer, mut m, mut v) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
            for step in 1..=3 {
                sgd_step(&SGD, &mut plain, &grad, None, step == 1).unwrap();
                sgd_step(&SGD, &mut heavy, &grad, Some(&mut buffer), step == 1).unwrap();
                adam_step(&ADAM, &mut adam, &grad, &mut m, &mut v, step).unwrap();
            }
            [plain, heavy, buffer, adam, m, v].concat()
        });
    }
}
