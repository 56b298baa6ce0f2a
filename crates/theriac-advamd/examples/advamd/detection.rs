//! How well detectors tell adversarial images from clean ones.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Run, craft};
use theriac_eval::Roc;
use theriac_experiment::{batches, share};
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::Settings;
use crate::scoring::{Defence, marks_of, test_images};

/// A detector of MagNet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// By the reconstruction error.
    Reconstruction,
    /// By the divergence at a temperature.
    Divergence(f64),
}

const BATCH: usize = 250;

/// The share of adversarial images, made on the network alone, that a detector refuses when it may
/// refuse so many clean ones: a point of its ROC.
pub(crate) fn caught(
    settings: &Settings,
    cell: &Cell<'_>,
    lab: &Lab,
) -> Result<Measured, BoxError> {
    let (refused, kind) = settings.refused.zip(settings.detector).ok_or("refused")?;
    let device = theriac::device(&lab.device)?;
    let run = Run::new(cell.seed, &device);
    let twin = settings.recipe.vanilla(cell, lab, &device)?;
    let defence = Defence::new(&settings.recipe, &twin.frozen, cell, lab)?;
    let detector = match kind {
        Kind::Reconstruction => defence.reconstruction(),
        Kind::Divergence(temperature) => defence.divergence(temperature),
    };
    let data = test_images(settings, settings.images(true), lab)?;
    let (mut clean, mut moved) = (Vec::new(), Vec::new());
    for batch in batches(&data, BATCH, &run, lab)? {
        let batch = batch?;
        let (x, pass) = (&batch.pixels, run.eval(&batch.samples));
        let aim = Aim::Away(&batch.target);
        let adversarial = craft(settings.attack()?, &twin.frozen, x, aim, &pass)?;
        clean.extend(marks_of(&*detector, x, &pass)?);
        moved.extend(marks_of(&*detector, &adversarial, &pass)?);
        let all = theriac_data::Dataset::len(&data) as u64;
        lab.progress("marks", clean.len() as u64, all);
    }
    let roc = Roc::of(&clean, &moved);
    let caught = (roc.caught(refused) * moved.len() as f64).round() as usize;
    let mut measured = share(theriac_eval::Accuracy {
        correct: caught,
        n: moved.len(),
    });
    measured
        .extra
        .insert("area under the ROC".to_owned(), roc.area);
    Ok(measured)
}
