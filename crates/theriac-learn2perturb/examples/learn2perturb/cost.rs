//! What a training step costs.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::DType;
use theriac::{Batch, Labels, Run};
use theriac_data::{Dataset as _, synthetic};
use theriac_tables::{BoxError, Cell, Lab, Measured};
use theriac_train::{Plan, Progress, fit};

use crate::Settings;
use crate::method::{Method, Recipe};

/// Steps in a row, the first of which is not counted: it makes buffers.
const STEPS: usize = 6;
/// Turns of the two methods, so that what else the machine does falls on both.
const TURNS: usize = 4;

/// Milliseconds of a training step with adversarial images, the median of some, or its ratio to that
/// of the vanilla method.
pub(crate) fn cost(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
    let device = theriac::device(&lab.device)?;
    let run = Run::new(cell.seed, &device);
    let recipe = &settings.recipe;
    let data = synthetic(recipe.batch, [3, 32, 32], 10, &run.rng())?;
    let indices: Vec<u32> = (0..recipe.batch as u32).collect();
    let batch = data.batch(&indices, DType::F32, &device)?;
    let vanilla = recipe.of(Method::Vanilla);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ours.extend(milliseconds(recipe, &batch, &run)?);
        theirs.extend(milliseconds(&vanilla, &batch, &run)?);
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (n, ours, theirs) = (ours.len(), median(ours), median(theirs));
    let value = match cell.column.measure.as_str() {
        "step-ratio" => ours / theirs,
        _ => ours,
    };
    Ok(Measured {
        value,
        n,
        ..Measured::default()
    })
}

/// Of a few steps of a method's own training.
fn milliseconds(recipe: &Recipe, batch: &Batch<Labels>, run: &Run) -> Result<Vec<f64>, BoxError> {
    let twin = recipe.network(0, run.device())?;
    let (mut objective, mut groups) = recipe.training(&twin)?;
    let plan = Plan {
        epochs: 1,
        batches: STEPS,
        state: None,
        until: None,
    };
    let epoch = |_| (0..STEPS).map(|_| Ok(batch.clone()));
    let (mut began, mut all) = (Instant::now(), Vec::new());
    let observe = |progress: Progress| {
        if progress.batch > 1 {
            all.push(1000.0 * began.elapsed().as_secs_f64());
        }
        began = Instant::now();
        ControlFlow::Continue(())
    };
    fit(
        &twin,
        &mut objective,
        &mut groups,
        plan,
        run,
        epoch,
        observe,
    )?;
    Ok(all)
}
