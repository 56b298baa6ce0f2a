//! Square attack.
//!
//! ```text
//! start:  Linf stripes of +-eps;  L2 a tiling of bumps scaled to eps
//! query:  replace the perturbation in a random square of side s, keep it if the margin falls
//! s = round(sqrt(p h w)),  p halves after 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000 queries
//! ```
//!
//! Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random
//! search", ECCV 2020. As AutoAttack: margin loss, p = 0.8 at first, an unrescaled schedule. There,
//! place and signs are shared by the batch; here every image has its own, so results compare in
//! the mean only. There, a square never touches the last row and column unless it covers the
//! image, which small images feel; here it may lie anywhere. The authors' code
//! has 10,000 queries and p = 0.05.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Classifier, Cut, Labels, Norm, Pass, Pixels, Result, Rng};

use crate::active::{Active, pick};
use crate::declared::{at_least_one, setting};
use crate::host::{dims, images, rows};
use crate::restarts::mean_scores;
use crate::{Access, Declare, Declared, Loss};

/// Random search over squares, by logits alone.
///
/// ```
/// # use theriac_attacks::Square;
/// let attack = Square::new(theriac::Budget::linf("8/255".parse()?)?);
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Square {
    /// The allowed ball.
    pub budget: Budget,
    /// Number of queries, the first image included.
    #[serde(default = "five_thousand")]
    pub queries: u32,
    /// Share of the image that the first squares cover.
    #[serde(default = "most")]
    pub share: f64,
    /// Stretches the schedule, made for 10,000 queries, over the number given.
    #[serde(default)]
    pub rescale: bool,
}

fn five_thousand() -> u32 {
    5_000
}

fn most() -> f64 {
    0.8
}

/// One image's state.
struct Search {
    clean: Vec<f64>,
    best: Vec<f64>,
    /// Margin of the label over the others: below 0 the model is fooled.
    margin: f64,
}

