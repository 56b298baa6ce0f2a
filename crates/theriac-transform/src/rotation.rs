//! Random rotation.

use serde::{Deserialize, Serialize};
use theriac::{Error, Pass, Pixels, Result, Transform};

use crate::Quantise;
use crate::crop_pad::yes;
use crate::crop_resize::side;
use crate::taps::{Taps, through};

/// A rotation about the centre by an angle uniform in [-`degrees`, `degrees`), nearest pixel, black
/// outside; drawn for each image.
///
/// A baseline of Pang et al. 2020 (20 degrees). Which pixel is nearest is computed as Pillow does, in
/// fixed point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomRotation {
    /// Largest angle.
    pub degrees: f64,
    /// Whether pixels fall to whole levels first, as in the published program; see [`Quantise`].
    #[serde(default = "yes")]
    pub quantise: bool,
}

impl Transform for RandomRotation {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        if !(0.0..=180.0).contains(&self.degrees) {
            return Err(Error::Setting {
                name: "degrees",
                value: self.degrees.to_string(),
                remedy: "use an angle from 0 to 180",
            });
        }
        let side = side(x)?;
        let x = match self.quantise {
            true => Quantise.apply(x, pass)?,
            false => x.clone(),
        };
        let map = |&sample: &u32| {
            let draw = pass.rng.uniform("rotation", u64::from(sample), 1)[0];
            rotated((2.0 * f64::from(draw) - 1.0) * self.degrees, side)
        };
        let maps: Vec<Taps> = pass.samples.iter().map(map).collect();
        x.through(|x| through(x, maps))
    }
}

/// Counter-clockwise.
fn rotated(degrees: f64, side: u32) -> Taps {
    let angle = -degrees.to_radians();
    let round = |v: f64| (v * 1e15).round() / 1e15;
    let (cos, sin) = (round(angle.cos()), round(angle.sin()));
    let centre = f64::from(side) / 2.0;
    let shift_x = cos * -centre + sin * -centre + centre;
    let shift_y = -sin * -centre + cos * -centre + centre;
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i64;
    let (step_x, step_y) = (fixed(cos), fixed(-sin));
    let (down_x, down_y) = (fixed(sin), fixed(cos));
    let first_x = fixed(shift_x + cos * 0.5 + sin * 0.5);
    let first_y = fixed(shift_y - sin * 0.5 + cos * 0.5);
    let mut taps = Taps::default();
    for y in 0..i64::from(side) {
        for x in 0..i64::from(side) {
            let at_x = (first_x + y * down_x + x * step_x) >> 16;
            let at_y = (first_y + y * down_y + x * step_y) >> 16;
            let inside = |at: i64| (0..i64::from(side)).contains(&at);
            let at = (inside(at_x) && inside(at_y)).then_some(at_y * i64::from(side) + at_x);
            taps.push(at.map(|at| (at as u32, 1.0)));
        }
    }
    taps
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::Run;

    use super::*;
    use crate::taps::testing::{contract, images, values};

    #[test]
    fn is_linear_and_by_nothing_the_identity() -> Result<()> {
        contract(
            &RandomRotation {
                degrees: 60.0,
                quantise: false,
            },
            true,
        );
        let none = RandomRotation {
            degrees: 0.0,
            quantise: true,
        };
        let (run, x) = (Run::new(1, &Device::Cpu), images(2, 12, DType::F32));
        assert_eq!(values(&none.apply(&x, &run.eval(&[0, 1]))?), values(&x));
        let wrong = RandomRotation {
            degrees: 200.0,
            quantise: true,
        };
        let error = wrong.apply(&x, &run.eval(&[0, 1])).unwrap_err();
        assert!(error.to_string().contains("degrees"), "{error}");
        Ok(())
    }

    /// Pillow's bytes; `tests/pillow.py` makes them.
    #[test]
    fn agrees_with_pillow_to_the_pixel() -> Result<()> {
        let expected = include_bytes!("../tests/rotate.bin");
        let x = images(1, 32, DType::F32);
        let angles = [-20.0, -7.3, 0.4, 11.9, 20.0, 90.0];
        for (angle, expected) in angles.into_iter().zip(expected.chunks(3072)) {
            let moved = x.through(|x| through(x, vec![rotated(angle, 32)]))?;
            let moved: Vec<u8> = values(&moved)
                .iter()
                .map(|v| (v * 255.0).round() as u8)
                .collect();
            assert_eq!(moved, expected, "{angle} degrees");
        }
        Ok(())
    }
}
