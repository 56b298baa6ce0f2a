//! Accuracy, and the difference to the network before its amendment.

use std::fs;

use serde::{Deserialize, Serialize};
use theriac::{Bank, Classifier, Pixels, Run};
use theriac_advamd::{AUXILIARY, Through};
use theriac_attacks::{Access, Declare as _, Declared, Spec as Attack, Transfer};
use theriac_data::Images;
use theriac_datasets::Split;
use theriac_eval::{Checks, Evaluator, Robust, clean_accuracy};
use theriac_experiment::{batches, images, measured, share};
use theriac_magnet::{
    AutoEncoder, Detector, Divergence, Evasion, MagNet, Reconstruction, Rejecting, threshold,
};
use theriac_nn::{Normalised, Twin};
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::method::{Base, Magnet, Method, Recipe};
use crate::{CraftedOn, Rejected, Settings};

const BATCH: usize = 250;
const FILE: &str = "score.json";
const LIMITS: &str = "limits.json";

/// Which images a model has right, and what travels with their share.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Scored {
    pub(crate) right: Vec<bool>,
    measured: Measured,
}

impl Scored {
    pub(crate) fn measured(self) -> Measured {
        self.measured
    }

    /// The difference to another model's share on the same images, in points, with the interval of
    /// the mean of the images' differences.
    pub(crate) fn less(self, other: &Self) -> Result<Measured, BoxError> {
        let n = self.right.len();
        if other.right.len() != n || n < 2 {
            return Err(format!("{n} and {} images do not compare", other.right.len()).into());
        }
        let pairs = self.right.iter().zip(&other.right);
        let gaps = pairs.map(|(a, b)| f64::from(i8::from(*a) - i8::from(*b)));
        let (sum, squares) = gaps.fold((0.0, 0.0), |(s, q), gap| (s + gap, q + gap * gap));
        let mean = sum / n as f64;
        let variance = (squares - n as f64 * mean * mean) / (n as f64 - 1.0);
        let half = 1.96 * (variance / n as f64).sqrt();
        Ok(Measured {
            value: 100.0 * mean,
            interval: Some((100.0 * (mean - half), 100.0 * (mean + half))),
            ..self.measured
        })
    }
}

