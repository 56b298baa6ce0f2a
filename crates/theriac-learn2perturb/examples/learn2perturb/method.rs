//! The methods and their training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use theriac::{Aim, Batch, Budget, Classifier as _, Eps, Labels, Pass, Result, Run, craft};
use theriac_advbnn::AdvBnn;
use theriac_attacks::{Pgd, Start};
use theriac_data::{Augment, Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_experiment::{MODEL, Training, about, images};
use theriac_learn2perturb::Learn2Perturb;
use theriac_models::Spec;
use theriac_nn::{Layers, Normalised, Params, Plain, Twin};
use theriac_ops::cross_entropy;
use theriac_pixeldp::PixelDp;
use theriac_pni::Pni;
use theriac_rse::Rse;
use theriac_tables::{BoxError, Cell, Lab, Measured};
use theriac_train::{Adam, Clean, Group, LabelSource, Objective, Schedule, Sgd};

/// How a network is made and trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// On clean images.
    None,
    /// On halves of clean and PGD images.
    Vanilla,
    Pni,
    AdvBnn,
    Rse,
    /// With its certificate.
    PixelDp,
    /// Theta by the regulariser alone.
    #[serde(rename = "learn2perturb-r")]
    Learn2PerturbR,
    #[serde(rename = "learn2perturb")]
    Learn2Perturb,
}

/// All that decides a network, and nothing else: cells that agree on it share the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) method: Method,
    pub(crate) network: Spec,
    pub(crate) data: String,
    /// Images.
    pub(crate) train: usize,
    /// Of each method; those without a number have that of `other`.
    pub(crate) epochs: BTreeMap<String, usize>,
    pub(crate) batch: usize,
    pub(crate) learning_rate: f64,
    pub(crate) weight_decay: f64,
    /// Radius, step and steps of the PGD that methods train with.
    pub(crate) eps: Eps,
    pub(crate) step: Eps,
    pub(crate) steps: u32,
    /// The label that it moves away from.
    pub(crate) label: LabelSource,
    /// Epochs on clean images alone, of each method as `epochs`.
    pub(crate) delay: BTreeMap<String, usize>,
    #[serde(default)]
    pub(crate) pni: Pni,
    #[serde(default)]
    pub(crate) adv_bnn: AdvBnn,
    #[serde(default)]
    pub(crate) rse: Rse,
    #[serde(default)]
    pub(crate) pixel_dp: PixelDp,
    #[serde(default)]
    pub(crate) learn2perturb: Learn2Perturb,
}

/// What a trained network depends on.
#[derive(Debug, Serialize)]
pub(crate) struct Key<'a> {
    paper: &'a str,
    method: Method,
    network: Spec,
    data: &'a str,
    train: usize,
    epochs: usize,
    batch: usize,
    learning_rate: f64,
    weight_decay: f64,
    /// `None` for methods without adversarial images.
    attack: Option<(Eps, Eps, u32, LabelSource, usize)>,
    pni: Option<Pni>,
    adv_bnn: Option<AdvBnn>,
    rse: Option<Rse>,
    pixel_dp: Option<PixelDp>,
    learn2perturb: Option<Learn2Perturb>,
}

/// Numbers of epochs after which a network with learnt noise is kept.
const WATCHED: [usize; 20] = [
    1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21, 25, 50, 100, 150, 200, 250, 350,
];

/// Mean and deviation that images are normalised by, of the authors' code.
const MEAN: [f64; 3] = [0.4914, 0.4822, 0.4465];
const STD: [f64; 3] = [0.2023, 0.1994, 0.2010];

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Vanilla => "vanilla",
            Self::Pni => "pni",
            Self::AdvBnn => "adv-bnn",
            Self::Rse => "rse",
            Self::PixelDp => "pixel-dp",
            Self::Learn2PerturbR => "learn2perturb-r",
            Self::Learn2Perturb => "learn2perturb",
        }
    }

    /// Whether the network draws random numbers.
    pub(crate) fn is_random(self) -> bool {
        !matches!(self, Self::None | Self::Vanilla)
    }
}

