//! Accuracy, and what attacks leave of it.

use std::fs;
use std::time::Instant;

use candle_core::{DType, Tensor};
use serde::Serialize;
use theriac::{Batch, Classifier, Ensemble, Labels, Pass, Pixels, Run, gradient};
use theriac_attacks::{Access, Declare as _, Declared, Spec, Transfer};
use theriac_data::{Dataset as _, Images};
use theriac_datasets::Split;
use theriac_eval::{Checks, Evaluator, Robust, clean_accuracy};
use theriac_experiment::{batches, images, measured, share};
use theriac_nn::Normalised;
use theriac_pixeldp::votes;
use theriac_tables::{BoxError, Cell, DRAWS, Lab, Measured};

use crate::Settings;

const BATCH: usize = 256;
const SCORE: &str = "measured.json";

/// What one evaluation depends on.
#[derive(Serialize)]
struct Key<'a> {
    network: crate::method::Key<'a>,
    after: Option<usize>,
    measure: &'a str,
    samples: bool,
    images: usize,
    attack: Option<&'a Spec>,
    source: Option<crate::method::Key<'a>>,
    members: u32,
    attack_members: u32,
    copies: Option<u32>,
    repeat: u64,
}

/// A cell of a trained network.
pub(crate) fn score(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
    let device = theriac::device(&lab.device)?;
    let recipe = &settings.recipe;
    let twin = recipe.trained(settings.after, cell, lab, &device)?;
    let data = images(
        &recipe.data,
        settings.samples,
        Split::Test,
        settings.images(),
        lab,
    )?;
    let source = match settings.source {
        Some(method) => Some(recipe.of(method).trained(None, cell, lab, &device)?),
        None => None,
    };
    let work = Work {
        settings,
        data: &data,
        network: &twin.frozen,
        source: source.as_ref().map(|twin| &twin.frozen),
        cell,
        lab,
    };
    match (cell.column.measure.as_str(), settings.radius) {
        ("spread", _) => return work.spread(&Run::new(cell.seed, &device)),
        ("certified", Some(radius)) => {
            return work.certified(radius, &Run::new(cell.seed, &device));
        }
        _ => {}
    }
    // Each evaluation of a randomised network has draws of its own, for attack and scoring.
    let repeats = match recipe.method.is_random() {
        true => settings.repeats.max(1),
        false => 1,
    };
    let mut all = Vec::new();
    for repeat in 0..repeats {
        let seed = theriac::Rng::new(cell.seed).fork(repeat);
        let run = match repeat {
            0 => Run::new(cell.seed, &device),
            _ => Run::new(u64::from(seed.below("repeat", repeat, u32::MAX)), &device),
        };
        all.push(work.kept(repeat, &run)?);
    }
    let n = all.len() as f64;
    let seconds = all.iter().map(|it| it.seconds).sum();
    let mean = all.iter().map(|it| it.value).sum::<f64>() / n;
    let squares: f64 = all.iter().map(|it| (it.value - mean).powi(2)).sum();
    let several = all.len() > 1;
    let mut measured = all.swap_remove(0);
    measured.value = mean;
    measured.seconds = seconds;
    if several {
        let deviation = (squares / (n - 1.0)).sqrt();
        measured.extra.insert(DRAWS.to_owned(), deviation);
        // That of the first evaluation alone; the deviation says how far they scatter.
        measured.interval = None;
    }
    Ok(measured)
}

struct Work<'a> {
    settings: &'a Settings,
    data: &'a Images,
    network: &'a Normalised,
    source: Option<&'a Normalised>,
    cell: &'a Cell<'a>,
    lab: &'a Lab,
}

