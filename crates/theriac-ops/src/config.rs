use candle_core::{Result, Tensor, bail};
use theriac_kernels::{Conv, Pool};

/// Parameters of a convolution; the default is stride 1, no padding, no dilation, one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvConfig {
    /// Step between windows, in both directions.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
    /// Distance between the pixels of a window.
    pub dilation: usize,
    /// Number of independent groups of channels.
    pub groups: usize,
}

impl Default for ConvConfig {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
        }
    }
}

impl ConvConfig {
    pub(crate) fn geometry(self, x: &Tensor, weight: &Tensor) -> Result<Conv> {
        let (x, weight) = (dims("conv2d: x", x)?, dims("conv2d: weight", weight)?);
        Conv::new(
            x,
            weight,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        .map_err(candle_core::Error::wrap)
    }
}

/// Parameters of pooling over square windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Side of the window.
    pub kernel: usize,
    /// Step between windows, in both directions.
    pub stride: usize,
    /// Padding on each side, at most half the kernel.
    pub padding: usize,
}

impl PoolConfig {
    pub(crate) fn geometry(self, x: &Tensor) -> Result<Pool> {
        Pool::new(
            dims("pooling: x", x)?,
            self.kernel,
            self.stride,
            self.padding,
        )
        .map_err(candle_core::Error::wrap)
    }
}

/// The dimensions of a tensor of the given rank.
pub(crate) fn dims<const N: usize>(what: &str, t: &Tensor) -> Result<[usize; N]> {
    match t.dims().try_into() {
        Ok(dims) => Ok(dims),
        Err(_) => bail!(
            "{what} has shape {:?}; pass a tensor of rank {N}",
            t.shape()
        ),
    }
}

/// Refuses tensors that do not share the element type and device of `x`.
pub(crate) fn check_alike(op: &str, x: &Tensor, others: &[(&str, &Tensor)]) -> Result<()> {
    for (name, t) in others {
        if t.dtype() != x.dtype() || !t.device().same_device(x.device()) {
            bail!(
                "{op}: {name} is {:?} on {:?}, the input {:?} on {:?}; convert one of them",
                t.dtype(),
                t.device().location(),
                x.dtype(),
                x.device().location()
            );
        }
    }
    Ok(())
}

/// Refuses a tensor of another shape.
pub(crate) fn check_shape(what: &str, t: &Tensor, expected: &[usize]) -> Result<()> {
    if t.dims() != expected {
        bail!("{what} has shape {:?}; it must be {expected:?}", t.dims());
    }
    Ok(())
}
