//! The methods and their training.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use theriac::Run;
use theriac_advamd::{AdvAmd, Adversary, EachBatch, OnTheWay, Settings as Amendment, TwoBanks};
use theriac_attacks::{Declare as _, Spec as Attack};
use theriac_data::{Augment, Images, Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_distillation::{Distillation, Tempered};
use theriac_experiment::{MODEL, Training, about, images};
use theriac_magnet::{AutoEncoder, Denoise, Part, auto_encoder};
use theriac_models::Spec;
use theriac_nn::{Layers, Normalised, Params, Plain, Twin};
use theriac_tables::{BoxError, Cell, Lab};
use theriac_train::{Adam, Clean, Group, Objective, Schedule, Sgd};

use crate::crafted::{Alpha, Crafted};

/// What is done to a trained network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// Nothing: the network to amend.
    None,
    /// Trained on with clean images alone, as long as by AdvAmd.
    Control,
    /// With as many adversarial images as clean ones.
    AdvTrain,
    /// A teacher and a student at a temperature.
    DefDistill,
    /// Detectors and a reformer in front.
    Magnet,
    AdvAmd,
}

/// All that decides a network, and nothing else: cells that agree on it share the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) method: Method,
    pub(crate) network: Spec,
    pub(crate) data: String,
    /// Images to train on.
    pub(crate) train: usize,
    /// The images after them, for coefficients and thresholds.
    pub(crate) held: usize,
    /// Epochs before the amendment, and of it.
    pub(crate) base_epochs: usize,
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    /// Before the amendment, which starts at a tenth of it.
    pub(crate) learning_rate: f64,
    pub(crate) weight_decay: f64,
    /// Trains by Adam, for transformers.
    #[serde(default)]
    pub(crate) adam: bool,
    /// What the perturbations are made with.
    #[serde(default)]
    pub(crate) attack: Option<Attack>,
    #[serde(default)]
    pub(crate) amendment: Amendment,
    #[serde(default)]
    pub(crate) alpha: Alpha,
    /// How the coefficients are used.
    #[serde(default)]
    pub(crate) coefficients: Coefficients,
    /// Whether perturbations are made anew for each batch.
    #[serde(default)]
    pub(crate) refresh: bool,
    #[serde(default)]
    pub(crate) mediate: Mediate,
    /// The amendment ends after an epoch of this mean loss or less.
    #[serde(default)]
    pub(crate) sigma: Option<f64>,
    /// Images of each class in the coefficients.
    pub(crate) per_class: usize,
    pub(crate) temperature: f64,
    pub(crate) magnet: Magnet,
}

/// Readings of mediate samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mediate {
    /// On the line to the adversarial image, equation 5.
    #[default]
    Scaled,
    /// What the attack comes through after the share phi of its steps.
    Iterate,
}

/// Readings of A, which algorithm 1 prints without a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Coefficients {
    #[default]
    PerClass,
    /// Their mean for every class.
    Scalar,
    /// Divided by their mean.
    MeanOne,
}

impl Coefficients {
    fn of(self, each: Vec<f64>) -> Vec<f64> {
        let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
        match self {
            Self::PerClass => each,
            Self::Scalar => vec![mean; each.len()],
            Self::MeanOne => each.into_iter().map(|value| value / mean).collect(),
        }
    }
}

/// Settings of MagNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Magnet {
    pub(crate) parts: Vec<Part>,
    pub(crate) sigma: f64,
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    pub(crate) learning_rate: f64,
    /// Of clean images that each detector may reject.
    pub(crate) drop_rate: f64,
    /// Of the detectors by divergence.
    pub(crate) temperatures: Vec<f64>,
}

/// What the network to amend depends on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Base<'a> {
    paper: &'a str,
    network: Spec,
    data: &'a str,
    train: usize,
    base_epochs: usize,
    batch: usize,
    learning_rate: f64,
    weight_decay: f64,
    adam: bool,
}

/// What the network of a method depends on.
#[derive(Debug, Serialize)]
struct Key<'a> {
    base: Base<'a>,
    method: Method,
    /// `None` for methods that train nothing on.
    epochs: Option<usize>,
    /// `None` for methods without adversarial images.
    crafted: Option<(&'a Attack, Amendment, bool, Mediate)>,
    /// `None` unless losses are weighted.
    alpha: Option<(Alpha, Coefficients, usize, usize)>,
    /// `None` unless the amendment may end early.
    sigma: Option<f64>,
    /// `None` for all but distillation.
    temperature: Option<f64>,
}

