//! Images in the unit cube, by construction.

use candle_core::{D, DType, Device, Tensor};

use crate::{Error, Result};

/// A batch of images, shape (N, C, H, W), f32 or f64, every value in [0, 1].
///
/// Reading is free ([`Pixels::tensor`]); building is guarded. A normalised tensor is not
/// `Pixels`, so it cannot reach an attack or a budget: normalisation belongs to the first layer
/// of a model.
#[derive(Clone, Debug)]
pub struct Pixels(Tensor);

impl Pixels {
    /// Checks rank, dtype, emptiness, finiteness and range.
    ///
    /// Reads every value (a device synchronisation): for boundaries, not for loops.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Empty`], [`Error::NotFinite`] or [`Error::Range`].
    pub fn new(tensor: Tensor) -> Result<Self> {
        let pixels = Self::shaped(tensor)?;
        let values = pixels
            .0
            .flatten_all()?
            .to_dtype(DType::F64)?
            .to_vec1::<f64>()?;
        let count = values.iter().filter(|v| !v.is_finite()).count();
        if count > 0 {
            let remedy = "find the step that divides by zero or overflows";
            return Err(Error::NotFinite {
                what: "pixels",
                count,
                first: String::new(),
                remedy,
            });
        }
        let (min, max) = values
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), &v| {
                (lo.min(v), hi.max(v))
            });
        if min < 0.0 || max > 1.0 {
            return Err(Error::Range { min, max });
        }
        Ok(pixels)
    }

    /// Cuts the tensor out of its graph and clamps it to [0, 1].
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Empty`]. NaN passes through; [`crate::gradient`] and
    /// [`Pixels::new`] are where it is caught.
    pub fn clamp(tensor: &Tensor) -> Result<Self> {
        Self::shaped(tensor.detach().clamp(0f64, 1f64)?)
    }

    /// Bytes 0..=255 to [0, 1]: `x / 255`, a true division in `dtype`, as the reference
    /// implementations do; multiplying by the rounded 1/255 gives other bits.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the tensor is u8 of rank 4.
    pub fn from_bytes(bytes: &Tensor, dtype: DType) -> Result<Self> {
        if bytes.dtype() != DType::U8 {
            let expected = format!("u8 bytes, found {:?}", bytes.dtype());
            return Err(Error::Shape {
                what: "bytes",
                got: bytes.dims().to_vec(),
                expected,
            });
        }
        let scale = Tensor::new(255f64, bytes.device())?.to_dtype(dtype)?;
        Self::shaped(bytes.to_dtype(dtype)?.broadcast_div(&scale)?)
    }

    /// A differentiable map that keeps the range (a resize, a rotation, a tanh reparametrisation).
    /// The range is checked in debug builds.
    ///
    /// # Errors
    /// Those of `f`, and [`Error::Shape`] if the result is not a batch of images.
    pub fn through(&self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let mapped = Self::shaped(f(&self.0)?)?;
        if cfg!(debug_assertions) {
            Self::new(mapped.0.detach())?;
        }
        Ok(mapped)
    }

    /// The tensor, shape (N, C, H, W).
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// Number of images.
    #[allow(clippy::len_without_is_empty)] // an empty batch cannot be built
    pub fn len(&self) -> usize {
        self.0.dims()[0]
    }

    /// The images `start .. start + len`.
    ///
    /// # Errors
    /// A candle error when the range leaves the batch.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Self::shaped(self.0.narrow(0, start, len)?)
    }

    /// The images at these positions, in this order.
    ///
    /// # Errors
    /// [`Error::Empty`] for none, a candle error when a position leaves the batch.
    pub fn pick(&self, at: &[u32]) -> Result<Self> {
        Self::shaped(pick(&self.0, at)?)
    }

    /// This batch with the images at these positions, all different, replaced.
    ///
    /// # Errors
    /// A candle error when shapes differ or a position leaves the batch.
    pub fn with(&self, at: &[u32], images: &Pixels) -> Result<Self> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        for (from, &to) in at.iter().enumerate() {
            if let Some(place) = order.get_mut(to as usize) {
                *place = (self.len() + from) as u32;
            }
        }
        Self::shaped(pick(&Tensor::cat(&[&self.0, &images.0], 0)?, &order)?)
    }

    /// One batch after the other.
    ///
    /// # Errors
    /// [`Error::Empty`] without any batch, a candle error when image shapes differ.
    pub fn cat(batches: &[Pixels]) -> Result<Self> {
        let tensors: Vec<&Tensor> = batches.iter().map(Pixels::tensor).collect();
        if tensors.is_empty() {
            return Err(Error::Empty {
                what: "list of batches",
            });
        }
        Self::shaped(Tensor::cat(&tensors, 0)?)
    }

    /// Image by image, `self` where `mask` is 1 and `other` where it is 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when the mask is not one entry an image.
    pub fn select(&self, mask: &[bool], other: &Pixels) -> Result<Self> {
        if mask.len() != self.len() || other.0.dims() != self.0.dims() {
            let expected = format!("one entry for each of {} images", self.len());
            return Err(Error::Shape {
                what: "mask",
                got: vec![mask.len()],
                expected,
            });
        }
        let mask: Vec<u8> = mask.iter().map(|&m| u8::from(m)).collect();
        let mask = Tensor::from_vec(mask, (self.len(), 1, 1, 1), self.0.device())?;
        Ok(Self(
            mask.broadcast_as(self.0.shape())?
                .where_cond(&self.0, &other.0)?,
        ))
    }

    /// The same images in another precision.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `dtype` is f32 or f64.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Self::shaped(self.0.to_dtype(dtype)?)
    }

    /// The same images on another device.
    ///
    /// # Errors
    /// A candle error when the copy fails.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self(self.0.to_device(device)?))
    }

    /// For tensors whose range this crate has established.
    pub(crate) fn trusted(tensor: Tensor) -> Self {
        Self(tensor)
    }

    fn shaped(tensor: Tensor) -> Result<Self> {
        let got = tensor.dims().to_vec();
        if got.len() != 4 {
            let expected = "(N, C, H, W)".to_owned();
            return Err(Error::Shape {
                what: "pixels",
                got,
                expected,
            });
        }
        if got.contains(&0) {
            return Err(Error::Empty { what: "pixels" });
        }
        if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
            let expected = format!("f32 or f64 values, found {:?}", tensor.dtype());
            return Err(Error::Shape {
                what: "pixels",
                got,
                expected,
            });
        }
        Ok(Self(tensor))
    }
}

/// The rows at these positions.
pub(crate) fn pick(tensor: &Tensor, at: &[u32]) -> Result<Tensor> {
    Ok(tensor.index_select(&Tensor::new(at, tensor.device())?, 0)?)
}

/// One number an image: sums over everything but the first dimension.
pub(crate) fn per_image_sum(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.flatten_from(1)?.sum(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: &[f32]) -> Result<Pixels> {
        Pixels::new(Tensor::from_slice(
            values,
            (1, 1, 1, values.len()),
            &Device::Cpu,
        )?)
    }

    #[test]
    fn bytes_divide_truly() -> Result<()> {
        let bytes: Vec<u8> = (0..=255).collect();
        let tensor = Tensor::from_vec(bytes, (1, 1, 16, 16), &Device::Cpu)?;
        let got = Pixels::from_bytes(&tensor, DType::F32)?
            .tensor()
            .flatten_all()?;
        let expected: Vec<f32> = (0..=255u16).map(|b| f32::from(b) / 255.0).collect();
        assert_eq!(got.to_vec1::<f32>()?, expected);
        Ok(())
    }

    #[test]
    fn refuses_what_is_not_pixels() {
        let text = |values: &[f32]| images(values).unwrap_err().to_string();
        assert!(text(&[0.0, 1.5]).contains("[0, 1.5]"));
        assert!(text(&[-2.1, 2.6]).contains("normalisation"));
        assert!(text(&[0.5, f32::NAN]).contains("not finite"));
        assert!(images(&[]).unwrap_err().to_string().contains("empty"));
        let flat = Tensor::zeros((2, 784), DType::F32, &Device::Cpu).unwrap();
        assert!(
            Pixels::new(flat)
                .unwrap_err()
                .to_string()
                .contains("(N, C, H, W)")
        );
    }

    #[test]
    fn select_mixes_by_image() -> Result<()> {
        let zeros = Pixels::new(Tensor::zeros((3, 1, 1, 2), DType::F32, &Device::Cpu)?)?;
        let ones = Pixels::new(Tensor::ones((3, 1, 1, 2), DType::F32, &Device::Cpu)?)?;
        let mixed = ones.select(&[true, false, true], &zeros)?;
        let sums = per_image_sum(mixed.tensor())?.to_vec1::<f32>()?;
        assert_eq!(sums, [2.0, 0.0, 2.0]);
        assert!(ones.select(&[true], &zeros).is_err());
        let back = zeros.with(&[2, 0], &mixed.pick(&[1, 2])?)?;
        let sums = per_image_sum(back.tensor())?.to_vec1::<f32>()?;
        assert_eq!(sums, [2.0, 0.0, 0.0]);
        assert!(zeros.pick(&[3]).is_err() && zeros.pick(&[]).is_err());
        Ok(())
    }
}
