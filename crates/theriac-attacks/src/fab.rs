//! Fast adaptive boundary attack.
//!
//! ```text
//! boundary to class l, linearised at x_k:   z_l - z_y + <grad(z_l - z_y), x - x_k> = 0
//! d1, d2 = the smallest moves from x_k and from x_0 onto the nearest one, inside [0, 1]
//! a = min(||d1|| / (||d1|| + ||d2||), alpha_max)
//! x_{k+1} = clip((1 - a)(x_k + eta d1) + a (x_0 + eta d2));   after a success back toward x_0 by beta
//! ```
//!
//! Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
//! ICML 2020; settings and quirks of AutoAttack's code: norms floored at 1e-8, no random start in
//! the first run. Its success counts only within eps; we return the closest image found, and
//! [`crate::Within`] puts it in a ball.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{
    Aim, Attack, Classifier, Cut, Eps, Labels, Norm, Pass, Pixels, Result, jacobian, scores,
};

use crate::active::{Active, pick};
use crate::apgd::other_classes;
use crate::declared::{at_least_one, setting};
use crate::host::{column, images, rows};
use crate::loss::{entries, fooled, margin};
use crate::{Declare, Declared, Loss};

/// Looks for the closest image across the linearised boundary.
///
/// ```
/// # use theriac_attacks::Fab;
/// let untargeted = Fab::new(theriac::Norm::L2);
/// let fab_t = Fab { targets: Some(9), ..Fab::new(theriac::Norm::Linf) };
/// # let _ = (untargeted, fab_t);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fab {
    /// The norm to keep small.
    pub norm: Norm,
    /// Number of steps.
    #[serde(default = "hundred")]
    pub steps: u32,
    /// Runs toward this many of the most likely other classes (FAB-T), one class at a time; else
    /// one run toward whichever boundary is nearest, at a backward pass for each class.
    #[serde(default)]
    pub targets: Option<u32>,
    /// Largest weight of the clean image in a step.
    #[serde(default = "tenth")]
    pub alpha_max: f64,
    /// Overshoot over the boundary.
    #[serde(default = "overshoot")]
    pub eta: f64,
    /// Share of the distance that is left after a success.
    #[serde(default = "shrink")]
    pub beta: f64,
    /// An image leaves the batch once it is found this close.
    #[serde(default)]
    pub enough: Option<Eps>,
    /// Number of runs; all but the first start at random, half as far as the best so far or as
    /// `enough`.
    #[serde(default = "once")]
    pub restarts: u32,
}

fn once() -> u32 {
    1
}

fn hundred() -> u32 {
    100
}

fn tenth() -> f64 {
    0.1
}

fn overshoot() -> f64 {
    1.05
}

fn shrink() -> f64 {
    0.9
}

impl Fab {
    /// AutoAttack's settings, untargeted.
    pub fn new(norm: Norm) -> Self {
        Self {
            norm,
            steps: hundred(),
            targets: None,
            alpha_max: tenth(),
            eta: overshoot(),
            beta: shrink(),
            enough: None,
            restarts: once(),
        }
    }

