//! Noise.

use serde::{Deserialize, Serialize};
use theriac::{Error, Pass, Pixels, Result, Transform};

/// `x + sigma n`, n ~ N(0, 1) for each value, cut to [0, 1].
///
/// The baseline of Pang, Xu & Zhu, "Mixup inference", ICLR 2020: sigma 0.05 where pixels lie in
/// [-1, 1], which is 0.025 here. Their code does not cut; classifiers here take pixels in [0, 1]. The
/// gradient is that of the identity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianNoise {
    /// Standard deviation, in pixels of [0, 1].
    pub sigma: f64,
}

impl Transform for GaussianNoise {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        if !(self.sigma >= 0.0 && self.sigma.is_finite()) {
            return Err(Error::Setting {
                name: "sigma",
                value: self.sigma.to_string(),
                remedy: "use a finite number from 0 up, in pixels of [0, 1]",
            });
        }
        let noise = pass.normal("gaussian noise", x.tensor())?;
        crate::taps::straight_through(x, |x| (x + (noise * self.sigma)?)?.clamp(0f64, 1f64))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::Run;

    use super::*;
    use crate::taps::testing::{contract, values};

    #[test]
    fn has_its_deviation() -> Result<()> {
        contract(&GaussianNoise { sigma: 0.025 }, false);
        let x = Pixels::new(Tensor::full(0.5f64, (1, 3, 64, 64), &Device::Cpu)?)?;
        let run = Run::new(0, &Device::Cpu);
        let moved = GaussianNoise { sigma: 0.025 }.apply(&x, &run.eval(&[3]))?;
        let moved = values(&moved);
        let var = moved.iter().map(|v| (v - 0.5).powi(2)).sum::<f64>() / moved.len() as f64;
        assert!((var.sqrt() / 0.025 - 1.0).abs() < 0.02, "{}", var.sqrt());
        let white = Pixels::new(Tensor::ones((1, 3, 8, 8), DType::F32, &Device::Cpu)?)?;
        let moved = GaussianNoise { sigma: 0.1 }.apply(&white, &run.eval(&[3]))?;
        assert!(values(&moved).iter().all(|v| *v <= 1.0));
        let wrong = GaussianNoise { sigma: -1.0 }.apply(&white, &run.eval(&[3]));
        assert!(wrong.unwrap_err().to_string().contains("sigma"));
        Ok(())
    }
}
