//! Random crop, resize.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Error, Pass, Pixels, Result, Transform};

use crate::Quantise;
use crate::crop_pad::yes;
use crate::taps::{Taps, of_levels, straight_through, through};

/// A square of s x s pixels from a random place of the image, enlarged to the image's size; s uniform
/// in `low..=high`, drawn for each image.
///
/// The crop defence of Guo, Rana, Cisse & van der Maaten, "Countering adversarial images using input
/// transformations", ICLR 2018, as Pang et al. 2020 run it. Bilinear in two passes, columns first,
/// sampled at the centres of pixels, as Pillow does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomCropResize {
    /// Smallest side of the square.
    pub low: u32,
    /// Largest.
    pub high: u32,
    /// Whether pixels are whole levels throughout, as in the published program: they fall to whole
    /// levels first ([`Quantise`]), and each pass rounds.
    #[serde(default = "yes")]
    pub quantise: bool,
}

impl Transform for RandomCropResize {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        let side = side(x)?;
        check(self.low, self.high, side)?;
        let draw = |&sample| Window::draw("crop resize", self.low, self.high, side, sample, pass);
        let windows: Vec<Window> = pass.samples.iter().map(draw).collect();
        resized(x, &windows, side, self.quantise, pass)
    }
}

/// Each image's window at the size of the image.
fn resized(
    x: &Pixels,
    windows: &[Window],
    side: u32,
    quantise: bool,
    pass: &Pass<'_>,
) -> Result<Pixels> {
    let x = match quantise {
        true => Quantise.apply(x, pass)?,
        false => x.clone(),
    };
    let round = |x: &Tensor| of_levels(&((x * 255.0)? + 0.5)?.floor()?);
    let levels = |x: Pixels| match quantise {
        true => straight_through(&x, round),
        false => Ok(x),
    };
    let wide = windows.iter().map(|window| columns(*window, side));
    let wide = levels(x.through(|x| through(x, wide.collect()))?)?;
    let whole = windows.iter().map(|window| rows(*window, side));
    levels(wide.through(|x| through(x, whole.collect()))?)
}

/// A square part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) top: u32,
    pub(crate) left: u32,
    pub(crate) side: u32,
}

impl Window {
    pub(crate) fn draw(
        purpose: &str,
        low: u32,
        high: u32,
        side: u32,
        sample: u32,
        pass: &Pass<'_>,
    ) -> Self {
        let below = |what: &str, bound| {
            pass.rng
                .below(&format!("{purpose} {what}"), u64::from(sample), bound)
        };
        let of = low + below("side", high - low + 1);
        let free = side - of + 1;
        Self {
            top: below("row", free),
            left: below("column", free),
            side: of,
        }
    }
}

/// Column i of the result from the columns of the window; rows outside the window stay unused.
fn columns(window: Window, side: u32) -> Taps {
    let along = line(window.side, side);
    let mut taps = Taps::default();
    for y in 0..side {
        for of in &along {
            let row = (y * side) + window.left;
            taps.push(of.iter().map(|&(at, weight)| (row + at, weight)));
        }
    }
    taps
}

/// Row i of the result from the rows of the window.
fn rows(window: Window, side: u32) -> Taps {
    let along = line(window.side, side);
    let mut taps = Taps::default();
    for of in &along {
        for x in 0..side {
            let at = |&(at, weight): &(u32, f32)| ((window.top + at) * side + x, weight);
            taps.push(of.iter().map(at));
        }
    }
    taps
}

/// Bilinear weights of `from` pixels for each of `to` >= `from` pixels: a triangle of width 1 around
/// the centre, cut at the ends and scaled to sum to 1.
fn line(from: u32, to: u32) -> Vec<Vec<(u32, f32)>> {
    let scale = f64::from(from) / f64::from(to);
    let of = |i: u32| {
        let centre = (f64::from(i) + 0.5) * scale;
        let low = (centre - 1.0 + 0.5).floor().max(0.0) as u32;
        let high = ((centre + 1.0 + 0.5).floor() as u32).min(from);
        let weights = (low..high).map(|at| {
            let weight = 1.0 - (f64::from(at) + 0.5 - centre).abs();
            (at, weight.max(0.0))
        });
        let weights: Vec<(u32, f64)> = weights.filter(|(_, weight)| *weight > 0.0).collect();
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        weights
            .into_iter()
            .map(|(at, weight)| (at, (weight / sum) as f32))
            .collect()
    };
    (0..to).map(of).collect()
}

