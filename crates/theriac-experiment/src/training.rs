//! Training that can be interrupted, into a folder of the store.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use theriac::{Labels, Model, Run};
use theriac_data::{Dataset, Loader};
use theriac_nn::Twin;
use theriac_tables::{BoxError, Interrupted, Lab};
use theriac_train::{Epoch, Group, Objective, Outcome, Plan, Progress, fit};

use crate::into_theriac;

/// The trained parameters.
pub const MODEL: &str = "model.safetensors";
/// One entry an epoch.
pub const HISTORY: &str = "history.json";
const STATE: &str = "state.safetensors";

/// The parameters as they were after so many epochs, of a training that kept them.
pub fn after(folder: &Path, epochs: usize) -> PathBuf {
    folder.join(format!("after-{epochs:04}.safetensors"))
}

/// What the epochs of a training were.
///
/// # Errors
/// If the folder holds no training.
pub fn history(folder: &Path) -> Result<Vec<Epoch>, BoxError> {
    let path = folder.join(HISTORY);
    let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// What a file of parameters says of its network, so that it can be loaded without being told: the
/// description, and how pixels are normalised.
///
/// # Errors
/// If the description cannot be written as JSON.
pub fn about(
    network: &impl Serialize,
    mean: &[f64],
    std: &[f64],
) -> Result<BTreeMap<String, String>, BoxError> {
    let list = |numbers: &[f64]| {
        let all: Vec<String> = numbers.iter().map(f64::to_string).collect();
        all.join(",")
    };
    Ok(BTreeMap::from([
        ("network".to_owned(), serde_json::to_string(network)?),
        ("mean".to_owned(), list(mean)),
        ("std".to_owned(), list(std)),
    ]))
}

/// One training.
#[derive(Clone, Copy)]
pub struct Training<'a> {
    /// Progress and interruption.
    pub lab: &'a Lab,
    /// Seed and device.
    pub run: &'a Run,
    /// Where [`MODEL`] and [`HISTORY`] go, and the state of an unfinished training lies.
    pub folder: &'a Path,
    /// What progress is called.
    pub label: &'a str,
    /// Epochs in all.
    pub epochs: usize,
    /// Ends as well after an epoch of this mean loss or less.
    pub until: Option<f64>,
    /// Numbers of epochs after which the parameters are kept as well, see [`after`].
    pub kept: &'a [usize],
    /// What the file of the parameters says of itself.
    pub about: &'a BTreeMap<String, String>,
}

impl Training<'_> {
    /// Trains to the end, from where an earlier call was interrupted.
    ///
    /// # Errors
    /// [`Interrupted`] when the user stops it; those of [`fit`] and of the files.
    pub fn train<M, D, O>(
        &self,
        twin: &Twin<M>,
        objective: &mut O,
        groups: &mut [Group],
        loader: &Loader<'_, D>,
    ) -> Result<(), BoxError>
    where
        M: Model<Target = Labels>,
        D: Dataset<Target = Labels> + ?Sized,
        O: Objective<M>,
    {
        let Self {
            lab,
            folder,
            epochs,
            ..
        } = *self;
        let (state, batches) = (folder.join(STATE), loader.batches());
        let plan = Plan {
            epochs,
            batches,
            state: Some(&state),
            until: self.until,
        };
        let epoch = |e| loader.epoch(e).map(|batch| batch.map_err(into_theriac));
        let mut failed = None;
        let observe = |progress: Progress| {
            let done = progress.epoch * batches + progress.batch;
            lab.progress(self.label, done as u64, (epochs * batches) as u64);
            let ended = progress.epoch + 1;
            if progress.batch == batches && self.kept.contains(&ended) {
                let path = after(folder, ended);
                failed = twin.params.save(&path, self.about).err();
            }
            match lab.interrupted() || failed.is_some() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let outcome = fit(twin, objective, groups, plan, self.run, epoch, observe)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let Outcome::Done(history) = outcome else {
            return Err(Interrupted.into());
        };
        twin.params.save(&folder.join(MODEL), self.about)?;
        fs::write(folder.join(HISTORY), serde_json::to_vec_pretty(&history)?)?;
        Ok(fs::remove_file(state)?)
    }
}
