//! Accuracy of a defended network.

use std::collections::BTreeMap;
use std::fs;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use theriac::{Batch, Budget, Classifier, Labels, Mode, Pass, Pixels, Rng, Run, scores};
use theriac_attacks::{Access, Apgd, Declare as _, Declared, Loss, Pgd, Start, Transfer};
use theriac_counteract::AddBack;
use theriac_data::{Dataset as _, Images};
use theriac_datasets::Split;
use theriac_eval::{Checks, Evaluator, Robust, clean_accuracy};
use theriac_experiment::{batches, images, into_theriac, measured, share};
use theriac_nn::{Entry, Normalised, Saved, write};
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::attacked::{Stored, stored};
use crate::defended::{Defended, pool};
use crate::{Aiming, Attack, Defence, Knows, Settings};

const BATCH: usize = 128;
const FILE: &str = "score.json";
const SAID: &str = "clean.safetensors";
const LOGITS: &str = "logits";

/// What decides a score.
#[derive(Serialize)]
struct Key<'a, R> {
    recipe: R,
    samples: bool,
    images: usize,
    defence: &'a Defence,
    attack: Attack,
}

/// The accuracy in a cell, measured once for all tables that have it.
pub(crate) fn score(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
    let key = Key {
        recipe: settings.recipe.key(),
        samples: settings.samples,
        images: settings.images(),
        defence: &settings.defence,
        attack: settings.attack,
    };
    let folder = lab.memo(cell, "score", &key, |folder| {
        let began = std::time::Instant::now();
        let mut score = computed(settings, cell, lab)?;
        score.seconds = began.elapsed().as_secs_f64();
        Ok(fs::write(folder.join(FILE), serde_json::to_vec(&score)?)?)
    })?;
    Ok(serde_json::from_slice(&fs::read(folder.join(FILE))?)?)
}

/// The test images of a cell.
pub(crate) fn test_images(settings: &Settings, lab: &Lab) -> Result<Images, BoxError> {
    let (data, n) = (&settings.recipe.data, settings.images());
    images(data, settings.samples, Split::Test, n, lab)
}

fn computed(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
    let device = theriac::device(&lab.device)?;
    let twin = settings.recipe.trained(cell, lab, &device)?;
    let (network, data) = (&twin.frozen, test_images(settings, lab)?);
    let pool = pool(settings, network.classes(), lab, &device)?;
    let defended = Defended {
        network,
        defence: &settings.defence,
        pool: pool.as_ref(),
    };
    let run = Run::new(cell.seed, &device);
    let work = Work {
        settings,
        run: &run,
        data: &data,
        cell,
        lab,
    };
    if settings.attack.aim == Aiming::None {
        let said = work.said(&defended)?;
        let (accuracy, _) = clean_accuracy(&said, work.batches()?, &run, work.observe())?;
        return Ok(share(accuracy));
    }
    Ok(measured(&match settings.attack.knows {
        Knows::Nothing => {
            let stored = stored(settings, network, &data, cell, lab)?;
            match settings.defence.bare() {
                true => work.oblivious(&defended, &stored)?,
                // Fifty executions on the same clean images again would be half of the time.
                false => work.oblivious(&work.said(&defended)?, &stored)?,
            }
        }
        _ => work.adaptive(&defended)?,
    }))
}

struct Work<'a> {
    settings: &'a Settings,
    run: &'a Run,
    data: &'a Images,
    cell: &'a Cell<'a>,
    lab: &'a Lab,
}