/// Pixels are normalised by these.
const MEAN: [f64; 3] = [0.4914, 0.4822, 0.4465];
const STD: [f64; 3] = [0.2470, 0.2435, 0.2616];

impl Recipe {
    pub(crate) fn check(&self) -> Result<(), BoxError> {
        let adversarial = matches!(self.method, Method::AdvTrain | Method::AdvAmd);
        if adversarial && self.attack.is_none() {
            return Err("attack: name the one that the perturbations are made with".into());
        }
        if self.refresh && !self.two_banks() {
            return Err("refresh: perturbations are made anew through the auxiliary norms".into());
        }
        if self.mediate == Mediate::Iterate {
            self.part_way()?;
        }
        let ball = |attack: &Attack| attack.declared().budget.is_some();
        if self.alpha == Alpha::MinNorm && !self.attack.as_ref().is_some_and(ball) {
            return Err("alpha: min-norm needs an attack within a ball".into());
        }
        Ok(())
    }

    /// The attack with the share phi of its steps.
    fn part_way(&self) -> Result<Attack, BoxError> {
        match &self.attack {
            Some(Attack::Pgd(pgd)) if !self.refresh => {
                let mut pgd = *pgd;
                pgd.steps = (self.amendment.phi * f64::from(pgd.steps)).round() as u32;
                pgd.short_reach = true;
                Ok(Attack::Pgd(pgd))
            }
            _ => Err("mediate: iterates are those of PGD, made once".into()),
        }
    }

    /// The same recipe for another method.
    pub(crate) fn of(&self, method: Method) -> Self {
        Self {
            method,
            ..self.clone()
        }
    }

