//! The loop.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use theriac::{Batch, BoxError, Error, Model, Result, Run, Target};
use theriac_nn::{Saved, Twin, write};

use crate::{Group, Objective};

/// How long, and where an interrupted run continues.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Epochs in all.
    pub epochs: usize,
    /// Batches of an epoch, for progress.
    pub batches: usize,
    /// File that holds everything after each epoch (parameters, optimiser, objective, history). If
    /// it is there at the start, the run continues from it.
    pub state: Option<&'a Path>,
    /// The run also ends after an epoch of this mean loss or less.
    pub until: Option<f64>,
}

/// Where a run stands, told after each batch.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Batches of this epoch that are done.
    pub batch: usize,
    /// Batches of an epoch.
    pub batches: usize,
    /// Loss of the last batch.
    pub loss: f64,
}

/// What one epoch was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Mean loss over its batches.
    pub loss: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Images trained on, clean ones.
    pub images: u64,
    /// Gradient passes in images: crafting, and one for each image of an update.
    pub gradients: u64,
}

impl Epoch {
    /// Gradient passes a batch: 1 for ordinary training, N + 1 with an attack of N steps.
    pub fn passes(&self) -> f64 {
        self.gradients as f64 / self.images.max(1) as f64
    }
}

/// Factor of the loss in the backward pass: the gradient of an image that a network is sure of lies
/// below the smallest normal f32, where an operation takes a hundred cycles. A power of 2, so that
/// nothing but such gradients changes by a bit.
const SCALE: f64 = 18_446_744_073_709_551_616.0; // 2^64

/// Gradients of the loss by the groups' variables.
fn gradients(loss: Tensor, groups: &[Group]) -> Result<GradStore> {
    let mut grads = (&loss * SCALE)?.backward()?;
    drop(loss); // saved activations live as long as the loss
    for (_, var) in groups.iter().flat_map(Group::variables) {
        if let Some(grad) = grads.remove(var) {
            grads.insert(var, (grad * (1.0 / SCALE))?);
        }
    }
    Ok(grads)
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All epochs are done, or the loss is as low as asked.
    Done(Vec<Epoch>),
    /// The observer stopped it; whole epochs are kept in the state file.
    Stopped(Vec<Epoch>),
}

