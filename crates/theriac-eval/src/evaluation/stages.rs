//! The work of each stage on one batch.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};
use theriac::{
    Aim, Attack, Batch, Budget, Classifier, Error, Iterate, Labels, Meter, Norm, Pass, Pixels,
    Result, Run, Target, Watch, craft, gradient, in_chunks, largest, scores,
};
use theriac_attacks::{Loss, Spec, Transfer, report};

use super::facts::{Attacked, Clean};
use super::plan::{Plan, Role, Stage};
use super::slope;
use crate::Detector;

/// Randomness of predictions: not the attack's, which must not have seen the very noise that a
/// randomised model is judged by.
const JUDGING: u64 = 0x5c0e_0000_0000_0000;
const AGAIN: u64 = 0x5c0e_ffff_0000_0000;
/// Randomness of further starts.
const STARTS: u64 = 0x57a7_0000_0000_0000;
/// Rounding of `x + eps` in f32.
const SLACK: f64 = 1e-6;

/// The models of an evaluation.
#[derive(Clone, Copy)]
pub struct Models<'a, C: ?Sized> {
    /// The model to judge.
    pub model: &'a C,
    /// A model that attacks are crafted on, if there is one.
    pub surrogate: Option<&'a dyn Classifier>,
    /// The model without its defence, if there is one.
    pub control: Option<&'a dyn Classifier>,
    /// A fingerprint of the model's weights and statistics, which an evaluation must not change.
    pub state: Option<&'a dyn Fn() -> Result<String>>,
    /// What may refuse an image, if the defence has such a part.
    pub detector: Option<&'a dyn Detector>,
}

impl<C: ?Sized> std::fmt::Debug for Models<'_, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models")
            .field("surrogate", &self.surrogate.is_some())
            .field("control", &self.control.is_some())
            .finish_non_exhaustive()
    }
}

impl<'a, C: ?Sized> Models<'a, C> {
    /// One model alone.
    pub fn of(model: &'a C) -> Self {
        Self {
            model,
            surrogate: None,
            control: None,
            state: None,
            detector: None,
        }
    }
}

/// The logits of each draw, image by image.
pub(crate) struct Judged {
    /// Share of the draws that give the label.
    pub(crate) correct: Vec<f64>,
    /// Mean logits.
    pub(crate) rows: Vec<Vec<f64>>,
}

pub(crate) fn judged<C: Classifier + ?Sized>(
    model: &C,
    x: &Pixels,
    labels: &[u32],
    draws: u32,
    pass: &Pass<'_>,
) -> Result<Judged> {
    let mut correct = vec![0.0; labels.len()];
    let mut mean: Vec<Vec<f64>> = vec![Vec::new(); labels.len()];
    for draw in 0..draws.max(1) {
        let rows = scores(model, x, &pass.fork(JUDGING + u64::from(draw)))?;
        for (i, row) in rows.into_iter().enumerate() {
            correct[i] += f64::from(u8::from(largest(&row) == labels[i]));
            match mean[i].is_empty() {
                true => mean[i] = row,
                false => mean[i].iter_mut().zip(row).for_each(|(sum, z)| *sum += z),
            }
        }
    }
    let draws = f64::from(draws.max(1));
    correct.iter_mut().for_each(|share| *share /= draws);
    mean.iter_mut().flatten().for_each(|sum| *sum /= draws);
    Ok(Judged {
        correct,
        rows: mean,
    })
}

