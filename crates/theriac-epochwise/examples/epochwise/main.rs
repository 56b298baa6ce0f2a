//! Computes the cells of the paper's Table I and of its figures 1 and 2.
//!
//! `cargo xtask reproduce epochwise` runs it; alone it takes the same options as every paper's
//! example, see `--help`.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Once;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use theriac::{Budget, Eps, Mode, Run};
use theriac_adversarial::AdversarialTraining;
use theriac_atda::Atda;
use theriac_attacks::{Fgsm, bim};
use theriac_data::{Dataset, Images, Loader, Order, Partial};
use theriac_datasets::{Options, Role, Split, embedded, resolve};
use theriac_epochwise::{EpochWise, Reading};
use theriac_models::atda_cnn;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_tables::{BoxError, Cell, Experiment, Interrupted, Lab, Measured};
use theriac_train::{
    Adam, Clean, Epoch, Group, LabelSource, Objective, Outcome, Plan, Progress, Schedule, fit,
};

mod scoring;

// Attacks allocate and free the same sizes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MODEL: &str = "model.safetensors";
const HISTORY: &str = "history.json";
const STATE: &str = "state.safetensors";

fn main() -> ExitCode {
    theriac_tables::main(Epochwise, concat!(env!("CARGO_MANIFEST_DIR"), "/tables"))
}

/// What a cell's settings may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    method: Method,
    data: String,
    /// Take the samples in the repository instead of the whole data set.
    #[serde(default)]
    embedded: bool,
    train: usize,
    test: usize,
    epochs: usize,
    batch: usize,
    learning_rate: f64,
    eps: Eps,
    /// Other readings of the paper, for the proposed method.
    #[serde(default)]
    reading: Reading,
    attack: scoring::Attack,
    /// Random starts of the attacks that have them.
    #[serde(default = "one")]
    restarts: u32,
}

fn one() -> u32 {
    1
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Method {
    Vanilla,
    FgsmAdv,
    Atda,
    #[serde(rename = "epochwise")]
    EpochWise,
    Bim10Adv,
    Bim30Adv,
}

/// What a trained network depends on, and nothing else: cells that agree on it share the network.
#[derive(Debug, Serialize)]
struct Training<'a> {
    paper: &'a str,
    method: Method,
    data: &'a str,
    embedded: bool,
    train: usize,
    epochs: usize,
    batch: usize,
    learning_rate: f64,
    /// `None` for the method without perturbations.
    eps: Option<Eps>,
    /// `None` for all methods but the proposed one.
    proposed: Option<Reading>,
}

struct Epochwise;

impl Experiment for Epochwise {
    fn check(&self, cell: &Cell<'_>) -> Result<(), BoxError> {
        let settings = cell.settings::<Settings>()?;
        Budget::linf(settings.eps)?;
        match cell.column.measure.as_str() {
            "accuracy" | "seconds-per-epoch" | "passes-per-batch" => Ok(()),
            other => Err(format!(
                "unknown measure {other:?}; known: accuracy, seconds-per-epoch, passes-per-batch"
            )
            .into()),
        }
    }

    fn measure(&self, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
        use_threads(lab.threads);
        let settings = cell.settings::<Settings>()?;
        let device = theriac::device(&lab.device)?;
        // Costs come from a run of one epoch of their own: the long runs may share the machine with
        // other work, or may have been interrupted.
        let cost = |of: fn(&Epoch) -> f64| -> Result<Measured, BoxError> {
            let one = Settings {
                epochs: 1,
                ..cell.settings()?
            };
            let folder = trained(&one, cell, lab, &device)?;
            let history: Vec<Epoch> = serde_json::from_slice(&fs::read(folder.join(HISTORY))?)?;
            let epoch = history.first().ok_or("the run has no epoch")?;
            let value = of(epoch);
            Ok(Measured {
                value,
                n: 1,
                seconds: epoch.seconds,
                ..Measured::default()
            })
        };
        match cell.column.measure.as_str() {
            "seconds-per-epoch" => cost(|epoch| epoch.seconds),
            "passes-per-batch" => cost(Epoch::passes),
            _ => {
                let model = trained(&settings, cell, lab, &device)?.join(MODEL);
                scoring::accuracy(&settings, &model, cell, lab, &device)
            }
        }
    }
}

fn use_threads(threads: Option<usize>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Some(n) = threads {
            // Fails only when a pool exists already, and then results are the same.
            let _ = rayon::ThreadPoolBuilder::new()
                .num_threads(n)
                .build_global();
        }
    });
}

/// The first `n` images of a split.
fn images(settings: &Settings, split: Split, lab: &Lab) -> Result<Images, BoxError> {
    let whole = if settings.embedded {
        let sample = embedded(&settings.data)?;
        let part = match split {
            Split::Train => sample.train,
            Split::Test => sample.test,
        };
        Images::new(
            &settings.data,
            part.images,
            part.labels,
            sample.shape,
            sample.classes,
        )?
        .with_ids(part.indices)?
    } else {
        let from_env = Options::from_env();
        let options = Options {
            data_dir: lab.data_dir.clone().or(from_env.data_dir),
            ..from_env
        };
        let files = resolve(&settings.data, &options)?;
        let path = |role| {
            files
                .paths(split, role)
                .first()
                .copied()
                .ok_or("the description lacks a file")
        };
        Images::from_idx(&settings.data, path(Role::Images)?, path(Role::Labels)?, 10)?
    };
    let n = match split {
        Split::Train => settings.train,
        Split::Test => settings.test,
    };
    Ok(if n == whole.len() {
        whole
    } else {
        whole.take(n)?
    })
}

