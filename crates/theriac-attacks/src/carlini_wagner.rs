//! Carlini & Wagner's L2 attack.
//!
//! ```text
//! x' = (tanh(w) + 1) / 2,   minimise over w with Adam:  ||x' - x||_2^2 + c max(0, z_y - max_{i != y} z_i + kappa)
//! search over c: after a success the upper bound is c, after a failure the lower one;
//! c = the middle, or 10 c while nothing has succeeded
//! ```
//!
//! Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017. As their
//! code and foolbox: w starts at atanh(0.999999 (2x - 1)), so that black and white pixels can
//! move; w and Adam start afresh for every c; success is judged with kappa; with ten or more
//! search steps the last takes the upper bound. cleverhans and kkew3's code keep w and Adam.
//! torchattacks has no search, no finite w for black and white pixels, and floors both logits at
//! 0. Early abort is judged image by image here, by the whole batch elsewhere.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{
    Aim, Attack, Classifier, Cut, Labels, Norm, Pass, Pixels, Result, finite_rows, gradient, scores,
};

use crate::active::{pick, pick_rows};
use crate::ddn::Closest;
use crate::declared::{at_least_one, setting};
use crate::host::column;
use crate::loss::{entries, margin, rankings};
use crate::{Declare, Declared};

/// Keeps atanh finite at black and white.
const INSIDE: f64 = 0.999_999;

/// The smallest weighted sum of distance and margin.
///
/// ```
/// # use theriac_attacks::CarliniWagner;
/// let attack = CarliniWagner { steps: 1000, ..CarliniWagner::cw() };
/// # let _ = attack;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarliniWagner {
    /// Margin kappa, in logits, by which the model must be fooled.
    #[serde(default)]
    pub confidence: f64,
    /// Adam steps for each c.
    pub steps: u32,
    /// Number of values of c.
    pub search_steps: u32,
    /// Adam's rate.
    pub learning_rate: f64,
    /// The first c.
    pub initial_c: f64,
    /// Whether an image stops when, after another tenth of the steps, its loss is not below 0.9999
    /// of what it was.
    #[serde(default)]
    pub abort_early: bool,
}

impl CarliniWagner {
    /// The authors' code: 9 values of c from 0.001, 10,000 steps of 0.01 each, early abort.
    pub fn cw() -> Self {
        Self {
            confidence: 0.0,
            steps: 10_000,
            search_steps: 9,
            learning_rate: 1e-2,
            initial_c: 1e-3,
            abort_early: true,
        }
    }

    /// Learn2Perturb's evaluation: 1,000 steps of 0.0005, 9 values of c from 0.001, and a list of
    /// kappas.
    pub fn l2p(confidence: f64) -> Self {
        Self {
            confidence,
            steps: 1_000,
            learning_rate: 5e-4,
            abort_early: false,
            ..Self::cw()
        }
    }

