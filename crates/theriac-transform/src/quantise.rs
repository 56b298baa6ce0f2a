//! Eight bits.

use theriac::{Pass, Pixels, Result, Transform};

use crate::taps::{of_levels, straight_through};

/// Pixels to whole levels of 255, downwards, as a conversion to bytes does.
///
/// ```text
/// q(x) = floor(255 x) / 255,   d q / d x := 1
/// ```
///
/// The published programs turn images into 8-bit pictures before they crop or rotate them; that
/// alone is a weak defence. An image of whole levels stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantise;

impl Transform for Quantise {
    fn apply(&self, x: &Pixels, _: &Pass<'_>) -> Result<Pixels> {
        straight_through(x, |x| of_levels(&(x * 255.0)?.floor()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::{Run, gradient};

    use super::*;
    use crate::taps::testing::{images, values};

    #[test]
    fn whole_levels_stay_and_others_fall() -> Result<()> {
        let (run, ids) = (Run::new(0, &Device::Cpu), [0, 1]);
        let pass = run.eval(&ids);
        for dtype in [DType::F32, DType::F64] {
            let x = images(2, 16, dtype);
            assert_eq!(values(&Quantise.apply(&x, &pass)?), values(&x));
            let raised = Pixels::clamp(&(x.tensor() + 0.9 / 255.0)?)?;
            assert_eq!(values(&Quantise.apply(&raised, &pass)?), values(&x));
        }
        let x = Pixels::new(Tensor::new(&[0.5f64, 0.1], &Device::Cpu)?.reshape((2, 1, 1, 1))?)?;
        let value = |x: &Pixels| Ok(Quantise.apply(x, &pass)?.tensor().flatten_all()?);
        let (at, slopes) = gradient(&x, &pass, value)?;
        assert_eq!(at.to_vec1::<f64>()?, [127.0 / 255.0, 25.0 / 255.0]);
        assert_eq!(slopes.flatten_all()?.to_vec1::<f64>()?, [1.0, 1.0]);
        Ok(())
    }
}