    /// One run over the boundaries to `classes`, one list an image, all of one length. The closest
    /// image found, or the clean one, and its distance.
    fn run<C: Classifier + ?Sized>(
        &self,
        classes: &[Vec<u32>],
        start: Pixels,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<(Pixels, Vec<f64>)> {
        let n = clean.len();
        let mut left = Active::all(clean, aim.target(), pass.samples)?;
        let mut classes = classes.to_vec();
        let mut at: Vec<u32> = (0..n as u32).collect();
        let mut all_distances = vec![f64::INFINITY; n];
        let mut x = start;
        let mut best = clean.clone();
        let mut distances = vec![f64::INFINITY; n];
        for k in 0..self.steps {
            let pass = pass.at(u64::from(k));
            let pass = pass.over(&left.samples);
            let labels = left.target.to_vec()?;
            let (differences, gradients) = jacobian(&x, &pass, |x| {
                let logits = model.logits(x, &pass)?;
                differences_of(&logits, &classes, aim.at(&left.target))
            })?;
            let moved = self.step(&x, &left.clean, &differences, &gradients)?;
            let logits = scores(model, &moved, &pass)?;
            let done = fooled(&logits, aim.at(&left.target))?;
            let margins: Vec<f64> = logits
                .iter()
                .zip(&labels)
                .map(|(row, &label)| aim.sign() * margin(row, label))
                .collect();
            pass.show(&moved, &margins, Some(&done))?;
            let away = self.norm.of(&(moved.tensor() - left.clean.tensor())?)?;
            let closer: Vec<bool> = (0..done.len())
                .map(|i| done[i] && away[i] < distances[i])
                .collect();
            best = moved.select(&closer, &best)?;
            for i in (0..closer.len()).filter(|&i| closer[i]) {
                distances[i] = away[i];
            }
            let back = (moved.tensor() - left.clean.tensor())?;
            let back = Pixels::clamp(&(left.clean.tensor() + (back * self.beta)?)?)?;
            x = back.select(&done, &moved)?;
            if let Some(enough) = self.enough {
                let near: Vec<bool> = distances.iter().map(|d| *d <= enough.get()).collect();
                if near.contains(&true) {
                    for (i, &to) in at.iter().enumerate() {
                        all_distances[to as usize] = distances[i];
                    }
                    let Some(stay) = left.leave(&near, &best)? else {
                        return Ok((left.finish(&best)?, all_distances));
                    };
                    x = x.pick(&stay)?;
                    best = best.pick(&stay)?;
                    distances = pick(&distances, &stay);
                    classes = pick(&classes, &stay);
                    at = pick(&at, &stay);
                }
            }
        }
        for (i, &to) in at.iter().enumerate() {
            all_distances[to as usize] = distances[i];
        }
        Ok((left.finish(&best)?, all_distances))
    }

    /// A random point, half as far from the clean image as the closest one found.
    fn start(&self, clean: &Pixels, distances: &[f64], pass: &Pass<'_>) -> Result<Pixels> {
        let unit = match self.norm {
            Norm::L2 => Norm::L2.steepest(&pass.normal("start", clean.tensor())?)?,
            norm => {
                let noise = pass.uniform("start", clean)?;
                let most: Vec<f64> = norm
                    .of(&noise)?
                    .iter()
                    .map(|m| 1.0 / m.max(1e-12))
                    .collect();
                noise.broadcast_mul(&column(&most, &noise)?)?
            }
        };
        // AutoAttack's radii where none is given.
        let usual = if self.norm == Norm::L2 { 1.0 } else { 0.3 };
        let most = self.enough.map_or(usual, Eps::get);
        let radii: Vec<f64> = distances.iter().map(|d| 0.5 * d.min(most)).collect();
        let moved = (clean.tensor() + unit.broadcast_mul(&column(&radii, &unit)?)?)?;
        Pixels::clamp(&moved)
    }

    /// The combined step from x and x_0.
    fn step(
        &self,
        x: &Pixels,
        clean: &Pixels,
        differences: &Tensor,
        gradients: &[Tensor],
    ) -> Result<Pixels> {
        let (at, from) = (rows(x.tensor())?, rows(clean.tensor())?);
        let gradients = gradients.iter().map(rows).collect::<Result<Vec<_>>>()?;
        let differences = rows(differences)?;
        let mut moved = Vec::with_capacity(at.len());
        for i in 0..at.len() {
            let distance =
                |l: usize| differences[i][l].abs() / (dual(self.norm, &gradients[l][i]) + 1e-12);
            let nearest = (0..gradients.len()).min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
            let l = nearest.unwrap_or(0);
            let (w, f) = (&gradients[l][i], differences[i][l]);
            let between = w.iter().zip(at[i].iter().zip(&from[i]));
            let f_clean = f + between.map(|(w, (x, x0))| w * (x0 - x)).sum::<f64>();
            let d1 = onto_plane(self.norm, &at[i], w, f);
            let d2 = onto_plane(self.norm, &from[i], w, f_clean);
            let (a1, a2) = (
                size(self.norm, &d1).max(1e-8),
                size(self.norm, &d2).max(1e-8),
            );
            let a = (a1 / (a1 + a2)).min(self.alpha_max);
            let row = (0..w.len()).map(|j| {
                let (from_x, from_clean) =
                    (at[i][j] + self.eta * d1[j], from[i][j] + self.eta * d2[j]);
                (1.0 - a) * from_x + a * from_clean
            });
            moved.push(row.collect());
        }
        images(&moved, clean)
    }
}

/// Logits of the classes minus that of the label, (N, K): above 0 across the boundary. Toward a
/// class there is one boundary, to it from the best of the others.
fn differences_of(logits: &Tensor, classes: &[Vec<u32>], aim: Aim<'_, Labels>) -> Result<Tensor> {
    if let Aim::Toward(_) = aim {
        return Ok(Loss::Margin.of(logits, aim)?.unsqueeze(1)?);
    }
    let label = entries(logits, &aim.target().to_vec()?)?;
    let columns = (0..classes[0].len()).map(|rank| {
        let class: Vec<u32> = classes.iter().map(|list| list[rank]).collect();
        Ok((entries(logits, &class)? - &label)?)
    });
    Ok(Tensor::stack(&columns.collect::<Result<Vec<_>>>()?, 1)?)
}

/// The norm that divides a difference of logits into a distance.
fn dual(norm: Norm, w: &[f64]) -> f64 {
    match norm {
        Norm::L2 => w.iter().map(|w| w * w).sum::<f64>().sqrt(),
        _ => w.iter().map(|w| w.abs()).sum(),
    }
}

fn size(norm: Norm, d: &[f64]) -> f64 {
    match norm {
        Norm::L2 => d.iter().map(|d| d * d).sum::<f64>().sqrt(),
        _ => d.iter().fold(0.0, |most, d| most.max(d.abs())),
    }
}

/// The smallest move from x onto the plane where `f + <w, d> = 0`, inside [0, 1]; as far toward it
/// as the cube allows if it does not meet the cube.
///
/// Every coordinate moves against f: in Linf all as far as one level, in L2 in proportion to w,
/// each until it meets the cube.
pub(crate) fn onto_plane(norm: Norm, x: &[f64], w: &[f64], f: f64) -> Vec<f64> {
    let downhill = if f >= 0.0 { -1.0 } else { 1.0 };
    // (level at which the coordinate meets the cube, its share in f for each unit of level)
    let mut ends: Vec<(f64, f64)> = Vec::with_capacity(x.len());
    let room = |x: f64, w: f64| if downhill * w > 0.0 { 1.0 - x } else { x };
    for (&x, &w) in x.iter().zip(w).filter(|(_, w)| **w != 0.0) {
        ends.push(match norm {
            Norm::L2 => (room(x, w) / w.abs(), w * w),
            _ => (room(x, w), w.abs()),
        });
    }
    let level = level(&mut ends, f.abs());
    let step = |(&x, &w): (&f64, &f64)| {
        if w == 0.0 {
            return 0.0;
        }
        let free = match norm {
            Norm::L2 => level * w.abs(),
            _ => level,
        };
        (downhill * w).signum() * free.min(room(x, w))
    };
    x.iter().zip(w).map(step).collect()
}

/// The level l at which `sum_i weight_i min(l, end_i)` reaches `goal`, infinite if it never does:
/// bisection over the ends, in linear time.
fn level(ends: &mut [(f64, f64)], goal: f64) -> f64 {
    let (mut reached, mut slope) = (0.0, 0.0);
    let mut rest = ends;
    while !rest.is_empty() {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, |a, b| a.0.total_cmp(&b.0));
        let pivot = rest[middle].0;
        let (low, high) = rest.split_at_mut(middle + 1);
        let in_low: f64 = low.iter().map(|(end, weight)| end * weight).sum();
        let in_high: f64 = high.iter().map(|(_, weight)| weight).sum();
        if reached + in_low + pivot * (slope + in_high) >= goal {
            // The level is at most the pivot: what ends above it only adds slope.
            slope += in_high + low[middle].1;
            rest = &mut low[..middle];
        } else {
            reached += in_low;
            rest = high;
        }
    }
    if slope > 0.0 {
        ((goal - reached) / slope).max(0.0)
    } else {
        f64::INFINITY
    }
}

