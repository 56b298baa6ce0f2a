//! A whole evaluation: a plan, facts image by image, checks, and a verdict.
//!
//! A [`Plan`] says which stages run over which images, [`Measure`] does the work and keeps every
//! fact in a [`Store`], and [`Evaluation`] is a function of that store: however the work was cut
//! into batches, interrupted, or divided over machines, equal facts give an equal evaluation.

mod catalogue;
mod facts;
mod judge;
mod plan;
mod slope;
mod stages;
mod store;
mod table;

use std::fmt;
use std::ops::ControlFlow;

use candle_core::DType;
use serde::Serialize;
use theriac::{Batch, Classifier, Error, Labels, Pixels, Result, Run, largest, scores};
use theriac_data::Dataset;

pub use catalogue::{CATALOGUE, Entry, entry_of};
pub use facts::{Attacked, Clean, Fact, Facts};
pub use plan::{Plan, Profile, Role, Stage};
pub use stages::Models;
pub use store::{Manifest, Shard, Store, StoreError, Subject, read_manifest};
pub use table::{Class, Curve, Image, Mark, Row, Table};

use crate::checks::DRIFT;
use crate::{Check, Finding, Mean, Roc, Verdict};

/// How far a measurement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The stage.
    pub stage: &'a str,
    /// Its number, from 0.
    pub number: usize,
    /// Number of stages.
    pub stages: usize,
    /// Images done in this stage.
    pub done: usize,
    /// Images of this stage.
    pub images: usize,
}

/// The work of an evaluation.
#[derive(Debug)]
pub struct Measure<'a, C: ?Sized, D: ?Sized> {
    /// The model, and those it is compared with.
    pub models: Models<'a, C>,
    /// The images, by position.
    pub data: &'a D,
    /// Seed, device and counters.
    pub run: &'a Run,
    /// Element type of the images.
    pub dtype: DType,
    /// Images in a batch; a kill loses one at most. No result depends on it.
    pub batch: usize,
}

