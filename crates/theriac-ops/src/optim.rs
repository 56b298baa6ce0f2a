use crate::config::{check_alike, check_shape};
use crate::cpu::{Float, View, for_dtype, has_kernels};
use crate::portable;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};
use std::cell::Cell;
use theriac_kernels::{Adam, Sgd};

/// One step of stochastic gradient descent on `param`, in place; see [`theriac_kernels::sgd_step`]
/// for the formula.
///
/// `buffer` is the momentum buffer, of the shape of `param`; its contents before the first step do
/// not matter.
///
/// # Errors
///
/// If shapes, element types or devices differ, or if two of the tensors share their storage.
pub fn sgd_step(
    sgd: &Sgd,
    param: &Var,
    grad: &Tensor,
    buffer: Option<&Var>,
    first: bool,
) -> Result<()> {
    let mut state = vec![("grad", grad)];
    state.extend(buffer.map(|buffer| ("buffer", buffer.as_tensor())));
    check("sgd_step", param, &state)?;
    if !has_kernels(param) {
        return portable::sgd_step(sgd, param, grad, buffer, first);
    }
    let grad = grad.contiguous()?;
    let grad = View::new(&grad)?;
    for_dtype!(param.dtype(), T => {
        let grad = grad.slice::<T>()?;
        update::<T>(param, |param| match buffer {
            None => run(theriac_kernels::sgd_step(sgd, param, grad, None, first)),
            Some(buffer) => update::<T>(buffer, |buffer| {
                run(theriac_kernels::sgd_step(sgd, param, grad, Some(buffer), first))
            }),
        })
    })
}

/// One step of Adam or AdamW on `param`, in place; see [`theriac_kernels::adam_step`] for the
/// formula.
///
/// `m` and `v` are the moments, of the shape of `param` and zero before the first step; `step`
/// counts from 1.
///
/// # Errors
///
/// If shapes, element types or devices differ, if two of the tensors share their storage, or if
/// `step` is 0.
pub fn adam_step(
    adam: &Adam,
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    step: usize,
) -> Result<()> {
    check("adam_step", param, &[("grad", grad), ("m", m), ("v", v)])?;
    if step == 0 {
        bail!("adam_step: step is 0; count steps from 1");
    }
    if !has_kernels(param) {
        return portable::adam_step(adam, param, grad, m, v, step);
    }
    let grad = grad.contiguous()?;
    let grad = View::new(&grad)?;
    for_dtype!(param.dtype(), T => {
        let grad = grad.slice::<T>()?;
        update::<T>(param, |param| {
            update::<T>(m, |m| {
                update::<T>(v, |v| {
                    run(theriac_kernels::adam_step(adam, param, grad, m, v, step))
                })
            })
        })
    })
}

fn run(result: theriac_kernels::Result<()>) -> Result<()> {
    result.map_err(candle_core::Error::wrap)
}

/// Refuses tensors that do not match `param`, and storages that are shared: they would be locked
/// twice.
fn check(op: &str, param: &Var, others: &[(&str, &Tensor)]) -> Result<()> {
    check_alike(op, param, others)?;
    let address = |t: &Tensor| std::ptr::from_ref(&*t.storage_and_layout().0).addr();
    let mut seen = vec![("param", address(param))];
    for (name, t) in others {
        check_shape(&format!("{op}: {name}"), t, param.dims())?;
        let place = address(t);
        if let Some((other, _)) = seen.iter().find(|(_, other)| *other == place) {
            bail!("{op}: {name} and {other} share their storage; pass a copy of one of them");
        }
        seen.push((name, place));
    }
    Ok(())
}

/// Lends the elements of a variable to `f`, for writing.
///
/// candle's in-place operations write one tensor; nesting them writes several without a temporary.
fn update<T: Float>(var: &Var, f: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    let f = Cell::new(Some(f));
    var.inplace_op1(&Update(
        |storage: &mut CpuStorage, layout: &Layout| match f.take() {
            Some(f) => f(T::slice_mut(storage, layout)?),
            None => bail!("an in-place update ran twice; this is a defect of candle"),
        },
    ))
}

struct Update<F>(F);

impl<F: Fn(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.0(storage, layout)
    }
}