impl<C: Classifier + ?Sized> Attack<C> for Fab {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let labels = aim.target().to_vec()?;
        let logits = scores(model, clean, pass)?;
        let already = fooled(&logits, aim)?;
        let mut left = Active::all(clean, aim.target(), pass.samples)?;
        let mut others = other_classes(&logits, &labels);
        // What fools the model already has distance 0.
        let Some(stay) = left.leave(&already, clean)? else {
            return left.finish(clean);
        };
        others = pick(&others, &stay);
        // One run over all boundaries, or one for each of the nearest classes.
        let others_count = model.classes() - 1;
        let (runs, width) = match self.targets {
            None => (1, others_count),
            Some(targets) => ((targets as usize).min(others_count), 1),
        };
        let runs = (0..runs).flat_map(|rank| (0..self.restarts).map(move |run| (rank, run)));
        let mut best = left.clean.clone();
        let mut distances = vec![f64::INFINITY; best.len()];
        for (number, (rank, run)) in runs.enumerate() {
            let pass = pass.fork(number as u64);
            let pass = pass.over(&left.samples);
            let here = |o: &Vec<u32>| o[rank..rank + width].to_vec();
            let classes: Vec<Vec<u32>> = others.iter().map(here).collect();
            let start = match run {
                0 => left.clean.clone(),
                _ => self.start(&left.clean, &distances, &pass)?,
            };
            let aim = aim.at(&left.target);
            let (found, away) = self.run(&classes, start, model, &left.clean, aim, &pass)?;
            let closer: Vec<bool> = away.iter().zip(&distances).map(|(a, b)| a < b).collect();
            best = found.select(&closer, &best)?;
            for (known, new) in distances.iter_mut().zip(away) {
                *known = known.min(new);
            }
            if let Some(enough) = self.enough {
                let near: Vec<bool> = distances.iter().map(|d| *d <= enough.get()).collect();
                let Some(stay) = left.leave(&near, &best)? else {
                    break;
                };
                best = best.pick(&stay)?;
                distances = pick(&distances, &stay);
                others = pick(&others, &stay);
            }
        }
        left.finish(&best)
    }

    fn cut(&self) -> Cut {
        Cut::Large
    }
}

impl Declare for Fab {
    fn declared(&self) -> Declared {
        let name = match self.targets {
            None => format!("FAB {}, {} steps", self.norm, self.steps),
            Some(t) => format!("FAB-T {}, {t} targets, {} steps", self.norm, self.steps),
        };
        Declared::gradients(&name, None).random(self.restarts > 1)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        at_least_one("restarts", self.restarts)?;
        at_least_one("targets", self.targets.unwrap_or(1))?;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        setting(
            share(self.alpha_max),
            "alpha_max",
            self.alpha_max,
            "expected 0 to 1",
        )?;
        setting(share(self.beta), "beta", self.beta, "expected 0 to 1")?;
        setting(
            self.eta >= 1.0 && self.eta.is_finite(),
            "eta",
            self.eta,
            "expected at least 1",
        )
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let enough = self.enough.map(|eps| eps.times(factor)).transpose()?;
        Ok(Self { enough, ..self })
    }
}
