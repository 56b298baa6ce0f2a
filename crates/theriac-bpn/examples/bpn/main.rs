//! Computes the cells of the paper's tables 1 to 5 and of figure 5b, and what they leave out.
//!
//! `cargo xtask reproduce bpn` runs it; alone it takes the same options as every paper's example,
//! see `--help`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use theriac::{Budget, Eps, Mode, Run};
use theriac_adversarial::AdversarialTraining;
use theriac_attacks::Fgsm;
use theriac_bpn::{BiasRule, Bpn};
use theriac_data::{Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_experiment::{MODEL, Training, images, use_threads};
use theriac_models::Spec;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_tables::{BoxError, Cell, Experiment, Lab, Measured};
use theriac_train::{Adam, Clean, Group, LabelSource, Objective, Rule, Schedule, Sgd};

mod cost;
mod scoring;

// Attacks allocate and free the same sizes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Epochs after which a network is kept on the way, for the curves over epochs.
const KEPT: [usize; 10] = [1, 5, 10, 20, 50, 100, 200, 300, 400, 500];

fn main() -> ExitCode {
    if let Some(code) = cost::child() {
        return code;
    }
    theriac_tables::main(Experiments, concat!(env!("CARGO_MANIFEST_DIR"), "/tables"))
}

/// What a cell's settings may say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    network: Spec,
    defence: Defence,
    /// Other readings of the paper.
    #[serde(default)]
    bpn: Bpn,
    scenario: Scenario,
    data: String,
    /// Channels, height and width of the image whose operations are counted.
    #[serde(default)]
    image: Option<[usize; 3]>,
    /// Take the samples in the repository instead of the whole data set.
    #[serde(default)]
    embedded: bool,
    train: usize,
    test: usize,
    /// No more test images than this: for attacks that take long.
    #[serde(default)]
    most: Option<usize>,
    epochs: usize,
    batch: usize,
    optimiser: Optimiser,
    learning_rate: f64,
    /// Radius of the FGSM that training sees.
    fgsm_eps: Eps,
    #[serde(default)]
    label: LabelSource,
    /// Share of clean images in scenario III.
    clean_weight: f64,
    #[serde(default)]
    attack_bn: AttackBn,
    /// What the test images go through.
    #[serde(default)]
    attack: Option<theriac_attacks::Spec>,
    /// Craft on the classical twin.
    #[serde(default)]
    transfer: bool,
    /// Score the network as it was after so many epochs.
    #[serde(default)]
    after: Option<usize>,
    /// Score it in double precision, in which the cross entropy vanishes later.
    #[serde(default)]
    double: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Defence {
    Bpn,
    /// The classical network: the same with ordinary biases.
    Cn,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scenario {
    /// I: clean images.
    Clean,
    /// II: adversarial images.
    Adversarial,
    /// III: both.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Optimiser {
    /// With momentum 0.9.
    Sgd,
    Adam,
}

/// The network's mode while images are crafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AttackBn {
    #[default]
    Eval,
    Train,
}

/// What a trained network depends on, and nothing else: cells that agree on it share the network.
#[derive(Debug, Serialize)]
struct Key<'a> {
    paper: &'a str,
    network: Spec,
    /// `None` for the classical network.
    bpn: Option<Bpn>,
    data: &'a str,
    embedded: bool,
    train: usize,
    epochs: usize,
    batch: usize,
    optimiser: Optimiser,
    learning_rate: f64,
    /// `None` for scenario I.
    fgsm: Option<CraftKey>,
}

#[derive(Debug, Serialize)]
struct CraftKey {
    eps: Eps,
    label: LabelSource,
    clean_weight: f64,
    mode: AttackBn,
}

