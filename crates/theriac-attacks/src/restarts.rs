//! The strongest of several runs of one attack.

use candle_core::DType;
use theriac::{Aim, Attack, Classifier, Labels, Model, Pass, Pixels, Result};

use crate::pgd::better;

/// Runs an attack several times with fresh randomness and keeps, for each image, the first
/// success, else the largest loss. (ART keeps the last success.)
#[derive(Clone, Copy, Debug)]
pub struct Restarts<A> {
    /// The attack; without a random part, every run is the same.
    pub attack: A,
    /// Number of runs.
    pub times: u32,
}

impl<C: Classifier + ?Sized, A: Attack<C>> Attack<C> for Restarts<A> {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let wanted = aim.target().to_vec()?;
        let mut best = None;
        for run in 0..self.times.max(1) {
            let pass = pass.fork(u64::from(run));
            let moved = self.attack.perturb(model, clean, aim, &pass)?;
            pass.meter.forward(moved.len());
            let logits = model.logits(&moved, &pass)?;
            let predicted = Labels::most_likely(&logits)?.to_vec()?;
            let loss = model
                .loss(&moved, aim.target(), &pass)?
                .to_dtype(DType::F64)?;
            // A success outranks every loss; among successes none is larger, so the first stays.
            let value = |((loss, predicted), wanted): ((f64, u32), &u32)| match aim {
                Aim::Away(_) if predicted != *wanted => f64::INFINITY,
                Aim::Toward(_) if predicted == *wanted => f64::INFINITY,
                _ => aim.sign() * loss,
            };
            let losses = loss.to_vec1::<f64>()?;
            let values = losses
                .into_iter()
                .zip(predicted)
                .zip(&wanted)
                .map(value)
                .collect();
            best = Some(better(best, values, &moved)?);
        }
        Ok(best.map_or_else(|| clean.clone(), |(_, images)| images))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pgd;
    use crate::testing::{Affine, contract, images, linf};

    #[test]
    fn keeps_the_contract_and_never_loses_to_one_run() -> Result<()> {
        let attack = Pgd::new(linf(0.1), "0.01".parse()?, 3);
        contract(&Restarts { attack, times: 3 }, linf(0.1))?;
        let model = Affine::new();
        let (clean, labels, run) = images(&model);
        let ids: Vec<u32> = (0..clean.len() as u32).collect();
        let pass = run.eval(&ids);
        let loss = |times| -> Result<Vec<f64>> {
            let attack = Restarts { attack, times };
            let moved = attack.perturb(&model, &clean, Aim::Away(&labels), &pass)?;
            let broken = theriac::predict(&model, &moved, &pass)?.to_vec()?;
            let wanted = labels.to_vec()?;
            let losses = model.loss(&moved, &labels, &pass)?.to_vec1::<f64>()?;
            let score = losses.iter().enumerate();
            Ok(score
                .map(|(i, l)| if broken[i] == wanted[i] { *l } else { f64::MAX })
                .collect())
        };
        let (one, five) = (loss(1)?, loss(5)?);
        assert!(one.iter().zip(&five).all(|(a, b)| b >= a));
        assert!(
            one != five,
            "five runs from five starts found nothing better"
        );
        Ok(())
    }
}
