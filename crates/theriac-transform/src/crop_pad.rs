//! Random crop, random padding.

use serde::{Deserialize, Serialize};
use theriac::{Pass, Pixels, Result, Transform};

use crate::Quantise;
use crate::crop_resize::{Window, check, side};
use crate::taps::{Taps, through};

/// A square of s x s pixels from a random place of the image, put at a random place of a black canvas
/// of the image's size; s uniform in `low..=high`, drawn for each image.
///
/// What Pang et al. 2020 and Counteract run as the defence of Xie, Wang, Zhang, Ren & Yuille,
/// "Mitigating adversarial effects through randomization", ICLR 2018, whose own code enlarges images
/// of 299 pixels to 310..=330 and pads them to 331.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomCropPad {
    /// Smallest side of the square.
    pub low: u32,
    /// Largest.
    pub high: u32,
    /// Whether pixels fall to whole levels first, as in the published program; see [`Quantise`].
    #[serde(default = "yes")]
    pub quantise: bool,
}

pub(crate) fn yes() -> bool {
    true
}

impl Transform for RandomCropPad {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        let side = side(x)?;
        check(self.low, self.high, side)?;
        let x = match self.quantise {
            true => Quantise.apply(x, pass)?,
            false => x.clone(),
        };
        let map = |&sample: &u32| {
            let window = Window::draw("crop pad", self.low, self.high, side, sample, pass);
            let place = |purpose| {
                let free = side - window.side + 1;
                pass.rng.below(purpose, u64::from(sample), free)
            };
            moved(window, [place("pad row"), place("pad column")], side)
        };
        let maps: Vec<Taps> = pass.samples.iter().map(map).collect();
        x.through(|x| through(x, maps))
    }
}

/// A window put at a place of a black canvas.
fn moved(window: Window, [top, left]: [u32; 2], side: u32) -> Taps {
    let mut taps = Taps::default();
    for y in 0..side {
        for x in 0..side {
            let inside = |at: u32, from: u32| at.checked_sub(from).filter(|&d| d < window.side);
            let at = inside(y, top).zip(inside(x, left));
            taps.push(at.map(|(dy, dx)| ((window.top + dy) * side + window.left + dx, 1.0)));
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
    fn keeps_a_square_of_the_image_on_black() -> Result<()> {
        let crop = RandomCropPad {
            low: 6,
            high: 9,
            quantise: false,
        };
        contract(&crop, true);
        let run = Run::new(1, &Device::Cpu);
        let x = Pixels::clamp(&(images(1, 12, DType::F64).tensor() + 0.001)?)?; // no black pixel
        let before = values(&x);
        let mut sides = std::collections::BTreeMap::<usize, usize>::new();
        for sample in 0..400 {
            let after = values(&crop.apply(&x, &run.eval(&[sample]))?);
            let kept = after[..144].iter().filter(|v| **v > 0.0).count();
            let side = (kept as f64).sqrt() as usize;
            assert_eq!(side * side, kept);
            *sides.entry(side).or_default() += 1;
            // The square stands somewhere in the image, with the same shift for all channels.
            let first = after.iter().position(|v| *v > 0.0).unwrap();
            let rows = |of: &[f64], at: usize, plane: usize| -> Vec<f64> {
                let rows = (0..side).flat_map(|r| {
                    let begin = plane * 144 + at + r * 12;
                    of[begin..begin + side].to_vec()
                });
                rows.collect()
            };
            let found = (0..=(12 - side)).flat_map(|r| (0..=(12 - side)).map(move |c| r * 12 + c));
            let same = |at: usize| (0..3).all(|p| rows(&before, at, p) == rows(&after, first, p));
            assert_eq!(found.filter(|at| same(*at)).count(), 1, "sample {sample}");
        }
        // Both ends are drawn.
        assert_eq!(sides.keys().copied().collect::<Vec<_>>(), [6, 7, 8, 9]);
        assert!(sides.values().all(|n| (70..130).contains(n)), "{sides:?}");
        Ok(())
    }
}