/// What decides a score.
#[derive(Serialize)]
struct Key<'a, R> {
    recipe: R,
    /// `None` for all but MagNet.
    magnet: Option<(&'a Magnet, usize)>,
    samples: bool,
    images: usize,
    attack: Option<(&'a Attack, CraftedOn, Rejected)>,
    auxiliary: bool,
}

/// On clean images.
pub(crate) fn clean(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Scored, BoxError> {
    scored(settings, None, cell, lab)
}

/// Under the attack of a cell.
pub(crate) fn robust(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Scored, BoxError> {
    scored(settings, Some(settings.attack()?), cell, lab)
}

fn scored(
    settings: &Settings,
    attack: Option<&Attack>,
    cell: &Cell<'_>,
    lab: &Lab,
) -> Result<Scored, BoxError> {
    let recipe = &settings.recipe;
    let magnet = (recipe.method == Method::Magnet).then_some((&recipe.magnet, recipe.held));
    let images = settings.images(attack.is_some());
    let key = Key {
        recipe: recipe.key(),
        magnet,
        samples: settings.samples,
        images,
        attack: attack.map(|attack| (attack, settings.crafted_on, settings.rejected)),
        auxiliary: settings.auxiliary,
    };
    let folder = lab.memo(cell, "score", &key, |folder| {
        let device = theriac::device(&lab.device)?;
        let work = Work {
            settings,
            run: &Run::new(cell.seed, &device),
            data: &test_images(settings, images, lab)?,
            cell,
            lab,
        };
        let scored = work.scored(attack)?;
        Ok(fs::write(folder.join(FILE), serde_json::to_vec(&scored)?)?)
    })?;
    Ok(serde_json::from_slice(&fs::read(folder.join(FILE))?)?)
}

/// The first test images.
pub(crate) fn test_images(settings: &Settings, n: usize, lab: &Lab) -> Result<Images, BoxError> {
    let data = &settings.recipe.data;
    images(data, settings.samples, Split::Test, n, lab)
}

struct Work<'a> {
    settings: &'a Settings,
    run: &'a Run,
    data: &'a Images,
    cell: &'a Cell<'a>,
    lab: &'a Lab,
}

impl Work<'_> {
    fn scored(&self, attack: Option<&Attack>) -> Result<Scored, BoxError> {
        let (recipe, device) = (&self.settings.recipe, self.run.device());
        let twin = recipe.trained(self.cell, self.lab, device)?;
        let network = &twin.frozen;
        if recipe.method != Method::Magnet {
            let network = &Through {
                model: network,
                bank: match self.settings.auxiliary {
                    true => AUXILIARY,
                    false => Bank::default(),
                },
            };
            let Some(attack) = attack else {
                return self.clean(network);
            };
            let evaluator = self.evaluator(network);
            let robust = match self.settings.crafted_on {
                CraftedOn::Vanilla => {
                    let vanilla = recipe.vanilla(self.cell, self.lab, device)?;
                    self.transferred(&evaluator, attack, &vanilla.frozen)?
                }
                _ => {
                    let batches = batches(self.data, BATCH, self.run, self.lab)?;
                    evaluator.spec(attack.clone(), batches, self.observe())?
                }
            };
            return Ok(judged(&robust, None));
        }
        let defence = Defence::new(recipe, network, self.cell, self.lab)?;
        let magnet = defence.magnet(recipe, self.run, self.cell, self.lab)?;
        let rejecting = Rejecting { magnet: &magnet };
        let Some(attack) = attack else {
            return self.clean(&rejecting);
        };
        let evaluator = self.evaluator(&rejecting);
        let robust = match self.settings.crafted_on {
            CraftedOn::Vanilla => self.transferred(&evaluator, attack, network)?,
            CraftedOn::Itself => self.through(&evaluator, attack, &magnet, "the reformer")?,
            CraftedOn::Evasion => {
                let Attack::Pgd(pgd) = attack else {
                    return Err("crafted_on: evasion takes the steps of PGD".into());
                };
                let evasion = Evasion {
                    magnet: &magnet,
                    weight: 1.0,
                };
                self.through(&evaluator, pgd, evasion, "the reformer and the detectors")?
            }
        };
        let rejection = network.classes() as u32;
        let defended = self.settings.rejected == Rejected::Defended;
        Ok(judged(&robust, defended.then_some(rejection)))
    }

    fn evaluator<'m, C: Classifier>(&'m self, model: &'m C) -> Evaluator<'m, C> {
        Evaluator {
            checks: Checks::cheap(),
            ..Evaluator::new(model, self.run)
        }
    }

    fn observe(&self) -> impl FnMut(usize) + '_ {
        let label = format!("{}, {}", self.cell.row.name, self.cell.column.name);
        let all = theriac_data::Dataset::len(self.data) as u64;
        move |done| self.lab.progress(&label, done as u64, all)
    }

    fn clean<C: Classifier>(&self, model: &C) -> Result<Scored, BoxError> {
        let batches = batches(self.data, BATCH, self.run, self.lab)?;
        let (accuracy, said) = clean_accuracy(model, batches, self.run, self.observe())?;
        Ok(Scored {
            right: said.iter().map(|it| it.predicted == it.label).collect(),
            measured: share(accuracy),
        })
    }

    /// By an attacker who has the network before its amendment alone.
    fn transferred<C: Classifier>(
        &self,
        evaluator: &Evaluator<'_, C>,
        attack: &Attack,
        vanilla: &Normalised,
    ) -> Result<Robust, BoxError> {
        let declared = attack.declared();
        let declared = Declared {
            name: format!("{} on the vanilla network", declared.name),
            access: Access::None,
            iterative: false,
            reach: None,
            ..declared
        };
        let attack = Transfer {
            attack: attack.clone(),
            surrogate: vanilla,
        };
        let evaluator = Evaluator {
            checks: Checks {
                gradients: false,
                fgsm: false,
                ..evaluator.checks
            },
            ..*evaluator
        };
        let batches = batches(self.data, BATCH, self.run, self.lab)?;
        Ok(evaluator.attack(&attack, &declared, batches, self.observe())?)
    }

    /// By an attacker who climbs part of MagNet.
    fn through<C, S, A>(
        &self,
        evaluator: &Evaluator<'_, C>,
        attack: &A,
        surrogate: S,
        part: &str,
    ) -> Result<Robust, BoxError>
    where
        C: Classifier,
        S: theriac::Model<Target = theriac::Labels>,
        A: theriac::Attack<S> + theriac_attacks::Declare + Clone,
    {
        let declared = attack.declared();
        let name = format!("{} through {part}", declared.name);
        let declared = Declared { name, ..declared };
        let attack = Transfer {
            attack: attack.clone(),
            surrogate,
        };
        let batches = batches(self.data, BATCH, self.run, self.lab)?;
        Ok(evaluator.attack(&attack, &declared, batches, self.observe())?)
    }
}

