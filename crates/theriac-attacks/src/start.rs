//! Where an iterative attack starts.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use theriac::{Budget, Norm, Pass, Pixels, Result};

/// The first iterate. Implementations disagree, so each form has a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The clean image (BIM; ART's PGD by default).
    #[default]
    Clean,
    /// Uniform in the ball, by volume (Madry et al. 2018 for Linf; foolbox and ART for L2).
    Uniform,
    /// L2: a Gaussian direction at a radius uniform in [0, eps] (torchattacks): biased to the
    /// centre. Linf: as [`Start::Uniform`].
    Radial,
    /// L2: a Gaussian direction at radius eps (AutoAttack). Linf: uniform, scaled to the surface.
    Surface,
    /// L2: uniform in the pixel cube, scaled back to the ball if outside (advertorch).
    /// Linf: as [`Start::Uniform`].
    Cube,
}

impl Start {
    /// The first iterate for clean images, projected into the budget.
    ///
    /// # Errors
    /// When the pass's ids are not one for each image.
    pub fn point(self, clean: &Pixels, budget: &Budget, pass: &Pass<'_>) -> Result<Pixels> {
        let x = clean.tensor();
        let eps = budget.eps().get();
        let noise = match (self, budget.norm()) {
            (Self::Clean, _) => return Ok(clean.clone()),
            (Self::Uniform | Self::Radial | Self::Cube, Norm::Linf) => {
                (pass.uniform("start", clean)? * eps)?
            }
            (Self::Surface, Norm::Linf) => {
                let noise = pass.uniform("start", clean)?;
                let largest = noise
                    .flatten_from(1)?
                    .abs()?
                    .max(D::Minus1)?
                    .maximum(1e-12)?;
                (noise.broadcast_div(&largest.reshape(((), 1, 1, 1))?)? * eps)?
            }
            (Self::Cube, Norm::L2) => {
                // The cube's uniform point minus the clean image; project scales it back.
                (pass.uniform("start", clean)?.affine(0.5, 0.5)? - x)?
            }
            (form, _) => {
                let direction = Norm::L2.steepest(&pass.normal("start", x)?)?;
                let dimensions = x.elem_count() / clean.len();
                let radii = form.radii(pass, dimensions, eps);
                let radii = Tensor::from_vec(radii, (clean.len(), 1, 1, 1), x.device())?;
                direction.broadcast_mul(&radii.to_dtype(x.dtype())?)?
            }
        };
        budget.project(&(x + noise)?, clean)
    }

    fn radii(self, pass: &Pass<'_>, dimensions: usize, eps: f64) -> Vec<f64> {
        let share = |sample: &u32| {
            let u = f64::from(pass.rng.uniform("radius", u64::from(*sample), 1)[0]);
            match self {
                Self::Uniform => u.powf(1.0 / dimensions as f64),
                Self::Radial => u,
                _ => 1.0,
            }
        };
        pass.samples
            .iter()
            .map(|sample| eps * share(sample))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Affine, images};

    #[test]
    fn starts_lie_where_they_say() -> Result<()> {
        let (clean, _, run) = images(&Affine::new());
        let grey = clean.through(|x| Ok(x.affine(0.0, 0.5)?))?;
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let pass = run.eval(&ids);
        for norm in [Norm::Linf, Norm::L2] {
            let budget = Budget::new(norm, "0.1".parse()?)?;
            let spent = |start: Start| -> Result<Vec<f64>> {
                budget.spent(&start.point(&grey, &budget, &pass)?, &grey)
            };
            assert!(spent(Start::Clean)?.iter().all(|d| *d == 0.0));
            for start in [Start::Uniform, Start::Radial, Start::Surface, Start::Cube] {
                assert!(
                    spent(start)?.iter().all(|d| *d > 0.0 && *d <= 0.1 + 1e-9),
                    "{start:?}"
                );
            }
            assert!(
                spent(Start::Surface)?
                    .iter()
                    .all(|d| (d - 0.1).abs() < 1e-9)
            );
        }
        Ok(())
    }
}