impl Recipe {
    pub(crate) fn check(&self) -> Result<(), BoxError> {
        self.learn2perturb.check()?;
        self.adv_bnn.check()?;
        self.pixel_dp.check()?;
        for (setting, of) in [("epochs", &self.epochs), ("delay", &self.delay)] {
            let known = of.contains_key(self.method.name());
            if !known && !of.contains_key("other") {
                return Err(format!("{setting}: no {} and no other", self.method.name()).into());
            }
        }
        if self.learn2perturb.adv_delay != Learn2Perturb::default().adv_delay {
            return Err("learn2perturb.adv_delay: set delay".into());
        }
        Ok(())
    }

    pub(crate) fn epochs(&self) -> usize {
        self.own(&self.epochs)
    }

    /// Epochs on clean images alone.
    fn delay(&self) -> usize {
        self.own(&self.delay)
    }

    /// A number of this method.
    fn own(&self, of: &BTreeMap<String, usize>) -> usize {
        let of = |name| of.get(name).copied();
        of(self.method.name()).or(of("other")).unwrap_or_default()
    }

    /// The same recipe for another method.
    pub(crate) fn of(&self, method: Method) -> Self {
        Self {
            method,
            ..self.clone()
        }
    }

    fn learn2perturb(&self) -> Learn2Perturb {
        Learn2Perturb {
            regulariser_only: self.method == Method::Learn2PerturbR,
            adv_delay: self.delay(),
            ..self.learn2perturb.clone()
        }
    }