/// The images that are right after the attack, or that end in the class of rejection.
fn judged(robust: &Robust, rejection: Option<u32>) -> Scored {
    let right = robust
        .outcomes
        .iter()
        .map(|it| it.moved == it.label || Some(it.moved) == rejection)
        .collect::<Vec<bool>>();
    let correct = right.iter().filter(|right| **right).count();
    let counted = share(theriac_eval::Accuracy {
        correct,
        n: right.len(),
    });
    Scored {
        measured: Measured {
            value: counted.value,
            interval: counted.interval,
            ..measured(robust)
        },
        right,
    }
}

/// MagNet's parts.
pub(crate) struct Defence<'a> {
    network: &'a Normalised,
    encoder: Twin<AutoEncoder>,
}

/// Any detector.
type Any<'a> = Box<dyn Detector + 'a>;

impl<'a> Defence<'a> {
    pub(crate) fn new(
        recipe: &Recipe,
        network: &'a Normalised,
        cell: &Cell<'_>,
        lab: &Lab,
    ) -> Result<Self, BoxError> {
        let device = theriac::device(&lab.device)?;
        Ok(Self {
            network,
            encoder: recipe.encoder(cell, lab, &device)?,
        })
    }

    pub(crate) fn reconstruction(&self) -> Any<'_> {
        Box::new(Reconstruction {
            auto_encoder: &self.encoder.frozen,
            power: 1,
        })
    }

    pub(crate) fn divergence(&self, temperature: f64) -> Any<'_> {
        Box::new(Divergence {
            auto_encoder: &self.encoder.frozen,
            model: self.network,
            temperature,
        })
    }

    fn detectors(&self, magnet: &Magnet) -> Vec<Any<'_>> {
        let temperatures = magnet.temperatures.iter();
        let others = temperatures.map(|&temperature| self.divergence(temperature));
        std::iter::once(self.reconstruction())
            .chain(others)
            .collect()
    }

    /// The thresholds of the detectors, from images that are not trained on.
    fn limits(
        &self,
        recipe: &Recipe,
        run: &Run,
        cell: &Cell<'_>,
        lab: &Lab,
    ) -> Result<Vec<f64>, BoxError> {
        #[derive(Serialize)]
        struct Key<'a> {
            base: Base<'a>,
            held: usize,
            magnet: &'a Magnet,
        }
        let key = Key {
            base: recipe.base(),
            held: recipe.held,
            magnet: &recipe.magnet,
        };
        let folder = lab.memo(cell, "thresholds", &key, |folder| {
            let (held, mut limits) = (recipe.held_images(lab)?, Vec::new());
            for detector in self.detectors(&recipe.magnet) {
                let marks = marks(&*detector, &held, run, lab)?;
                limits.push(threshold(&marks, recipe.magnet.drop_rate)?);
            }
            Ok(fs::write(
                folder.join(LIMITS),
                serde_json::to_vec(&limits)?,
            )?)
        })?;
        Ok(serde_json::from_slice(&fs::read(folder.join(LIMITS))?)?)
    }

    /// All of it.
    fn magnet(
        &self,
        recipe: &Recipe,
        run: &Run,
        cell: &Cell<'_>,
        lab: &Lab,
    ) -> Result<MagNet<'_, &'a Normalised, &AutoEncoder>, BoxError> {
        let limits = self.limits(recipe, run, cell, lab)?;
        let detectors = self.detectors(&recipe.magnet);
        Ok(MagNet {
            model: self.network,
            reformer: &self.encoder.frozen,
            detectors: detectors.into_iter().zip(limits).collect(),
        })
    }
}

/// A detector's marks of images.
fn marks(
    detector: &dyn Detector,
    data: &Images,
    run: &Run,
    lab: &Lab,
) -> Result<Vec<f64>, BoxError> {
    let mut all = Vec::new();
    for batch in batches(data, BATCH, run, lab)? {
        let batch = batch?;
        all.extend(marks_of(
            detector,
            &batch.pixels,
            &run.eval(&batch.samples),
        )?);
    }
    Ok(all)
}

/// A detector's marks of a batch, on the host.
pub(crate) fn marks_of(
    detector: &dyn Detector,
    x: &Pixels,
    pass: &theriac::Pass<'_>,
) -> theriac::Result<Vec<f64>> {
    theriac::in_chunks(x, pass, |_, x, pass| {
        let marks = detector.marks(x, pass)?.detach();
        Ok(marks.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?)
    })
}
