//! HopSkipJump.
//!
//! ```text
//! x~ = any image that fools the model;  search the line to x for the boundary;  then in step t:
//! u = mean of phi(x~ + delta u_b) u_b minus its mean,  phi = 1 if fooled, -1 if not,  100 sqrt(t) draws
//! x~ += xi u / ||u|| (L2) or xi sign(u) (Linf),  xi = dist / sqrt(t), halved until it fools
//! search the line again
//! ```
//!
//! Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", S&P
//! 2020, with the settings of foolbox and cleverhans (ART takes 50 steps): 64 steps, 100 draws at
//! first, at most 10,000; delta = 0.1 in the first step, later sqrt(d) theta dist (L2) or d theta
//! dist (Linf), theta = 1 / (d sqrt(d)) or 1 / d^2. The estimate is the plain mean direction when
//! all decisions agree.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Cut, Labels, Norm, Pass, Pixels, Result, largest, scores};

use crate::declared::{at_least_one, setting};
use crate::host::{images, rows};
use crate::{Access, Declare, Declared};

/// Walks along the boundary, by predicted classes alone.
///
/// ```
/// # use theriac_attacks::HopSkipJump;
/// let attack = HopSkipJump::new(theriac::Norm::L2);
/// # let _ = attack;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HopSkipJump {
    /// The norm to keep small.
    pub norm: Norm,
    /// Number of steps.
    #[serde(default = "sixty_four")]
    pub steps: u32,
    /// Draws for the first estimate; later ones take the square root of the step as many.
    #[serde(default = "hundred")]
    pub draws: u32,
    /// Largest number of draws for an estimate.
    #[serde(default = "ten_thousand")]
    pub most_draws: u32,
    /// Random images tried as a start, for each image.
    #[serde(default = "hundred")]
    pub trials: u32,
}

fn sixty_four() -> u32 {
    64
}

fn hundred() -> u32 {
    100
}

fn ten_thousand() -> u32 {
    10_000
}

/// The side of the first, widest perturbation around a start.
const FIRST_DELTA: f64 = 0.1;

/// Halvings of a step before it is given up.
const HALVINGS: u32 = 40;

/// One image under attack: asks for decisions.
struct Oracle<'a, C: ?Sized> {
    model: &'a C,
    like: &'a Pixels,
    label: u32,
    aim: Aim<'a, Labels>,
    pass: Pass<'a>,
}

impl<C: Classifier + ?Sized> Oracle<'_, C> {
    /// Whether each of some images fools the model.
    fn fools(&self, x: &[Vec<f64>]) -> Result<Vec<bool>> {
        let ids = vec![self.pass.samples[0]; x.len()];
        let rows = scores(self.model, &images(x, self.like)?, &self.pass.over(&ids))?;
        let told = rows
            .iter()
            .map(|row| self.aim.reached(largest(row) == self.label));
        Ok(told.collect())
    }

    fn fools_one(&self, x: &[f64]) -> Result<bool> {
        Ok(self.fools(&[x.to_vec()])?[0])
    }
}

impl HopSkipJump {
    /// foolbox's settings.
    pub fn new(norm: Norm) -> Self {
        Self {
            norm,
            steps: sixty_four(),
            draws: hundred(),
            most_draws: ten_thousand(),
            trials: hundred(),
        }
    }

    fn distance(&self, a: &[f64], b: &[f64]) -> f64 {
        let pairs = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        match self.norm {
            Norm::L2 => pairs.map(|d| d * d).sum::<f64>().sqrt(),
            _ => pairs.fold(0.0, f64::max),
        }
    }

    /// Between the clean image (share 0) and one that fools (share 1); in Linf the moved image
    /// projected onto a ball whose radius is that share of its distance.
    fn blend(&self, clean: &[f64], moved: &[f64], share: f64) -> Vec<f64> {
        let pairs = clean.iter().zip(moved);
        match self.norm {
            Norm::L2 => pairs.map(|(x, m)| x + share * (m - x)).collect(),
            _ => {
                let radius = share * self.distance(clean, moved);
                pairs
                    .map(|(x, m)| x + (m - x).clamp(-radius, radius))
                    .collect()
            }
        }
    }

    /// The image closest to the clean one on the way to it that still fools the model.
    fn boundary<C: Classifier + ?Sized>(
        &self,
        clean: &[f64],
        moved: &[f64],
        oracle: &Oracle<'_, C>,
    ) -> Result<Vec<f64>> {
        let d = clean.len() as f64;
        let tolerance = match self.norm {
            Norm::L2 => 1.0 / (d * d.sqrt()),
            _ => (1.0 / (d * d)).max(1e-6),
        };
        let (mut low, mut high) = (0.0, 1.0);
        while high - low > tolerance {
            let middle = f64::midpoint(low, high);
            if oracle.fools_one(&self.blend(clean, moved, middle))? {
                high = middle;
            } else {
                low = middle;
            }
        }
        Ok(self.blend(clean, moved, high))
    }

