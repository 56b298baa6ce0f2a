//! Images, attacks and classes, summed up from the facts.

use std::collections::BTreeMap;

use serde::Serialize;
use theriac_attacks::Declare;

use super::facts::Facts;
use super::plan::{Plan, Role};
use super::store::Manifest;
use crate::checks::edge;
use crate::{Mean, Roc};

/// All that happened to one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Image {
    /// Position in the data.
    pub position: u32,
    /// Id in its data set.
    pub sample: u32,
    /// Label.
    pub label: u32,
    /// Predicted class of the clean image.
    pub predicted: u32,
    /// Share of the draws that are correct on the clean image: 0 or 1 unless the model is
    /// randomised. Here and below, the draws count for one image.
    pub clean: f64,
    /// The same under the worst attack of the ensemble.
    pub after_ensemble: f64,
    /// The same under everything that was tried in the ball.
    pub robust: f64,
    /// The same with adversarial images of 8 bits.
    pub robust_rounded: f64,
    /// The first stage that broke it.
    pub broken_by: Option<String>,
    /// Distance of that stage's image.
    pub distance: Option<f64>,
    /// The smallest distance known at which it is broken.
    pub nearest: Option<f64>,
    /// Forward passes alone.
    pub forwards: u64,
    /// Forward and backward passes.
    pub gradients: u64,
}

/// What one stage did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the stage.
    pub stage: String,
    /// What it is for.
    pub role: Role,
    /// The attack with its settings.
    pub attack: String,
    /// Images that it met.
    pub images: usize,
    /// Images that it broke; for a search of the smallest distance, in the ball.
    pub broken: usize,
    /// Images that no stage before it had broken.
    pub first: usize,
    /// Forward passes alone.
    pub forwards: u64,
    /// Forward and backward passes.
    pub gradients: u64,
    /// Gradients that were exactly zero.
    pub zero_gradients: u64,
}

/// One class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Class {
    /// The label.
    pub label: u32,
    /// Accuracy on clean images.
    pub clean: Mean,
    /// Robust accuracy.
    pub robust: Mean,
}

/// One point of a plot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// Radius.
    pub eps: f64,
    /// Accuracy there, under an attack of that radius.
    pub accuracy: Mean,
    /// The stage.
    pub label: String,
}

/// Accuracy at every radius.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curve {
    /// Radius and accuracy above it: a falling staircase, from searches for the smallest distance.
    /// Where the last accuracy is not 0, no adversarial image is known for the rest.
    pub steps: Vec<(f64, f64)>,
    /// Attacks of one radius.
    pub marks: Vec<Mark>,
}

/// Everything, image by image and summed up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// Images by position.
    pub images: Vec<Image>,
    /// Stages in the order of the plan.
    pub rows: Vec<Row>,
}

impl Table {
    pub(crate) fn of(manifest: &Manifest, facts: &Facts) -> Self {
        let plan = &manifest.plan;
        let images = manifest
            .positions()
            .filter_map(|position| image(plan, facts, position));
        let images: Vec<Image> = images.collect();
        let rows = plan.stages.iter().map(|stage| {
            let mut row = Row {
                stage: stage.name.clone(),
                role: stage.role,
                attack: match &stage.attack {
                    Some(attack) => attack.declared().name,
                    None if stage.role == Role::Noise => {
                        format!("{} random corners and points", stage.times)
                    }
                    None => "none".to_owned(),
                },
                images: facts.count(&stage.name),
                broken: 0,
                first: 0,
                forwards: 0,
                gradients: 0,
                zero_gradients: 0,
            };
            for (_, fact) in facts.of(&stage.name) {
                let near = stage.role != Role::Nearest || fact.distance <= edge(plan.budget);
                row.broken += usize::from(fact.correct < 0.5 && near);
                row.forwards += fact.forwards;
                row.gradients += fact.gradients;
                row.zero_gradients += fact.zero_gradients;
            }
            let by = |image: &&Image| image.broken_by.as_deref() == Some(&stage.name);
            row.first = images.iter().filter(by).count();
            row
        });
        let rows = rows.collect();
        Self { images, rows }
    }

    /// The image at a position.
    pub fn at(&self, position: u32) -> Option<&Image> {
        let found = self
            .images
            .binary_search_by_key(&position, |image| image.position);
        found.ok().map(|i| &self.images[i])
    }

    /// Accuracy on clean images.
    pub fn clean(&self) -> Mean {
        Mean::over(self.images.iter().map(|image| image.clean))
    }

    /// Robust accuracy: pointwise worst case over all that was tried in the ball.
    pub fn robust(&self) -> Mean {
        Mean::over(self.images.iter().map(|image| image.robust))
    }

