//! How variables move.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use theriac::{Error, Result};
use theriac_nn::{Entry, Saved};

use crate::Schedule;

/// How one variable moves along its gradient.
pub trait Rule: Send {
    /// One update of every variable of a group. A variable without gradient stays.
    ///
    /// # Errors
    /// A candle error.
    fn step(&mut self, variables: &[(String, Var)], grads: &GradStore, rate: f64) -> Result<()>;

    /// Buffers and counters, for a file.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    fn state(&self) -> Result<Vec<Entry<'static>>>;

    /// Takes up what [`Rule::state`] wrote, found in the file behind `prefix`.
    ///
    /// # Errors
    /// When an entry is missing.
    fn restore(&mut self, variables: &[(String, Var)], saved: &Saved, prefix: &str) -> Result<()>;
}

/// Stochastic gradient descent in PyTorch's order: decay is added to the gradient, then
/// `b <- momentum b + (1 - dampening) g` (b = g at the first step), then
/// `w <- w - rate * (nesterov ? g + momentum b : b)`.
#[derive(Clone, Debug, Default)]
pub struct Sgd {
    /// Momentum.
    pub momentum: f64,
    /// Dampening of the momentum.
    pub dampening: f64,
    /// Nesterov's variant.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    buffers: Buffers,
}

impl Sgd {
    /// Plain momentum.
    pub fn momentum(momentum: f64) -> Self {
        Self {
            momentum,
            ..Self::default()
        }
    }

    /// The same settings without any momentum yet.
    pub fn fresh(&self) -> Self {
        Self {
            buffers: Buffers::default(),
            ..self.clone()
        }
    }
}

/// Adam (Kingma & Ba 2015) in PyTorch's form, with L2 or decoupled (AdamW) decay.
#[derive(Clone, Debug)]
pub struct Adam {
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay acts on the weights (AdamW) instead of the gradient.
    pub decoupled: bool,
    /// Whether another rate starts with no moments, as where code makes a new optimiser for each
    /// stage of its schedule.
    pub anew: bool,
    rate: f64,
    step: usize,
    first: Buffers,
    second: Buffers,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
            anew: false,
            rate: 0.0,
            step: 0,
            first: Buffers::default(),
            second: Buffers::default(),
        }
    }
}

/// One tensor for each variable of a group, by position.
#[derive(Clone, Debug, Default)]
struct Buffers(Vec<Var>);

impl Buffers {
    /// Zeros at the first step.
    fn fill(&mut self, variables: &[(String, Var)]) -> Result<bool> {
        if self.0.len() == variables.len() {
            return Ok(false);
        }
        let zeros = variables
            .iter()
            .map(|(_, var)| Var::from_tensor(&var.zeros_like()?));
        self.0 = zeros.collect::<candle_core::Result<_>>()?;
        Ok(true)
    }

    fn entries(&self, name: &str) -> Result<Vec<Entry<'static>>> {
        let named = self.0.iter().enumerate();
        Ok(named
            .map(|(i, var)| Entry::tensor(format!("{name}.{i}"), var))
            .collect::<Result<_, _>>()?)
    }

    fn restore(&mut self, variables: &[(String, Var)], saved: &Saved, name: &str) -> Result<()> {
        self.0.clear();
        for (i, (_, var)) in variables.iter().enumerate() {
            let value = saved.tensor(&format!("{name}.{i}"), var.device())?;
            self.0.push(Var::from_tensor(&value)?);
        }
        Ok(())
    }
}

