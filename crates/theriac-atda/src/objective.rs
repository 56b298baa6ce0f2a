//! The training step.

use candle_core::{DType, Tensor};
use theriac::{Aim, Attack, Batch, Classifier, Labels, Pass, Pixels, Result, craft};
use theriac_nn::{Entry, Saved, Twin};
use theriac_train::{LabelSource, Objective};

use crate::{coral, margin, mmd, moved_centres};

/// FGSM-Adv with three losses that pull clean and adversarial logits together.
///
/// ```text
/// s = z(x),  a = z(x'),  x' = attack(x, label)
/// loss = CE(s, y) + CE(a, y) + lambda (CORAL(s, a) + MMD(s, a) + margin(s and a, y, centres))
/// ```
///
/// Song et al., "Improving the generalization of adversarial training with domain adaptation",
/// ICLR 2019, after the authors' code: the cross entropies are summed, not averaged; the loss
/// reads the old centres and then they move (the code leaves that order open).
#[derive(Clone, Debug)]
pub struct Atda<A> {
    /// Crafts the adversarial half; the paper's is FGSM at the full eps.
    pub attack: A,
    /// The label that the attack moves away from; the code's is the predicted one.
    pub label: LabelSource,
    /// Weight of the three domain losses; the code's is 1/3.
    pub lambda: f64,
    /// Step of the class centres; the code's is 0.1.
    pub alpha: f64,
    centres: Option<Tensor>,
}

impl<A> Atda<A> {
    /// The settings of the authors' code around an attack.
    pub fn new(attack: A) -> Self {
        let (lambda, alpha) = (1.0 / 3.0, 0.1);
        Self {
            attack,
            label: LabelSource::Predicted,
            lambda,
            alpha,
            centres: None,
        }
    }
}

impl<C: Classifier, A: Attack<C>> Objective<C> for Atda<A> {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let labels = self.label.labels(&twin.frozen, batch, &pass.eval())?;
        let aim = Aim::Away(&labels);
        let moved = craft(&self.attack, &twin.frozen, &batch.pixels, aim, &pass.eval())?;

        let both = Pixels::cat(&[batch.pixels.clone(), moved])?;
        let samples = [&batch.samples[..], &batch.samples[..]].concat();
        let logits = twin.live.logits(
            &both,
            &Pass {
                samples: &samples,
                ..*pass
            },
        )?;
        let (m, k) = (batch.len(), twin.live.classes());
        let (s, a) = (logits.narrow(0, 0, m)?, logits.narrow(0, m, m)?);
        let labels = batch.target.cat(&batch.target)?;
        let one_hot = one_hot(&labels, k, logits.dtype())?;
        let centres = match self.centres.take() {
            Some(centres) => centres
                .to_device(logits.device())?
                .to_dtype(logits.dtype())?,
            None => Tensor::zeros((k, k), logits.dtype(), logits.device())?,
        };

        let entropy = theriac_ops::cross_entropy(&logits, labels.tensor())?.sum_all()?;
        let domain = (coral(&s, &a)? + mmd(&s, &a)?)?;
        let domain = (domain + margin(&logits, &centres, &one_hot)?)?;
        self.centres = Some(moved_centres(&centres, &logits, &one_hot, self.alpha)?);
        // The sum over 2m rows by m is the sum of the two means.
        Ok(((entropy / m as f64)? + (domain * self.lambda)?)?)
    }

    fn state(&self) -> Result<Vec<Entry<'_>>> {
        let centres = self
            .centres
            .iter()
            .map(|centres| Entry::tensor("centres", centres));
        Ok(centres.collect::<Result<_, _>>()?)
    }

    fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        let centres = saved.tensor(&format!("{prefix}centres"), &candle_core::Device::Cpu)?;
        self.centres = Some(centres);
        Ok(())
    }
}

fn one_hot(labels: &Labels, classes: usize, dtype: DType) -> Result<Tensor> {
    let all = Tensor::arange(0u32, classes as u32, labels.tensor().device())?;
    Ok(labels
        .tensor()
        .unsqueeze(1)?
        .broadcast_eq(&all.unsqueeze(0)?)?
        .to_dtype(dtype)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn one_hot_rows() {
        let labels = Labels::new(&[2, 0], 3, &Device::Cpu).unwrap();
        let rows = one_hot(&labels, 3, DType::F32)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        assert_eq!(rows, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
    }
}
