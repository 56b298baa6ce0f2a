//! DeepFool.
//!
//! ```text
//! f_k = z_k - z_0,  w_k = grad f_k (0: the class of the clean image)
//! k* = argmin |f_k| / ||w_k||_dual
//! r += (|f_k*| + 1e-4) / ||w_k*||_2 * w_k* / ||w_k*||_2     (L2)
//! r += (|f_k*| + 1e-4) / ||w_k*||_1 * sign(w_k*)            (Linf)
//! x = clip(x_0 + (1 + overshoot) r)       until the class changes
//! ```
//!
//! Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool: a simple and accurate method to fool deep neural
//! networks", CVPR 2016. Form and guards of foolbox: overshoot on the total, images clipped each
//! step, the ten most likely classes, norms plus 1e-8. The authors' code does not clip.
//! torchattacks multiplies each step by 1.02 and starts the next from there, so that its steps
//! shrink to rounding noise, and takes the true label as class 0; ART overshoots once, by 1e-6.
//! advertorch's Linf form clamps the total before it overshoots, and so leaves its ball by 2 %.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{
    Aim, Attack, Classifier, Cut, Labels, Norm, Pass, Pixels, Result, finite_rows, jacobian, scores,
};

use crate::active::{Active, pick, pick_rows};
use crate::declared::{at_least_one, setting};
use crate::host::column;
use crate::loss::{entries, fooled, margin, ranking};
use crate::{Declare, Declared};

/// Distance added to each step, so that it crosses the boundary that it aims at.
const PAST: f64 = 1e-4;

/// Added to norms.
const GUARD: f64 = 1e-8;

/// The nearest linearised boundary, step by step.
///
/// ```
/// # use theriac_attacks::DeepFool;
/// let attack = DeepFool::new(theriac::Norm::L2);
/// # let _ = attack;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepFool {
    /// The norm to keep small.
    pub norm: Norm,
    /// Largest number of steps.
    #[serde(default = "fifty")]
    pub steps: u32,
    /// Classes whose boundaries are looked at, the most likely ones of the clean image.
    #[serde(default = "ten")]
    pub candidates: u32,
    /// Share by which the total is lengthened.
    #[serde(default = "two_percent")]
    pub overshoot: f64,
}

fn fifty() -> u32 {
    50
}

fn ten() -> u32 {
    10
}

fn two_percent() -> f64 {
    0.02
}

impl DeepFool {
    /// The authors' settings.
    pub fn new(norm: Norm) -> Self {
        Self {
            norm,
            steps: fifty(),
            candidates: ten(),
            overshoot: two_percent(),
        }
    }

    /// One step from each image over its nearest boundary.
    fn step(&self, differences: &Tensor, gradients: &[Tensor], samples: &[u32]) -> Result<Tensor> {
        let differences = finite_rows(differences, samples)?;
        let n = differences.len();
        let mut nearest = vec![(f64::INFINITY, 0, 0.0, 0.0); n];
        for (k, gradient) in gradients.iter().enumerate() {
            let norms = match self.norm {
                Norm::L2 => Norm::L2.of(gradient)?,
                _ => l1(gradient)?,
            };
            for (i, norm) in norms.into_iter().enumerate() {
                let (f, norm) = (differences[i][k].abs(), norm + GUARD);
                if f / norm < nearest[i].0 {
                    nearest[i] = (f / norm, k, f, norm);
                }
            }
        }
        let mut total: Option<Tensor> = None;
        for (k, gradient) in gradients.iter().enumerate() {
            // The distance with its guard, in the norm of the step's direction.
            let sizes: Vec<f64> = nearest
                .iter()
                .map(|&(distance, best, _, norm)| match self.norm {
                    _ if best != k => 0.0,
                    Norm::L2 => (distance + PAST) / norm,
                    _ => distance + PAST,
                })
                .collect();
            let direction = match self.norm {
                Norm::L2 => gradient.clone(),
                _ => gradient.sign()?,
            };
            let step = direction.broadcast_mul(&column(&sizes, gradient)?)?;
            total = Some(match total {
                None => step,
                Some(total) => (total + step)?,
            });
        }
        total.ok_or(theriac::Error::Empty {
            what: "list of candidates",
        })
    }
}

fn l1(tensor: &Tensor) -> Result<Vec<f64>> {
    let sums = tensor.flatten_from(1)?.abs()?.sum(1)?;
    crate::loss::host(&sums)
}

impl<C: Classifier + ?Sized> Attack<C> for DeepFool {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let mut left = Active::all(clean, aim.target(), pass.samples)?;
        let candidates = (self.candidates as usize).min(model.classes());
        let rows = scores(model, clean, pass)?;
        let mut done = fooled(&rows, aim)?;
        let wanted = aim.target().to_vec()?;
        let mut orders: Vec<Vec<u32>> = rows
            .iter()
            .zip(&wanted)
            .map(|(row, &wanted)| {
                let mut order = ranking(row);
                order.truncate(candidates);
                match aim {
                    Aim::Away(_) => order,
                    // Toward a class there is one boundary.
                    Aim::Toward(_) => vec![order[0], wanted],
                }
            })
            .collect();
        let mut x = clean.clone();
        let mut total = clean.tensor().zeros_like()?;
        for k in 0..self.steps {
            let Some(stay) = left.leave(&done, &x)? else {
                break;
            };
            x = x.pick(&stay)?;
            total = pick_rows(&total, &stay)?;
            orders = pick(&orders, &stay);
            let pass = pass.at(u64::from(k));
            let pass = pass.over(&left.samples);
            let (differences, gradients) = jacobian(&x, &pass, |x| {
                let logits = model.logits(x, &pass)?;
                let at = |rank: usize| {
                    let classes: Vec<u32> = orders.iter().map(|order| order[rank]).collect();
                    entries(&logits, &classes)
                };
                let columns = (1..orders[0].len()).map(|rank| Ok((at(rank)? - at(0)?)?));
                let columns = columns.collect::<Result<Vec<_>>>()?;
                Ok(Tensor::stack(&columns, 1)?)
            })?;
            total = (total + self.step(&differences, &gradients, pass.samples)?)?;
            let moved = (left.clean.tensor() + (&total * (1.0 + self.overshoot))?)?;
            x = Pixels::clamp(&moved)?;
            let rows = scores(model, &x, &pass)?;
            let aim = aim.at(&left.target);
            done = fooled(&rows, aim)?;
            let margins: Vec<f64> = rows
                .iter()
                .zip(left.target.to_vec()?)
                .map(|(row, label)| aim.sign() * margin(row, label))
                .collect();
            pass.show(&x, &margins, Some(&done))?;
        }
        left.finish(&x)
    }

    fn cut(&self) -> Cut {
        Cut::Large
    }
}

impl Declare for DeepFool {
    fn declared(&self) -> Declared {
        let name = format!("DeepFool {}, {} steps", self.norm, self.steps);
        Declared::gradients(&name, None)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        let enough = self.candidates >= 2;
        setting(
            enough,
            "candidates",
            self.candidates,
            "give at least 2: the class and another",
        )?;
        let positive = self.overshoot >= 0.0 && self.overshoot.is_finite();
        setting(positive, "overshoot", self.overshoot, "expected at least 0")
    }

    fn scaled(self, _: f64) -> Result<Self> {
        Ok(self)
    }
}