    /// Runs Adam for one c each and offers what it meets. Whether each image was ever fooled.
    fn descend<C: Classifier + ?Sized>(
        &self,
        constants: &[f64],
        best: &mut Closest,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Vec<bool>> {
        let n = clean.len();
        let labels = aim.target().to_vec()?;
        let mut succeeded = vec![false; n];
        let mut at: Vec<u32> = (0..n as u32).collect();
        let origin = to_tanh_space(clean.tensor())?;
        let anchor = to_pixels(&origin)?.tensor().clone();
        let (mut w, mut m) = (origin.clone(), origin.zeros_like()?);
        let mut v = m.clone();
        let mut losses_at_check = vec![f64::INFINITY; n];
        let tenth = (self.steps / 10).max(1);
        for k in 0..self.steps {
            let (here, ids) = (pick(&labels, &at), pick(pass.samples, &at));
            let pass = pass.at(u64::from(k));
            let pass = pass.over(&ids);
            let x = to_pixels(&w)?;
            let c = pick(constants, &at);
            let mut rows = Vec::new();
            let (hinges, by_pixels) = gradient(&x, &pass, |x| {
                let logits = model.logits(x, &pass)?;
                rows = finite_rows(&logits, pass.samples)?;
                self.hinge(&logits, &here, aim)
            })?;
            let fooled: Vec<bool> = rows
                .iter()
                .zip(&here)
                .map(|(row, label)| self.fools(row, *label, aim))
                .collect();
            for (i, fooled) in at.iter().zip(&fooled) {
                succeeded[*i as usize] |= *fooled;
            }
            let far = Norm::L2.of(&(x.tensor() - pick_rows(clean.tensor(), &at)?)?)?;
            offer(best, &at, &x, &far, &fooled)?;
            let from_anchor = (x.tensor() - pick_rows(&anchor, &at)?)?;
            let losses: Vec<f64> = Norm::L2
                .of(&from_anchor)?
                .into_iter()
                .zip(crate::loss::host(&hinges)?)
                .zip(&c)
                .map(|((d, hinge), c)| d * d + c * hinge)
                .collect();
            let values: Vec<f64> = losses.iter().map(|loss| -loss).collect();
            pass.show(&x, &values, Some(&fooled))?;

            let by_pixels = by_pixels.broadcast_mul(&column(&c, &by_pixels)?)?;
            let by_pixels = (by_pixels + (from_anchor * 2.0)?)?;
            // dx/dw = (1 - tanh(w)^2) / 2
            let tanh = w.tanh()?;
            let by_w = (by_pixels * tanh.sqr()?.affine(-0.5, 0.5)?)?;
            m = ((m * 0.9)? + (&by_w * 0.1)?)?;
            v = ((v * 0.999)? + (by_w.sqr()? * 0.001)?)?;
            let step = k as i32 + 1;
            let first = (&m / (1.0 - 0.9f64.powi(step)))?;
            let second = (&v / (1.0 - 0.999f64.powi(step)))?;
            let update = (first / (second.sqrt()? + 1e-8)?)?;
            w = (w - (update * self.learning_rate)?)?;

            if self.abort_early && k % tenth == tenth - 1 {
                let stay: Vec<u32> = (0..at.len() as u32)
                    .filter(|&i| losses[i as usize] <= 0.9999 * losses_at_check[i as usize])
                    .collect();
                if stay.is_empty() {
                    break;
                }
                losses_at_check = pick(&losses, &stay);
                (w, m, v) = (
                    pick_rows(&w, &stay)?,
                    pick_rows(&m, &stay)?,
                    pick_rows(&v, &stay)?,
                );
                at = pick(&at, &stay);
            }
        }
        Ok(succeeded)
    }

    /// `max(0, z_y - max_{i != y} z_i + kappa)`, or its mirror image toward a class.
    fn hinge(&self, logits: &Tensor, labels: &[u32], aim: Aim<'_, Labels>) -> Result<Tensor> {
        let rankings = rankings(logits)?;
        let rivals: Vec<u32> = rankings
            .iter()
            .zip(labels)
            .map(|(ranking, label)| {
                if ranking[0] == *label {
                    ranking[1]
                } else {
                    ranking[0]
                }
            })
            .collect();
        let margin = ((entries(logits, labels)? - entries(logits, &rivals)?)? * aim.sign())?;
        Ok(theriac_ops::relu(&(margin + self.confidence)?)?)
    }

    /// Whether the model is fooled by a margin of kappa.
    fn fools(&self, row: &[f64], label: u32, aim: Aim<'_, Labels>) -> bool {
        let margin = aim.sign() * margin(row, label);
        // At a tie the class is the first of the largest.
        let wins = aim.reached(theriac::largest(row) == label);
        margin > self.confidence || (self.confidence == 0.0 && wins)
    }
}

fn to_tanh_space(x: &Tensor) -> Result<Tensor> {
    // atanh(t) = ln((1 + t) / (1 - t)) / 2
    let t = (x.affine(2.0, -1.0)? * INSIDE)?;
    let ratio = (t.affine(1.0, 1.0)? / t.affine(-1.0, 1.0)?)?;
    Ok((ratio.log()? * 0.5)?)
}

fn to_pixels(w: &Tensor) -> Result<Pixels> {
    Pixels::clamp(&w.tanh()?.affine(0.5, 0.5)?)
}

/// [`Closest::offer`] for some of its images.
fn offer(best: &mut Closest, at: &[u32], x: &Pixels, far: &[f64], fooled: &[bool]) -> Result<()> {
    let better: Vec<u32> = (0..at.len() as u32)
        .filter(|&i| {
            let known = best.distances[at[i as usize] as usize];
            fooled[i as usize] && far[i as usize] < known
        })
        .collect();
    if better.is_empty() {
        return Ok(());
    }
    let to = pick(at, &better);
    for (&from, &to) in better.iter().zip(&to) {
        best.distances[to as usize] = far[from as usize];
        best.found[to as usize] = true;
    }
    best.images = best.images.with(&to, &x.pick(&better)?)?;
    Ok(())
}

impl<C: Classifier + ?Sized> Attack<C> for CarliniWagner {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let n = clean.len();
        let mut best = Closest::none(clean, &vec![f64::INFINITY; n]);
        let labels = aim.target().to_vec()?;
        let rows = scores(model, clean, pass)?.into_iter().zip(&labels);
        let already: Vec<bool> = rows.map(|(row, y)| self.fools(&row, *y, aim)).collect();
        best.offer(clean, &vec![0.0; n], &already)?;
        let mut c = vec![self.initial_c; n];
        let (mut lower, mut upper) = (vec![0.0; n], vec![f64::INFINITY; n]);
        for search in 0..self.search_steps {
            if search + 1 == self.search_steps && self.search_steps >= 10 {
                c = upper.iter().map(|upper: &f64| upper.min(1e10)).collect();
            }
            let pass = pass.fork(u64::from(search));
            let succeeded = self.descend(&c, &mut best, model, clean, aim, &pass)?;
            for i in 0..n {
                if succeeded[i] {
                    upper[i] = c[i];
                } else {
                    lower[i] = c[i];
                }
                c[i] = if upper[i].is_infinite() {
                    c[i] * 10.0
                } else {
                    f64::midpoint(lower[i], upper[i])
                };
            }
        }
        Ok(best.images)
    }

    fn cut(&self) -> Cut {
        if self.abort_early {
            Cut::Large
        } else {
            Cut::Small
        }
    }
}

impl Declare for CarliniWagner {
    fn declared(&self) -> Declared {
        let name = format!(
            "C&W L2, kappa {}, {} values of c, {} steps",
            self.confidence, self.search_steps, self.steps
        );
        Declared::gradients(&name, None)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        at_least_one("search_steps", self.search_steps)?;
        let at_least_0 = self.confidence >= 0.0 && self.confidence.is_finite();
        setting(
            at_least_0,
            "confidence",
            self.confidence,
            "expected at least 0",
        )?;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let remedy = "expected a number above 0";
        setting(
            positive(self.learning_rate),
            "learning_rate",
            self.learning_rate,
            remedy,
        )?;
        setting(
            positive(self.initial_c),
            "initial_c",
            self.initial_c,
            remedy,
        )
    }

    fn scaled(self, _: f64) -> Result<Self> {
        Ok(self)
    }
}
