//! The networks that are defended.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use theriac::{Budget, Eps, Run};
use theriac_attacks::Pgd;
use theriac_data::{Augment, Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_experiment::{MODEL, Training, about, images};
use theriac_mixup::{InterpolatedAdversarial, Mix, Mixup};
use theriac_models::Spec;
use theriac_nn::{Normalised, Params, Plain, Twin};
use theriac_tables::{BoxError, Cell, Lab};
use theriac_train::{Clean, Group, LabelSource, Objective, Schedule, Sgd};

/// How a network is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    /// On clean images as they are.
    Vanilla,
    Mixup,
    /// Interpolated adversarial training.
    Iat,
}

/// All that decides a network, and nothing else: cells that agree on it share the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) method: Method,
    pub(crate) network: Spec,
    pub(crate) data: String,
    /// Take the samples in the repository instead of the whole data set.
    #[serde(default)]
    pub(crate) embedded: bool,
    /// Images.
    pub(crate) train: usize,
    pub(crate) epochs: Epochs,
    pub(crate) batch: usize,
    /// A tenth of it from half of the epochs on, a hundredth from three quarters.
    pub(crate) learning_rate: f64,
    #[serde(default)]
    pub(crate) weight_decay: f64,
    #[serde(default)]
    pub(crate) mix: Mix,
    /// Radius, step and steps of the PGD that IAT trains with.
    pub(crate) eps: Eps,
    pub(crate) step: Eps,
    pub(crate) steps: u32,
    #[serde(default = "predicted")]
    pub(crate) label: LabelSource,
}

fn predicted() -> LabelSource {
    LabelSource::Predicted
}

/// Epochs of each method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Epochs {
    vanilla: usize,
    mixup: usize,
    iat: usize,
}

/// What a trained network depends on.
#[derive(Debug, Serialize)]
struct Key<'a> {
    paper: &'a str,
    method: Method,
    network: Spec,
    data: &'a str,
    embedded: bool,
    train: usize,
    epochs: usize,
    batch: usize,
    learning_rate: f64,
    weight_decay: f64,
    /// `None` for the vanilla network.
    mix: Option<Mix>,
    /// `None` for all but IAT.
    attack: Option<(Eps, Eps, u32, LabelSource)>,
}

impl Recipe {
    pub(crate) fn epochs(&self) -> usize {
        match self.method {
            Method::Vanilla => self.epochs.vanilla,
            Method::Mixup => self.epochs.mixup,
            Method::Iat => self.epochs.iat,
        }
    }

    pub(crate) fn key(&self) -> impl Serialize + '_ {
        let attack = (self.eps, self.step, self.steps, self.label);
        Key {
            paper: "counteract",
            method: self.method,
            network: self.network,
            data: &self.data,
            embedded: self.embedded,
            train: self.train,
            epochs: self.epochs(),
            batch: self.batch,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            mix: (self.method != Method::Vanilla).then_some(self.mix),
            attack: (self.method == Method::Iat).then_some(attack),
        }
    }

    /// The network with its parameters, untrained; it sees pixels in [-1, 1].
    pub(crate) fn network(&self, seed: u64, device: &Device) -> Result<Twin<Normalised>, BoxError> {
        let params = Params::new(seed, DType::F32, device);
        Ok(Twin::build(&params, |vb| {
            Normalised::new(self.network.build(&Plain, vb)?, &[0.5], &[0.5])
        })?)
    }

    /// The trained network, from the store or made now.
    pub(crate) fn trained(
        &self,
        cell: &Cell<'_>,
        lab: &Lab,
        device: &Device,
    ) -> Result<Twin<Normalised>, BoxError> {
        let twin = self.network(cell.seed, device)?;
        twin.params.load(&self.file(cell, lab)?)?;
        Ok(twin)
    }

    fn file(&self, cell: &Cell<'_>, lab: &Lab) -> Result<PathBuf, BoxError> {
        let folder = lab.memo(cell, "train", &self.key(), |folder| {
            let label = format!("training {:?}, {}", self.method, self.data);
            let device = theriac::device(&lab.device)?;
            match self.method {
                Method::Vanilla => self.fit(Clean, cell.seed, folder, &label, lab, &device),
                Method::Mixup => {
                    let mixup = Mixup { mix: self.mix };
                    self.fit(mixup, cell.seed, folder, &label, lab, &device)
                }
                Method::Iat => {
                    let attack = Pgd::new(Budget::linf(self.eps)?, self.step, self.steps);
                    let iat = InterpolatedAdversarial {
                        mix: self.mix,
                        label: self.label,
                        ..InterpolatedAdversarial::new(attack)
                    };
                    self.fit(iat, cell.seed, folder, &label, lab, &device)
                }
            }
        })?;
        Ok(folder.join(MODEL))
    }

    fn fit(
        &self,
        mut objective: impl Objective<Normalised>,
        seed: u64,
        folder: &Path,
        label: &str,
        lab: &Lab,
        device: &Device,
    ) -> Result<(), BoxError> {
        let epochs = self.epochs();
        let data = images(&self.data, self.embedded, Split::Train, self.train, lab)?;
        let run = Run::new(seed, device);
        let twin = self.network(seed, device)?;
        let mut rule = Sgd::momentum(0.9);
        rule.weight_decay = self.weight_decay;
        let rate = Schedule::Steps {
            rate: self.learning_rate,
            milestones: vec![epochs.div_ceil(2), (3 * epochs).div_ceil(4)],
            factor: 0.1,
        };
        let mut groups = [Group::new(twin.params.trainable(), rule, rate)?];
        // The last batch is dropped: it would give batch norms other statistics.
        let loader = Loader::new(&data, self.batch, Order::Shuffled(run.rng()), Partial::Drop)?
            .device(device)
            .augment(Augment::CIFAR, run.rng());
        let mut about = about(&self.network, &[0.5], &[0.5])?;
        about.extend([
            ("method".to_owned(), serde_json::to_string(&self.method)?),
            ("data".to_owned(), self.data.clone()),
            ("epochs".to_owned(), epochs.to_string()),
            ("seed".to_owned(), seed.to_string()),
        ]);
        let training = Training {
            lab,
            run: &run,
            folder,
            label,
            epochs,
            until: None,
            kept: &[],
            about: &about,
        };
        training.train(&twin, &mut objective, &mut groups, &loader)
    }
}