    /// The direction into the region that fools the model, of unit size in the norm of the step.
    fn direction<C: Classifier + ?Sized>(
        &self,
        at: &[f64],
        delta: f64,
        draws: usize,
        oracle: &Oracle<'_, C>,
    ) -> Result<Vec<f64>> {
        let (d, sample) = (at.len(), u64::from(oracle.pass.samples[0]));
        let mut fooled = 0usize;
        // Sums of u, and of phi u.
        let (mut plain, mut signed) = (vec![0.0; d], vec![0.0; d]);
        let mut done = 0;
        while done < draws {
            let some = (draws - done).min(250);
            let pass = oracle.pass.fork(done as u64);
            let noise = match self.norm {
                Norm::L2 => pass.rng.normal("direction", sample, some * d),
                _ => pass.rng.uniform("direction", sample, some * d),
            };
            let mut units: Vec<Vec<f64>> = noise
                .chunks_exact(d)
                .map(|row| row.iter().map(|&v| self.centred(f64::from(v))).collect())
                .collect();
            for unit in &mut units {
                let norm = unit
                    .iter()
                    .map(|u: &f64| u * u)
                    .sum::<f64>()
                    .sqrt()
                    .max(1e-12);
                unit.iter_mut().for_each(|u| *u /= norm);
            }
            let queries = units.iter().map(|unit| {
                let moved = at
                    .iter()
                    .zip(unit)
                    .map(|(x, u)| (x + delta * u).clamp(0.0, 1.0));
                moved.collect::<Vec<f64>>()
            });
            let queries: Vec<Vec<f64>> = queries.collect();
            for ((query, told), unit) in queries.iter().zip(oracle.fools(&queries)?).zip(&mut units)
            {
                fooled += usize::from(told);
                let phi = if told { 1.0 } else { -1.0 };
                for j in 0..d {
                    // What the cube left of the direction.
                    unit[j] = (query[j] - at[j]) / delta;
                    plain[j] += unit[j];
                    signed[j] += phi * unit[j];
                }
            }
            done += some;
        }
        let mean = 2.0 * fooled as f64 / draws as f64 - 1.0;
        let mut direction: Vec<f64> = match fooled {
            0 => plain.iter().map(|p| -p).collect(),
            all if all == draws => plain,
            _ => signed
                .iter()
                .zip(&plain)
                .map(|(s, p)| s - mean * p)
                .collect(),
        };
        match self.norm {
            Norm::L2 => {
                let norm = direction
                    .iter()
                    .map(|u| u * u)
                    .sum::<f64>()
                    .sqrt()
                    .max(1e-12);
                direction.iter_mut().for_each(|u| *u /= norm);
            }
            _ => direction.iter_mut().for_each(|u| {
                *u = if *u == 0.0 { 0.0 } else { u.signum() };
            }),
        }
        Ok(direction)
    }

    fn centred(&self, value: f64) -> f64 {
        match self.norm {
            Norm::L2 => value,
            _ => 2.0 * value - 1.0,
        }
    }

    /// The closest image found, or the clean one if no start was.
    fn walk<C: Classifier + ?Sized>(
        &self,
        clean: &[f64],
        oracle: &Oracle<'_, C>,
    ) -> Result<Vec<f64>> {
        let (d, sample) = (clean.len(), u64::from(oracle.pass.samples[0]));
        let mut start = None;
        for trial in 0..self.trials {
            let noise = oracle
                .pass
                .fork(u64::from(trial))
                .rng
                .uniform("start", sample, d);
            let noise: Vec<f64> = noise.into_iter().map(f64::from).collect();
            if oracle.fools_one(&noise)? {
                start = Some(noise);
                break;
            }
        }
        let Some(start) = start else {
            return Ok(clean.to_vec());
        };
        let mut x = self.boundary(clean, &start, oracle)?;
        let (mut best, mut closest) = (x.clone(), self.distance(clean, &x));
        for t in 1..=self.steps {
            let oracle = Oracle {
                pass: oracle.pass.at(u64::from(t)),
                ..*oracle
            };
            let away = self.distance(clean, &x);
            let delta = match (t, self.norm) {
                (1, _) => FIRST_DELTA,
                (_, Norm::L2) => away / d as f64,
                _ => away / d as f64,
            };
            let draws = f64::from(self.draws) * f64::from(t).sqrt();
            let draws = (draws as usize).min(self.most_draws as usize);
            let direction = self.direction(&x, delta.max(1e-9), draws, &oracle)?;
            let mut size = away / f64::from(t).sqrt();
            for _ in 0..HALVINGS {
                let step = x.iter().zip(&direction);
                let moved: Vec<f64> = step.map(|(x, u)| (x + size * u).clamp(0.0, 1.0)).collect();
                if oracle.fools_one(&moved)? {
                    x = self.boundary(clean, &moved, &oracle)?;
                    break;
                }
                size /= 2.0;
            }
            let away = self.distance(clean, &x);
            if away < closest {
                (best, closest) = (x.clone(), away);
            }
        }
        Ok(best)
    }
}

impl<C: Classifier + ?Sized> Attack<C> for HopSkipJump {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let done = crate::loss::fooled(&scores(model, clean, pass)?, aim)?;
        let labels = aim.target().to_vec()?;
        let mut found = rows(clean.tensor())?;
        for (i, x) in found.iter_mut().enumerate().filter(|(i, _)| !done[*i]) {
            let oracle = Oracle {
                model,
                like: clean,
                label: labels[i],
                aim,
                pass: pass.over(&pass.samples[i..=i]),
            };
            *x = self.walk(x, &oracle)?;
        }
        images(&found, clean)
    }

    fn cut(&self) -> Cut {
        // Each image fills batches of its own.
        Cut::Small
    }
}

impl Declare for HopSkipJump {
    fn declared(&self) -> Declared {
        let name = format!("HopSkipJump {}, {} steps", self.norm, self.steps);
        Declared::queries(&name, None, Access::Decisions)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        at_least_one("draws", self.draws)?;
        at_least_one("trials", self.trials)?;
        let remedy = "expected at least as many as draws";
        setting(
            self.most_draws >= self.draws,
            "most_draws",
            self.most_draws,
            remedy,
        )
    }

    fn scaled(self, _: f64) -> Result<Self> {
        Ok(self)
    }
}