    /// Robust accuracy under the ensemble alone, as AutoAttack counts.
    pub fn after_ensemble(&self) -> Mean {
        Mean::over(self.images.iter().map(|image| image.after_ensemble))
    }

    /// Robust accuracy when adversarial images have 8 bits.
    pub fn robust_rounded(&self) -> Mean {
        Mean::over(self.images.iter().map(|image| image.robust_rounded))
    }

    /// Class by class.
    pub fn classes(&self) -> Vec<Class> {
        let mut by_label: BTreeMap<u32, Vec<&Image>> = BTreeMap::new();
        for image in &self.images {
            by_label.entry(image.label).or_default().push(image);
        }
        let class = |(label, images): (u32, Vec<&Image>)| Class {
            label,
            clean: Mean::over(images.iter().map(|image| image.clean)),
            robust: Mean::over(images.iter().map(|image| image.robust)),
        };
        by_label.into_iter().map(class).collect()
    }

    pub(crate) fn curve(&self, plan: &Plan, facts: &Facts) -> Curve {
        let mut curve = Curve::default();
        let n = self.images.len();
        if n == 0 {
            return curve;
        }
        if plan.of(Role::Nearest).next().is_some() {
            let right = self.images.iter().filter(|image| image.clean > 0.0);
            let mut distances: Vec<f64> = right.clone().filter_map(|image| image.nearest).collect();
            distances.sort_by(f64::total_cmp);
            let mut left = right.count();
            curve.steps.push((0.0, left as f64 / n as f64));
            for distance in distances {
                left -= 1;
                let share = left as f64 / n as f64;
                match curve.steps.last_mut() {
                    Some(last) if last.0 == distance => last.1 = share,
                    _ => curve.steps.push((distance, share)),
                }
            }
        }
        let eps = plan.budget.eps().get();
        curve.marks.push(Mark {
            eps,
            accuracy: self.robust(),
            label: "robust".to_owned(),
        });
        for role in [Role::Smaller, Role::Same, Role::Larger] {
            for stage in plan.of(role) {
                let ball = stage.attack.as_ref().and_then(|a| a.declared().budget);
                let Some(ball) = ball else { continue };
                let few = self.images.iter().filter(|image| image.position < plan.few);
                let shares = few.map(|image| {
                    let fact = facts.attacked(&stage.name, image.position);
                    fact.map_or(0.0, |fact| fact.correct)
                });
                curve.marks.push(Mark {
                    eps: ball.eps().get(),
                    accuracy: Mean::over(shares),
                    label: stage.name.clone(),
                });
            }
        }
        curve
    }
}

pub(crate) fn roc(plan: &Plan, facts: &Facts, table: &Table) -> Option<Roc> {
    let stage = plan.of(Role::Clean).next()?;
    let clean = facts.of_clean(&stage.name);
    let clean: Vec<f64> = clean.filter_map(|(_, fact)| fact.suspicion).collect();
    let broken = table.images.iter().filter_map(|image| {
        let stage = image.broken_by.as_ref()?;
        facts.attacked(stage, image.position)?.suspicion
    });
    let broken: Vec<f64> = broken.collect();
    (!clean.is_empty() && !broken.is_empty()).then(|| Roc::of(&clean, &broken))
}

fn image(plan: &Plan, facts: &Facts, position: u32) -> Option<Image> {
    let clean = plan.of(Role::Clean).next()?;
    let clean = facts.clean(&clean.name, position)?;
    let mut image = Image {
        position,
        sample: clean.sample,
        label: clean.label,
        predicted: clean.predicted,
        clean: clean.correct,
        after_ensemble: clean.correct,
        robust: clean.correct,
        robust_rounded: clean.correct,
        broken_by: None,
        distance: None,
        nearest: None,
        forwards: 0,
        gradients: 0,
    };
    for stage in &plan.stages {
        let Some(fact) = facts.attacked(&stage.name, position) else {
            continue;
        };
        image.forwards += fact.forwards;
        image.gradients += fact.gradients;
        if !stage.role.counts() {
            continue;
        }
        if fact.correct < 0.5 && image.nearest.is_none_or(|near| fact.distance < near) {
            image.nearest = Some(fact.distance);
        }
        if stage.role == Role::Nearest && fact.distance > edge(plan.budget) {
            continue;
        }
        if stage.role == Role::Cascade {
            image.after_ensemble = image.after_ensemble.min(fact.correct);
        }
        if fact.correct < 0.5 && image.broken_by.is_none() {
            image.broken_by = Some(stage.name.clone());
            image.distance = Some(fact.distance);
        }
        image.robust = image.robust.min(fact.correct);
        let rounded = fact.rounded.unwrap_or(fact.correct);
        image.robust_rounded = image.robust_rounded.min(rounded);
    }
    Some(image)
}
