//! One-pixel attack, or few pixels.
//!
//! ```text
//! candidate: (row, column, value of each channel) for each pixel
//! trial_i = best + F (candidate_a - candidate_b),  F ~ U(0.5, 1) each generation
//! keep the trial if the probability of the true class falls
//! ```
//!
//! Su, Vargas & Sakurai, "One pixel attack for fooling deep neural networks", IEEE TEVC 2019, by
//! differential evolution (best/1/bin, recombination 1). As DebangLi's code: 400 candidates, 100
//! generations, positions uniform, first values N(128, 127) in 0..255; a trial out of range is
//! drawn afresh; the search ends when the class changes. torchattacks takes 10 generations and
//! uniform values, with a generator that its seed does not reach.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Cut, Labels, Pass, Pixels, Result, Rng};

use crate::declared::at_least_one;
use crate::host::{dims, images, rows};
use crate::restarts::mean_scores;
use crate::{Access, Declare, Declared};

/// Changes a few pixels to any values.
///
/// ```
/// # use theriac_attacks::FewPixel;
/// let one_pixel = FewPixel::new(1);
/// # let _ = one_pixel;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewPixel {
    /// Number of pixels that may change.
    pub pixels: u32,
    /// Number of generations.
    #[serde(default = "hundred")]
    pub steps: u32,
    /// Number of candidates.
    #[serde(default = "four_hundred")]
    pub population: u32,
    /// First values uniform as in torchattacks, else normal around grey.
    #[serde(default)]
    pub uniform_values: bool,
}

fn hundred() -> u32 {
    100
}

fn four_hundred() -> u32 {
    400
}

/// Fewest candidates that leave two to take the difference of.
const FEWEST: u32 = 4;

impl FewPixel {
    /// DebangLi's settings.
    pub fn new(pixels: u32) -> Self {
        Self {
            pixels,
            steps: hundred(),
            population: four_hundred(),
            uniform_values: false,
        }
    }

    /// Evolves one image. The image that fools the model, else the one with the lowest fitness.
    fn evolve<C: Classifier + ?Sized>(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let [_, c, h, w] = dims(clean);
        let label = aim.target().to_vec()?[0];
        let sample = u64::from(pass.samples[0]);
        let (size, genes) = (self.population as usize, self.pixels as usize * (2 + c));
        let ids = vec![pass.samples[0]; size];
        let flat = rows(clean.tensor())?.concat();
        let paint = |candidate: &Vec<f64>| {
            let mut image = flat.clone();
            for pixel in candidate.chunks_exact(2 + c) {
                // The upper end is exclusive: 1.0 would be outside the image.
                let place = |share: f64, n: usize| ((share * n as f64) as usize).min(n - 1);
                let (y, x) = (place(pixel[0], h), place(pixel[1], w));
                for (channel, value) in pixel[2..].iter().enumerate() {
                    image[(channel * h + y) * w + x] = *value;
                }
            }
            image
        };
        // Fitness of candidates, lower is better for the attacker, and the first that fools.
        let score =
            |candidates: &[Vec<f64>], pass: &Pass<'_>| -> Result<(Vec<f64>, Option<usize>)> {
                let painted: Vec<Vec<f64>> = candidates.iter().map(paint).collect();
                let rows = mean_scores(model, &images(&painted, clean)?, &pass.over(&ids))?;
                let fools = |row: &Vec<f64>| aim.reached(theriac::largest(row) == label);
                let fitness = rows.iter().map(|row| aim.sign() * probability(row, label));
                Ok((fitness.collect(), rows.iter().position(fools)))
            };
        let rng = pass.rng.at(0);
        let mut population = self.first(rng, sample, genes, c);
        let (mut fitness, found) = score(&population, &pass.at(0))?;
        if let Some(found) = found {
            return images(&[paint(&population[found])], clean);
        }
        for generation in 1..=self.steps {
            let pass = pass.at(u64::from(generation));
            let best = lowest(&fitness);
            let f = 0.5 + 0.5 * f64::from(pass.rng.uniform("dither", sample, 1)[0]);
            let picks = pass.rng.uniform("parents", sample, 2 * size);
            let fresh = pass.rng.uniform("fresh", sample, genes * size);
            let trials: Vec<Vec<f64>> = (0..size)
                .map(|i| {
                    let (a, b) = parents(i, size, picks[2 * i], picks[2 * i + 1]);
                    let gene = |g: usize| {
                        let value = population[best][g] + f * (population[a][g] - population[b][g]);
                        match (0.0..=1.0).contains(&value) {
                            true => value,
                            false => f64::from(fresh[i * genes + g]),
                        }
                    };
                    (0..genes).map(gene).collect()
                })
                .collect();
            let (new, found) = score(&trials, &pass)?;
            if let Some(found) = found {
                return images(&[paint(&trials[found])], clean);
            }
            for (i, (trial, value)) in trials.into_iter().zip(new).enumerate() {
                if value < fitness[i] {
                    (population[i], fitness[i]) = (trial, value);
                }
            }
        }
        images(&[paint(&population[lowest(&fitness)])], clean)
    }

    fn first(&self, rng: Rng, sample: u64, genes: usize, c: usize) -> Vec<Vec<f64>> {
        let all = self.population as usize * genes;
        let uniform = rng.uniform("first", sample, all);
        let normal = rng.normal("first", sample, all);
        let gene = |i: usize| {
            let is_place = i % genes % (2 + c) < 2;
            match is_place || self.uniform_values {
                true => f64::from(uniform[i]),
                false => ((128.0 + 127.0 * f64::from(normal[i])) / 255.0).clamp(0.0, 1.0),
            }
        };
        let candidates = (0..self.population as usize).map(|i| i * genes..(i + 1) * genes);
        candidates.map(|range| range.map(gene).collect()).collect()
    }
}

