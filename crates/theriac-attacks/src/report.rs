//! What an attack did, image by image.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use theriac::{
    Aim, Attack, Classifier, Iterate, Labels, Meter, Norm, Pass, Pixels, Result, Watch, Work, craft,
};

use crate::restarts::judge;

/// What an attack did to one image. Success and distance are measured from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Id of the image.
    pub sample: u32,
    /// The attack's result fools the model.
    pub fooled: bool,
    /// Distance of the result.
    pub distance: f64,
    /// The best iterate fools the model: where this holds and `fooled` does not, the attack
    /// succeeded on its way and gave the success up.
    pub best_fooled: bool,
    /// Distance of the best iterate.
    pub best_distance: f64,
    /// Scored iterates before the first that fooled the model.
    pub first: Option<u32>,
    /// Passes spent.
    pub work: Work,
}

/// What an attack did to a batch.
#[derive(Clone, Debug)]
pub struct Report {
    /// The attack's result.
    pub last: Pixels,
    /// For each image the result or iterate that fools the model with the largest loss, else that
    /// with the largest loss.
    pub best: Pixels,
    /// One row for each image, in the order of the batch.
    pub rows: Vec<Row>,
}

/// Runs an attack as [`craft`] does, counts its work image by image and judges its result and its
/// iterates. Distances are in `norm`. Memory holds one best iterate an image, however many steps.
///
/// ```
/// # use theriac::{Aim, Classifier, Labels, Norm, Pass, Pixels, Result};
/// # use theriac_attacks::{Pgd, report};
/// # fn f<C: Classifier>(model: &C, x: &Pixels, y: &Labels, pass: &Pass<'_>) -> Result<()> {
/// let pgd = Pgd::new(theriac::Budget::linf("8/255".parse()?)?, "2/255".parse()?, 10);
/// let report = report(&pgd, model, x, Aim::Away(y), pass, Norm::Linf)?;
/// let broken = report.rows.iter().filter(|row| row.fooled).count();
/// let passes: u64 = report.rows.iter().map(|row| row.work.gradients).sum();
/// # let _ = (broken, passes); Ok(()) }
/// ```
///
/// # Errors
/// Those of the attack and the model.
pub fn report<C, A>(
    attack: &A,
    model: &C,
    clean: &Pixels,
    aim: Aim<'_, Labels>,
    pass: &Pass<'_>,
    norm: Norm,
) -> Result<Report>
where
    C: Classifier + ?Sized,
    A: Attack<C> + ?Sized,
{
    let (meter, journal) = (Meter::of_images(), Journal::default());
    let watched = Pass {
        meter: &meter,
        watch: Some(&journal),
        ..*pass
    };
    let last = craft(attack, model, clean, aim, &watched)?;
    pass.meter.add(&meter);
    let (values, fooled) = judge(model, &last, aim, pass)?;
    let journal = journal
        .0
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let mut best = last.clone();
    let mut rows = Vec::with_capacity(clean.len());
    for (i, &sample) in pass.samples.iter().enumerate() {
        let seen = journal.get(&sample);
        if let Some(seen) = seen.filter(|seen| seen.fooled && !fooled[i] || values[i].is_nan()) {
            best = best.with(&[i as u32], &seen.image)?;
        }
        rows.push(Row {
            sample,
            fooled: fooled[i],
            distance: 0.0,
            best_fooled: fooled[i] || seen.is_some_and(|seen| seen.fooled),
            best_distance: 0.0,
            first: seen.and_then(|seen| seen.first),
            work: meter.of(sample),
        });
    }
    let distance = |x: &Pixels| norm.of(&(x.tensor() - clean.tensor())?);
    let distances = distance(&last)?.into_iter().zip(distance(&best)?);
    for (row, (last, best)) in rows.iter_mut().zip(distances) {
        (row.distance, row.best_distance) = (last, best);
    }
    Ok(Report { last, best, rows })
}

struct Seen {
    value: f64,
    fooled: bool,
    image: Pixels,
    iterates: u32,
    first: Option<u32>,
}

/// The best iterate of each image.
#[derive(Default)]
struct Journal(Mutex<BTreeMap<u32, Seen>>);

impl Watch for Journal {
    fn see(&self, iterate: &Iterate<'_>) -> Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, sample) in iterate.samples.iter().enumerate() {
            let (value, fooled) = (iterate.values[i], iterate.fooled.is_some_and(|f| f[i]));
            // A clamp is a copy; a cut would keep the whole batch in memory.
            let image = || Pixels::clamp(iterate.images.narrow(i, 1)?.tensor());
            let Some(seen) = all.get_mut(sample) else {
                let seen = Seen {
                    value,
                    fooled,
                    image: image()?,
                    iterates: 1,
                    first: fooled.then_some(0),
                };
                all.insert(*sample, seen);
                continue;
            };
            if (fooled, value) > (seen.fooled, seen.value) {
                (seen.fooled, seen.value, seen.image) = (fooled, value, image()?);
            }
            if fooled {
                seen.first = seen.first.or(Some(seen.iterates));
            }
            seen.iterates += 1;
        }
        Ok(())
    }
}
