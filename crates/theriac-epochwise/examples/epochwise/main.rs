//! Computes the cells of the paper's Table I and of its figures 1 and 2.
//!
//! `cargo xtask reproduce epochwise` runs it; alone it takes the same options as every paper's
//! example, see `--help`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use theriac::{Budget, Eps, Mode, Run};
use theriac_adversarial::AdversarialTraining;
use theriac_atda::Atda;
use theriac_attacks::{Fgsm, bim};
use theriac_data::{Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_epochwise::{EpochWise, Reading};
use theriac_experiment::{MODEL, Training, history, images, use_threads};
use theriac_models::atda_cnn;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_tables::{BoxError, Cell, Experiment, Lab, Measured};
use theriac_train::{Adam, Clean, Epoch, Group, LabelSource, Objective, Schedule};

mod scoring;

// Attacks allocate and free the same sizes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
struct Key<'a> {
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
        use_threads(lab);
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
            let history = history(&folder)?;
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
    let key = Key {
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
    Ok(lab.memo(cell, "train", &key, |folder| {
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
        let (name, n) = (&settings.data, settings.train);
        let data = images(name, settings.embedded, Split::Train, n, lab)?;
        let run = Run::new(seed, device);
        let twin = network(seed, device)?;
        let rate = Schedule::Constant {
            rate: settings.learning_rate,
        };
        let mut groups = [Group::new(twin.params.trainable(), Adam::default(), rate)?];
        // Both published trainers fill the last batch with the first images.
        let (order, partial) = (Order::Shuffled(run.rng()), Partial::FillWithFirst);
        let loader = Loader::new(&data, settings.batch, order, partial)?.device(device);
        let about = BTreeMap::from([
            ("model".to_owned(), "atda-cnn".to_owned()),
            (
                "method".to_owned(),
                serde_json::to_string(&settings.method)?,
            ),
            ("data".to_owned(), settings.data.clone()),
            ("epochs".to_owned(), settings.epochs.to_string()),
            ("seed".to_owned(), seed.to_string()),
        ]);
        let training = Training {
            lab,
            run: &run,
            folder,
            label,
            epochs: settings.epochs,
            until: None,
            kept: &[],
            about: &about,
        };
        training.train(&twin, &mut objective, &mut groups, &loader)
    }
}