/// Trains the live twin.
///
/// Every batch: the objective's loss, one backward pass, one step of each group. After every
/// epoch the whole state is written, so that a run killed at any moment loses at most an epoch
/// and, started again, ends with the same bits on a CPU. `epoch(e)` yields the batches of epoch e
/// and must be a function of e alone. `observe` hears of every batch and may stop the run.
///
/// # Errors
/// When the loss is not finite, naming epoch and batch; those of the objective, of the batches
/// and of the state file.
pub fn fit<M, O, I>(
    twin: &Twin<M>,
    objective: &mut O,
    groups: &mut [Group],
    plan: Plan<'_>,
    run: &Run,
    mut epoch: impl FnMut(u64) -> I,
    mut observe: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome>
where
    M: Model,
    O: Objective<M>,
    I: Iterator<Item = Result<Batch<M::Target>>>,
{
    let mut history = match plan.state {
        Some(path) if path.exists() => resume(twin, objective, groups, path)?,
        _ => Vec::new(),
    };
    let reached = |last: Option<&Epoch>| last.zip(plan.until).is_some_and(|(e, l)| e.loss <= l);
    for e in history.len()..plan.epochs {
        if reached(history.last()) {
            break;
        }
        let span = tracing::info_span!("epoch", epoch = e);
        let _entered = span.enter();
        let (started, before) = (Instant::now(), run.meter().gradients());
        let (mut total, mut batches, mut images) = (0.0, 0, 0);
        objective.begin_epoch(e)?;
        for batch in epoch(e as u64) {
            let batch = batch?;
            let pass = run.train(&batch.samples).fork(e as u64).at(batches as u64);
            let loss = objective.loss(twin, &batch, &pass)?;
            let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            if !value.is_finite() {
                let text = format!("loss {value} at epoch {e}, batch {batches}: lower the rate");
                return Err(Error::Other(BoxError::from(text)));
            }
            let grads = gradients(loss, groups)?;
            for group in groups.iter_mut() {
                group.step(&grads, e)?;
            }
            run.meter().gradient(&batch.samples, &[]);
            objective.after_update(twin, &batch, &pass)?;
            total += value;
            batches += 1;
            images += batch.target.len() as u64;
            let (epochs, of) = (plan.epochs, plan.batches);
            let progress = Progress {
                epoch: e,
                epochs,
                batch: batches,
                batches: of,
                loss: value,
            };
            if observe(progress).is_break() {
                return Ok(Outcome::Stopped(history));
            }
        }
        if batches == 0 {
            return Err(Error::Empty { what: "epoch" });
        }
        let loss = total / batches as f64;
        let gradients = run.meter().gradients() - before;
        history.push(Epoch {
            loss,
            seconds: started.elapsed().as_secs_f64(),
            images,
            gradients,
        });
        tracing::info!(
            epoch = e,
            loss,
            seconds = started.elapsed().as_secs_f64(),
            "trained"
        );
        if let Some(path) = plan.state {
            save(twin, objective, groups, path, &history)?;
        }
    }
    Ok(Outcome::Done(history))
}

fn save<M: Model, O: Objective<M>>(
    twin: &Twin<M>,
    objective: &O,
    groups: &[Group],
    path: &Path,
    history: &[Epoch],
) -> Result<()> {
    let mut entries = twin.params.entries("params.")?;
    for (i, group) in groups.iter().enumerate() {
        let state = group.state()?.into_iter();
        entries.extend(state.map(|entry| entry.under(&format!("groups.{i}."))));
    }
    let state = objective.state()?.into_iter();
    entries.extend(state.map(|entry| entry.under("objective.")));
    let history = serde_json::to_string(history).map_err(BoxError::from)?;
    let about = BTreeMap::from([
        ("format".to_owned(), "theriac training state 1".to_owned()),
        ("history".to_owned(), history),
    ]);
    Ok(write(path, entries, &about)?)
}

fn resume<M: Model, O: Objective<M>>(
    twin: &Twin<M>,
    objective: &mut O,
    groups: &mut [Group],
    path: &Path,
) -> Result<Vec<Epoch>> {
    let saved = Saved::read(path)?;
    let history = saved
        .about()
        .get("history")
        .map(String::as_str)
        .unwrap_or("");
    let history: Vec<Epoch> = serde_json::from_str(history).map_err(|error| {
        BoxError::from(format!(
            "{}: no training history ({error}); delete it",
            path.display()
        ))
    })?;
    // The parameters last: where the rest does not fit, the network stays as it is.
    twin.params.check(&saved, "params.")?;
    for (i, group) in groups.iter_mut().enumerate() {
        group.restore(&saved, &format!("groups.{i}."))?;
    }
    objective.restore(&saved, "objective.")?;
    twin.params.restore(&saved, "params.")?;
    tracing::info!(epochs = history.len(), path = %path.display(), "continuing");
    Ok(history)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use theriac::Rng;

    use super::*;
    use crate::{Schedule, Sgd};

    /// The factor changes no bit of ordinary gradients, and saves those that f32 would lose between
    /// two layers.
    #[test]
    fn the_factor_of_the_loss_is_exact() -> Result<()> {
        let draw = |purpose, rows: usize, columns: usize| {
            let values = Rng::new(2).normal(purpose, 0, rows * columns);
            Tensor::from_vec(values, (rows, columns), &Device::Cpu)
        };
        let (large, small) = (2f64.powi(20), 2f64.powi(-20));
        let x = (draw("x", 5, 7)? * large)?;
        let labels = Tensor::new(&[0u32, 2, 1, 1, 0], &Device::Cpu)?;
        let first = Var::from_tensor(&draw("first", 4, 7)?)?;
        let second = Var::from_tensor(&(draw("second", 3, 4)? * small)?)?;
        let named = [("first", &first), ("second", &second)];
        let named = named.map(|(name, var)| (name.to_owned(), var.clone()));
        let rate = Schedule::Constant { rate: 0.1 };
        let groups = [Group::new(named.to_vec(), Sgd::default(), rate)?];
        let loss = |weight: f64| -> Result<Tensor> {
            let hidden = theriac_ops::linear(&x, &first, None)?;
            let logits = theriac_ops::linear(&hidden, &second, None)?;
            let losses = theriac_ops::cross_entropy(&logits, &labels)?;
            Ok((losses.mean_all()? * weight)?)
        };
        let rows = |grads: &GradStore, var: &Var| grads.get(var).unwrap().to_vec2::<f32>();
        let plain = loss(1.0)?.backward()?;
        let ours = gradients(loss(1.0)?, &groups)?;
        for (_, var) in &named {
            assert_eq!(rows(&ours, var)?, rows(&plain, var)?);
        }
        // Between the layers gradients are about 2^-160, which f32 rounds to 0; the first layer's
        // are about 2^-140.
        let tiny = 2f64.powi(-140);
        let ours = rows(&gradients(loss(tiny)?, &groups)?, &first)?;
        assert!(ours.iter().flatten().filter(|g| **g != 0.0).count() > 20);
        for (ours, plain) in ours
            .iter()
            .flatten()
            .zip(rows(&plain, &first)?.iter().flatten())
        {
            let expected = (f64::from(*plain) * tiny) as f32;
            assert!(
                (ours - expected).abs() <= 2.0 * f32::from_bits(1),
                "{ours}, {expected}"
            );
        }
        Ok(())
    }
}
