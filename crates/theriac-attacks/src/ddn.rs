//! Decoupled direction and norm.
//!
//! ```text
//! d_{k+1} = e_{k+1} u / ||u||,   u = d_k + s_k g_k / ||g_k||_2   (a step, then onto the sphere)
//! e_{k+1} = e_k (1 - gamma) if x + d_k fools the model, else e_k (1 + gamma)
//! s_k from 1 down to 0.01 along a cosine;  the closest image that fools the model is kept
//! ```
//!
//! Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks
//! and defenses", CVPR 2019. As foolbox: cross entropy, radius capped by the farthest corner of
//! the cube, a random direction where the gradient is zero. advertorch lowers the step before its
//! first use and keeps strictly closer images only.

use std::f64::consts::PI;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Eps, Labels, Norm, Pass, Pixels, Result};

use crate::declared::{at_least_one, setting};
use crate::host::column;
use crate::loss::look;
use crate::{Declare, Declared, Loss};

/// A sphere that shrinks when it reaches the boundary and grows when it does not.
///
/// ```
/// # use theriac_attacks::Ddn;
/// let attack = Ddn { steps: 300, ..Ddn::default() };
/// # let _ = attack;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddn {
    /// Number of steps.
    pub steps: u32,
    /// Share by which the radius changes.
    pub gamma: f64,
    /// The first radius.
    pub epsilon: Eps,
}

impl Default for Ddn {
    /// The paper's settings with 100 steps, as in advertorch and foolbox.
    fn default() -> Self {
        Self {
            steps: 100,
            gamma: 0.05,
            epsilon: Eps::one(),
        }
    }
}

impl<C: Classifier + ?Sized> Attack<C> for Ddn {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let farthest = Norm::L2.of(&farthest_corner(clean)?)?;
        let mut epsilon: Vec<f64> = vec![self.epsilon.get(); clean.len()];
        let mut best = Closest::none(clean, &farthest);
        let mut x = clean.clone();
        for k in 0..self.steps {
            let pass = pass.at(u64::from(k));
            let seen = look(model, &x, aim, &pass, |logits| {
                Loss::CrossEntropy.of(logits, aim)
            })?;
            let delta = (x.tensor() - clean.tensor())?;
            best.offer(&x, &Norm::L2.of(&delta)?, &seen.fooled)?;
            let unit = unit_l2(&seen.gradient, &pass)?;
            let moved = (delta + (unit * cosine(k, self.steps, 1.0, 0.01))?)?;
            for (i, fooled) in seen.fooled.iter().enumerate() {
                let factor = 1.0 + if *fooled { -self.gamma } else { self.gamma };
                // foolbox has these two numbers in f32, whatever the images are in.
                epsilon[i] = (epsilon[i] * f64::from(factor as f32)).min(farthest[i]);
            }
            let norms = Norm::L2.of(&moved)?;
            let factors: Vec<f64> = epsilon
                .iter()
                .zip(norms)
                .map(|(e, n)| e / n.max(1e-12))
                .collect();
            let on_sphere = moved.broadcast_mul(&column(&factors, &moved)?)?;
            x = Pixels::clamp(&(clean.tensor() + on_sphere)?)?;
        }
        Ok(best.images)
    }
}

/// From `high` to `low` along half a cosine.
pub(crate) fn cosine(k: u32, steps: u32, high: f64, low: f64) -> f64 {
    let share = f64::from(k) / f64::from(steps);
    low + (high - low) * (1.0 + (PI * share).cos()) / 2.0
}

/// The largest move that the cube allows.
pub(crate) fn farthest_corner(clean: &Pixels) -> Result<Tensor> {
    let x = clean.tensor();
    Ok(x.maximum(&x.affine(-1.0, 1.0)?)?)
}

/// Gradients of L2 norm 1; a random direction for an image whose gradient is zero.
pub(crate) fn unit_l2(gradient: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
    let zero: Vec<f64> = Norm::L2
        .of(gradient)?
        .into_iter()
        .map(|norm| f64::from(u8::from(norm == 0.0)))
        .collect();
    if !zero.contains(&1.0) {
        return Norm::L2.steepest(gradient);
    }
    let noise = pass.normal("zero gradient", gradient)?;
    let noise = noise.broadcast_mul(&column(&zero, gradient)?)?;
    Norm::L2.steepest(&(gradient + noise)?)
}

/// The closest image so far that fools the model; the clean one before any does.
pub(crate) struct Closest {
    pub(crate) images: Pixels,
    pub(crate) distances: Vec<f64>,
    pub(crate) found: Vec<bool>,
}

impl Closest {
    /// Nothing found; only images at most `limits` away will count.
    pub(crate) fn none(clean: &Pixels, limits: &[f64]) -> Self {
        Self {
            images: clean.clone(),
            distances: limits.to_vec(),
            found: vec![false; limits.len()],
        }
    }

    /// Takes the images that fool the model and are no farther than the best so far.
    pub(crate) fn offer(&mut self, x: &Pixels, distances: &[f64], fooled: &[bool]) -> Result<()> {
        let better: Vec<bool> = (0..fooled.len())
            .map(|i| fooled[i] && distances[i] <= self.distances[i])
            .collect();
        for i in (0..better.len()).filter(|&i| better[i]) {
            (self.distances[i], self.found[i]) = (distances[i], true);
        }
        if better.contains(&true) {
            self.images = x.select(&better, &self.images)?;
        }
        Ok(())
    }
}

impl Declare for Ddn {
    fn declared(&self) -> Declared {
        Declared::gradients(&format!("DDN, {} steps", self.steps), None)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        let share = self.gamma > 0.0 && self.gamma < 1.0;
        setting(
            share,
            "gamma",
            self.gamma,
            "expected a share between 0 and 1",
        )?;
        let positive = self.epsilon.get() > 0.0;
        setting(
            positive,
            "epsilon",
            self.epsilon,
            "expected a radius above 0",
        )
    }

    fn scaled(self, _: f64) -> Result<Self> {
        Ok(self)
    }
}