    pub(crate) fn key(&self) -> Key<'_> {
        let method = self.method;
        let attack = (self.eps, self.step, self.steps, self.label, self.delay());
        let adversarial = !matches!(method, Method::None | Method::Rse | Method::PixelDp);
        let ours = matches!(method, Method::Learn2Perturb | Method::Learn2PerturbR);
        Key {
            paper: "learn2perturb",
            method,
            network: self.network,
            data: &self.data,
            train: self.train,
            epochs: self.epochs(),
            batch: self.batch,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            attack: adversarial.then_some(attack),
            pni: (method == Method::Pni).then_some(self.pni),
            adv_bnn: (method == Method::AdvBnn).then_some(self.adv_bnn),
            rse: (method == Method::Rse).then_some(self.rse),
            pixel_dp: (method == Method::PixelDp).then_some(self.pixel_dp),
            learn2perturb: ours.then(|| self.learn2perturb()),
        }
    }

    fn layers(&self) -> Box<dyn Layers> {
        match self.method {
            Method::None | Method::Vanilla => Box::new(Plain),
            Method::Pni => Box::new(self.pni.hook()),
            Method::AdvBnn => Box::new(self.adv_bnn.hook()),
            Method::Rse => Box::new(self.rse.hook()),
            Method::PixelDp => Box::new(self.pixel_dp.hook()),
            Method::Learn2Perturb | Method::Learn2PerturbR => Box::new(self.learn2perturb().hook()),
        }
    }

    fn built(&self, params: &Params, layers: &dyn Layers) -> Result<Twin<Normalised>> {
        let (mean, std) = self.normalisation();
        Twin::build(params, |vb| {
            Normalised::new(self.network.build(layers, vb)?, mean, std)
        })
    }

    /// PixelDP's sensitivity and RSE's noise are those of pixels as they are.
    fn normalisation(&self) -> (&'static [f64], &'static [f64]) {
        match self.method {
            Method::PixelDp | Method::Rse => (&[0.0], &[1.0]),
            _ => (&MEAN, &STD),
        }
    }

    /// The network with its parameters, untrained.
    pub(crate) fn network(&self, seed: u64, device: &Device) -> Result<Twin<Normalised>> {
        let params = Params::new(seed, DType::F32, device);
        self.built(&params, &*self.layers())
    }

    /// Its number of parameters, the method's own not among them, as the paper counts.
    pub(crate) fn parameters(&self) -> Result<Measured, BoxError> {
        let plain = self.of(Method::None).network(0, &Device::Cpu)?;
        Ok(Measured {
            value: plain.params.count() as f64,
            n: 1,
            ..Measured::default()
        })
    }

    /// The attack that networks are trained with.
    pub(crate) fn attack(&self) -> Result<Pgd> {
        Ok(Pgd::new(Budget::linf(self.eps)?, self.step, self.steps))
    }

    /// The trained network, from the store or made now; or as it was after so many epochs.
    pub(crate) fn trained(
        &self,
        after: Option<usize>,
        cell: &Cell<'_>,
        lab: &Lab,
        device: &Device,
    ) -> Result<Twin<Normalised>, BoxError> {
        let twin = self.network(cell.seed, device)?;
        twin.params.load(&self.file(after, cell, lab)?)?;
        Ok(twin)
    }

    fn file(&self, after: Option<usize>, cell: &Cell<'_>, lab: &Lab) -> Result<PathBuf, BoxError> {
        let folder = lab.memo(cell, "train", &self.key(), |folder| {
            let label = format!("training {}, {}", self.method.name(), self.data);
            self.fit(cell.seed, folder, &label, lab)
        })?;
        Ok(match after {
            Some(epochs) => theriac_experiment::after(&folder, epochs),
            None => folder.join(MODEL),
        })
    }

    /// A rate that falls to a tenth at each milestone, the shares of the published schedules: 80 and
    /// 120 of 160 epochs for PNI and vanilla, 150 and 250 of 350 for Learn2Perturb and without a
    /// defence, 40, 60 and 80 of 90 for PixelDP, 80, 140 and 180 of 200 for the others.
    fn rate(&self) -> Schedule {
        let epochs = self.epochs();
        let at = |shares: &[(usize, usize)]| {
            let at = |(part, whole): &(usize, usize)| (part * epochs).div_ceil(*whole);
            shares.iter().map(at).collect()
        };
        let milestones = match self.method {
            Method::Vanilla | Method::Pni => at(&[(1, 2), (3, 4)]),
            Method::None | Method::Learn2Perturb | Method::Learn2PerturbR => at(&[(3, 7), (5, 7)]),
            Method::PixelDp => at(&[(4, 9), (2, 3), (8, 9)]),
            Method::AdvBnn | Method::Rse => at(&[(2, 5), (7, 10), (9, 10)]),
        };
        let rate = match self.method {
            Method::AdvBnn | Method::Rse => 0.01,
            _ => self.learning_rate,
        };
        Schedule::Steps {
            rate,
            milestones,
            factor: 0.1,
        }
    }

    fn rule(&self) -> Sgd {
        let mut rule = Sgd::momentum(0.9);
        rule.nesterov = !matches!(self.method, Method::Rse | Method::PixelDp);
        rule.weight_decay = match self.method {
            Method::Rse => 5e-4,
            Method::PixelDp => 2e-4,
            _ => self.weight_decay,
        };
        rule
    }

    /// The objective and the groups of a network's training.
    pub(crate) fn training(
        &self,
        twin: &Twin<Normalised>,
    ) -> Result<(Box<dyn Objective<Normalised>>, Vec<Group>)> {
        let (params, attack, rate, rule) = (&twin.params, self.attack()?, self.rate(), self.rule());
        let all = |rule| {
            Ok::<_, theriac::Error>(vec![Group::new(params.trainable(), rule, rate.clone())?])
        };
        let delayed = Halves {
            attack,
            label: self.label,
            delay: self.delay(),
            epoch: 0,
        };
        Ok(match self.method {
            Method::None | Method::Rse => (Box::new(Clean), all(rule)?),
            Method::PixelDp => {
                let objective = self.pixel_dp.objective(Clean, params)?;
                (Box::new(objective), all(rule)?)
            }
            Method::Vanilla => (Box::new(delayed), all(rule)?),
            Method::Pni => (Box::new(delayed), self.pni.groups(params, rule, rate)?),
            Method::AdvBnn => {
                // As published: no random start, steps of 0.007, a new Adam at each rate.
                let attack = Pgd {
                    start: Start::Clean,
                    ..Pgd::new(Budget::linf(self.eps)?, "0.007".parse()?, 10)
                };
                let objective = self.adv_bnn.objective(attack, params, self.train)?;
                let mut adam = Adam::default();
                adam.anew = true;
                let group = Group::new(params.trainable(), adam, rate)?;
                (Box::new(objective), vec![group])
            }
            Method::Learn2Perturb | Method::Learn2PerturbR => {
                let plain = self.built(params, &Plain)?;
                let mut theta = rule.fresh();
                theta.weight_decay = 0.0;
                let ours = self.learn2perturb();
                let (mut objective, groups) = ours.training(plain, attack, rule, theta, rate)?;
                objective.label = self.label;
                (Box::new(objective), groups)
            }
        })
    }

    fn fit(&self, seed: u64, folder: &Path, label: &str, lab: &Lab) -> Result<(), BoxError> {
        let device = theriac::device(&lab.device)?;
        let epochs = self.epochs();
        let data = images(&self.data, false, Split::Train, self.train, lab)?;
        let run = Run::new(seed, &device);
        let twin = self.network(seed, &device)?;
        let (mut objective, mut groups) = self.training(&twin)?;
        let loader = Loader::new(&data, self.batch, Order::Shuffled(run.rng()), Partial::Keep)?
            .device(&device)
            .augment(Augment::CIFAR, run.rng());
        let (mean, std) = self.normalisation();
        let mut about = about(&self.network, mean, std)?;
        about.extend([
            ("method".to_owned(), self.method.name().to_owned()),
            ("data".to_owned(), self.data.clone()),
            ("epochs".to_owned(), epochs.to_string()),
            ("seed".to_owned(), seed.to_string()),
        ]);
        let kept: Vec<usize> = match self.method {
            Method::Pni | Method::Learn2Perturb | Method::Learn2PerturbR => WATCHED.to_vec(),
            _ => Vec::new(),
        };
        let training = Training {
            lab,
            run: &run,
            folder,
            label,
            epochs,
            until: None,
            kept: &kept,
            about: &about,
        };
        training.train(&twin, &mut objective, &mut groups, &loader)
    }
}

