//! What is measured, image by image. Every check is a function of these facts, so that a table
//! does not depend on how the work was cut, interrupted or divided over machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the clean stage learns about one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clean {
    /// Id of the image in its data set.
    pub sample: u32,
    /// Its label.
    pub label: u32,
    /// The predicted class, by the mean logits of the draws.
    pub predicted: u32,
    /// Share of the draws that give the label.
    pub correct: f64,
    /// The label's logit minus the largest other, the mean over draws.
    pub margin: f64,
    /// The smallest pixel.
    pub low: f64,
    /// The largest pixel.
    pub high: f64,
    /// The logits lie in [0, 1] and add up to 1.
    pub probabilities: bool,
    /// Largest difference between the logits of two passes with fresh randomness.
    pub drift: f64,
    /// Whether those two passes predict different classes.
    pub flips: bool,
    /// Largest difference between the logits alone and in a batch, for the few.
    pub company: Option<f64>,
    /// L2 norm of the gradient of the cross entropy.
    pub cross_entropy_slope: f64,
    /// L2 norm of the gradient of the margin.
    pub margin_slope: f64,
    /// Cosine between slopes of the margin by autodiff and by finite differences, along random
    /// directions, for the few; none where both vanish.
    pub cosine: Option<f64>,
    /// The model takes gradients in its forward pass.
    pub optimises: bool,
    /// What the detector says, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion: Option<f64>,
}

/// What a stage with an attack learns about one image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attacked {
    /// Share of the draws in which the attacked image is still classified correctly: 0 or 1 for a
    /// model that draws no random numbers.
    pub correct: f64,
    /// Distance of the attacked image, in the norm of the ball, in f64.
    pub distance: f64,
    /// Smallest pixel of the attacked image.
    pub low: f64,
    /// Largest pixel of the attacked image.
    pub high: f64,
    /// The attack found an image that fools the model and returned another that does not.
    pub lost: bool,
    /// Scored iterates before the first that fooled the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u32>,
    /// The loss still rose by more than 5 % in the last tenth of the iterates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<bool>,
    /// For a broken image: share of the draws that are correct after rounding to k/255 inside the
    /// ball.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounded: Option<f64>,
    /// For restarts: whether the image was broken after the first, the second, ... start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken_after: Vec<bool>,
    /// What the detector says of the attacked image, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion: Option<f64>,
    /// Forward passes without a gradient.
    pub forwards: u64,
    /// Forward and backward passes.
    pub gradients: u64,
    /// Gradients that were exactly zero.
    pub zero_gradients: u64,
}

/// What one stage learns about one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// Of the clean image.
    Clean(Clean),
    /// Of the attacked image.
    Attacked(Attacked),
}

/// Everything that is known, by stage and by position in the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Facts(BTreeMap<String, BTreeMap<u32, Fact>>);

impl Facts {
    pub(crate) fn insert(&mut self, stage: &str, position: u32, fact: Fact) {
        let stage = self.0.entry(stage.to_owned()).or_default();
        stage.insert(position, fact);
    }

    /// Whether a stage knows an image.
    pub fn has(&self, stage: &str, position: u32) -> bool {
        self.0
            .get(stage)
            .is_some_and(|of| of.contains_key(&position))
    }

    /// Images that a stage knows.
    pub fn count(&self, stage: &str) -> usize {
        self.0.get(stage).map_or(0, BTreeMap::len)
    }

    /// What the clean stage says of an image.
    pub fn clean(&self, stage: &str, position: u32) -> Option<&Clean> {
        match self.0.get(stage)?.get(&position)? {
            Fact::Clean(clean) => Some(clean),
            Fact::Attacked(_) => None,
        }
    }

    /// What a stage with an attack says of an image.
    pub fn attacked(&self, stage: &str, position: u32) -> Option<&Attacked> {
        match self.0.get(stage)?.get(&position)? {
            Fact::Attacked(attacked) => Some(attacked),
            Fact::Clean(_) => None,
        }
    }

    /// The images of a stage, with their positions, in order.
    pub fn of(&self, stage: &str) -> impl Iterator<Item = (u32, &Attacked)> {
        let all = self.0.get(stage).into_iter().flatten();
        all.filter_map(|(&position, fact)| match fact {
            Fact::Attacked(attacked) => Some((position, attacked)),
            Fact::Clean(_) => None,
        })
    }

    /// Everything that a stage knows, in order.
    pub(crate) fn of_stage(&self, stage: &str) -> impl Iterator<Item = (u32, &Fact)> {
        let all = self.0.get(stage).into_iter().flatten();
        all.map(|(&position, fact)| (position, fact))
    }

    /// The clean images of a stage, with their positions, in order.
    pub fn of_clean(&self, stage: &str) -> impl Iterator<Item = (u32, &Clean)> {
        let all = self.0.get(stage).into_iter().flatten();
        all.filter_map(|(&position, fact)| match fact {
            Fact::Clean(clean) => Some((position, clean)),
            Fact::Attacked(_) => None,
        })
    }
}
