//! Auto-PGD.
//!
//! ```text
//! z_{k+1} = P(x_k + s_k d(g_k)),   x_{k+1} = P(x_k + a (z_{k+1} - x_k) + (1 - a)(x_k - x_{k-1}))
//! a = 3/4 (1 in the first step),   s_0 = 2 eps
//! at checkpoints: halve s and go back to the best point if the loss rose in at most rho of the
//! steps since the last one, or if s was kept there and the best loss has not improved since
//! ```
//!
//! Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
//! parameter-free attacks", ICML 2020. As AutoAttack's code: the first checkpoint comes after 22 %
//! of the steps, each interval is 3 % shorter than the last, down to 6 %; the first step counts as
//! a rise if its loss is above 0; after going back, the momentum is the best point minus the last
//! iterate. torchattacks' classes take 10 steps by default where AutoAttack takes 100 (ours); ART
//! takes eps 0.3, and in versions 1.14 to 1.17 swaps prediction and label.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Classifier, Cut, Labels, Norm, Pass, Pixels, Result, scores};

use crate::active::{Active, pick, pick_rows};
use crate::declared::{at_least_one, setting};
use crate::host::column;
use crate::loss::{entries, look, ranking, targeted_dlr};
use crate::pgd::better;
use crate::{Declare, Declared, Loss, Start};

/// Steps whose size adapts, with momentum.
///
/// ```
/// # use theriac_attacks::{Apgd, Loss};
/// let attack = Apgd::new(theriac::Budget::linf("8/255".parse()?)?, Loss::CrossEntropy);
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apgd {
    /// The allowed ball.
    pub budget: Budget,
    /// Number of steps.
    #[serde(default = "hundred")]
    pub steps: u32,
    /// The loss that it climbs.
    #[serde(default)]
    pub loss: Loss,
    /// Share of rising steps below which the step is halved.
    #[serde(default = "three_quarters")]
    pub rho: f64,
    /// The first iterate.
    #[serde(default = "surface")]
    pub start: Start,
    /// Whether an image leaves the batch at its first iterate that fools the model, the clean one
    /// included. The reference goes on and returns the last such iterate.
    #[serde(default = "yes")]
    pub stop: bool,
}

/// APGD on the targeted DLR loss, one run for each of the most likely other classes.
///
/// ```text
/// L_t = (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12),  t = the 2nd, 3rd, ... class of f(x)
/// ```
///
/// With fewer than four classes the loss is the plain difference `z_t - z_y`.
///
/// ```
/// # use theriac_attacks::ApgdT;
/// let attack = ApgdT::new(theriac::Budget::linf("8/255".parse()?)?);
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApgdT {
    /// The allowed ball.
    pub budget: Budget,
    /// Number of steps for each target.
    #[serde(default = "hundred")]
    pub steps: u32,
    /// Number of targets, at most the number of other classes.
    #[serde(default = "nine")]
    pub targets: u32,
    /// Share of rising steps below which the step is halved.
    #[serde(default = "three_quarters")]
    pub rho: f64,
    /// The first iterate.
    #[serde(default = "surface")]
    pub start: Start,
    /// Whether an image leaves the batch at its first iterate that fools the model.
    #[serde(default = "yes")]
    pub stop: bool,
}

fn hundred() -> u32 {
    100
}

fn nine() -> u32 {
    9
}

fn three_quarters() -> f64 {
    0.75
}

fn surface() -> Start {
    Start::Surface
}

fn yes() -> bool {
    true
}

impl Apgd {
    /// AutoAttack's settings.
    pub fn new(budget: Budget, loss: Loss) -> Self {
        Self {
            budget,
            steps: hundred(),
            loss,
            rho: three_quarters(),
            start: surface(),
            stop: yes(),
        }
    }

    /// From a given first iterate.
    ///
    /// # Errors
    /// When a setting makes no sense, the model fails or a gradient is not finite.
    pub fn perturb_from<C: Classifier + ?Sized>(
        &self,
        start: &Pixels,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let loss = |logits: &Tensor, aim: Aim<'_, Labels>, _: &[u32]| self.loss.of(logits, aim);
        let none = vec![0; clean.len()];
        let found = ascend(self, &loss, &none, start, model, clean, aim, pass)?;
        Ok(found.images)
    }
}