/// PGD training as in PNI's code: half of the loss is that of clean images, half that of adversarial
/// ones, each in a pass of its own, so that each has its own statistics of batch norms. The attack leads
/// away from what the first pass, in training mode, predicts.
struct Halves {
    attack: Pgd,
    label: LabelSource,
    /// Epochs on clean images alone.
    delay: usize,
    epoch: usize,
}

impl Objective<Normalised> for Halves {
    fn loss(
        &mut self,
        twin: &Twin<Normalised>,
        batch: &Batch<Labels>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let logits = twin.live.logits(&batch.pixels, pass)?;
        let clean = cross_entropy(&logits, batch.target.tensor())?.mean_all()?;
        if self.epoch < self.delay {
            return Ok(clean);
        }
        let labels = match self.label {
            LabelSource::True => batch.target.clone(),
            LabelSource::Predicted => Labels::most_likely(&logits)?,
        };
        let (aim, crafting) = (Aim::Away(&labels), pass.eval().fork(1));
        let moved = Batch {
            pixels: craft(&self.attack, &twin.frozen, &batch.pixels, aim, &crafting)?,
            ..batch.clone()
        };
        let moved = Clean.loss(twin, &moved, &pass.fork(2))?;
        Ok(((clean + moved)? * 0.5)?)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.epoch = epoch;
        Ok(())
    }
}