impl Rule for Sgd {
    fn step(&mut self, variables: &[(String, Var)], grads: &GradStore, rate: f64) -> Result<()> {
        let first = self.momentum != 0.0 && self.buffers.fill(variables)?;
        let sgd = theriac_ops::Sgd {
            lr: rate,
            momentum: self.momentum,
            dampening: self.dampening,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
        };
        for (i, (_, var)) in variables.iter().enumerate() {
            if let Some(grad) = grads.get(var) {
                theriac_ops::sgd_step(&sgd, var, grad, self.buffers.0.get(i), first)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<Entry<'static>>> {
        self.buffers.entries("momentum")
    }

    fn restore(&mut self, variables: &[(String, Var)], saved: &Saved, prefix: &str) -> Result<()> {
        if self.momentum == 0.0 {
            return Ok(());
        }
        self.buffers
            .restore(variables, saved, &format!("{prefix}momentum"))
    }
}

impl Rule for Adam {
    fn step(&mut self, variables: &[(String, Var)], grads: &GradStore, rate: f64) -> Result<()> {
        if self.anew && rate != self.rate {
            self.step = 0;
            self.first = Buffers::default();
            self.second = Buffers::default();
        }
        self.rate = rate;
        self.first.fill(variables)?;
        self.second.fill(variables)?;
        self.step += 1;
        let adam = theriac_ops::Adam {
            lr: rate,
            beta1: self.betas.0,
            beta2: self.betas.1,
            eps: self.eps,
            weight_decay: self.weight_decay,
            decoupled: self.decoupled,
        };
        for (i, (_, var)) in variables.iter().enumerate() {
            if let Some(grad) = grads.get(var) {
                let (m, v) = (&self.first.0[i], &self.second.0[i]);
                theriac_ops::adam_step(&adam, var, grad, m, v, self.step)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<Entry<'static>>> {
        let mut entries = self.first.entries("first")?;
        entries.extend(self.second.entries("second")?);
        let step = Tensor::new(&[self.step as u32], &candle_core::Device::Cpu)?;
        entries.push(Entry::tensor("step", &step)?);
        if self.anew {
            let rate = Tensor::new(&[self.rate], &candle_core::Device::Cpu)?;
            entries.push(Entry::tensor("rate", &rate)?);
        }
        Ok(entries)
    }

    fn restore(&mut self, variables: &[(String, Var)], saved: &Saved, prefix: &str) -> Result<()> {
        self.first
            .restore(variables, saved, &format!("{prefix}first"))?;
        self.second
            .restore(variables, saved, &format!("{prefix}second"))?;
        let step = saved.tensor(&format!("{prefix}step"), &candle_core::Device::Cpu)?;
        self.step = step.to_vec1::<u32>()?[0] as usize;
        if self.anew {
            let rate = saved.tensor(&format!("{prefix}rate"), &candle_core::Device::Cpu)?;
            self.rate = rate.to_vec1::<f64>()?[0];
        }
        Ok(())
    }
}

/// Variables that move by one rule.
pub struct Group {
    variables: Vec<(String, Var)>,
    rule: Box<dyn Rule>,
    schedule: Schedule,
}

impl Group {
    /// A group of variables; [`theriac_nn::Params::trainable`] for all of a network.
    ///
    /// # Errors
    /// When there are none.
    pub fn new(
        variables: Vec<(String, Var)>,
        rule: impl Rule + 'static,
        schedule: Schedule,
    ) -> Result<Self> {
        if variables.is_empty() {
            return Err(Error::Empty {
                what: "group of variables",
            });
        }
        Ok(Self {
            variables,
            rule: Box::new(rule),
            schedule,
        })
    }

    pub(crate) fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    pub(crate) fn step(&mut self, grads: &GradStore, epoch: usize) -> Result<()> {
        self.rule
            .step(&self.variables, grads, self.schedule.at(epoch))
    }

    pub(crate) fn state(&self) -> Result<Vec<Entry<'static>>> {
        self.rule.state()
    }

    pub(crate) fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        self.rule.restore(&self.variables, saved, prefix)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;
    use theriac_nn::write;

    use super::*;

    fn variable(values: &[f32]) -> Result<Vec<(String, Var)>> {
        let var = Var::from_slice(values, values.len(), &Device::Cpu)?;
        Ok(vec![("w".to_owned(), var)])
    }

    /// So many steps down the sum of fourth powers.
    fn descend(adam: &mut Adam, at: &[(String, Var)], rate: f64, steps: usize) -> Result<Vec<f32>> {
        let w = &at[0].1;
        for _ in 0..steps {
            let loss = w.sqr()?.sqr()?.sum_all()?;
            adam.step(at, &loss.backward()?, rate)?;
        }
        Ok(w.to_vec1()?)
    }

    /// With `anew` a second rate is a second optimiser; an interruption at its start or within it
    /// changes nothing.
    #[test]
    fn another_rate_starts_without_moments() -> Result<()> {
        let settings = |anew| Adam {
            anew,
            ..Adam::default()
        };
        let ends = |anew, second: &mut dyn FnMut(Adam) -> Result<Adam>| {
            let w = variable(&[0.9, -0.4, 0.2])?;
            let mut adam = settings(anew);
            descend(&mut adam, &w, 0.1, 3)?;
            let mut adam = second(adam)?;
            descend(&mut adam, &w, 0.01, 2)
        };
        let one = ends(true, &mut Ok)?;
        assert_eq!(one, ends(false, &mut |_| Ok(Adam::default()))?);
        assert_ne!(one, ends(false, &mut Ok)?);

        let dir = tempfile::tempdir().unwrap();
        let mut reread = |adam: Adam| {
            let path = dir.path().join("state.safetensors");
            write(&path, adam.state()?, &BTreeMap::new())?;
            let mut read = settings(true);
            read.restore(&variable(&[0.0; 3])?, &Saved::read(&path)?, "")?;
            Ok(read)
        };
        assert_eq!(one, ends(true, &mut reread)?);

        let w = variable(&[0.9, -0.4, 0.2])?;
        let mut adam = settings(true);
        descend(&mut adam, &w, 0.1, 3)?;
        descend(&mut adam, &w, 0.01, 1)?;
        assert_eq!(one, descend(&mut reread(adam)?, &w, 0.01, 1)?);
        Ok(())
    }
}