impl ApgdT {
    /// AutoAttack's settings.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            steps: hundred(),
            targets: nine(),
            rho: three_quarters(),
            start: surface(),
            stop: yes(),
        }
    }

    /// One run toward one class each, from a given first iterate.
    ///
    /// # Errors
    /// When a setting makes no sense, the model fails or a gradient is not finite.
    pub fn perturb_toward<C: Classifier + ?Sized>(
        &self,
        targets: &[u32],
        start: &Pixels,
        model: &C,
        clean: &Pixels,
        labels: &Labels,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        Ok(self
            .toward(targets, start, model, clean, labels, pass)?
            .images)
    }

    fn toward<C: Classifier + ?Sized>(
        &self,
        targets: &[u32],
        start: &Pixels,
        model: &C,
        clean: &Pixels,
        labels: &Labels,
        pass: &Pass<'_>,
    ) -> Result<Found> {
        let classes = model.classes();
        let loss = |logits: &Tensor, aim: Aim<'_, Labels>, targets: &[u32]| {
            let labels = aim.target().to_vec()?;
            if classes < 4 {
                return Ok((entries(logits, targets)? - entries(logits, &labels)?)?);
            }
            targeted_dlr(logits, &labels, targets)
        };
        let aim = Aim::Away(labels);
        ascend(&self.one(), &loss, targets, start, model, clean, aim, pass)
    }

    /// The settings of one run.
    fn one(&self) -> Apgd {
        Apgd {
            budget: self.budget,
            steps: self.steps,
            loss: Loss::Dlr,
            rho: self.rho,
            start: self.start,
            stop: self.stop,
        }
    }
}

/// What one run found.
struct Found {
    /// The last iterate that fools the model, else the one with the largest loss.
    images: Pixels,
    /// Whether any iterate did.
    fooled: Vec<bool>,
}

/// A loss by logits, aim and a number for each image.
type Climbed<'a> = dyn Fn(&Tensor, Aim<'_, Labels>, &[u32]) -> Result<Tensor> + 'a;

