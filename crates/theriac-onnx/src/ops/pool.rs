//! Pooling, and the windows that convolutions share with it.

use candle_core::{DType, Tensor};
use theriac::Result;
use theriac_ops::{PoolConfig, avg_pool2d, max_pool2d};

use super::affine::affine;
use super::cut::padded;
use crate::constant::room;
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Flow, Value};
use crate::node::Node;

/// Windows over an image; pairs are (height, width).
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub(super) pads: [usize; 4],
}

impl Window {
    /// The windows of a node over images of a size.
    pub(super) fn of(node: &Node<'_>, kernel: [usize; 2], image: [usize; 2]) -> Said<Self> {
        let pair = |name: &str, default: [usize; 2]| -> Said<[usize; 2]> {
            Ok(match node.sizes(name, 2, 1)?.as_deref() {
                Some([a, b]) => [*a, *b],
                _ => default,
            })
        };
        let kernel = pair("kernel_shape", kernel)?;
        require!(
            !kernel.contains(&0),
            "a kernel of {kernel:?}; export the model again"
        );
        let (stride, dilation) = (pair("strides", [1, 1])?, pair("dilations", [1, 1])?);
        let mut pads = [0; 4];
        match &node.text("auto_pad", "NOTSET")[..] {
            "NOTSET" | "" => {
                if let Some(list) = node.sizes("pads", 4, 0)? {
                    pads.copy_from_slice(&list);
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                for side in 0..2 {
                    let outputs = image[side].div_ceil(stride[side]);
                    let reach = (outputs - 1) * stride[side] + (kernel[side] - 1) * dilation[side];
                    let whole = (reach + 1).saturating_sub(image[side]);
                    let (less, more) = (whole / 2, whole - whole / 2);
                    let lower = same == "SAME_LOWER";
                    pads[side] = if lower { more } else { less };
                    pads[side + 2] = if lower { less } else { more };
                }
            }
            other => {
                refuse!("auto_pad = {other}; NOTSET, VALID, SAME_UPPER and SAME_LOWER are known")
            }
        }
        Ok(Self {
            kernel,
            stride,
            dilation,
            pads,
        })
    }

    /// Windows over images of a size. Rounded up, the last may begin in the image or before it,
    /// and reach beyond the padding.
    pub(super) fn outputs(&self, image: [usize; 2], up: bool) -> Said<[usize; 2]> {
        let mut outputs = [0; 2];
        for side in 0..2 {
            let (size, before) = (image[side], self.pads[side]);
            let padded = size + before + self.pads[side + 2];
            let span = (self.kernel[side] - 1).saturating_mul(self.dilation[side]) + 1;
            let Some(room) = padded.checked_sub(span) else {
                refuse!(
                    "a window of {:?} does not fit in an image of {image:?} with {:?} around it",
                    self.kernel,
                    self.pads
                );
            };
            let stride = self.stride[side];
            outputs[side] = match up {
                false => room / stride + 1,
                true => {
                    let count = room.div_ceil(stride) + 1;
                    count - usize::from((count - 1) * stride >= size + before)
                }
            };
        }
        Ok(outputs)
    }

    /// Padding as (axis, before, after).
    pub(super) fn sides(&self) -> Vec<(usize, usize, usize)> {
        let [top, left, bottom, right] = self.pads;
        vec![(2, top, bottom), (3, left, right)]
    }

    /// The same with padding up to the end of the last windows.
    fn reaching(&self, image: [usize; 2], outputs: [usize; 2]) -> Self {
        let mut pads = self.pads;
        for side in 0..2 {
            let span = (self.kernel[side] - 1) * self.dilation[side] + 1;
            let end = (outputs[side] - 1) * self.stride[side] + span;
            let after = end.saturating_sub(image[side] + pads[side]);
            pads[side + 2] = pads[side + 2].max(after);
        }
        Self { pads, ..*self }
    }

    fn pixels(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// The windows as the kernels know them.
    fn square(&self) -> Option<PoolConfig> {
        let [kernel, other] = self.kernel;
        let [stride, wide] = self.stride;
        let padding = self.pads[0];
        let fits = kernel == other
            && stride == wide
            && self.dilation == [1, 1]
            && self.pads == [padding; 4]
            && padding <= kernel / 2;
        fits.then_some(PoolConfig {
            kernel,
            stride,
            padding,
        })
    }
}

/// Pixels of a window of max pooling that networks run as one operation.
const WIDEST: usize = 15;

/// The image of a node, its size and its windows.
fn windows<'n>(node: &'n Node<'_>) -> Said<(&'n Flow, [usize; 2], Window, [usize; 2])> {
    let x = node.flow(0)?;
    let [_, channels, height, width] = x.dims()[..] else {
        refuse!(
            "a value of shape {:?}; pooling of images (N, C, H, W) is supported",
            x.dims()
        );
    };
    let image = [height, width];
    let window = Window::of(node, [0, 0], image)?;
    let outputs = window.outputs(image, node.int("ceil_mode", 0) == 1)?;
    room(&[channels, outputs[0], outputs[1]])?;
    Ok((x, image, window.reaching(image, outputs), outputs))
}

/// The first maximum of each window.
pub(super) fn max_pool(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let (x, _, window, outputs) = windows(node)?;
    if let Some(config) = window.square() {
        return Ok(vec![max_of(b, x, config)?]);
    }
    let whole = padded(b, node.input(0)?, window.sides(), f64::NEG_INFINITY)?;
    let inner = Window {
        pads: [0; 4],
        ..window
    };
    Ok(vec![match (&whole, inner.square()) {
        (Value::Flow(x), Some(config)) => max_of(b, x, config)?,
        _ => b.map(&whole, move |x| {
            let mut best = pixel(x, inner, outputs, 0)?;
            for i in 1..inner.pixels() {
                let next = pixel(x, inner, outputs, i)?;
                best = next.gt(&best)?.where_cond(&next, &best)?;
            }
            Ok(best)
        })?,
    }])
}

fn max_of(b: &mut Builder<'_>, x: &Flow, config: PoolConfig) -> Said<Value> {
    if config.kernel > WIDEST {
        let x = Value::Flow(x.clone());
        return b.map(&x, move |x| Ok(max_pool2d(x, config)?));
    }
    let sample = max_pool2d(&x.sample, config)?;
    b.step(sample, false, |net| net.max_pool(x.at, config))
}

/// The mean of each window, over its pixels with or without padding.
pub(super) fn average_pool(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let (x, image, window, outputs) = windows(node)?;
    let with_padding = node.int("count_include_pad", 0) == 1;
    let stated = Window::of(node, [0, 0], image)?;
    if let Some(config) = window.square().filter(|_| window.pads == stated.pads) {
        let sample = avg_pool2d(&x.sample, config, with_padding)?;
        return Ok(vec![match with_padding || config.padding == 0 {
            true => b.step(sample, false, |net| net.avg_pool(x.at, config))?,
            false => b.map(node.input(0)?, move |x| Ok(avg_pool2d(x, config, false)?))?,
        }]);
    }
    let whole = padded(b, node.input(0)?, window.sides(), 0.0)?;
    // How many pixels of each window count.
    let [top, left, bottom, right] = stated.pads;
    let [height, width] = image;
    let ones = match with_padding {
        true => Tensor::ones(
            (1, 1, height + top + bottom, width + left + right),
            DType::F64,
            &b.place.device,
        )?,
        false => Tensor::ones((1, 1, height, width), DType::F64, &b.place.device)?
            .pad_with_zeros(2, top, bottom)?
            .pad_with_zeros(3, left, right)?,
    };
    let [_, _, end, side] = window.pads;
    let ones = ones
        .pad_with_zeros(2, 0, end - bottom)?
        .pad_with_zeros(3, 0, side - right)?;
    let inner = Window {
        pads: [0; 4],
        ..window
    };
    let counts = total(&ones, inner, outputs)?;
    let each = counts.recip()?.to_dtype(b.place.dtype)?;
    let y = b.map(&whole, move |x| {
        affine(&total(x, inner, outputs)?, Some(&each), None)
    })?;
    Ok(vec![y])
}

/// The sum over each window.
fn total(x: &Tensor, window: Window, outputs: [usize; 2]) -> Result<Tensor> {
    if let Some(config) = window.square() {
        let count = (config.kernel * config.kernel) as f64;
        return Ok((avg_pool2d(x, config, true)? * count)?);
    }
    let mut total = pixel(x, window, outputs, 0)?;
    for i in 1..window.pixels() {
        total = (total + pixel(x, window, outputs, i)?)?;
    }
    Ok(total)
}

/// Pixel i of all windows, in row-major order.
fn pixel(x: &Tensor, window: Window, outputs: [usize; 2], i: usize) -> Result<Tensor> {
    let width = window.kernel[1];
    let mut x = x.contiguous()?;
    for (side, pixel) in [(0, i / width), (1, i % width)] {
        let start = pixel * window.dilation[side];
        let place = |i: usize| (start + i * window.stride[side]) as u32;
        let places: Vec<u32> = (0..outputs[side]).map(place).collect();
        let places = Tensor::from_vec(places, outputs[side], x.device())?;
        x = x.index_select(&places, 2 + side)?;
    }
    Ok(x)
}

/// The mean over each channel's pixels.
pub(super) fn global_average_pool(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    Ok(vec![mean_of(b, node.flow(0)?)?])
}

/// [`global_average_pool`] of a value.
pub(super) fn mean_of(b: &mut Builder<'_>, x: &Flow) -> Said<Value> {
    require!(
        x.dims().len() == 4,
        "a value of shape {:?}; pooling of images (N, C, H, W) is supported",
        x.dims()
    );
    let sample = x.sample.mean_keepdim((2, 3))?;
    b.step(sample, false, |net| net.global_avg_pool(x.at))
}

/// The first maximum of each channel.
pub(super) fn global_max_pool(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let x = node.flow(0)?;
    let dims = x.dims();
    require!(
        dims.len() == 4,
        "a value of shape {dims:?}; pooling of images (N, C, H, W) is supported"
    );
    let y = b.map(node.input(0)?, |x| {
        let pixels = x.flatten_from(2)?.contiguous()?;
        let first = pixels.detach().argmax_keepdim(2)?;
        Ok(pixels.gather(&first, 2)?.unsqueeze(3)?)
    })?;
    Ok(vec![y])
}