impl<'a> Work<'a> {
    fn batches(
        &self,
        run: &Run,
    ) -> Result<impl Iterator<Item = theriac::Result<Batch<Labels>>> + use<'a>, BoxError> {
        batches(self.data, BATCH, run, self.lab)
    }

    /// One evaluation, from the store if a cell of any table has made it before.
    fn kept(&self, repeat: u64, run: &Run) -> Result<Measured, BoxError> {
        let settings = self.settings;
        let source = settings.source.map(|method| settings.recipe.of(method));
        let key = Key {
            network: settings.recipe.key(),
            after: settings.after,
            measure: &self.cell.column.measure,
            samples: settings.samples,
            images: settings.images(),
            attack: settings.attack.as_ref(),
            source: source.as_ref().map(|recipe| recipe.key()),
            members: settings.members,
            attack_members: settings.attack_members,
            copies: settings.copies,
            repeat,
        };
        let folder = self.lab.memo(self.cell, "score", &key, |folder| {
            let started = Instant::now();
            let mut measured = self.once(repeat, run)?;
            measured.seconds = started.elapsed().as_secs_f64();
            Ok(fs::write(
                folder.join(SCORE),
                serde_json::to_vec(&measured)?,
            )?)
        })?;
        Ok(serde_json::from_slice(&fs::read(folder.join(SCORE))?)?)
    }

    fn once(&self, repeat: u64, run: &Run) -> Result<Measured, BoxError> {
        let (lab, all) = (self.lab, self.data.len() as u64);
        let label = format!("{}, {}", self.cell.row.name, self.cell.column.name);
        let label = match repeat {
            0 => label,
            repeat => format!("{label}, evaluation {}", repeat + 1),
        };
        let observe = |done: usize| lab.progress(&label, done as u64, all);
        let members = self.settings.members;
        let model = Ensemble::new(self.network, members);
        let Some(attack) = self.settings.attack.clone() else {
            let (accuracy, _) = clean_accuracy(&model, self.batches(run)?, run, observe)?;
            return Ok(share(accuracy));
        };
        // Repeats are for the mean; the checks of the first say what the number is worth.
        let checks = match repeat {
            0 if attack_is_cheap(&attack) => Checks::all(),
            0 => Checks::cheap(),
            _ => Checks {
                repeatable: false,
                gradients: false,
                fgsm: false,
                ..Checks::cheap()
            },
        };
        let checks = Checks {
            // FGSM with the ball that only holds a minimum-norm attack together says nothing of it.
            fgsm: checks.fgsm && !matches!(attack, Spec::Within(_)),
            ..checks
        };
        let evaluator = Evaluator {
            checks,
            ..Evaluator::new(&model, run)
        };
        let batches = self.batches(run)?;
        let declared = attack.declared();
        // Images of the network itself are no black box.
        let other = self.settings.source != Some(self.settings.recipe.method);
        let attacked = self.settings.attack_members;
        let robust = match (self.source.filter(|_| other), self.settings.copies) {
            (Some(surrogate), _) => {
                let name = format!("{} on the vanilla network", declared.name);
                let declared = Declared {
                    name,
                    access: Access::None,
                    iterative: false,
                    reach: None,
                    ..declared
                };
                let attack = Transfer { attack, surrogate };
                evaluator.attack(&attack, &declared, batches, observe)?
            }
            (None, Some(copies)) => {
                let name = format!("{}, {copies} copies of one draw", declared.name);
                let declared = Declared { name, ..declared };
                let surrogate = Copies {
                    model: self.network,
                    copies,
                };
                let attack = Transfer { attack, surrogate };
                evaluator.attack(&attack, &declared, batches, observe)?
            }
            (None, None) if attacked == members => evaluator.spec(attack, batches, observe)?,
            // The published codes attack one draw and average only to score.
            (None, None) => {
                let name = match attacked {
                    1 => format!("{} on one draw", declared.name),
                    draws => format!("{} on the mean of {draws} draws", declared.name),
                };
                let declared = Declared { name, ..declared };
                let surrogate = Ensemble::new(self.network, attacked);
                let attack = Transfer { attack, surrogate };
                evaluator.attack(&attack, &declared, batches, observe)?
            }
        };
        Ok(self.counted(&robust))
    }

    /// Accuracy, or the share of right images that the attack turns.
    fn counted(&self, robust: &Robust) -> Measured {
        let measured = measured(robust);
        match self.cell.column.measure.as_str() {
            "success" => Measured {
                value: 100.0 * robust.attack_success().unwrap_or(0.0),
                interval: None,
                ..measured
            },
            _ => measured,
        }
    }

    /// Share of images whose right class is proved within an L2 radius.
    fn certified(&self, radius: f64, run: &Run) -> Result<Measured, BoxError> {
        let (method, draws) = (self.settings.recipe.pixel_dp, self.settings.votes);
        let (mut proved, mut n) = (0, 0);
        for batch in self.batches(run)? {
            let batch = batch?;
            let pass = run.eval(&batch.samples);
            let votes = votes(self.network, &batch.pixels, draws, &pass)?;
            for (votes, label) in votes.iter().zip(batch.target.to_vec()?) {
                let certificate = method.certify(votes)?;
                proved += usize::from(certificate.label == label && certificate.radius >= radius);
                n += 1;
            }
            self.lab.progress("votes", n, self.data.len() as u64);
        }
        Ok(share(theriac_eval::Accuracy {
            correct: proved,
            n: n as usize,
        }))
    }

    /// How far gradients of one image by several draws are from each other: the mean over images of
    /// the deviation over the norm of the mean.
    fn spread(&self, run: &Run) -> Result<Measured, BoxError> {
        const DRAWN: u64 = 30;
        let mut total = 0.0;
        for batch in self.batches(run)? {
            let batch = batch?;
            let pass = run.eval(&batch.samples);
            let slopes = |draw: u64| {
                let pass = pass.fork(draw);
                let (_, slopes) = gradient(&batch.pixels, &pass, |x| {
                    theriac::Model::loss(self.network, x, &batch.target, &pass)
                })?;
                Ok(slopes.flatten_from(1)?)
            };
            let all = (0..DRAWN)
                .map(slopes)
                .collect::<theriac::Result<Vec<_>>>()?;
            let all = Tensor::stack(&all, 0)?;
            let mean = all.mean_keepdim(0)?;
            let off = all.broadcast_sub(&mean)?.sqr()?.sum(2)?.mean(0)?.sqrt()?;
            let size = mean.squeeze(0)?.sqr()?.sum(1)?.sqrt()?;
            let each = (off / size)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            total += each.iter().sum::<f64>();
        }
        let n = self.data.len();
        Ok(Measured {
            value: total / n as f64,
            n,
            ..Measured::default()
        })
    }
}

fn attack_is_cheap(attack: &Spec) -> bool {
    matches!(attack, Spec::Fgsm(_) | Spec::Pgd(_))
}

/// The mean logits of copies of each image that go through a network together and share their noise.
struct Copies<'a> {
    model: &'a Normalised,
    copies: u32,
}

impl Classifier for Copies<'_> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> theriac::Result<Tensor> {
        let copies = self.copies.max(1) as usize;
        let all = Pixels::cat(&vec![x.clone(); copies])?;
        // The same ids have the same noise.
        let samples = pass.samples.repeat(copies);
        let logits = self.model.logits(&all, &pass.over(&samples))?;
        let classes = logits.dim(1)?;
        Ok(logits.reshape((copies, x.len(), classes))?.mean(0)?)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}