/// The clean stage: predictions, logits and gradients.
pub(crate) fn clean<C: Classifier + ?Sized>(
    model: &C,
    plan: &Plan,
    positions: &[u32],
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<Vec<Clean>> {
    let (x, labels) = (&batch.pixels, batch.target.to_vec()?);
    let pass = run.eval(&batch.samples);
    let inside = Meter::default();
    let counted = Pass {
        meter: &inside,
        ..pass
    };
    let one = scores(model, x, &counted.fork(JUDGING))?;
    run.meter().add(&inside);
    let two = scores(model, x, &pass.fork(AGAIN))?;
    let Judged { correct, rows } = judged(model, x, &labels, plan.draws, &pass)?;
    let slopes = |loss: Loss| -> Result<Vec<f64>> {
        in_chunks(x, &pass, |start, x, pass| {
            let y = batch.target.narrow(start, x.len())?;
            let aim = Aim::Away(&y);
            let (_, g) = gradient(x, pass, |x| loss.of(&model.logits(x, pass)?, aim))?;
            Norm::L2.of(&g)
        })
    };
    let (cross_entropy, margin) = (slopes(Loss::CrossEntropy)?, slopes(Loss::Margin)?);
    let few = positions.iter().filter(|&&at| at < plan.few).count();
    let (company, cosines) = match few {
        0 => (Vec::new(), Vec::new()),
        few => {
            let (x, y) = (x.narrow(0, few)?, batch.target.narrow(0, few)?);
            let pass = pass.narrow(0, few)?;
            (
                company(model, &x, &pass)?,
                slope::cosines(model, &x, &y, &pass)?,
            )
        }
    };
    let ranges = ranges(x)?;
    let facts = (0..labels.len()).map(|i| {
        let pairs = || one[i].iter().zip(&two[i]);
        Clean {
            sample: batch.samples[i],
            label: labels[i],
            predicted: largest(&rows[i]),
            correct: correct[i],
            margin: lead(&rows[i], labels[i]),
            low: ranges[i].0,
            high: ranges[i].1,
            probabilities: are_probabilities(&one[i]),
            drift: pairs().fold(0.0, |most: f64, (a, b)| most.max((a - b).abs())),
            flips: largest(&one[i]) != largest(&two[i]),
            company: company.get(i).copied(),
            cross_entropy_slope: cross_entropy[i],
            margin_slope: margin[i],
            cosine: cosines.get(i).copied().flatten(),
            optimises: inside.gradients() > 0,
            suspicion: None,
        }
    });
    Ok(facts.collect())
}

/// How far the label is ahead of the best other class.
pub(crate) fn lead(row: &[f64], label: u32) -> f64 {
    let others = row
        .iter()
        .enumerate()
        .filter(|(class, _)| *class != label as usize);
    let best = others.map(|(_, z)| *z).fold(f64::NEG_INFINITY, f64::max);
    row.get(label as usize).copied().unwrap_or(f64::NAN) - best
}

fn are_probabilities(row: &[f64]) -> bool {
    let sum: f64 = row.iter().sum();
    (sum - 1.0).abs() < 1e-3 && row.iter().all(|p| (0.0..=1.0).contains(p))
}

/// By how much an image's logits change when its negative is in the batch.
fn company<C: Classifier + ?Sized>(model: &C, x: &Pixels, pass: &Pass<'_>) -> Result<Vec<f64>> {
    let differences = (0..x.len()).map(|i| {
        let image = x.narrow(i, 1)?;
        let negative = Pixels::clamp(&image.tensor().affine(-1.0, 1.0)?)?;
        let ids = [pass.samples[i], pass.samples[i]];
        let alone = scores(model, &image, &pass.over(&ids[..1]))?;
        let together = scores(model, &Pixels::cat(&[image, negative])?, &pass.over(&ids))?;
        let pairs = alone[0].iter().zip(&together[0]);
        Ok(pairs.fold(0.0, |most: f64, (a, b)| most.max((a - b).abs())))
    });
    differences.collect()
}

/// A stage with an attack: its facts, and which images of the batch are broken by what.
pub(crate) fn attacked<C: Classifier + ?Sized>(
    models: &Models<'_, C>,
    plan: &Plan,
    stage: &Stage,
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<(Vec<Attacked>, Pixels)> {
    let model = models.model;
    let missing = |what: &str| Error::Setting {
        name: "stage",
        value: format!("{} needs {what}", stage.name),
        remedy: "give that model, or take the stage out of the plan",
    };
    match stage.role {
        Role::Noise => noise(model, plan, stage.times, batch, run),
        Role::Restarted => restarted(model, plan, attack(stage)?, stage.times, batch, run),
        Role::Planted => planted(model, plan, attack(stage)?, stage.times, batch, run),
        Role::Same => watched(model, plan, attack(stage)?, batch, run),
        Role::Transfer => {
            let surrogate = models.surrogate.ok_or_else(|| missing("a surrogate"))?;
            let attack = Transfer {
                attack: attack(stage)?.clone(),
                surrogate,
            };
            reported(model, plan, stage.role, &attack, batch, run)
        }
        Role::Control => {
            let control = models
                .control
                .ok_or_else(|| missing("the undefended model"))?;
            reported(control, plan, stage.role, attack(stage)?, batch, run)
        }
        role => reported(model, plan, role, attack(stage)?, batch, run),
    }
}

fn attack(stage: &Stage) -> Result<&Spec> {
    stage.attack.as_ref().ok_or_else(|| Error::Setting {
        name: "stage",
        value: stage.name.clone(),
        remedy: "name its attack",
    })
}

/// Runs an attack and takes the best image that it saw.
fn reported<C: Classifier + ?Sized, A: Attack<C>>(
    model: &C,
    plan: &Plan,
    role: Role,
    attack: &A,
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<(Vec<Attacked>, Pixels)> {
    let norm = plan.budget.norm();
    let pass = run.eval(&batch.samples);
    let aim = Aim::Away(&batch.target);
    let told = report(attack, model, &batch.pixels, aim, &pass, norm)?;
    // A search for the smallest distance sees images far outside, a surrogate is fooled by others,
    // and the luckiest of many draws is no success.
    let judges_itself = !matches!(role, Role::Nearest | Role::Transfer | Role::Huge);
    let edge = within(plan.budget);
    let lost: Vec<bool> = told
        .rows
        .iter()
        .map(|row| {
            let inside = row.best_distance <= edge || role == Role::Larger;
            judges_itself && plan.draws == 1 && row.best_fooled && !row.fooled && inside
        })
        .collect();
    let found = told.best.select(&lost, &told.last)?;
    let mut facts = facts(model, plan, role, batch, &found, run)?;
    for ((fact, row), lost) in facts.iter_mut().zip(&told.rows).zip(lost) {
        fact.lost = lost;
        fact.first = row.first;
        fact.forwards = row.work.forwards;
        fact.gradients = row.work.gradients;
        fact.zero_gradients = row.work.zero_gradients;
    }
    Ok((facts, found))
}

fn within(budget: Budget) -> f64 {
    let eps = budget.eps().get();
    eps + SLACK * eps.max(1.0)
}

/// What can be said of attacked images from outside.
fn facts<C: Classifier + ?Sized>(
    model: &C,
    plan: &Plan,
    role: Role,
    batch: &Batch<Labels>,
    found: &Pixels,
    run: &Run,
) -> Result<Vec<Attacked>> {
    let labels = batch.target.to_vec()?;
    let pass = run.eval(&batch.samples);
    let correct = judged(model, found, &labels, plan.draws, &pass)?.correct;
    let distances = plan.budget.spent(found, &batch.pixels)?;
    let ranges = ranges(found)?;
    let broken: Vec<u32> = (0..labels.len() as u32)
        .filter(|&i| role.counts() && role != Role::Nearest && correct[i as usize] < 1.0)
        .collect();
    let mut rounded = vec![None; labels.len()];
    if !broken.is_empty() {
        let clean = batch.pixels.pick(&broken)?;
        let eight = eight_bits(&found.pick(&broken)?, &clean, plan.budget)?;
        let samples: Vec<u32> = broken.iter().map(|&i| batch.samples[i as usize]).collect();
        let wanted: Vec<u32> = broken.iter().map(|&i| labels[i as usize]).collect();
        let pass = run.eval(&samples);
        let shares = judged(model, &eight, &wanted, plan.draws, &pass)?.correct;
        for (&i, share) in broken.iter().zip(shares) {
            rounded[i as usize] = Some(share);
        }
    }
    let facts = (0..labels.len()).map(|i| Attacked {
        correct: correct[i],
        distance: distances[i],
        low: ranges[i].0,
        high: ranges[i].1,
        rounded: rounded[i],
        ..Attacked::default()
    });
    Ok(facts.collect())
}

/// The nearest images whose pixels are multiples of 1/255 and that stay in the ball, or, where
/// the clean image has other pixels, as near as that allows.
fn eight_bits(moved: &Pixels, clean: &Pixels, budget: Budget) -> Result<Pixels> {
    let edge = within(budget);
    let rows = |x: &Pixels| -> Result<Vec<Vec<f64>>> {
        Ok(x.tensor()
            .flatten_from(1)?
            .to_dtype(DType::F64)?
            .to_vec2()?)
    };
    let toward = |moved: f64, clean: f64| {
        let level = moved * 255.0;
        let level = if moved > clean {
            level.floor()
        } else {
            level.ceil()
        };
        level / 255.0
    };
    let mut values = Vec::new();
    for (moved, clean) in rows(moved)?.into_iter().zip(rows(clean)?) {
        let pairs = || moved.iter().zip(&clean);
        let nearest = |m: f64| (m * 255.0).round() / 255.0;
        let row: Vec<f64> = match budget.norm() {
            Norm::L2 => {
                let row: Vec<f64> = moved.iter().map(|&m| nearest(m)).collect();
                let far: f64 = row.iter().zip(&clean).map(|(a, b)| (a - b).powi(2)).sum();
                match far.sqrt() <= edge {
                    true => row,
                    false => pairs().map(|(&m, &c)| toward(m, c)).collect(),
                }
            }
            _ => pairs()
                .map(|(&m, &c)| match (nearest(m) - c).abs() <= edge {
                    true => nearest(m),
                    false => toward(m, c),
                })
                .collect(),
        };
        values.extend(row);
    }
    let shape = moved.tensor().shape().clone();
    let tensor = Tensor::from_vec(values, shape, moved.tensor().device())?;
    Pixels::clamp(&tensor.to_dtype(moved.tensor().dtype())?)
}

/// Smallest and largest pixel of each image.
fn ranges(x: &Pixels) -> Result<Vec<(f64, f64)>> {
    let rows = x.tensor().flatten_from(1)?.to_dtype(DType::F64)?;
    let rows = rows.to_vec2::<f64>()?;
    let range = |row: &Vec<f64>| {
        let low = row.iter().copied().fold(f64::INFINITY, f64::min);
        let high = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    };
    Ok(rows.iter().map(range).collect())
}

/// Random corners of the ball, then random points in it: the first that fools the model.
fn noise<C: Classifier + ?Sized>(
    model: &C,
    plan: &Plan,
    points: u32,
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<(Vec<Attacked>, Pixels)> {
    let labels = batch.target.to_vec()?;
    let mut found = batch.pixels.clone();
    let mut spent = vec![0u64; labels.len()];
    let mut left: Vec<u32> = (0..labels.len() as u32).collect();
    for point in 0..points {
        let samples: Vec<u32> = left.iter().map(|&i| batch.samples[i as usize]).collect();
        let clean = batch.pixels.pick(&left)?;
        let pass = run.eval(&samples).at(u64::from(point));
        let moved = random_point(&clean, plan.budget, point < points / 2, &pass)?;
        let rows = scores(model, &moved, &pass.fork(JUDGING))?;
        let (mut fooled, mut stay) = (Vec::new(), Vec::new());
        for (k, row) in rows.iter().enumerate() {
            let i = left[k] as usize;
            spent[i] += 1;
            match largest(row) == labels[i] {
                true => stay.push(left[k]),
                false => fooled.push(k as u32),
            }
        }
        if !fooled.is_empty() {
            let at: Vec<u32> = fooled.iter().map(|&k| left[k as usize]).collect();
            found = found.with(&at, &moved.pick(&fooled)?)?;
        }
        left = stay;
        if left.is_empty() {
            break;
        }
    }
    let mut facts = facts(model, plan, Role::Noise, batch, &found, run)?;
    for (fact, spent) in facts.iter_mut().zip(spent) {
        fact.forwards = spent;
    }
    Ok((facts, found))
}

fn random_point(clean: &Pixels, budget: Budget, corner: bool, pass: &Pass<'_>) -> Result<Pixels> {
    let eps = budget.eps().get();
    let step = match budget.norm() {
        Norm::L2 => {
            let direction = pass.normal("random point", clean.tensor())?;
            budget.norm().steepest(&direction)?
        }
        _ => {
            let inside = pass.uniform("random point", clean)?;
            match corner {
                true => budget.norm().steepest(&inside)?,
                false => inside,
            }
        }
    };
    budget.project(&(clean.tensor() + (step * eps)?)?, clean)
}

/// Further starts of an attack: after which of them an image was broken.
fn restarted<C: Classifier + ?Sized>(
    model: &C,
    plan: &Plan,
    attack: &Spec,
    times: u32,
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<(Vec<Attacked>, Pixels)> {
    let mut best: Option<(Vec<Attacked>, Pixels)> = None;
    for start in 0..u64::from(times) {
        let forked = Forked {
            attack,
            tag: STARTS + start,
        };
        let (facts, found) = reported(model, plan, Role::Restarted, &forked, batch, run)?;
        best = Some(match best {
            None => (facts, found),
            Some((mut known, images)) => {
                let better: Vec<bool> = known
                    .iter()
                    .zip(&facts)
                    .map(|(a, b)| b.correct < a.correct)
                    .collect();
                let images = found.select(&better, &images)?;
                for ((known, new), better) in known.iter_mut().zip(facts).zip(better) {
                    let broken_after = std::mem::take(&mut known.broken_after);
                    let work = (
                        known.forwards + new.forwards,
                        known.gradients + new.gradients,
                        known.zero_gradients + new.zero_gradients,
                    );
                    if better {
                        *known = new;
                    }
                    known.broken_after = broken_after;
                    (known.forwards, known.gradients, known.zero_gradients) = work;
                }
                (known, images)
            }
        });
        if let Some((known, _)) = &mut best {
            for fact in known {
                let broken = fact.correct < 0.5;
                fact.broken_after.push(broken);
            }
        }
    }
    best.ok_or(Error::Empty { what: "starts" })
}

/// An attack with other random numbers.
struct Forked<'a> {
    attack: &'a Spec,
    tag: u64,
}

impl<C: Classifier + ?Sized> Attack<C> for Forked<'_> {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.attack.perturb(model, clean, aim, &pass.fork(self.tag))
    }

    fn cut(&self) -> theriac::Cut {
        Attack::<C>::cut(self.attack)
    }
}

/// Runs an attack and looks whether its loss still rises at the end.
fn watched<C: Classifier + ?Sized>(
    model: &C,
    plan: &Plan,
    attack: &Spec,
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<(Vec<Attacked>, Pixels)> {
    let (meter, series) = (Meter::of_images(), Series::default());
    let pass = Pass {
        meter: &meter,
        watch: Some(&series),
        ..run.eval(&batch.samples)
    };
    let aim = Aim::Away(&batch.target);
    let found = craft(attack, model, &batch.pixels, aim, &pass)?;
    run.meter().add(&meter);
    let mut facts = facts(model, plan, Role::Same, batch, &found, run)?;
    let series = series.0.into_inner();
    let series = series.unwrap_or_else(PoisonError::into_inner);
    for (fact, sample) in facts.iter_mut().zip(&batch.samples) {
        let work = meter.of(*sample);
        (fact.forwards, fact.gradients) = (work.forwards, work.gradients);
        fact.zero_gradients = work.zero_gradients;
        fact.unfinished = series.get(sample).map(|values| rises(values));
    }
    Ok((facts, found))
}

/// Share by which a loss may still rise in the last tenth of the iterates: Pintor et al.,
/// "Indicators of attack failure", NeurIPS 2022.
const PLATEAU: f64 = 0.05;

fn rises(values: &[f64]) -> bool {
    let best = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let cut = values.len() - values.len().div_ceil(10).min(values.len());
    if cut == 0 {
        return false;
    }
    let (before, after) = (best(&values[..cut]), best(values));
    after - before > PLATEAU * after.abs().max(before.abs())
}

/// The values of an attack's iterates, image by image.
#[derive(Default)]
struct Series(Mutex<BTreeMap<u32, Vec<f64>>>);

impl Watch for Series {
    fn see(&self, iterate: &Iterate<'_>) -> Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (sample, value) in iterate.samples.iter().zip(iterate.values) {
            all.entry(*sample).or_default().push(*value);
        }
        Ok(())
    }
}

/// The active test. Of many random points of the ball one is planted as the answer: a direction of
/// the logits and a threshold put it alone on the other side. The attack has to find that side.
fn planted<C: Classifier + ?Sized>(
    model: &C,
    plan: &Plan,
    attack: &Spec,
    points: u32,
    batch: &Batch<Labels>,
    run: &Run,
) -> Result<(Vec<Attacked>, Pixels)> {
    let classes = model.classes();
    let mut questions: BTreeMap<u32, Question> = BTreeMap::new();
    for &sample in &batch.samples {
        let direction = run.rng().normal("planted", u64::from(sample), classes);
        let direction = direction.into_iter().map(f64::from).collect();
        questions.insert(sample, Question::along(direction));
    }
    let pass = run.eval(&batch.samples);
    for point in 0..=points {
        let pass = pass.at(u64::from(point));
        let moved = match point {
            0 => batch.pixels.clone(),
            _ => random_point(&batch.pixels, plan.budget, point % 2 == 0, &pass)?,
        };
        for (row, sample) in scores(model, &moved, &pass)?.iter().zip(&batch.samples) {
            if let Some(question) = questions.get_mut(sample) {
                question.offer(row, point == 0);
            }
        }
    }
    let model = Planted { model, questions };
    let zeros = vec![0u32; batch.len()];
    let target = Labels::new(&zeros, 2, batch.pixels.tensor().device())?;
    let asked = Batch {
        pixels: batch.pixels.clone(),
        target,
        samples: batch.samples.clone(),
    };
    reported(&model, plan, Role::Planted, attack, &asked, run)
}

/// Which side of a threshold the logits lie on, along a direction.
struct Question {
    direction: Vec<f64>,
    clean: f64,
    first: f64,
    second: f64,
}

impl Question {
    fn along(direction: Vec<f64>) -> Self {
        Self {
            direction,
            clean: 0.0,
            first: f64::NEG_INFINITY,
            second: f64::NEG_INFINITY,
        }
    }

    fn offer(&mut self, row: &[f64], clean: bool) {
        let value: f64 = row.iter().zip(&self.direction).map(|(z, w)| z * w).sum();
        if clean {
            self.clean = value;
        }
        if value > self.first {
            (self.first, self.second) = (value, self.first);
        } else if value > self.second {
            self.second = value;
        }
    }

    /// Halfway between the planted point and all others; if the clean image itself is the
    /// farthest, the answer lies beyond it.
    fn threshold(&self) -> f64 {
        if self.first > self.clean {
            f64::midpoint(self.first, self.second)
        } else {
            self.first
        }
    }
}

struct Planted<'a, C: ?Sized> {
    model: &'a C,
    questions: BTreeMap<u32, Question>,
}

impl<C: Classifier + ?Sized> Classifier for Planted<'_, C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let z = self.model.logits(x, pass)?;
        let (mut directions, mut thresholds) = (Vec::new(), Vec::new());
        for sample in pass.samples {
            let question = self.questions.get(sample).ok_or_else(|| Error::Setting {
                name: "sample id",
                value: sample.to_string(),
                remedy: "nothing was planted for this image",
            })?;
            directions.extend_from_slice(&question.direction);
            thresholds.push(question.threshold());
        }
        let place = |values: Vec<f64>, columns: usize| -> Result<Tensor> {
            let tensor = Tensor::from_vec(values, (pass.samples.len(), columns), z.device())?;
            Ok(tensor.to_dtype(z.dtype())?)
        };
        let directions = place(directions, self.model.classes())?;
        let along = (&z * directions)?.sum_keepdim(1)?;
        let other = (along - place(thresholds, 1)?)?;
        Ok(Tensor::cat(&[&other.zeros_like()?, &other], 1)?)
    }

    fn classes(&self) -> usize {
        2
    }
}
