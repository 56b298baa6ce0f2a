//! A direction found by several steps.

use candle_core::{Tensor, Var};
use theriac::{Batch, Model, Pass, Result};
use theriac_nn::{Entry, Saved, Twin};
use theriac_train::{Objective, Schedule};

use crate::rule::limit;

/// An objective whose network's beneficial biases move by several signs a batch.
///
/// ```text
/// repeated k times, W as it is:   b <- b + (s eta eps / k) sign(d loss / d b)
/// then W moves by its gradient at the old b, and b is the moved one
/// ```
///
/// The paper names this for future work (section 7.2). With no steps it is the objective inside.
/// The objective inside runs k + 1 times on each batch; adversarial images are crafted again at
/// every moved bias, and norms over the batch see it as often.
#[derive(Debug)]
pub struct BiasPgd<O> {
    objective: O,
    biases: Vec<(String, Var)>,
    size: f64,
    steps: u32,
    limit: Option<f64>,
    schedule: Schedule,
    epoch: usize,
    moved: Vec<Tensor>,
}

impl<O> BiasPgd<O> {
    pub(crate) fn new(
        objective: O,
        biases: Vec<(String, Var)>,
        size: f64,
        steps: u32,
        limit: Option<f64>,
        schedule: Schedule,
    ) -> Self {
        Self {
            objective,
            biases,
            size,
            steps,
            limit,
            schedule,
            epoch: 0,
            moved: Vec::new(),
        }
    }

    fn copies(&self) -> Result<Vec<Tensor>> {
        let copy = |(_, var): &(String, Var)| Ok(var.as_detached_tensor().copy()?);
        self.biases.iter().map(copy).collect()
    }

    fn set(&self, values: &[Tensor]) -> Result<()> {
        for ((_, var), value) in self.biases.iter().zip(values) {
            var.set(value)?;
        }
        Ok(())
    }
}

impl<M: Model, O: Objective<M>> Objective<M> for BiasPgd<O> {
    fn loss(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        if self.steps > 0 {
            let start = self.copies()?;
            let step = self.size * self.schedule.at(self.epoch) / f64::from(self.steps);
            for _ in 0..self.steps {
                let grads = self.objective.loss(twin, batch, pass)?.backward()?;
                pass.meter.gradient(&batch.samples, &[]);
                for (_, var) in &self.biases {
                    if let Some(grad) = grads.get(var) {
                        var.set(&(var.as_tensor() + (grad.sign()? * step)?)?)?;
                    }
                }
                limit(&self.biases, self.limit)?;
            }
            self.moved = self.copies()?;
            self.set(&start)?;
        }
        self.objective.loss(twin, batch, pass)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.epoch = epoch;
        self.objective.begin_epoch(epoch)
    }

    fn after_update(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let moved = std::mem::take(&mut self.moved);
        self.set(&moved)?;
        self.objective.after_update(twin, batch, pass)
    }

    fn state(&self) -> Result<Vec<Entry<'_>>> {
        self.objective.state()
    }

    fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        self.objective.restore(saved, prefix)
    }
}