impl<'a> Work<'a> {
    fn batches(
        &self,
    ) -> Result<impl Iterator<Item = theriac::Result<Batch<Labels>>> + use<'a>, BoxError> {
        batches(self.data, BATCH, self.run, self.lab)
    }

    fn observe(&self) -> impl FnMut(usize) + 'a {
        let (lab, all) = (self.lab, self.data.len() as u64);
        let label = format!("{}, {}", self.cell.row.name, self.cell.column.name);
        move |done| lab.progress(&label, done as u64, all)
    }

    /// The defended network, with what it says about the clean images computed once for all attacks.
    fn said<'d, C: Classifier>(&self, defended: &'d C) -> Result<Said<'a, &'d C>, BoxError> {
        let settings = self.settings;
        let key = Key {
            recipe: settings.recipe.key(),
            samples: settings.samples,
            images: settings.images(),
            defence: &settings.defence,
            attack: Attack::default(),
        };
        let folder = self.lab.memo(self.cell, "clean", &key, |folder| {
            let (mut rows, mut observe) = (Vec::new(), self.observe());
            for batch in self.batches()? {
                let Batch {
                    pixels, samples, ..
                } = batch?;
                let said = scores(defended, &pixels, &self.run.eval(&samples))?;
                rows.extend(said.into_iter().flatten().map(|value| value as f32));
                observe(rows.len() / defended.classes());
            }
            let logits = Tensor::new(rows, &Device::Cpu)?;
            let entry = Entry::tensor(LOGITS.to_owned(), &logits)?;
            Ok(write(&folder.join(SAID), vec![entry], &BTreeMap::new())?)
        })?;
        let logits = Saved::read(&folder.join(SAID))?.tensor(LOGITS, self.run.device())?;
        let ids = self.data.ids().iter().zip(0..);
        Ok(Said {
            model: defended,
            clean: self.data,
            rng: self.run.eval(&[]).rng,
            logits: logits.reshape(((), defended.classes()))?,
            position: ids.map(|(&id, position)| (id, position)).collect(),
        })
    }

    /// Images crafted on the bare network. Where that is what they are judged on, it is a white-box
    /// attack with all checks; else the attacker knew nothing of the defence.
    fn oblivious<C: Classifier>(&self, defended: &C, stored: &Stored) -> Result<Robust, BoxError> {
        let declared = self.settings.attack.pgd()?.declared();
        let reference = self.settings.attack.aim.reference();
        let evaluator = Evaluator {
            reference,
            ..Evaluator::new(defended, self.run)
        };
        let (checks, declared) = match self.settings.defence.bare() {
            true => (Checks::all(), declared),
            false => {
                let name = format!("{} on the bare network", declared.name);
                let declared = Declared {
                    name,
                    reach: None,
                    iterative: false,
                    access: Access::None,
                    ..declared
                };
                // The others ask whether gradients of the model mislead: here they took no part.
                let checks = Checks {
                    gradients: false,
                    fgsm: false,
                    huge_eps: false,
                    ..Checks::all()
                };
                (checks, declared)
            }
        };
        let evaluator = Evaluator {
            checks,
            ..evaluator
        };
        Ok(evaluator.attack(stored, &declared, self.batches()?, self.observe())?)
    }

    /// Attacks that know the defence.
    fn adaptive(&self, defended: &Defended<'_, Normalised>) -> Result<Robust, BoxError> {
        let attack = self.settings.attack;
        let reference = attack.aim.reference();
        let evaluator = Evaluator {
            checks: Checks::cheap(),
            reference,
            ..Evaluator::new(defended, self.run)
        };
        // What the attacker climbs: the same defence with fewer executions.
        let defence = Defence {
            executions: attack.executions.min(self.settings.defence.executions),
            mixtures: attack.executions.min(self.settings.defence.mixtures),
            ..self.settings.defence.clone()
        };
        let surrogate = Defended {
            defence: &defence,
            ..*defended
        };
        let through = |declared: Declared| {
            let name = match self.settings.defence.each.is_empty() {
                true => format!("{} through the defence", declared.name),
                false => format!(
                    "{} through the defence, {} executions",
                    declared.name, attack.executions
                ),
            };
            Declared { name, ..declared }
        };
        let budget = Budget::linf(attack.eps)?;
        let (batches, observe) = (self.batches()?, self.observe());
        Ok(match attack.knows {
            Knows::Pgd => {
                let pgd = attack.pgd()?;
                let declared = through(pgd.declared());
                let attack = Transfer {
                    attack: pgd,
                    surrogate,
                };
                evaluator.attack(&attack, &declared, batches, observe)?
            }
            Knows::Apgd => {
                let steps = attack.steps;
                let apgd = Apgd {
                    steps,
                    ..Apgd::new(budget, Loss::CrossEntropy)
                };
                let declared = through(apgd.declared());
                let attack = Transfer {
                    attack: apgd,
                    surrogate,
                };
                evaluator.attack(&attack, &declared, batches, observe)?
            }
            Knows::AddBack | Knows::Nothing => {
                let pgd = Pgd {
                    start: Start::Uniform,
                    ..attack.pgd()?
                };
                let declared = pgd.declared();
                let name = format!(
                    "{} on the bare network, counter-perturbation taken off",
                    declared.name
                );
                let declared = Declared { name, ..declared };
                let counteract = defended.counteract()?;
                let counteract = counteract.ok_or("there is no counter-perturbation")?;
                let attack = Transfer {
                    attack: AddBack {
                        attack: pgd,
                        budget,
                        rounds: 5,
                    },
                    surrogate: counteract,
                };
                evaluator.attack(&attack, &declared, batches, observe)?
            }
        })
    }
}

/// A model whose logits of the clean images are known.
struct Said<'a, C> {
    model: C,
    clean: &'a Images,
    /// The draws they were computed with.
    rng: Rng,
    /// (N, K)
    logits: Tensor,
    position: BTreeMap<u32, u32>,
}

impl<C: Classifier> Said<'_, C> {
    /// Where these images are, if they are clean ones with the same draws.
    fn at(&self, x: &Pixels, pass: &Pass<'_>) -> theriac::Result<Option<Vec<u32>>> {
        let position = |id: &u32| self.position.get(id).copied();
        let at: Option<Vec<u32>> = pass.samples.iter().map(position).collect();
        let Some(at) = at.filter(|_| pass.rng == self.rng && pass.mode == Mode::Eval) else {
            return Ok(None);
        };
        let (dtype, device) = (x.tensor().dtype(), x.tensor().device());
        let clean = self.clean.batch(&at, dtype, device).map_err(into_theriac)?;
        let other = clean.pixels.tensor().ne(x.tensor())?;
        let other = other.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        Ok((other == 0.0).then_some(at))
    }
}

impl<C: Classifier> Classifier for Said<'_, C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> theriac::Result<Tensor> {
        match self.at(x, pass)? {
            Some(at) => {
                let at = Tensor::new(at, self.logits.device())?;
                Ok(self.logits.index_select(&at, 0)?)
            }
            None => self.model.logits(x, pass),
        }
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}