    pub(crate) fn base(&self) -> Base<'_> {
        Base {
            paper: "advamd",
            network: self.network,
            data: &self.data,
            train: self.train,
            base_epochs: self.base_epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            adam: self.adam,
        }
    }

    /// Adversarial training is the amendment without any of its three parts.
    fn amendment(&self) -> Amendment {
        match self.method {
            Method::AdvTrain => Amendment {
                weights: [1.0, 0.0, 1.0],
                auxiliary: false,
                weighted: false,
                ..self.amendment
            },
            _ => self.amendment,
        }
    }

    /// The network stays as it is.
    fn keeps(&self) -> bool {
        matches!(self.method, Method::None | Method::Magnet)
    }

    pub(crate) fn key(&self) -> impl Serialize + '_ {
        let amendment = self.amendment();
        let adversarial = matches!(self.method, Method::AdvTrain | Method::AdvAmd);
        let weighted = adversarial && amendment.weighted;
        let distilled = self.method == Method::DefDistill;
        Key {
            base: self.base(),
            method: self.method,
            epochs: (!self.keeps()).then_some(self.epochs),
            crafted: self
                .attack
                .as_ref()
                .filter(|_| adversarial)
                .map(|attack| (attack, amendment, self.refresh, self.mediate)),
            alpha: weighted.then_some((self.alpha, self.coefficients, self.per_class, self.held)),
            sigma: self.sigma.filter(|_| self.method == Method::AdvAmd),
            temperature: distilled.then_some(self.temperature),
        }
    }

    /// Norms in two banks for amended networks with an auxiliary one.
    fn layers(&self) -> Box<dyn Layers> {
        match self.two_banks() {
            true => Box::new(TwoBanks::default()),
            false => Box::new(Plain),
        }
    }

    fn two_banks(&self) -> bool {
        self.method == Method::AdvAmd && self.amendment.auxiliary
    }

    fn untrained(
        &self,
        layers: &dyn Layers,
        seed: u64,
        device: &Device,
    ) -> theriac::Result<Twin<Normalised>> {
        let params = Params::new(seed, DType::F32, device);
        Twin::build(&params, |vb| {
            Normalised::new(self.network.build(layers, vb)?, &MEAN, &STD)
        })
    }

    /// The network before its amendment.
    pub(crate) fn vanilla(
        &self,
        cell: &Cell<'_>,
        lab: &Lab,
        device: &Device,
    ) -> Result<Twin<Normalised>, BoxError> {
        let folder = lab.memo(cell, "train", &self.base(), |folder| {
            let twin = self.untrained(&Plain, cell.seed, device)?;
            let data = self.train_images(lab)?;
            let stage = Stage {
                label: "the network to amend",
                epochs: self.base_epochs,
                until: None,
                rate: Schedule::Cosine {
                    rate: self.learning_rate,
                    epochs: self.base_epochs,
                },
                augment: true,
            };
            self.fit(&twin, Clean, stage, &data, (cell.seed, folder, lab))
        })?;
        let twin = self.untrained(&Plain, cell.seed, device)?;
        twin.params.load(&folder.join(MODEL))?;
        Ok(twin)
    }

    /// The network of the method. MagNet's is the one that it stands in front of.
    pub(crate) fn trained(
        &self,
        cell: &Cell<'_>,
        lab: &Lab,
        device: &Device,
    ) -> Result<Twin<Normalised>, BoxError> {
        if self.keeps() {
            return self.vanilla(cell, lab, device);
        }
        let folder = lab.memo(cell, "train", &self.key(), |folder| {
            self.amend(cell, folder, lab, device)
        })?;
        let twin = self.untrained(&*self.layers(), cell.seed, device)?;
        twin.params.load(&folder.join(MODEL))?;
        Ok(twin)
    }

    fn amend(
        &self,
        cell: &Cell<'_>,
        folder: &Path,
        lab: &Lab,
        device: &Device,
    ) -> Result<(), BoxError> {
        let vanilla = self.vanilla(cell, lab, device)?;
        let start = || -> Result<Twin<Normalised>, BoxError> {
            if !self.two_banks() {
                return self.vanilla(cell, lab, device);
            }
            let twin = self.untrained(&TwoBanks::default(), cell.seed, device)?;
            TwoBanks::start(&twin.params, &vanilla.params)?;
            Ok(twin)
        };
        let stage = |label, augment| Stage {
            label,
            epochs: self.epochs,
            until: None,
            rate: Schedule::Cosine {
                rate: 0.1 * self.learning_rate,
                epochs: self.epochs,
            },
            augment,
        };
        let data = self.train_images(lab)?;
        let twin = start()?;
        let at = (cell.seed, folder, lab);
        match self.method {
            Method::None | Method::Magnet => Err("there is nothing to train".into()),
            Method::Control => self.fit(&twin, Clean, stage("the control", true), &data, at),
            Method::DefDistill => {
                let temperature = self.temperature;
                let inner = folder.join("teacher");
                std::fs::create_dir_all(&inner)?;
                let teacher = start()?;
                if !inner.join(MODEL).exists() {
                    let objective = Tempered { temperature };
                    let stage = stage("the teacher", true);
                    self.fit(&teacher, objective, stage, &data, (cell.seed, &inner, lab))?;
                }
                teacher.params.load(&inner.join(MODEL))?;
                let objective = Distillation {
                    teacher: &teacher.frozen,
                    temperature,
                };
                self.fit(&twin, objective, stage("the student", true), &data, at)
            }
            Method::AdvTrain | Method::AdvAmd => {
                let crafted = Crafted {
                    recipe: self,
                    vanilla: &vanilla.frozen,
                    cell,
                    lab,
                };
                let settings = self.amendment();
                let coefficients = match settings.weighted {
                    true => self.coefficients.of(crafted.coefficients()?),
                    false => Vec::new(),
                };
                let label = match self.method {
                    Method::AdvTrain => "adversarial training",
                    _ => "the amendment",
                };
                let attack = self.attack.clone().ok_or("attack: name one")?;
                let adversary: Box<dyn Adversary<Normalised>> = match self.mediate {
                    _ if self.refresh => Box::new(EachBatch { attack }),
                    Mediate::Scaled => Box::new(crafted.deltas(&attack, &data)?),
                    Mediate::Iterate => Box::new(OnTheWay {
                        adversarial: crafted.deltas(&attack, &data)?,
                        mediate: crafted.deltas(&self.part_way()?, &data)?,
                    }),
                };
                let objective = AdvAmd {
                    settings,
                    coefficients,
                    adversary,
                    augment: Augment::CIFAR,
                };
                let stage = Stage {
                    until: self.sigma.filter(|_| self.method == Method::AdvAmd),
                    ..stage(label, false)
                };
                self.fit(&twin, objective, stage, &data, at)
            }
        }
    }

    /// The images to train on.
    pub(crate) fn train_images(&self, lab: &Lab) -> Result<Images, BoxError> {
        images(&self.data, false, Split::Train, self.train, lab)
    }

    /// The images after them.
    pub(crate) fn held_images(&self, lab: &Lab) -> Result<Images, BoxError> {
        let n = self.train + self.held;
        let all = images(&self.data, false, Split::Train, n, lab)?;
        let held: Vec<u32> = (self.train as u32..n as u32).collect();
        Ok(all.subset(&held)?)
    }

    fn rule(&self) -> Sgd {
        let mut rule = Sgd::momentum(0.9);
        rule.weight_decay = self.weight_decay;
        rule
    }

    fn fit(
        &self,
        twin: &Twin<Normalised>,
        mut objective: impl Objective<Normalised>,
        stage: Stage<'_>,
        data: &Images,
        (seed, folder, lab): (u64, &Path, &Lab),
    ) -> Result<(), BoxError> {
        let device = theriac::device(&lab.device)?;
        let run = Run::new(seed, &device);
        let trainable = twin.params.trainable();
        let mut groups = [match self.adam {
            true => Group::new(trainable, Adam::default(), stage.rate)?,
            false => Group::new(trainable, self.rule(), stage.rate)?,
        }];
        let augment = match stage.augment {
            true => Augment::CIFAR,
            false => Augment::default(),
        };
        // The last batch is dropped: it would give batch norms other statistics.
        let loader = Loader::new(data, self.batch, Order::Shuffled(run.rng()), Partial::Drop)?
            .device(&device)
            .augment(augment, run.rng());
        let mut about = about(&self.network, &MEAN, &STD)?;
        about.extend([
            ("stage".to_owned(), stage.label.to_owned()),
            ("data".to_owned(), self.data.clone()),
            ("epochs".to_owned(), stage.epochs.to_string()),
            ("seed".to_owned(), seed.to_string()),
        ]);
        let label = format!("training {}, {}", stage.label, self.data);
        let training = Training {
            lab,
            run: &run,
            folder,
            label: &label,
            epochs: stage.epochs,
            until: stage.until,
            kept: &[],
            about: &about,
        };
        training.train(twin, &mut objective, &mut groups, &loader)
    }

    /// MagNet's auto-encoder.
    pub(crate) fn encoder(
        &self,
        cell: &Cell<'_>,
        lab: &Lab,
        device: &Device,
    ) -> Result<Twin<AutoEncoder>, BoxError> {
        #[derive(Serialize)]
        struct Key<'a> {
            paper: &'a str,
            data: &'a str,
            train: usize,
            magnet: Magnet,
        }
        let key = Key {
            paper: "advamd",
            data: &self.data,
            train: self.train,
            magnet: Magnet {
                // Of the detectors, not of the auto-encoder.
                drop_rate: 0.0,
                temperatures: Vec::new(),
                ..self.magnet.clone()
            },
        };
        let untrained = || {
            let params = Params::new(cell.seed, DType::F32, device);
            Twin::build(&params, |vb| {
                auto_encoder(&Plain, vb, 3, &self.magnet.parts)
            })
        };
        let folder = lab.memo(cell, "train", &key, |folder| {
            let run = Run::new(cell.seed, device);
            let twin = untrained()?;
            let rate = Schedule::Constant {
                rate: self.magnet.learning_rate,
            };
            let mut groups = [Group::new(twin.params.trainable(), Adam::default(), rate)?];
            let data = self.train_images(lab)?;
            let order = Order::Shuffled(run.rng());
            let loader = Loader::new(&data, self.magnet.batch, order, Partial::Keep)?;
            let loader = loader.device(device);
            let mut objective = Denoise {
                sigma: self.magnet.sigma,
                once: Some(run.rng()),
            };
            let about = BTreeMap::from([
                ("stage".to_owned(), "auto-encoder of MagNet".to_owned()),
                (
                    "parts".to_owned(),
                    serde_json::to_string(&key.magnet.parts)?,
                ),
                ("data".to_owned(), self.data.clone()),
                ("epochs".to_owned(), self.magnet.epochs.to_string()),
                ("seed".to_owned(), cell.seed.to_string()),
            ]);
            let label = format!("training the auto-encoder, {}", self.data);
            let training = Training {
                lab,
                run: &run,
                folder,
                label: &label,
                epochs: self.magnet.epochs,
                until: None,
                kept: &[],
                about: &about,
            };
            training.train(&twin, &mut objective, &mut groups, &loader)
        })?;
        let twin = untrained()?;
        twin.params.load(&folder.join(MODEL))?;
        Ok(twin)
    }
}

/// One training of a recipe.
struct Stage<'a> {
    label: &'a str,
    epochs: usize,
    until: Option<f64>,
    rate: Schedule,
    /// Crops and mirrors in the loader.
    augment: bool,
}