/// One run. `loss` also gets a number for each image: the class it is driven to.
#[allow(clippy::too_many_arguments)] // the attack's inputs and its settings
fn ascend<C: Classifier + ?Sized>(
    settings: &Apgd,
    loss: &Climbed<'_>,
    numbers: &[u32],
    start: &Pixels,
    model: &C,
    clean: &Pixels,
    aim: Aim<'_, Labels>,
    pass: &Pass<'_>,
) -> Result<Found> {
    let Apgd {
        budget, steps, rho, ..
    } = *settings;
    let share = |percent: u32| (steps * percent / 100).max(1);
    let (mut interval, shorter, shortest) = (share(22), share(3), share(6));
    let n = clean.len();
    let mut x = budget.project(start.tensor(), clean)?;
    let (mut left, mut everyone) = (Active::all(clean, aim.target(), pass.samples)?, all(n));
    let mut ever_fooled = vec![false; n];
    if settings.stop {
        let (unbroken, stay) = Active::unbroken(model, clean, aim, pass)?;
        (left, everyone) = (unbroken, stay.unwrap_or_default());
        ever_fooled = vec![true; n];
        everyone
            .iter()
            .for_each(|&i| ever_fooled[i as usize] = false);
        if everyone.is_empty() {
            let images = left.finish(clean)?;
            return Ok(Found {
                images,
                fooled: ever_fooled,
            });
        }
        x = x.pick(&everyone)?;
    }
    let mut numbers = pick(numbers, &everyone);
    let n = everyone.len();

    let see = |x: &Pixels, left: &Active<Labels>, numbers: &[u32], step: u64| {
        let pass = pass.at(step);
        let aim = aim.at(&left.target);
        look(model, x, aim, &pass.over(&left.samples), |logits| {
            loss(logits, aim, numbers)
        })
    };
    let mut seen = see(&x, &left, &numbers, 0)?;
    let mut old = x.clone();
    let mut best = x.clone();
    let mut best_gradient = seen.gradient.clone();
    let mut best_value = seen.values.clone();
    let mut fooling = x.clone();
    let mut fooled = seen.fooled.clone();
    let mut sizes = vec![2.0 * budget.eps().get(); n];
    let mut previous = vec![0.0; n];
    let mut rises = vec![0u32; n];
    let mut value_at_check = best_value.clone();
    let mut halved_at_check = vec![true; n];
    let mut since_check = 0;

    for k in 0..steps {
        if settings.stop && fooled.contains(&true) {
            for (at, fooled) in everyone.iter().zip(&fooled) {
                ever_fooled[*at as usize] |= *fooled;
            }
            let Some(stay) = left.leave(&fooled, &fooling)? else {
                let images = left.finish(&fooling)?;
                return Ok(Found {
                    images,
                    fooled: ever_fooled,
                });
            };
            x = x.pick(&stay)?;
            old = old.pick(&stay)?;
            best = best.pick(&stay)?;
            fooling = fooling.pick(&stay)?;
            seen.gradient = pick_rows(&seen.gradient, &stay)?;
            best_gradient = pick_rows(&best_gradient, &stay)?;
            numbers = pick(&numbers, &stay);
            everyone = pick(&everyone, &stay);
            fooled = pick(&fooled, &stay);
            best_value = pick(&best_value, &stay);
            sizes = pick(&sizes, &stay);
            previous = pick(&previous, &stay);
            rises = pick(&rises, &stay);
            value_at_check = pick(&value_at_check, &stay);
            halved_at_check = pick(&halved_at_check, &stay);
        }
        let momentum = (x.tensor() - old.tensor())?;
        let a = if k == 0 { 1.0 } else { 0.75 };
        let direction = direction(budget.norm(), &seen.gradient)?;
        let step = direction.broadcast_mul(&column(&sizes, &direction)?)?;
        let z = budget.project(&(x.tensor() + step)?, &left.clean)?;
        let toward_z = ((z.tensor() - x.tensor())? * a)?;
        let next = ((x.tensor() + toward_z)? + (momentum * (1.0 - a))?)?;
        old = x;
        x = budget.project(&next, &left.clean)?;

        seen = see(&x, &left, &numbers, u64::from(k) + 1)?;
        fooling = x.select(&seen.fooled, &fooling)?;
        for (ever, now) in fooled.iter_mut().zip(&seen.fooled) {
            *ever |= *now;
        }
        for (i, &value) in seen.values.iter().enumerate() {
            rises[i] += u32::from(value > previous[i]);
        }
        previous.clone_from(&seen.values);
        let improved: Vec<bool> = seen
            .values
            .iter()
            .zip(&best_value)
            .map(|(value, best)| value > best)
            .collect();
        best_gradient = where_images(&improved, &seen.gradient, &best_gradient)?;
        (best_value, best) = better(Some((best_value, best)), seen.values.clone(), &x)?;

        since_check += 1;
        if since_check == interval {
            let halve: Vec<bool> = (0..sizes.len())
                .map(|i| {
                    let oscillates = f64::from(rises[i]) <= rho * f64::from(interval);
                    let stalls = !halved_at_check[i] && value_at_check[i] >= best_value[i];
                    oscillates || stalls
                })
                .collect();
            for (size, halve) in sizes.iter_mut().zip(&halve) {
                *size *= if *halve { 0.5 } else { 1.0 };
            }
            x = best.select(&halve, &x)?;
            seen.gradient = where_images(&halve, &best_gradient, &seen.gradient)?;
            halved_at_check = halve;
            value_at_check.clone_from(&best_value);
            rises.fill(0);
            interval = interval.saturating_sub(shorter).max(shortest);
            since_check = 0;
        }
    }
    for (at, fooled) in everyone.iter().zip(&fooled) {
        ever_fooled[*at as usize] |= *fooled;
    }
    let images = left.finish(&fooling.select(&fooled, &best)?)?;
    Ok(Found {
        images,
        fooled: ever_fooled,
    })
}

