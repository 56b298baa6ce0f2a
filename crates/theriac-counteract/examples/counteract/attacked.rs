//! The test images, attacked once on the bare network and kept: every defence is judged on the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Tensor;
use serde::Serialize;
use theriac::{
    Aim, Attack, Batch, Budget, Classifier, Error, Labels, Model, Pass, Pixels, Result, Run, craft,
};
use theriac_attacks::Pgd;
use theriac_data::{Dataset as _, Images};
use theriac_eval::Reference;
use theriac_nn::{Entry, Normalised, Saved, write};
use theriac_tables::{BoxError, Cell, Interrupted, Lab};

use crate::{Aiming, Attack as Asked, Settings};

/// Images that are attacked and stored together; what is lost when a run is interrupted.
const SLICE: usize = 250;
const FILE: &str = "images.safetensors";
const NAME: &str = "images";

/// Steps after which an attack is kept on its way to more.
const KEPT: [u32; 2] = [10, 50];

impl Aiming {
    pub(crate) fn reference(self) -> Reference {
        match self {
            Self::None | Self::UntargetedTrue => Reference::Label,
            Self::Untargeted => Reference::Prediction,
            Self::Targeted => Reference::Other,
        }
    }
}

impl Asked {
    /// The attack on the bare network.
    pub(crate) fn pgd(&self) -> Result<Pgd> {
        Ok(Pgd::new(Budget::linf(self.eps)?, self.step, self.steps))
    }
}

/// Images that an attack has made before, by id.
pub(crate) struct Stored {
    images: Pixels,
    position: BTreeMap<u32, u32>,
}

impl<M: Model + ?Sized> Attack<M> for Stored {
    fn perturb(&self, _: &M, _: &Pixels, _: Aim<'_, M::Target>, pass: &Pass<'_>) -> Result<Pixels> {
        let position = |id: &u32| self.position.get(id).copied();
        let at: Option<Vec<u32>> = pass.samples.iter().map(position).collect();
        let at = at.ok_or_else(|| Error::Other("an image was not attacked".into()))?;
        self.images.pick(&at)
    }
}

/// The adversarial images of a cell: crafted on the bare network with nothing but its settings.
pub(crate) fn stored(
    settings: &Settings,
    network: &Normalised,
    data: &Images,
    cell: &Cell<'_>,
    lab: &Lab,
) -> Result<Stored, BoxError> {
    let mut images = Vec::new();
    for first in (0..data.len()).step_by(SLICE) {
        let len = SLICE.min(data.len() - first);
        let work = Work {
            settings,
            network,
            data,
            cell,
            lab,
        };
        let file = work.slice(settings.attack.steps, first, len)?;
        let device = theriac::device(&lab.device)?;
        images.push(Pixels::new(Saved::read(&file)?.tensor(NAME, &device)?)?);
        let label = format!("attacking {}", cell.row.name);
        lab.progress(&label, (first + len) as u64, data.len() as u64);
    }
    let ids = data.ids().iter().zip(0..);
    Ok(Stored {
        images: Pixels::cat(&images)?,
        position: ids.map(|(&id, position)| (id, position)).collect(),
    })
}

/// What decides the images of a slice.
#[derive(Serialize)]
struct Key<'a, R> {
    recipe: R,
    samples: bool,
    data: &'a str,
    aim: Aiming,
    eps: theriac::Eps,
    step: theriac::Eps,
    steps: u32,
    first: usize,
    len: usize,
}

struct Work<'a> {
    settings: &'a Settings,
    network: &'a Normalised,
    data: &'a Images,
    cell: &'a Cell<'a>,
    lab: &'a Lab,
}

impl Work<'_> {
    /// The file of a slice after so many steps. From a kept number of steps the attack goes on where
    /// it stopped: the last iterate is all that PGD remembers.
    fn slice(&self, steps: u32, first: usize, len: usize) -> Result<PathBuf, BoxError> {
        let Settings {
            recipe,
            samples,
            attack,
            ..
        } = self.settings;
        let before = KEPT.into_iter().rev().find(|kept| *kept < steps);
        let start = before
            .map(|before| self.slice(before, first, len))
            .transpose()?;
        let key = Key {
            recipe: recipe.key(),
            samples: *samples,
            data: &recipe.data,
            aim: attack.aim,
            eps: attack.eps,
            step: attack.step,
            steps,
            first,
            len,
        };
        let folder = self.lab.memo(self.cell, "attack", &key, |folder| {
            if self.lab.interrupted() {
                return Err(Interrupted.into());
            }
            let device = theriac::device(&self.lab.device)?;
            let run = Run::new(self.cell.seed, &device);
            let indices: Vec<u32> = (first as u32..(first + len) as u32).collect();
            let batch = self
                .data
                .batch(&indices, candle_core::DType::F32, &device)?;
            let start = match &start {
                Some(file) => Some(Pixels::new(Saved::read(file)?.tensor(NAME, &device)?)?),
                None => None,
            };
            let moved = self.attacked(&batch, start.as_ref(), steps - before.unwrap_or(0), &run)?;
            let entry = Entry::tensor(NAME.to_owned(), &whole(&moved)?)?;
            Ok(write(&folder.join(FILE), vec![entry], &BTreeMap::new())?)
        })?;
        Ok(folder.join(FILE))
    }

    fn attacked(
        &self,
        batch: &Batch<Labels>,
        start: Option<&Pixels>,
        steps: u32,
        run: &Run,
    ) -> Result<Pixels> {
        let pass = run.eval(&batch.samples);
        let reference = self.settings.attack.aim.reference();
        let labels = reference.labels(self.network, batch, &pass)?;
        let aim = reference.aim(&labels);
        let pgd = Pgd {
            steps,
            // The steps of all parts together reach the edge.
            short_reach: true,
            ..self.settings.attack.pgd()?
        };
        match start {
            None => craft(&pgd, self.network, &batch.pixels, aim, &pass),
            Some(start) => {
                let from = From { pgd, start, batch };
                craft(&from, self.network, &batch.pixels, aim, &pass)
            }
        }
    }
}

/// PGD from given images.
struct From<'a> {
    pgd: Pgd,
    start: &'a Pixels,
    batch: &'a Batch<Labels>,
}

impl<C: Classifier + ?Sized> Attack<C> for From<'_> {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let place = |id: &u32| self.batch.samples.iter().position(|sample| sample == id);
        let at: Option<Vec<u32>> = pass
            .samples
            .iter()
            .map(|id| place(id).map(|at| at as u32))
            .collect();
        let at = at.ok_or_else(|| Error::Other("an image has no start".into()))?;
        let start = self.start.pick(&at)?;
        self.pgd.perturb_from(&start, model, clean, aim, pass)
    }
}

fn whole(images: &Pixels) -> Result<Tensor> {
    Ok(images.tensor().contiguous()?)
}
