//! Steps by sign.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use theriac::{Error, Result};
use theriac_nn::{Entry, Saved};
use theriac_train::Rule;

/// `b <- b + rate size sign(g)`, the sign of 0 being 0: no momentum, no decay, nothing kept.
pub struct SignStep {
    /// Epsilon with its sign: above 0 moves up the loss.
    pub size: f64,
    /// Largest value.
    pub limit: Option<f64>,
    /// An optimiser that gets `-size sign(g)` for a gradient, in place of the step itself.
    pub through: Option<Box<dyn Rule>>,
}

impl std::fmt::Debug for SignStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignStep")
            .field("size", &self.size)
            .field("limit", &self.limit)
            .field("through", &self.through.is_some())
            .finish()
    }
}

impl Rule for SignStep {
    fn step(&mut self, variables: &[(String, Var)], grads: &GradStore, rate: f64) -> Result<()> {
        let moving = || {
            variables
                .iter()
                .filter_map(|(_, var)| Some((var, grads.get(var)?)))
        };
        match &mut self.through {
            None => {
                for (var, grad) in moving() {
                    var.set(&(var.as_tensor() + (grad.sign()? * (rate * self.size))?)?)?;
                }
            }
            Some(rule) => {
                // candle makes gradients from losses alone: this one's are -size sign(g).
                let mut loss: Option<Tensor> = None;
                for (var, grad) in moving() {
                    let slope = (grad.sign()? * -self.size)?;
                    let part = (var.as_tensor() * slope)?.sum_all()?;
                    loss = Some(match loss {
                        None => part,
                        Some(sum) => (sum + part)?,
                    });
                }
                if let Some(loss) = loss {
                    rule.step(variables, &loss.backward()?, rate)?;
                }
            }
        }
        limit(variables, self.limit)
    }

    fn state(&self) -> Result<Vec<Entry<'static>>> {
        match &self.through {
            None => Ok(Vec::new()),
            Some(rule) => rule.state(),
        }
    }

    fn restore(&mut self, variables: &[(String, Var)], saved: &Saved, prefix: &str) -> Result<()> {
        match &mut self.through {
            None => Ok(()),
            Some(rule) => rule.restore(variables, saved, prefix),
        }
    }
}

/// Keeps values within a limit.
pub(crate) fn limit(variables: &[(String, Var)], most: Option<f64>) -> Result<()> {
    let Some(most) = most else {
        return Ok(());
    };
    for (_, var) in variables {
        var.set(
            &var.as_detached_tensor()
                .clamp(-most, most)
                .map_err(Error::from)?,
        )?;
    }
    Ok(())
}
