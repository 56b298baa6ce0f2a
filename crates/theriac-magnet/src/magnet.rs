//! Detectors and a reformer around a classifier.

use candle_core::Tensor;
use theriac::{Classifier, Labels, Pass, Pixels, Result, Transform, in_chunks};

use crate::Detector;

/// MagNet: images whose marks reach a threshold are rejected, the others reformed and classified.
///
/// As a [`Classifier`] it gives the logits of reformed images, rejected ones included; whether an
/// image is rejected says [`MagNet::judge`].
pub struct MagNet<'a, C, R> {
    /// Classifies.
    pub model: C,
    /// Moves images toward the data first.
    pub reformer: R,
    /// Detectors with their thresholds.
    pub detectors: Vec<(Box<dyn Detector + 'a>, f64)>,
}

/// What becomes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether a detector rejects it.
    pub rejected: bool,
    /// The class of the reformed image.
    pub label: u32,
}

impl<C: Classifier, R: Transform> MagNet<'_, C, R> {
    /// What becomes of each image.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn judge(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Vec<Judgement>> {
        in_chunks(x, pass, |_, x, pass| {
            let mut rejected = vec![false; x.len()];
            for (detector, threshold) in &self.detectors {
                for (rejected, mark) in rejected.iter_mut().zip(host(&detector.marks(x, pass)?)?) {
                    *rejected |= mark >= *threshold;
                }
            }
            let labels = Labels::most_likely(&self.logits(x, pass)?)?.to_vec()?;
            let both = rejected.into_iter().zip(labels);
            Ok(both
                .map(|(rejected, label)| Judgement { rejected, label })
                .collect())
        })
    }
}

impl<C: Classifier, R: Transform> Classifier for MagNet<'_, C, R> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.model.logits(&self.reformer.apply(x, pass)?, pass)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}

/// MagNet as a classifier of K + 1 classes, the last of which is rejection.
///
/// ```text
/// z = (z_1, .., z_K of the reformed image, max_k z_k + max_d mark_d(x) / threshold_d - 1)
/// ```
///
/// So an evaluator counts a rejected image as wrong, and one that ends in class K (from 0) was rejected.
/// Differentiable. A mark that is its threshold exactly passes here, and does not in
/// [`MagNet::judge`].
pub struct Rejecting<'m, 'a, C, R> {
    /// Judges.
    pub magnet: &'m MagNet<'a, C, R>,
}

impl<C: Classifier, R: Transform> Classifier for Rejecting<'_, '_, C, R> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let logits = self.magnet.logits(x, pass)?;
        let mut over: Option<Tensor> = None;
        for (detector, threshold) in &self.magnet.detectors {
            let next = detector.marks(x, pass)?.affine(1.0 / threshold, -1.0)?;
            over = Some(match over {
                Some(over) => over.maximum(&next)?,
                None => next,
            });
        }
        let top = logits.max_keepdim(1)?;
        let last = match over {
            Some(over) => (top + over.unsqueeze(1)?)?,
            None => (top - 1.0)?,
        };
        Ok(Tensor::cat(&[&logits, &last], 1)?)
    }

    fn classes(&self) -> usize {
        self.magnet.classes() + 1
    }
}

pub(crate) fn host(values: &Tensor) -> Result<Vec<f64>> {
    Ok(values
        .detach()
        .to_dtype(candle_core::DType::F64)?
        .to_vec1()?)
}

/// Counts of judgements, and the ways in which they are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Images.
    pub n: usize,
    /// Rejected.
    pub rejected: usize,
    /// Passed, and right after the reformer.
    pub correct: usize,
}

impl Score {
    /// Counts judgements against labels.
    pub fn of(judgements: &[Judgement], labels: &[u32]) -> Self {
        let passed = |judgement: &Judgement| !judgement.rejected;
        let right = judgements.iter().zip(labels);
        Self {
            n: judgements.len(),
            rejected: judgements.iter().filter(|j| j.rejected).count(),
            correct: right.filter(|(j, y)| passed(j) && j.label == **y).count(),
        }
    }

    /// A rejected image is wrong: the share that passes and is right. For clean images, and for
    /// comparing with defences that reject nothing.
    pub fn strict(self) -> f64 {
        self.correct as f64 / self.n.max(1) as f64
    }

    /// A rejected image is defended: one less the share that passes and is wrong, which the paper
    /// prints for adversarial images.
    pub fn lenient(self) -> f64 {
        (self.correct + self.rejected) as f64 / self.n.max(1) as f64
    }
}