impl Settings {
    fn key(&self) -> Key<'_> {
        Key {
            paper: "bpn",
            network: self.network,
            bpn: (self.defence == Defence::Bpn).then_some(self.bpn),
            data: &self.data,
            embedded: self.embedded,
            train: self.train,
            epochs: self.epochs,
            batch: self.batch,
            optimiser: self.optimiser,
            learning_rate: self.learning_rate,
            fgsm: (self.scenario != Scenario::Clean).then(|| CraftKey {
                eps: self.fgsm_eps,
                label: self.label,
                clean_weight: self.clean_share(),
                mode: self.attack_bn,
            }),
        }
    }

    fn clean_share(&self) -> f64 {
        match self.scenario {
            Scenario::Clean => 1.0,
            Scenario::Adversarial => 0.0,
            Scenario::Both => self.clean_weight,
        }
    }

    /// The network with its parameters, untrained.
    fn network(&self, seed: u64, dtype: DType, device: &Device) -> Result<Twin<Network>, BoxError> {
        let params = Params::new(seed, dtype, device);
        Ok(match self.defence {
            Defence::Bpn => Twin::build(&params, |vb| self.network.build(&self.bpn.hook(), vb))?,
            Defence::Cn => Twin::build(&params, |vb| self.network.build(&Plain, vb))?,
        })
    }

    fn groups<R: Rule + Clone + 'static>(
        &self,
        twin: &Twin<Network>,
        rule: R,
    ) -> theriac::Result<Vec<Group>> {
        use theriac::Classifier as _;
        let rate = self.rate();
        match self.defence {
            Defence::Bpn => self
                .bpn
                .groups(&twin.params, twin.live.classes(), rule, rate),
            Defence::Cn => Ok(vec![Group::new(twin.params.trainable(), rule, rate)?]),
        }
    }

    fn rate(&self) -> Schedule {
        Schedule::Constant {
            rate: self.learning_rate,
        }
    }

    fn crafting(&self) -> theriac::Result<AdversarialTraining<Fgsm>> {
        Ok(AdversarialTraining {
            attack: Fgsm {
                budget: Budget::linf(self.fgsm_eps)?,
            },
            clean_weight: self.clean_share(),
            label: self.label,
            mode: match self.attack_bn {
                AttackBn::Eval => Mode::Eval,
                AttackBn::Train => Mode::Train,
            },
        })
    }

    /// Trains into a folder.
    fn fit(&self, seed: u64, folder: &Path, label: &str, lab: &Lab) -> Result<(), BoxError> {
        let device = theriac::device(&lab.device)?;
        match self.scenario {
            Scenario::Clean => self.fit_on(Clean, seed, folder, label, lab, &device),
            _ => self.fit_on(self.crafting()?, seed, folder, label, lab, &device),
        }
    }

    fn fit_on(
        &self,
        mut objective: impl Objective<Network>,
        seed: u64,
        folder: &Path,
        label: &str,
        lab: &Lab,
        device: &Device,
    ) -> Result<(), BoxError> {
        let data = images(&self.data, self.embedded, Split::Train, self.train, lab)?;
        let run = Run::new(seed, device);
        let twin = self.network(seed, DType::F32, device)?;
        let mut groups = match self.optimiser {
            Optimiser::Sgd => self.groups(&twin, Sgd::momentum(0.9))?,
            Optimiser::Adam => self.groups(&twin, Adam::default())?,
        };
        let order = Order::Shuffled(run.rng());
        let loader = Loader::new(&data, self.batch, order, Partial::Keep)?.device(device);
        let about = BTreeMap::from([
            ("network".to_owned(), serde_json::to_string(&self.network)?),
            ("defence".to_owned(), serde_json::to_string(&self.defence)?),
            (
                "scenario".to_owned(),
                serde_json::to_string(&self.scenario)?,
            ),
            ("data".to_owned(), self.data.clone()),
            ("epochs".to_owned(), self.epochs.to_string()),
            ("seed".to_owned(), seed.to_string()),
        ]);
        let training = Training {
            lab,
            run: &run,
            folder,
            label,
            epochs: self.epochs,
            until: None,
            kept: &KEPT,
            about: &about,
        };
        if self.defence == Defence::Bpn && self.bpn.bias_rule != BiasRule::Fgsm {
            use theriac::Classifier as _;
            let (params, classes) = (&twin.params, twin.live.classes());
            let mut objective = self
                .bpn
                .objective(objective, params, classes, self.rate())?;
            return training.train(&twin, &mut objective, &mut groups, &loader);
        }
        training.train(&twin, &mut objective, &mut groups, &loader)
    }
}

struct Experiments;

impl Experiment for Experiments {
    fn check(&self, cell: &Cell<'_>) -> Result<(), BoxError> {
        let settings = cell.settings::<Settings>()?;
        settings.bpn.check()?;
        if let Some(after) = settings.after
            && !(KEPT.contains(&after) && after <= settings.epochs)
        {
            return Err(format!("after = {after}: networks are kept after {KEPT:?} epochs").into());
        }
        match cell.column.measure.as_str() {
            "accuracy"
            | "zero-gradients"
            | "margin"
            | "largest-bias"
            | "forward-operations"
            | "backward-operations"
            | "seconds-per-epoch"
            | "peak-mebibytes" => Ok(()),
            other => Err(format!("unknown measure {other:?}").into()),
        }
    }

    fn measure(&self, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
        use_threads(lab);
        let settings = cell.settings::<Settings>()?;
        match cell.column.measure.as_str() {
            "seconds-per-epoch" => cost::seconds(&settings, cell, lab),
            "peak-mebibytes" => cost::memory(&settings, cell, lab),
            "forward-operations" => cost::operations(&settings, lab, |count| count.forward),
            "backward-operations" => cost::operations(&settings, lab, |count| count.backward),
            _ => {
                let model = trained(&settings, cell, lab)?;
                scoring::score(&settings, &model, cell, lab)
            }
        }
    }
}

/// The file of the trained network, from the store or made now.
fn trained(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<PathBuf, BoxError> {
    let label = format!("training {}, {}", cell.row.name, settings.data);
    let folder = lab.memo(cell, "train", &settings.key(), |folder| {
        settings.fit(cell.seed, folder, &label, lab)
    })?;
    Ok(match settings.after {
        Some(epochs) => theriac_experiment::after(&folder, epochs),
        None => folder.join(MODEL),
    })
}