/// Two different candidates other than `i`.
fn parents(i: usize, size: usize, first: f32, second: f32) -> (usize, usize) {
    let mut a = (f64::from(first) * (size - 1) as f64) as usize;
    a += usize::from(a >= i);
    let mut b = (f64::from(second) * (size - 2) as f64) as usize;
    let (low, high) = (i.min(a), i.max(a));
    b += usize::from(b >= low);
    b += usize::from(b >= high);
    (a, b)
}

fn lowest(fitness: &[f64]) -> usize {
    let order = (0..fitness.len()).min_by(|&a, &b| fitness[a].total_cmp(&fitness[b]));
    order.unwrap_or(0)
}

/// Softmax of one class.
fn probability(row: &[f64], class: u32) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|z| (z - top).exp()).sum();
    (row[class as usize] - top).exp() / sum
}

impl<C: Classifier + ?Sized> Attack<C> for FewPixel {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let rows = mean_scores(model, clean, pass)?;
        let done = crate::loss::fooled(&rows, aim)?;
        let moved = (0..clean.len()).map(|i| {
            let one = clean.narrow(i, 1)?;
            if done[i] {
                return Ok(one);
            }
            let label = theriac::Target::narrow(aim.target(), i, 1)?;
            self.evolve(model, &one, aim.at(&label), &pass.narrow(i, 1)?)
        });
        Pixels::cat(&moved.collect::<Result<Vec<_>>>()?)
    }

    fn cut(&self) -> Cut {
        // Each image fills batches of its own.
        Cut::Small
    }
}

impl Declare for FewPixel {
    fn declared(&self) -> Declared {
        let Self {
            pixels,
            steps,
            population,
            ..
        } = self;
        let name = format!("{pixels} pixels, {steps} generations of {population}");
        Declared::queries(&name, None, Access::Scores)
    }

    fn check(&self) -> Result<()> {
        at_least_one("pixels", self.pixels)?;
        at_least_one("steps", self.steps)?;
        let remedy = "differences need at least 4 candidates";
        crate::declared::setting(
            self.population >= FEWEST,
            "population",
            self.population,
            remedy,
        )
    }

    fn scaled(self, _: f64) -> Result<Self> {
        Ok(self)
    }
}