impl<C, D> Measure<'_, C, D>
where
    C: Classifier + ?Sized,
    D: Dataset<Target = Labels> + ?Sized,
{
    /// Does what the store does not know yet. `observe` is called after each batch and may stop the
    /// work; whether it did is the result. What was done is kept.
    ///
    /// # Errors
    /// Those of the data, the models and the store; [`Error::Setting`] for a plan that makes no
    /// sense or data that are not the manifest's.
    pub fn run(
        &self,
        store: &mut Store,
        mut observe: impl FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let manifest = store.manifest().clone();
        let plan = &manifest.plan;
        plan.check()?;
        let images = manifest.subject.images;
        if self.data.len() != images as usize {
            return Err(Error::Setting {
                name: "images",
                value: format!("{} where the manifest says {images}", self.data.len()),
                remedy: "evaluate the data that the manifest was made for",
            });
        }
        let state = || self.models.state.map(|state| state()).transpose();
        let before = state()?;
        let mut flow = ControlFlow::Continue(());
        'stages: for (number, stage) in plan.stages.iter().enumerate() {
            let all: Vec<u32> = manifest
                .positions()
                .filter(|at| meets(plan, number, store.facts(), *at))
                .collect();
            let todo: Vec<u32> = all
                .iter()
                .copied()
                .filter(|at| !store.facts().has(&stage.name, *at))
                .collect();
            let mut done = all.len() - todo.len();
            for positions in todo.chunks(self.batch.max(1)) {
                self.batch(plan, stage, positions, store)?;
                done += positions.len();
                let progress = Progress {
                    stage: &stage.name,
                    number,
                    stages: plan.stages.len(),
                    done,
                    images: all.len(),
                };
                flow = observe(&progress);
                if flow.is_break() {
                    break 'stages;
                }
            }
        }
        if let (Some(before), Some(after)) = (before, state()?) {
            store.note_state(before == after)?;
        }
        Ok(flow)
    }

    fn batch(
        &self,
        plan: &Plan,
        stage: &Stage,
        positions: &[u32],
        store: &mut Store,
    ) -> Result<()> {
        let batch = self.data.batch(positions, self.dtype, self.run.device());
        let batch = batch.map_err(Error::from)?;
        if stage.role == Role::Clean {
            let mut facts = stages::clean(self.models.model, plan, positions, &batch, self.run)?;
            let suspicion = self.suspicion(&batch.pixels, &batch)?;
            for (fact, suspicion) in facts.iter_mut().zip(suspicion) {
                fact.suspicion = Some(suspicion);
            }
            let facts = facts.into_iter().map(Fact::Clean);
            let facts = positions.iter().copied().zip(facts).collect();
            return Ok(store.add(&stage.name, facts, None)?);
        }
        let (mut facts, found) = stages::attacked(&self.models, plan, stage, &batch, self.run)?;
        let suspicion = self.suspicion(&found, &batch)?;
        for (fact, suspicion) in facts.iter_mut().zip(suspicion) {
            fact.suspicion = Some(suspicion);
        }
        let broken = |i: &u32| facts[*i as usize].correct < 0.5;
        let kept: Vec<u32> = match stage.role.counts() {
            true => (0..positions.len() as u32).filter(broken).collect(),
            false => Vec::new(),
        };
        let images = match kept.is_empty() {
            true => None,
            false => Some(found.pick(&kept)?),
        };
        let kept: Vec<u32> = kept.iter().map(|&i| positions[i as usize]).collect();
        let examples = images.as_ref().map(|images| (kept.as_slice(), images));
        let facts = facts.into_iter().map(Fact::Attacked);
        let facts = positions.iter().copied().zip(facts).collect();
        Ok(store.add(&stage.name, facts, examples)?)
    }

    /// What the detector says of images that stand for those of a batch; nothing without one.
    fn suspicion(&self, images: &Pixels, batch: &Batch<Labels>) -> Result<Vec<f64>> {
        let Some(detector) = self.models.detector else {
            return Ok(Vec::new());
        };
        let told = detector.suspicion(images, &self.run.eval(&batch.samples))?;
        if let Some(value) = told.iter().find(|value| !value.is_finite()) {
            return Err(Error::Setting {
                name: "suspicion",
                value: value.to_string(),
                remedy: "a detector gives a finite number for each image",
            });
        }
        Ok(told)
    }
}

/// Whether a stage works on an image. Everything before the stage is known of it.
fn meets(plan: &Plan, number: usize, facts: &Facts, position: u32) -> bool {
    let stage = &plan.stages[number];
    if stage.role == Role::Clean {
        return true;
    }
    let clean = plan.of(Role::Clean).next();
    let clean = clean.and_then(|clean| facts.clean(&clean.name, position));
    if clean.is_none_or(|clean| clean.correct == 0.0) {
        return false;
    }
    if stage.role.is_for_few() && position >= plan.few {
        return false;
    }
    let ends = match stage.role {
        Role::Cascade => number,
        role if role.is_for_resisting() => plan.stages.len(),
        _ => return true,
    };
    let before = plan.stages[..ends].iter();
    let mut ensemble = before.filter(|stage| stage.role == Role::Cascade);
    // A randomised image that is right in some draws is attacked on.
    ensemble.all(|stage| {
        let fact = facts.attacked(&stage.name, position);
        fact.is_none_or(|fact| fact.correct > 0.0)
    })
}

/// Whether two passes over a few images with fresh randomness differ: such a model needs the plan
/// for randomised ones.
///
/// # Errors
/// Those of the model.
pub fn is_random<C: Classifier + ?Sized>(
    model: &C,
    few: &Batch<Labels>,
    run: &Run,
) -> Result<bool> {
    let pass = run.eval(&few.samples);
    let one = scores(model, &few.pixels, &pass.fork(1))?;
    let two = scores(model, &few.pixels, &pass.fork(2))?;
    let mut rows = one.iter().zip(&two);
    Ok(rows.any(|(a, b)| {
        let drift = a.iter().zip(b).any(|(a, b)| (a - b).abs() > DRIFT);
        drift || largest(a) != largest(b)
    }))
}