/// sign(g), or g / (||g||_2 + 1e-12): the reference adds the guard where others take the larger.
fn direction(norm: Norm, gradient: &Tensor) -> Result<Tensor> {
    match norm {
        Norm::L2 => {
            let inverse: Vec<f64> = Norm::L2
                .of(gradient)?
                .iter()
                .map(|n| 1.0 / (n + 1e-12))
                .collect();
            Ok(gradient.broadcast_mul(&column(&inverse, gradient)?)?)
        }
        norm => norm.steepest(gradient),
    }
}

fn all(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

/// Image by image the first tensor where the mask holds, else the second.
fn where_images(mask: &[bool], yes: &Tensor, no: &Tensor) -> Result<Tensor> {
    let mask: Vec<u8> = mask.iter().map(|&m| u8::from(m)).collect();
    let mask = Tensor::from_vec(mask, (yes.dim(0)?, 1, 1, 1), yes.device())?;
    Ok(mask.broadcast_as(yes.shape())?.where_cond(yes, no)?)
}

impl<C: Classifier + ?Sized> Attack<C> for Apgd {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let start = self.start.point(clean, &self.budget, pass)?;
        self.perturb_from(&start, model, clean, aim, pass)
    }

    fn cut(&self) -> Cut {
        if self.stop { Cut::Large } else { Cut::Small }
    }
}

impl<C: Classifier + ?Sized> Attack<C> for ApgdT {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.check()?;
        let Aim::Away(labels) = aim else {
            // It chooses its targets itself; toward one class, APGD on the DLR loss is the same.
            let loss = if model.classes() < 4 {
                Loss::Margin
            } else {
                Loss::Dlr
            };
            return Apgd { loss, ..self.one() }.perturb(model, clean, aim, pass);
        };
        let mut left = Active::all(clean, labels, pass.samples)?;
        let mut targets = other_classes(&scores(model, clean, pass)?, &labels.to_vec()?);
        let mut x = clean.clone();
        for rank in 0..(self.targets as usize).min(model.classes() - 1) {
            let pass = pass.fork(rank as u64);
            let pass = pass.over(&left.samples);
            let start = self.start.point(&left.clean, &self.budget, &pass)?;
            let toward: Vec<u32> = targets.iter().map(|classes| classes[rank]).collect();
            let (clean, labels) = (left.clean.clone(), left.target.clone());
            let found = self.toward(&toward, &start, model, &clean, &labels, &pass)?;
            x = found.images;
            let Some(stay) = left.leave(&found.fooled, &x)? else {
                break;
            };
            targets = pick(&targets, &stay);
            x = x.pick(&stay)?;
        }
        left.finish(&x)
    }

    fn cut(&self) -> Cut {
        Cut::Large
    }
}

/// For each image the classes that are not its label, the most likely first.
pub(crate) fn other_classes(rows: &[Vec<f64>], labels: &[u32]) -> Vec<Vec<u32>> {
    let others = |(row, label): (&Vec<f64>, &u32)| {
        let mut classes = ranking(row);
        classes.retain(|class| class != label);
        classes
    };
    rows.iter().zip(labels).map(others).collect()
}

impl Declare for Apgd {
    fn declared(&self) -> Declared {
        let name = format!("APGD on {}, {} steps", self.loss, self.steps);
        Declared::gradients(&name, Some(self.budget)).random(self.start != Start::Clean)
    }

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        let remedy = "expected a share between 0 and 1";
        setting((0.0..=1.0).contains(&self.rho), "rho", self.rho, remedy)
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let budget = self.budget.scaled(factor)?;
        Ok(Self { budget, ..self })
    }
}

impl Declare for ApgdT {
    fn declared(&self) -> Declared {
        let name = format!("APGD-T, {} targets, {} steps", self.targets, self.steps);
        Declared::gradients(&name, Some(self.budget)).random(self.start != Start::Clean)
    }

    fn check(&self) -> Result<()> {
        at_least_one("targets", self.targets)?;
        self.one().check()
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let budget = self.budget.scaled(factor)?;
        Ok(Self { budget, ..self })
    }
}
