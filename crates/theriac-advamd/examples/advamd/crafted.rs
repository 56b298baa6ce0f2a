//! Perturbations of the training images, and how vulnerable the classes are.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;
use theriac::{Aim, Run, craft, predict};
use theriac_advamd::{Alpha, Deltas, Tally};
use theriac_attacks::Spec as Attack;
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
    pub(crate) fn deltas(&self, data: &Images) -> Result<Deltas, BoxError> {
        #[derive(Serialize)]
        struct Key<'a> {
            base: Base<'a>,
            attack: &'a Attack,
            first: usize,
            len: usize,
        }
        let (attack, run) = (self.attack()?, self.run()?);
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
            let tally = self.tally()?;
            Ok(fs::write(folder.join(TALLY), serde_json::to_vec(&tally)?)?)
        })?;
        let tally: Tally = serde_json::from_slice(&fs::read(folder.join(TALLY))?)?;
        Ok(tally.coefficients())
    }

    fn tally(&self) -> Result<Tally, BoxError> {
        let (run, data) = (self.run()?, self.recipe.held_images(self.lab)?);
        // The first images of each class that the network has right.
        let (mut counts, mut chosen, mut at) = (BTreeMap::new(), Vec::new(), 0);
        for batch in batches(&data, BATCH, &run, self.lab)? {
            let batch = batch?;
            let said = predict(self.vanilla, &batch.pixels, &run.eval(&batch.samples))?;
            for (said, label) in said.to_vec()?.into_iter().zip(batch.target.to_vec()?) {
                let count = counts.entry(label).or_insert(0);
                if said == label && *count < self.recipe.per_class {
                    *count += 1;
                    chosen.push(at);
                }
                at += 1;
            }
        }
        let (data, mut tally) = (data.subset(&chosen)?, Tally::new(data.classes()));
        let mut done = 0;
        for batch in batches(&data, BATCH, &run, self.lab)? {
            let batch = batch?;
            let pass = run.eval(&batch.samples);
            let images = (&batch.pixels, &batch.target);
            tally.count(
                self.recipe.alpha,
                self.vanilla,
                self.attack()?,
                images,
                &pass,
            )?;
            done += batch.len() as u64;
            self.lab
                .progress("how vulnerable classes are", done, data.len() as u64);
        }
        Ok(tally)
    }
}
