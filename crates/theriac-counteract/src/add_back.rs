//! An attack on the defence that takes back what it adds.

use theriac::{Aim, Attack, Budget, Classifier, Cut, Labels, Pass, Pixels, Result};

use crate::Counteract;

/// Crafts on the bare classifier, then takes the counter-perturbation off in advance, so that the
/// defence puts the images back where they fool it.
///
/// ```text
/// x' = attack on f
/// x_0 = x';   x_{k+1} = P(x' - delta(x_k))        until x_k + delta(x_k) = x', or `rounds` times
/// ```
///
/// Returns, image by image, the iterate from which the defended classifier has the largest loss for
/// the attacker. P is the projection onto the ball and the cube, so it succeeds as far as the ball
/// has room for both.
#[derive(Clone, Copy, Debug)]
pub struct AddBack<A> {
    /// Crafts on the bare classifier.
    pub attack: A,
    /// The ball.
    pub budget: Budget,
    /// Rounds of taking back.
    pub rounds: u32,
}

impl<C: Classifier, A: Attack<C>> Attack<Counteract<C>> for AddBack<A> {
    fn perturb(
        &self,
        defended: &Counteract<C>,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let wanted = self.attack.perturb(&defended.model, clean, aim, pass)?;
        let (mut x, mut best) = (wanted.clone(), None);
        for round in 0..=self.rounds {
            let pass = pass.at(u64::from(round));
            best = Some(better(best, defended, &x, aim, &pass)?);
            let delta = defended.delta(&x, &pass)?;
            x = self.budget.project(&(wanted.tensor() - delta)?, clean)?;
        }
        Ok(best.map_or(wanted, |(_, images)| images))
    }

    fn cut(&self) -> Cut {
        self.attack.cut()
    }
}

/// Image by image the candidate if the defended classifier's loss is better for the attacker there.
fn better<C: Classifier>(
    best: Option<(Vec<f64>, Pixels)>,
    defended: &Counteract<C>,
    candidate: &Pixels,
    aim: Aim<'_, Labels>,
    pass: &Pass<'_>,
) -> Result<(Vec<f64>, Pixels)> {
    use theriac::Model as _;
    pass.meter.forward(pass.samples);
    let losses = defended.loss(candidate, aim.target(), pass)?.detach();
    let losses = losses.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
    let values: Vec<f64> = losses.iter().map(|loss| aim.sign() * loss).collect();
    let Some((known, images)) = best else {
        return Ok((values, candidate.clone()));
    };
    let wins: Vec<bool> = values
        .iter()
        .zip(&known)
        .map(|(new, old)| new > old)
        .collect();
    let values = values.into_iter().zip(known).map(|(new, old)| new.max(old));
    Ok((values.collect(), candidate.select(&wins, &images)?))
}
