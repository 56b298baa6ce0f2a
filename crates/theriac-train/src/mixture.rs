//! Clean and adversarial images in one loss.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Batch, Classifier, Labels, Model, Pass, Pixels, Result, predict};
use theriac_nn::Twin;

/// The label that an attack inside training moves away from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelSource {
    /// The ground truth.
    #[default]
    True,
    /// The model's own prediction, which keeps the label from leaking into a single-step
    /// perturbation (Kurakin et al. 2017).
    Predicted,
}

impl LabelSource {
    /// The labels to attack.
    ///
    /// # Errors
    /// Those of the classifier.
    pub fn labels<C: Classifier>(
        self,
        model: &C,
        batch: &Batch<Labels>,
        pass: &Pass<'_>,
    ) -> Result<Labels> {
        match self {
            Self::True => Ok(batch.target.clone()),
            Self::Predicted => predict(model, &batch.pixels, pass),
        }
    }
}

/// `w * mean CE(clean) + (1 - w) * mean CE(adversarial)` on the live network, both with the true
/// labels, in one forward pass over 2N images: with batch norm, both share their statistics. Images
/// without weight do not run: with w = 0 (PGD training of Madry et al. 2018) the statistics are those
/// of the adversarial images.
///
/// # Errors
/// Those of the classifier.
pub fn mixture<C: Classifier>(
    twin: &Twin<C>,
    batch: &Batch<Labels>,
    adversarial: &Pixels,
    clean_weight: f64,
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let alone = match clean_weight {
        0.0 => Some(adversarial),
        1.0 => Some(&batch.pixels),
        _ => None,
    };
    if let Some(pixels) = alone {
        let losses = twin.live.loss(pixels, &batch.target, pass)?;
        return Ok(losses.mean_all()?);
    }
    let both = Pixels::cat(&[batch.pixels.clone(), adversarial.clone()])?;
    let samples = [&batch.samples[..], &batch.samples[..]].concat();
    let pass = Pass {
        samples: &samples,
        ..*pass
    };
    let losses = twin
        .live
        .loss(&both, &batch.target.cat(&batch.target)?, &pass)?;
    let n = batch.len();
    let clean = (losses.narrow(0, 0, n)?.mean_all()? * clean_weight)?;
    let moved = (losses.narrow(0, n, n)?.mean_all()? * (1.0 - clean_weight))?;
    Ok((clean + moved)?)
}
