//! Perturbations of the training images, and how vulnerable the classes are.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};
use theriac::{Aim, Run, craft, predict};
use theriac_advamd::{Deltas, Ladder, Tally};
use theriac_attacks::{Declare as _, Spec as Attack};
use theriac_data::{Dataset as _, Images};
use theriac_experiment::batches;
use theriac_nn::Normalised;
use theriac_tables::{BoxError, Cell, Lab};

use crate::method::{Base, Recipe};

/// Images whose perturbations lie in one file; what is lost when a run is interrupted.
const PART: usize = 2500;
const BATCH: usize = 250;
const DELTAS: &str = "deltas.safetensors";
const TALLY: &str = "tally.json";

/// What alpha, the difficulty of changing the decision from one class to another, is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Alpha {
    /// Attacks toward each other class in turn that fail.
    #[default]
    Targeted,
    /// One attack away from the label that ends elsewhere.
    Untargeted,
    /// The size of attack that it takes.
    MinNorm,
}

/// The sizes of attack for [`Alpha::MinNorm`], in units of the attack's own.
const SIZES: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];

/// Stage 1: all that is made once, on the network to amend.
pub(crate) struct Crafted<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) vanilla: &'a Normalised,
    pub(crate) cell: &'a Cell<'a>,
    pub(crate) lab: &'a Lab,
}

impl Crafted<'_> {
    fn attack(&self) -> Result<&Attack, BoxError> {
        Ok(self.recipe.attack.as_ref().ok_or("attack: name one")?)
    }

    fn run(&self) -> Result<Run, BoxError> {
        Ok(Run::new(
            self.cell.seed,
            &theriac::device(&self.lab.device)?,
        ))
    }

    /// The perturbations of all images.
    pub(crate) fn deltas(&self, attack: &Attack, data: &Images) -> Result<Deltas, BoxError> {
        #[derive(Serialize)]
        struct Key<'a> {
            base: Base<'a>,
            attack: &'a Attack,
            first: usize,
            len: usize,
        }
        let run = self.run()?;
        let mut all = Deltas::default();
        for first in (0..data.len()).step_by(PART) {
            let len = PART.min(data.len() - first);
            let key = Key {
                base: self.recipe.base(),
                attack,
                first,
                len,
            };
            let folder = self.lab.memo(self.cell, "deltas", &key, |folder| {
                let indices: Vec<u32> = (first as u32..(first + len) as u32).collect();
                let (part, mut deltas) = (data.subset(&indices)?, Deltas::default());
                for batch in batches(&part, BATCH, &run, self.lab)? {
                    let batch = batch?;
                    let (x, aim) = (&batch.pixels, Aim::Away(&batch.target));
                    let pass = run.eval(&batch.samples);
                    let moved = craft(attack, self.vanilla, x, aim, &pass)?;
                    deltas.keep(x, &moved, &batch.samples)?;
                    let done = (first + deltas.len()) as u64;
                    self.lab
                        .progress("attacking the training images", done, data.len() as u64);
                }
                Ok(deltas.save(&folder.join(DELTAS))?)
            })?;
            all.add(Deltas::load(&folder.join(DELTAS))?)?;
        }
        Ok(all)
    }

    /// A_k of each class, from images that are not trained on.
    pub(crate) fn coefficients(&self) -> Result<Vec<f64>, BoxError> {
        #[derive(Serialize)]
        struct Key<'a> {
            base: Base<'a>,
            attack: &'a Attack,
            alpha: Alpha,
            per_class: usize,
            held: usize,
        }
        let Recipe {
            alpha,
            per_class,
            held,
            ..
        } = *self.recipe;
        let key = Key {
            base: self.recipe.base(),
            attack: self.attack()?,
            alpha,
            per_class,
            held,
        };
        let folder = self.lab.memo(self.cell, "coefficients", &key, |folder| {
            let counts = serde_json::to_vec(&self.count()?)?;
            Ok(fs::write(folder.join(TALLY), counts)?)
        })?;
        let counts: Counts = serde_json::from_slice(&fs::read(folder.join(TALLY))?)?;
        Ok(match counts {
            Counts::Tally(tally) => tally.coefficients(),
            Counts::Ladder(ladder) => ladder.coefficients(),
        })
    }

    fn count(&self) -> Result<Counts, BoxError> {
        let (run, data) = (self.run()?, self.recipe.held_images(self.lab)?);
        // The first images of each class that the network has right.
        let (mut found, mut chosen, mut at) = (BTreeMap::new(), Vec::new(), 0);
        for batch in batches(&data, BATCH, &run, self.lab)? {
            let batch = batch?;
            let said = predict(self.vanilla, &batch.pixels, &run.eval(&batch.samples))?;
            for (said, label) in said.to_vec()?.into_iter().zip(batch.target.to_vec()?) {
                let count = found.entry(label).or_insert(0);
                if said == label && *count < self.recipe.per_class {
                    *count += 1;
                    chosen.push(at);
                }
                at += 1;
            }
        }
        let (data, classes) = (data.subset(&chosen)?, data.classes());
        let attack = self.attack()?;
        let mut counts = match self.recipe.alpha {
            Alpha::MinNorm => Counts::Ladder(Ladder::new(&SIZES, classes)?),
            _ => Counts::Tally(Tally::new(classes)),
        };
        let ladder: Vec<Attack> = match self.recipe.alpha {
            Alpha::MinNorm => {
                let sizes = SIZES.iter().map(|&size| attack.clone().scaled(size));
                sizes.collect::<theriac::Result<_>>()?
            }
            _ => Vec::new(),
        };
        let alpha = match self.recipe.alpha {
            Alpha::Untargeted => theriac_advamd::Alpha::Untargeted,
            _ => theriac_advamd::Alpha::Targeted,
        };
        let mut done = 0;
        for batch in batches(&data, BATCH, &run, self.lab)? {
            let batch = batch?;
            let pass = run.eval(&batch.samples);
            let images = (&batch.pixels, &batch.target);
            match &mut counts {
                Counts::Tally(tally) => tally.count(alpha, self.vanilla, attack, images, &pass)?,
                Counts::Ladder(rungs) => rungs.count(self.vanilla, &ladder, images, &pass)?,
            }
            done += batch.len() as u64;
            self.lab
                .progress("how vulnerable classes are", done, data.len() as u64);
        }
        Ok(counts)
    }
}

/// What attacks on images that are not trained on have done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Counts {
    Tally(Tally),
    Ladder(Ladder),
}
