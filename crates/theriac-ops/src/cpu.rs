//! From tensors to slices and back.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, StorageRef, Tensor};
use candle_core::{WithDType, bail};
use std::ops::Range;
use theriac_kernels::Real;

/// The element types that the kernels take.
pub(crate) trait Float: Real + WithDType {
    /// The elements of a storage, for writing.
    fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [Self]>;
}

macro_rules! float {
    ($t:ident, $variant:ident) => {
        impl Float for $t {
            fn slice_mut<'a>(
                storage: &'a mut CpuStorage,
                layout: &Layout,
            ) -> Result<&'a mut [Self]> {
                match (storage, layout.contiguous_offsets()) {
                    (CpuStorage::$variant(data), Some((start, end))) => Ok(&mut data[start..end]),
                    (_, None) => bail!("a strided variable cannot be updated; make it contiguous"),
                    _ => bail!("the tensors of an update must all be {:?}", Self::DTYPE),
                }
            }
        }
    };
}

float!(f32, F32);
float!(f64, F64);

/// Runs the body with `$T` set to the element type; the caller has checked [`has_kernels`].
macro_rules! for_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("no kernel for {other:?}; convert to F32 or F64"),
        }
    };
}
pub(crate) use for_dtype;

/// Whether the kernels take this tensor.
pub(crate) fn has_kernels(t: &Tensor) -> bool {
    t.device().is_cpu() && matches!(t.dtype(), DType::F32 | DType::F64)
}

/// Read access to a contiguous CPU tensor.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> View<'a> {
    pub(crate) fn new(t: &'a Tensor) -> Result<Self> {
        let (storage, layout) = t.storage_and_layout();
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Self {
                storage,
                range: start..end,
            }),
            None => bail!("a kernel needs a contiguous tensor, got {layout:?}; call contiguous()"),
        }
    }

    pub(crate) fn slice<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&T::cpu_storage_as_slice(storage)?[self.range.clone()]),
            _ => bail!("a kernel needs a tensor on the CPU; move it there"),
        }
    }
}

/// Allocates `len` elements and lets a kernel write all of them.
pub(crate) fn fill<T: Float>(
    len: usize,
    kernel: impl FnOnce(&mut [T]) -> theriac_kernels::Result<()>,
) -> Result<Vec<T>> {
    let mut out = vec![T::ZERO; len];
    kernel(&mut out).map_err(candle_core::Error::wrap)?;
    Ok(out)
}

/// A new CPU tensor that a kernel writes.
pub(crate) fn tensor<T: Float>(
    shape: impl Into<Shape>,
    kernel: impl FnOnce(&mut [T]) -> theriac_kernels::Result<()>,
) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::from_vec(fill(shape.elem_count(), kernel)?, shape, &Device::Cpu)
}
