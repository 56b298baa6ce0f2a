//! How theta moves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use theriac::{Error, Result};
use theriac_nn::{Entry, Saved};
use theriac_train::{Rule, Sgd};

use crate::{Learn2Perturb, RegRate, RegReduce, ThetaMomentum, ThetaUpdate};

/// theta with its optimiser, which the objective (step A) and the group (step B) both use.
#[derive(Clone)]
pub(crate) struct Theta(Arc<Mutex<Inner>>);

struct Inner {
    settings: Learn2Perturb,
    variables: Vec<(String, Var)>,
    sgd: Sgd,
    /// Of step A, if it has a momentum of its own.
    own: Option<Sgd>,
    epoch: usize,
}

impl Theta {
    pub(crate) fn new(
        settings: Learn2Perturb,
        variables: Vec<(String, Var)>,
        mut sgd: Sgd,
    ) -> Result<Self> {
        // Momentum exists from the start: a file written before the first epoch with noise has it.
        let (_, first) = variables.first().ok_or(Error::Empty { what: "theta" })?;
        let nothing = Var::zeros((), first.dtype(), first.device())?.backward()?;
        sgd.step(&variables, &nothing, 0.0)?;
        let mut own = (settings.theta_momentum == ThetaMomentum::Separate).then(|| sgd.fresh());
        if let Some(own) = &mut own {
            own.step(&variables, &nothing, 0.0)?;
        }
        Ok(Self(Arc::new(Mutex::new(Inner {
            settings,
            variables,
            sgd,
            own,
            epoch: 0,
        }))))
    }

    pub(crate) fn begin_epoch(&self, epoch: usize) {
        self.lock().epoch = epoch;
    }

    /// Step A: along the gradient of `gamma g(theta)` alone.
    pub(crate) fn regularise(&self, rate: f64) -> Result<()> {
        let inner = &mut *self.lock();
        if inner.settings.theta_update == ThetaUpdate::Alg1 {
            return Ok(());
        }
        let Some(tau) = inner.settings.tau(inner.epoch) else {
            return Ok(());
        };
        // The momentum may hold gradients of the loss, which have the rate either way.
        let share = match inner.settings.reg_lr {
            RegRate::Lr => 1.0,
            RegRate::One if rate == 0.0 => return Ok(()),
            RegRate::One => 1.0 / rate,
        };
        let loss = (regulariser(&inner.settings, &inner.variables, tau)? * share)?;
        let grads = loss.backward()?;
        let sgd = inner.own.as_mut().unwrap_or(&mut inner.sgd);
        sgd.step(&inner.variables, &grads, rate)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `gamma g(theta) = -(gamma / tau) sum sqrt(theta)`, equation 8.
fn regulariser(settings: &Learn2Perturb, variables: &[(String, Var)], tau: f64) -> Result<Tensor> {
    let roots = variables.iter().map(|(_, theta)| theta.sqrt()?.sum_all());
    let sum = Tensor::stack(&roots.collect::<candle_core::Result<Vec<_>>>()?, 0)?.sum_all()?;
    let count: usize = variables.iter().map(|(_, theta)| theta.elem_count()).sum();
    let share = match settings.reg_reduce {
        RegReduce::Sum => 1.0,
        RegReduce::Mean => 1.0 / count as f64,
    };
    Ok((sum * (-settings.gamma / tau * share))?)
}

impl Rule for Theta {
    /// Step B: along the gradient of the cross entropy; then the projection.
    fn step(&mut self, variables: &[(String, Var)], grads: &GradStore, rate: f64) -> Result<()> {
        let inner = &mut *self.lock();
        let settings = &inner.settings;
        if inner.epoch < settings.noise_delay {
            return Ok(());
        }
        let slopes = match (settings.theta_update, settings.tau(inner.epoch)) {
            (ThetaUpdate::Alg1, Some(tau)) => {
                Some(regulariser(settings, variables, tau)?.backward()?)
            }
            _ => None,
        };
        if !settings.regulariser_only {
            inner.sgd.step(variables, grads, rate)?;
        }
        let reg_rate = match settings.reg_lr {
            RegRate::Lr => rate,
            RegRate::One => 1.0,
        };
        for (_, theta) in variables {
            let mut value = theta.as_detached_tensor();
            if let Some(slope) = slopes.as_ref().and_then(|slopes| slopes.get(theta)) {
                value = (value - (slope * reg_rate)?)?;
            }
            theta.set(&value.maximum(settings.minimum)?)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<Entry<'static>>> {
        let inner = self.lock();
        let mut entries = inner.sgd.state()?;
        if let Some(own) = &inner.own {
            entries.extend(own.state()?.into_iter().map(|entry| entry.under("own.")));
        }
        Ok(entries)
    }

    fn restore(&mut self, variables: &[(String, Var)], saved: &Saved, prefix: &str) -> Result<()> {
        let inner = &mut *self.lock();
        inner.sgd.restore(variables, saved, prefix)?;
        match &mut inner.own {
            Some(own) => own.restore(variables, saved, &format!("{prefix}own.")),
            None => Ok(()),
        }
    }
}