impl Square {
    /// AutoAttack's settings.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            queries: five_thousand(),
            share: most(),
            rescale: false,
        }
    }

    /// Share of the image in query `k`.
    fn share_at(&self, k: u32) -> f64 {
        let k = match self.rescale {
            true => (u64::from(k) * 10_000 / u64::from(self.queries)) as u32,
            false => k,
        };
        let halvings = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
        let passed = halvings.iter().filter(|&&at| k > at).count() as i32;
        self.share / f64::from(2).powi(passed)
    }

    fn start(&self, clean: &[f64], [c, h, w]: [usize; 3], rng: Rng, sample: u64) -> Vec<f64> {
        let eps = self.budget.eps().get();
        let signs = rng.uniform("signs", sample, c * w.max(25));
        let sign = |i: usize| if signs[i] < 0.5 { -1.0 } else { 1.0 };
        let mut delta = vec![0.0; c * h * w];
        match self.budget.norm() {
            Norm::L2 => {
                let s = (h.min(w) / 5).max(1);
                let bump = bump(s, false);
                let (tiles_h, tiles_w) = ((h / s).min(5), (w / s).min(5));
                let (top, side) = ((h - s * tiles_h) / 2, (w - s * tiles_w) / 2);
                for channel in 0..c {
                    for tile in 0..tiles_h * tiles_w {
                        let (row, column) = (tile / tiles_w, tile % tiles_w);
                        let sign = sign(channel * 25 + tile);
                        for (i, bump) in bump.iter().enumerate() {
                            let (y, x) = (top + row * s + i / s, side + column * s + i % s);
                            delta[(channel * h + y) * w + x] += sign * bump;
                        }
                    }
                }
                scale_to(&mut delta, eps);
            }
            _ => {
                for (i, delta) in delta.iter_mut().enumerate() {
                    *delta = eps * sign(i / (h * w) * w + i % w);
                }
            }
        }
        clip(clean, &delta)
    }

    /// The next image to ask about.
    fn proposal(
        &self,
        search: &Search,
        [c, h, w]: [usize; 3],
        k: u32,
        draw: &mut Draw,
    ) -> Vec<f64> {
        let eps = self.budget.eps().get();
        let side = (self.share_at(k) * (h * w) as f64).sqrt().round() as usize;
        if self.budget.norm() == Norm::L2 {
            return self.bumps(search, [c, h, w], side, draw);
        }
        let s = side.max(1).min(h).min(w);
        let (top, left) = (draw.below(h - s + 1), draw.below(w - s + 1));
        let mut next = search.best.clone();
        for channel in 0..c {
            let step = if draw.unit() < 0.5 {
                -2.0 * eps
            } else {
                2.0 * eps
            };
            for y in top..top + s {
                for x in left..left + s {
                    let i = (channel * h + y) * w + x;
                    let (low, high) = (search.clean[i] - eps, search.clean[i] + eps);
                    next[i] = (next[i] + step).clamp(low, high).clamp(0.0, 1.0);
                }
            }
        }
        next
    }

    /// L2: moves the energy of one window, and what is unspent, into a bump in another.
    fn bumps(
        &self,
        search: &Search,
        [c, h, w]: [usize; 3],
        side: usize,
        draw: &mut Draw,
    ) -> Vec<f64> {
        let eps = self.budget.eps().get();
        let s = (side.max(3) | 1).min(h).min(w);
        let windows = [
            (draw.below(h - s + 1), draw.below(w - s + 1)),
            (draw.below(h - s + 1), draw.below(w - s + 1)),
        ];
        let bump = bump(s, draw.unit() > 0.5);
        let pairs = search.best.iter().zip(&search.clean);
        let mut delta: Vec<f64> = pairs.map(|(best, clean)| best - clean).collect();
        let spent: f64 = delta.iter().map(|d| d * d).sum();
        let unspent = (eps * eps - spent).max(0.0) / c as f64;
        let inside = |(top, left): (usize, usize), y: usize, x: usize| {
            (top..top + s).contains(&y) && (left..left + s).contains(&x)
        };
        for channel in 0..c {
            let place = |y: usize, x: usize| (channel * h + y) * w + x;
            let (mut in_both, mut in_first) = (0.0, 0.0);
            for y in 0..h {
                for x in 0..w {
                    let square = delta[place(y, x)].powi(2);
                    let first = inside(windows[0], y, x);
                    in_first += if first { square } else { 0.0 };
                    in_both += if first || inside(windows[1], y, x) {
                        square
                    } else {
                        0.0
                    };
                }
            }
            let sign = if draw.unit() < 0.5 { -1.0 } else { 1.0 };
            let (top, left) = windows[0];
            let mut new: Vec<f64> = (0..s * s)
                .map(|i| {
                    let old = delta[place(top + i / s, left + i % s)];
                    sign * bump[i] + old / (1e-12 + in_first.sqrt())
                })
                .collect();
            scale_to(&mut new, (unspent + in_both).sqrt());
            for i in 0..s * s {
                let (y, x) = (windows[1].0 + i / s, windows[1].1 + i % s);
                delta[place(y, x)] = 0.0;
            }
            for (i, new) in new.into_iter().enumerate() {
                delta[place(top + i / s, left + i % s)] = new;
            }
        }
        scale_to(&mut delta, eps);
        clip(&search.clean, &delta)
    }
}

/// One image's random numbers of one query.
struct Draw {
    numbers: std::vec::IntoIter<f32>,
}

impl Draw {
    fn unit(&mut self) -> f64 {
        f64::from(self.numbers.next().unwrap_or(0.0))
    }

    /// A whole number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }
}

fn clip(clean: &[f64], delta: &[f64]) -> Vec<f64> {
    let moved = clean
        .iter()
        .zip(delta)
        .map(|(x, d)| (x + d).clamp(0.0, 1.0));
    moved.collect()
}

fn scale_to(values: &mut [f64], norm: f64) {
    let now = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    values.iter_mut().for_each(|v| *v *= norm / (1e-12 + now));
}

/// An s x s pattern of norm 1: one hill above one valley, or beside it.
fn bump(s: usize, beside: bool) -> Vec<f64> {
    let (upper, lower) = (s / 2, s - s / 2);
    let mut pattern = hill(upper, s);
    pattern.extend(hill(lower, s).iter().map(|v| -v));
    scale_to(&mut pattern, 1.0);
    if beside {
        pattern = (0..s * s).map(|i| pattern[i % s * s + i / s]).collect();
    }
    pattern
}

