//! Nodes of candle's graph whose value is computed beforehand and whose gradient is a closure.

use crate::cpu::{Float, fill};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape,
    Storage, Tensor, bail,
};
use std::sync::{Mutex, PoisonError};

type Grads<const N: usize> = Result<[Option<Tensor>; N]>;
type Backward<const N: usize> = Box<dyn Fn([&Tensor; N], &Tensor) -> Grads<N> + Send + Sync>;

/// Where a node's value comes from.
enum Value {
    /// A CPU result, handed over at the only forward call.
    Once(Mutex<Option<CpuStorage>>),
    /// A contiguous tensor, which is copied.
    Tensor(Tensor),
}

/// One call of an operation with N tensor arguments.
///
/// candle's custom operations compute in the forward method. Computing before the node is made
/// leaves one mechanism for everything: saved state is captured by the closure, and a value on any
/// device can be given any gradient.
pub(crate) struct Node<const N: usize> {
    name: &'static str,
    value: Value,
    shape: Shape,
    backward: Backward<N>,
}

impl<const N: usize> Node<N> {
    /// A node whose value a kernel writes.
    ///
    /// `backward` gets the arguments and the contiguous gradient of the result. It must return
    /// `None`, and compute nothing, for arguments that are not tracked.
    pub(crate) fn new<T: Float>(
        name: &'static str,
        shape: impl Into<Shape>,
        kernel: impl FnOnce(&mut [T]) -> theriac_kernels::Result<()>,
        backward: impl Fn([&Tensor; N], &Tensor) -> Grads<N> + Send + Sync + 'static,
    ) -> Result<Self> {
        let shape = shape.into();
        let value = fill(shape.elem_count(), kernel)?;
        Ok(Self::from_vec(name, shape, value, backward))
    }

    /// A node with the given value, otherwise like [`Self::new`].
    pub(crate) fn from_vec<T: Float>(
        name: &'static str,
        shape: impl Into<Shape>,
        value: Vec<T>,
        backward: impl Fn([&Tensor; N], &Tensor) -> Grads<N> + Send + Sync + 'static,
    ) -> Self {
        let value = Value::Once(Mutex::new(Some(T::to_cpu_storage_owned(value))));
        Self {
            name,
            value,
            shape: shape.into(),
            backward: Box::new(backward),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        let storage = match &self.value {
            Value::Once(value) => value.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Value::Tensor(t) => match &*t.storage_and_layout().0 {
                Storage::Cpu(storage) => Some(storage.try_clone(t.layout())?),
                _ => None,
            },
        };
        self.or_missing(storage)
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        let storage = match &self.value {
            Value::Tensor(t) => match &*t.storage_and_layout().0 {
                Storage::Cuda(storage) => Some(storage.try_clone(t.layout())?),
                _ => None,
            },
            Value::Once(_) => None,
        };
        self.or_missing(storage)
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        let storage = match &self.value {
            Value::Tensor(t) => match &*t.storage_and_layout().0 {
                Storage::Metal(storage) => Some(storage.try_clone(t.layout())?),
                _ => None,
            },
            Value::Once(_) => None,
        };
        self.or_missing(storage)
    }

    fn or_missing<S>(&self, storage: Option<S>) -> Result<(S, Shape)> {
        match storage {
            Some(storage) => Ok((storage, self.shape.clone())),
            None => bail!(
                "{}: the arguments and the value are on different devices",
                self.name
            ),
        }
    }

    fn grads(&self, args: [&Tensor; N], grad: &Tensor) -> Grads<N> {
        let grads = (self.backward)(args, &grad.contiguous()?)?;
        for (arg, grad) in args.iter().zip(&grads) {
            if let Some(grad) = grad
                && grad.shape() != arg.shape()
            {
                bail!(
                    "{}: the backward map returned shape {:?} for an argument of shape {:?}",
                    self.name,
                    grad.shape(),
                    arg.shape()
                );
            }
        }
        Ok(grads)
    }
}

impl CustomOp1 for Node<1> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.grads([a], grad)?;
        Ok(a)
    }
}

// Nodes with more arguments come from the kernels alone, so they exist on CPU only.

impl CustomOp2 for Node<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.grads([a, b], grad)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Node<3> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.grads([a, b, c], grad)?;
        Ok((a, b, c))
    }
}

/// Runs `f` if `arg` is tracked: the gradients of constants are not computed.
pub(crate) fn if_tracked(
    arg: &Tensor,
    f: impl FnOnce() -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    arg.track_op().then(f).transpose()
}

/// Gives the value `y` the gradient map `back` towards `x`, on any device.
///
/// The result equals `y`; in a backward pass the gradient of the result, contiguous and of the
/// shape of `y`, goes through `back`, which returns the gradient of `x`. Whatever graph `y` has is
/// cut. `back` is not called if `x` is not tracked.
///
/// # Errors
///
/// If `x` and `y` are on different devices; in the backward pass, if `back` fails or returns
/// another shape than that of `x`.
pub fn vjp(
    x: &Tensor,
    y: Tensor,
    back: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let y = y.detach();
    // Offsets matter as well as strides: a copied storage is read from its start.
    let whole = y.is_contiguous() && y.layout().start_offset() == 0;
    let y = if whole { y } else { y.force_contiguous()? };
    x.apply_op1(Node {
        name: "vjp",
        shape: y.shape().clone(),
        value: Value::Tensor(y),
        backward: Box::new(move |[x], grad| Ok([if_tracked(x, || back(grad))?])),
    })
}