/// A robust accuracy with everything that must go with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The worst finding of the checks.
    pub verdict: Verdict,
    /// Accuracy on clean images.
    pub clean: Mean,
    /// Accuracy under everything that was tried in the ball, image by image.
    pub robust: Mean,
    /// The same with adversarial images of 8 bits.
    pub robust_rounded: Mean,
    /// Accuracy under the ensemble alone, as AutoAttack counts.
    pub after_ensemble: Mean,
    /// Every check, by number.
    pub checks: Vec<Check>,
    /// Accuracy at every radius.
    pub curve: Curve,
    /// Class by class.
    pub classes: Vec<Class>,
    /// How well the detector tells the images that broke the model from clean ones, if there is a
    /// detector and such an image.
    pub roc: Option<Roc>,
    /// Image by image, and attack by attack.
    pub table: Table,
    /// What was evaluated, how, and by which version.
    pub manifest: Manifest,
}

impl Evaluation {
    /// What a store says.
    ///
    /// # Errors
    /// [`Error::Setting`] if work is missing: then measure first.
    pub fn of(store: &Store) -> Result<Self> {
        let (manifest, facts) = (store.manifest(), store.facts());
        let plan = &manifest.plan;
        for (number, stage) in plan.stages.iter().enumerate() {
            let met = manifest
                .positions()
                .filter(|at| meets(plan, number, facts, *at));
            let missing = met.filter(|at| !facts.has(&stage.name, *at)).count();
            if missing > 0 {
                return Err(Error::Setting {
                    name: "store",
                    value: format!("{missing} images are missing in stage {}", stage.name),
                    remedy: "run the evaluation to its end first",
                });
            }
        }
        let table = Table::of(manifest, facts);
        let known = judge::Known {
            manifest,
            facts,
            table: &table,
            state_kept: store.state_kept(),
        };
        let checks = judge::checks(&known);
        let worst = checks.iter().map(|check| check.finding.verdict()).max();
        Ok(Self {
            verdict: worst.unwrap_or(Verdict::Reliable),
            clean: table.clean(),
            robust: table.robust(),
            robust_rounded: table.robust_rounded(),
            after_ensemble: table.after_ensemble(),
            checks,
            curve: table.curve(plan, facts),
            classes: table.classes(),
            roc: table::roc(plan, facts, &table),
            manifest: manifest.clone(),
            table,
        })
    }

    /// The checks that failed: the reasons of a verdict that is not [`Verdict::Reliable`].
    pub fn reasons(&self) -> impl Iterator<Item = &Check> {
        let failed = |check: &&Check| check.finding >= Finding::Questionable;
        self.checks.iter().filter(failed)
    }

    /// What to do next: the remedy of the worst failed check.
    pub fn next_step(&self) -> Option<&'static str> {
        let mut reasons: Vec<&Check> = self.reasons().collect();
        reasons.sort_by_key(|check| std::cmp::Reverse(check.finding));
        reasons
            .first()
            .and_then(|check| entry_of(check))
            .map(|entry| entry.remedy)
    }
}

impl fmt::Display for Evaluation {
    /// Number, interval and threat model; then the verdict with every reason and the next step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = self.manifest.plan.budget;
        writeln!(f, "robust accuracy {} ({budget})", self.robust)?;
        writeln!(f, "  clean {}; 8 bits {}", self.clean, self.robust_rounded)?;
        let passed = self
            .checks
            .iter()
            .filter(|check| check.finding == Finding::Passed)
            .count();
        write!(
            f,
            "  {}: {passed} of {} checks passed",
            self.verdict,
            self.checks.len()
        )?;
        for finding in [Finding::Stated, Finding::NotApplicable, Finding::NotRun] {
            let named = self.checks.iter().filter(|check| check.finding == finding);
            let names: Vec<&str> = named.map(|check| check.name).collect();
            if !names.is_empty() {
                write!(f, "; {finding}: {}", names.join(", "))?;
            }
        }
        for check in self.reasons() {
            write!(f, "\n  {check}")?;
        }
        match self.next_step() {
            Some(step) => write!(f, "\n  next: {step}"),
            None => Ok(()),
        }
    }
}