/// A sum of nested rectangles around the middle, the smaller the higher; norm 1.
fn hill(height: usize, width: usize) -> Vec<f64> {
    let (middle_y, middle_x) = (height / 2 + 1, width / 2 + 1);
    let (mut top, mut left) = (middle_y as isize - 1, middle_x as isize - 1);
    let mut hill = vec![0.0; height * width];
    for ring in 0..middle_y.max(middle_x) {
        let across = 2 * ring as isize + 1;
        let rows = top.max(0)..(top + across).min(height as isize);
        for y in rows {
            for x in left.max(0)..(left + across).min(width as isize) {
                hill[y as usize * width + x as usize] += 1.0 / ((ring + 1) as f64).powi(2);
            }
        }
        (top, left) = (top - 1, left - 1);
    }
    scale_to(&mut hill, 1.0);
    hill
}

impl<C: Classifier + ?Sized> Attack<C> for Square {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let [_, c, h, w] = dims(clean);
        let shape = [c, h, w];
        let (mut left, stay) = Active::unbroken(model, clean, aim, pass)?;
        if stay.is_none() {
            return left.finish(clean);
        }
        let starts = rows(left.clean.tensor())?.into_iter().zip(&left.samples);
        let mut searches: Vec<Search> = starts
            .map(|(clean, &sample)| Search {
                best: self.start(&clean, shape, pass.rng, u64::from(sample)),
                clean,
                margin: f64::INFINITY,
            })
            .collect();
        let mut next: Vec<Vec<f64>> = searches.iter().map(|search| search.best.clone()).collect();
        for k in 0..self.queries {
            let pass = pass.at(u64::from(k));
            let here = pass.over(&left.samples);
            let x = images(&next, clean)?;
            let rows = mean_scores(model, &x, &here)?;
            let aim = aim.at(&left.target);
            let values = Loss::margins(&rows, aim)?;
            let fooled = crate::loss::fooled(&rows, aim)?;
            here.show(&x, &values, Some(&fooled))?;
            for (search, (next, value)) in searches.iter_mut().zip(next.iter().zip(&values)) {
                if -value < search.margin || *value >= 0.0 {
                    (search.best, search.margin) = (next.clone(), -value);
                }
            }
            let best: Vec<Vec<f64>> = match fooled.contains(&true) || k + 1 == self.queries {
                true => searches.iter().map(|search| search.best.clone()).collect(),
                false => Vec::new(),
            };
            if fooled.contains(&true) {
                let Some(stay) = left.leave(&fooled, &images(&best, clean)?)? else {
                    return left.finish(clean);
                };
                let mut keep = fooled.iter().map(|fooled| !fooled);
                searches.retain(|_| keep.next().unwrap_or(true));
                if k + 1 == self.queries {
                    return left.finish(&images(&pick(&best, &stay), clean)?);
                }
            } else if k + 1 == self.queries {
                return left.finish(&images(&best, clean)?);
            }
            let proposals = searches.iter().zip(&left.samples);
            next = proposals
                .map(|(search, &sample)| {
                    let numbers = pass.rng.uniform("square", u64::from(sample), 5 + c);
                    let mut draw = Draw {
                        numbers: numbers.into_iter(),
                    };
                    self.proposal(search, shape, k, &mut draw)
                })
                .collect();
        }
        left.finish(clean)
    }

    fn cut(&self) -> Cut {
        Cut::Large
    }
}

impl Declare for Square {
    fn declared(&self) -> Declared {
        let name = format!("Square, {} queries", self.queries);
        Declared::queries(&name, Some(self.budget), Access::Scores)
    }

    fn check(&self) -> Result<()> {
        at_least_one("queries", self.queries)?;
        let share = self.share > 0.0 && self.share <= 1.0;
        setting(
            share,
            "share",
            self.share,
            "expected a share of the image, above 0 and up to 1",
        )
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let budget = self.budget.scaled(factor)?;
        Ok(Self { budget, ..self })
    }
}
