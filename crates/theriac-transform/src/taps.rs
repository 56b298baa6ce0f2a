//! Linear maps between the pixels of a plane.

use candle_core::{DType, Tensor, WithDType};
use theriac::{Pixels, Result, vjp};

/// For each pixel of the result, row by row, the pixels that it is a sum of, with their weights.
/// The same for every channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Taps {
    /// Where the taps of pixel i end; those of pixel 0 begin at 0.
    ends: Vec<u32>,
    taps: Vec<(u32, f32)>,
}

impl Taps {
    /// The next pixel of the result; black without taps.
    pub(crate) fn push(&mut self, taps: impl IntoIterator<Item = (u32, f32)>) {
        self.taps.extend(taps);
        self.ends.push(self.taps.len() as u32);
    }

    fn of(&self, pixel: usize) -> &[(u32, f32)] {
        let begin = match pixel {
            0 => 0,
            _ => self.ends[pixel - 1] as usize,
        };
        &self.taps[begin..self.ends[pixel] as usize]
    }

    fn forward<T: WithDType + Into<f64>>(&self, from: &[T], to: &mut [T]) {
        for (pixel, to) in to.iter_mut().enumerate() {
            let of = self.of(pixel).iter();
            let sum: f64 = of
                .map(|&(at, weight)| f64::from(weight) * from[at as usize].into())
                .sum();
            *to = T::from_f64(sum);
        }
    }

    fn backward<T: WithDType + Into<f64>>(&self, from: &[T], to: &mut [f64]) {
        for (pixel, &slope) in from.iter().enumerate() {
            let slope: f64 = slope.into();
            for &(at, weight) in self.of(pixel) {
                to[at as usize] += f64::from(weight) * slope;
            }
        }
    }
}

/// Sends each image (C, H, W) of a batch through its own map, which keeps the size.
///
/// # Errors
/// A candle error.
pub(crate) fn through(x: &Tensor, maps: Vec<Taps>) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => typed::<f64>(x, maps),
        _ => typed::<f32>(x, maps),
    }
}

fn typed<T: WithDType + Into<f64>>(x: &Tensor, maps: Vec<Taps>) -> Result<Tensor> {
    let dims = x.dims4()?;
    let plane = dims.2 * dims.3;
    let image = dims.1 * plane;
    let from = x.detach().flatten_all()?.to_vec1::<T>()?;
    let mut to = vec![T::from_f64(0.0); from.len()];
    let images = from.chunks_exact(image).zip(to.chunks_exact_mut(image));
    for ((from, to), map) in images.zip(&maps) {
        let planes = from.chunks_exact(plane).zip(to.chunks_exact_mut(plane));
        planes.for_each(|(from, to)| map.forward(from, to));
    }
    let y = Tensor::from_vec(to, dims, x.device())?;
    Ok(vjp(x, y, move |slopes| {
        let from = slopes.flatten_all()?.to_vec1::<T>()?;
        let mut to = vec![0f64; from.len()];
        let images = from.chunks_exact(image).zip(to.chunks_exact_mut(image));
        for ((from, to), map) in images.zip(&maps) {
            let planes = from.chunks_exact(plane).zip(to.chunks_exact_mut(plane));
            planes.for_each(|(from, to)| map.backward(from, to));
        }
        Tensor::from_vec(to, dims, slopes.device())?.to_dtype(slopes.dtype())
    })?)
}

/// A value of its own and the gradient of the identity.
pub(crate) fn straight_through(
    x: &Pixels,
    f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Pixels> {
    x.through(|x| Ok(vjp(x, f(&x.detach())?, |slopes| Ok(slopes.clone()))?))
}

/// Levels 0 to 255 as pixels: a true division, as where images are read; candle's division by a
/// constant multiplies by its rounded reciprocal, which gives other bits.
pub(crate) fn of_levels(levels: &Tensor) -> candle_core::Result<Tensor> {
    let most = Tensor::new(255f64, levels.device())?.to_dtype(levels.dtype())?;
    levels.broadcast_div(&most)
}

/// What every test of a transform needs.
#[cfg(test)]
pub(crate) mod testing {
    use candle_core::Device;
    use theriac::{Pass, Run, Transform, gradient};

    use super::*;

    /// Images of whole levels.
    pub(crate) fn images(n: usize, side: usize, dtype: DType) -> Pixels {
        let values: Vec<u8> = (0..n * 3 * side * side)
            .map(|i| ((i * 37 + i * i * 11) % 256) as u8)
            .collect();
        let bytes = Tensor::from_vec(values, (n, 3, side, side), &Device::Cpu).unwrap();
        Pixels::from_bytes(&bytes, dtype).unwrap()
    }

    pub(crate) fn values(x: &Pixels) -> Vec<f64> {
        let x = x.tensor().to_dtype(DType::F64).unwrap();
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// An image alone becomes what it becomes in a batch; other draws give other images; the
    /// gradient is that of differences where the transform is linear.
    pub(crate) fn contract(transform: &dyn Transform, linear: bool) {
        let (run, x) = (Run::new(5, &Device::Cpu), images(3, 12, DType::F64));
        let ids = [4, 9, 2];
        let pass: Pass<'_> = run.eval(&ids);
        let together = values(&transform.apply(&x, &pass).unwrap());
        let one = x.narrow(1, 1).unwrap();
        let alone = transform.apply(&one, &run.eval(&[9])).unwrap();
        let size = together.len() / 3;
        assert_eq!(together[size..2 * size], values(&alone));
        let again = transform.apply(&x, &pass.fork(1)).unwrap();
        assert_ne!(together, values(&again));
        if !linear {
            return;
        }
        // <w, T(x + h) - T(x)> = <gradient, h> for any h that stays in the cube.
        let x = Pixels::new((x.tensor() * 0.5).unwrap()).unwrap();
        let w = images(3, 12, DType::F64).tensor().flip(&[2]).unwrap();
        let value = |x: &Pixels| {
            let y = transform.apply(x, &pass)?;
            Ok((y.tensor() * &w)?.flatten_from(1)?.sum(1)?)
        };
        let (at, slopes) = gradient(&x, &pass, value).unwrap();
        let h = images(3, 12, DType::F64).tensor().flip(&[3]).unwrap();
        let h = (h * 0.25).unwrap();
        let moved = value(&Pixels::new((x.tensor() + &h).unwrap()).unwrap()).unwrap();
        let expected = (moved - at).unwrap().to_vec1::<f64>().unwrap();
        let actual = (slopes * h)
            .unwrap()
            .flatten_from(1)
            .unwrap()
            .sum(1)
            .unwrap();
        for (a, e) in actual.to_vec1::<f64>().unwrap().iter().zip(expected) {
            assert!((a - e).abs() < 1e-5 * e.abs().max(1.0), "{a} against {e}");
        }
    }
}