/// The side of square images.
pub(crate) fn side(x: &Pixels) -> Result<u32> {
    let (_, _, height, width) = x.tensor().dims4()?;
    match height == width {
        true => Ok(width as u32),
        false => Err(Error::Shape {
            what: "image",
            got: x.tensor().dims().to_vec(),
            expected: "height and width equal".to_owned(),
        }),
    }
}

pub(crate) fn check(low: u32, high: u32, side: u32) -> Result<()> {
    if 0 < low && low <= high && high <= side {
        return Ok(());
    }
    Err(Error::Setting {
        name: "low, high",
        value: format!("{low}, {high}, for images of side {side}"),
        remedy: "use 1 <= low <= high <= side of the image",
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::Run;

    use super::*;
    use crate::taps::testing::{contract, images, values};

    const CROP: RandomCropResize = RandomCropResize {
        low: 6,
        high: 9,
        quantise: false,
    };

    #[test]
    fn is_linear_without_levels_and_has_them_with() -> Result<()> {
        contract(&CROP, true);
        let levels = RandomCropResize {
            quantise: true,
            ..CROP
        };
        contract(&levels, false);
        let run = Run::new(1, &Device::Cpu);
        let moved = levels.apply(&images(1, 12, DType::F64), &run.eval(&[0]))?;
        let whole = |v: &f64| ((v * 255.0) - (v * 255.0).round()).abs() < 1e-9;
        assert!(values(&moved).iter().all(whole));
        Ok(())
    }

    #[test]
    fn the_whole_image_stays_as_it_is() -> Result<()> {
        let run = Run::new(1, &Device::Cpu);
        for quantise in [false, true] {
            let crop = RandomCropResize {
                low: 12,
                high: 12,
                quantise,
            };
            let x = images(2, 12, DType::F32);
            assert_eq!(values(&crop.apply(&x, &run.eval(&[0, 1]))?), values(&x));
        }
        Ok(())
    }

    /// Pillow's bytes; `tests/pillow.py` makes them.
    #[test]
    fn agrees_with_pillow_to_the_level() -> Result<()> {
        let expected = include_bytes!("../tests/resize.bin");
        let run = Run::new(1, &Device::Cpu);
        let x = images(1, 32, DType::F32);
        let windows = [(0, 0, 22), (3, 5, 26), (8, 1, 24), (1, 2, 30)];
        for ((top, left, side), expected) in windows.into_iter().zip(expected.chunks(3072)) {
            let window = Window { top, left, side };
            let moved = resized(&x, &[window], 32, true, &run.eval(&[0]))?;
            let moved: Vec<u8> = values(&moved)
                .iter()
                .map(|v| (v * 255.0).round() as u8)
                .collect();
            assert_eq!(moved, expected, "{window:?}");
        }
        Ok(())
    }

    #[test]
    fn refuses_squares_that_do_not_fit() {
        let run = Run::new(1, &Device::Cpu);
        for (low, high) in [(0, 5), (7, 6), (6, 13)] {
            let crop = RandomCropResize { low, high, ..CROP };
            let error = crop.apply(&images(1, 12, DType::F32), &run.eval(&[0]));
            let text = error.unwrap_err().to_string();
            assert!(text.contains("side of the image"), "{text}");
        }
        let x = Tensor::zeros((1, 3, 4, 5), DType::F32, &Device::Cpu).unwrap();
        let error = CROP.apply(&Pixels::new(x).unwrap(), &run.eval(&[0]));
        assert!(error.unwrap_err().to_string().contains("equal"));
    }
}
