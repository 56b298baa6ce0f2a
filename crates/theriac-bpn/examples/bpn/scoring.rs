//! Accuracy, and what lies behind it.

use std::path::Path;

use candle_core::DType;
use theriac::{
    Aim, Batch, Classifier, Labels, Norm, Run, Target as _, gradient, in_chunks, scores,
};
use theriac_attacks::{Declare as _, Declared, Loss, Transfer};
use theriac_data::{Dataset, Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_eval::{Evaluator, clean_accuracy};
use theriac_experiment::{images, into_theriac, measured, share};
use theriac_nn::{Network, Twin};
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::{Defence, Settings, trained};

const BATCH: usize = 256;

/// A cell of a trained network.
pub(crate) fn score(
    settings: &Settings,
    model: &Path,
    cell: &Cell<'_>,
    lab: &Lab,
) -> Result<Measured, BoxError> {
    let device = theriac::device(&lab.device)?;
    let dtype = if settings.double {
        DType::F64
    } else {
        DType::F32
    };
    let twin = settings.network(cell.seed, dtype, &device)?;
    twin.params.load(model)?;
    let run = Run::new(cell.seed, &device);
    let data = images(
        &settings.data,
        settings.embedded,
        Split::Test,
        settings.most.unwrap_or(usize::MAX).min(settings.test),
        lab,
    )?;
    let loader = Loader::new(&data, BATCH, Order::Sequential, Partial::Keep)?
        .dtype(dtype)
        .device(&device);
    let batches = || loader.epoch(0).map(|batch| batch.map_err(into_theriac));
    let label = format!("{}, {}", cell.row.name, cell.column.name);
    let observe = |done: usize| lab.progress(&label, done as u64, data.len() as u64);
    match cell.column.measure.as_str() {
        "zero-gradients" => {
            let slopes = over(&twin, batches(), &run, slopes)?;
            let zero = slopes.iter().filter(|slope| **slope == 0.0).count();
            return Ok(number(
                100.0 * zero as f64 / slopes.len() as f64,
                slopes.len(),
            ));
        }
        "margin" => {
            let mut margins = over(&twin, batches(), &run, margins)?;
            margins.sort_by(f64::total_cmp);
            return Ok(number(margins[margins.len() / 2], margins.len()));
        }
        "largest-bias" => return largest_bias(settings, &twin),
        _ => {}
    }
    let Some(attack) = settings.attack.clone() else {
        let (accuracy, _) = clean_accuracy(&twin.frozen, batches(), &run, observe)?;
        return Ok(share(accuracy));
    };
    let evaluator = Evaluator::new(&twin.frozen, &run);
    if settings.transfer {
        let classical = Settings {
            defence: Defence::Cn,
            ..settings.clone()
        };
        let surrogate = classical.network(cell.seed, dtype, &device)?;
        surrogate.params.load(&trained(&classical, cell, lab)?)?;
        let declared = attack.declared();
        let declared = Declared {
            name: format!("{} on the classical twin", declared.name),
            iterative: false,
            ..declared
        };
        let attack = Transfer {
            attack,
            surrogate: &surrogate.frozen,
        };
        return Ok(measured(&evaluator.attack(
            &attack,
            &declared,
            batches(),
            observe,
        )?));
    }
    Ok(measured(&evaluator.spec(attack, batches(), observe)?))
}

fn number(value: f64, n: usize) -> Measured {
    Measured {
        value,
        n,
        ..Measured::default()
    }
}

/// A value of each image.
fn over(
    twin: &Twin<Network>,
    batches: impl Iterator<Item = theriac::Result<Batch<Labels>>>,
    run: &Run,
    of: fn(&Network, &Batch<Labels>, &Run) -> theriac::Result<Vec<f64>>,
) -> theriac::Result<Vec<f64>> {
    let mut values = Vec::new();
    for batch in batches {
        values.extend(of(&twin.frozen, &batch?, run)?);
    }
    Ok(values)
}

/// Largest slope of the cross entropy: 0 is a wall to attacks by gradients.
fn slopes(model: &Network, batch: &Batch<Labels>, run: &Run) -> theriac::Result<Vec<f64>> {
    in_chunks(
        &batch.pixels,
        &run.eval(&batch.samples),
        |start, x, pass| {
            let y = batch.target.narrow(start, x.len())?;
            let loss = |x: &_| Loss::CrossEntropy.of(&model.logits(x, pass)?, Aim::Away(&y));
            let (_, slopes) = gradient(x, pass, loss)?;
            Norm::Linf.of(&slopes)
        },
    )
}

/// Largest logit less the next.
fn margins(model: &Network, batch: &Batch<Labels>, run: &Run) -> theriac::Result<Vec<f64>> {
    let rows = scores(model, &batch.pixels, &run.eval(&batch.samples))?;
    let margin = |mut row: Vec<f64>| {
        row.sort_by(|a, b| b.total_cmp(a));
        row[0] - row[1]
    };
    Ok(rows.into_iter().map(margin).collect())
}

/// The largest value of a bias of the fully connected layers.
fn largest_bias(settings: &Settings, twin: &Twin<Network>) -> Result<Measured, BoxError> {
    let biases = match settings.defence {
        Defence::Bpn => settings.bpn.biases(&twin.params, twin.live.classes())?,
        Defence::Cn => {
            let mut all = twin.params.trainable();
            all.retain(|(path, _)| path.starts_with("fc") && path.ends_with("bias"));
            all
        }
    };
    let mut most = 0f64;
    for (_, bias) in &biases {
        let largest = bias.abs()?.max_all()?.to_dtype(DType::F64)?;
        most = most.max(largest.to_scalar()?);
    }
    Ok(number(most, biases.len()))
}