fn network(seed: u64, device: &Device) -> Result<Twin<Network>, BoxError> {
    let params = Params::new(seed, DType::F32, device);
    Ok(Twin::build(&params, |vb| atda_cnn(&Plain, vb))?)
}

/// The folder of the trained network, from the store or made now.
fn trained(
    settings: &Settings,
    cell: &Cell<'_>,
    lab: &Lab,
    device: &Device,
) -> Result<PathBuf, BoxError> {
    let proposed = settings.method == Method::EpochWise;
    let training = Training {
        paper: "epochwise",
        method: settings.method,
        data: &settings.data,
        embedded: settings.embedded,
        train: settings.train,
        epochs: settings.epochs,
        batch: settings.batch,
        learning_rate: settings.learning_rate,
        eps: (settings.method != Method::Vanilla).then_some(settings.eps),
        proposed: proposed.then_some(settings.reading),
    };
    let label = format!("training {}, {}", cell.row.name, settings.data);
    Ok(lab.memo(cell, "train", &training, |folder| {
        let eps = settings.eps;
        let fgsm = || Budget::linf(eps).map(|budget| Fgsm { budget });
        let bim_adv = |steps| -> theriac::Result<_> {
            let (clean_weight, label) = (0.5, LabelSource::True);
            let attack = bim(eps, eps.over(steps)?, steps)?;
            Ok(AdversarialTraining {
                attack,
                clean_weight,
                label,
                mode: Mode::Eval,
            })
        };
        let go = Go {
            settings,
            lab,
            device,
            seed: cell.seed,
            folder,
            label: &label,
        };
        match settings.method {
            Method::Vanilla => go.train(Clean),
            Method::FgsmAdv => {
                let (clean_weight, label) = (0.5, LabelSource::Predicted);
                go.train(AdversarialTraining {
                    attack: fgsm()?,
                    clean_weight,
                    label,
                    mode: Mode::Eval,
                })
            }
            Method::Atda => go.train(Atda::new(fgsm()?)),
            Method::EpochWise => {
                go.train(EpochWise::new(eps, settings.reading)?.for_images(settings.train))
            }
            Method::Bim10Adv => go.train(bim_adv(10)?),
            Method::Bim30Adv => go.train(bim_adv(30)?),
        }
    })?)
}

/// One training run.
struct Go<'a> {
    settings: &'a Settings,
    lab: &'a Lab,
    device: &'a Device,
    seed: u64,
    folder: &'a Path,
    label: &'a str,
}

impl Go<'_> {
    fn train(&self, mut objective: impl Objective<Network>) -> Result<(), BoxError> {
        let Self {
            settings,
            lab,
            device,
            seed,
            folder,
            label,
        } = *self;
        let data = images(settings, Split::Train, lab)?;
        let run = Run::new(seed, device);
        let twin = network(seed, device)?;
        let rate = Schedule::Constant {
            rate: settings.learning_rate,
        };
        let mut groups = [Group::new(twin.params.trainable(), Adam::default(), rate)?];
        // Both published trainers fill the last batch with the first images.
        let (order, partial) = (Order::Shuffled(run.rng()), Partial::FillWithFirst);
        let loader = Loader::new(&data, settings.batch, order, partial)?.device(device);

        let state = folder.join(STATE);
        let (epochs, batches) = (settings.epochs, loader.batches());
        let plan = Plan {
            epochs,
            batches,
            state: Some(&state),
        };
        let epoch = |e| loader.epoch(e).map(|batch| batch.map_err(into_theriac));
        let observe = |progress: Progress| {
            let done = progress.epoch * batches + progress.batch;
            lab.progress(label, done as u64, (epochs * batches) as u64);
            if lab.interrupted() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let outcome = fit(
            &twin,
            &mut objective,
            &mut groups,
            plan,
            &run,
            epoch,
            observe,
        )?;
        let Outcome::Done(history) = outcome else {
            return Err(Interrupted.into());
        };

        let about = BTreeMap::from([
            ("model".to_owned(), "atda-cnn".to_owned()),
            (
                "method".to_owned(),
                serde_json::to_string(&settings.method)?,
            ),
            ("data".to_owned(), settings.data.clone()),
            ("epochs".to_owned(), epochs.to_string()),
            ("seed".to_owned(), seed.to_string()),
        ]);
        twin.params.save(&folder.join(MODEL), &about)?;
        fs::write(folder.join(HISTORY), serde_json::to_vec_pretty(&history)?)?;
        Ok(fs::remove_file(state)?)
    }
}

fn into_theriac(error: theriac_data::Error) -> theriac::Error {
    theriac::Error::Other(error.into())
}
