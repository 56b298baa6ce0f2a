//! Counter-perturbation at inference.
//!
//! ```text
//! input   x, clean or adversarial; classifier f with logits z; N labels, step alpha, bound mu
//! draw labels l_1 .. l_N
//! for each:  eta_i = -alpha sign(grad_x CE(z(x), l_i))      [T], toward l_i
//!            eta_i = +alpha sign(grad_x CE(z(x), l_i))      [U], away from l_i
//! delta = clip(sum_i eta_i, -mu, mu)
//! predict f(clip(x + delta, 0, 1))
//! ```
//!
//! "Counteracting adversarial perturbations at inference", anonymous submission to ICLR 2021,
//! section 3, equations 3 and 5, algorithm 1. No code was published. All gradients are taken at x.
//! Algorithm 1 does not clip x + delta to the cube; a classifier here takes pixels, so we do.

use candle_core::{D, Tensor};
use theriac::{Aim, Classifier, Labels, Pass, Pixels, Result, Transform, gradient, jacobian, vjp};
use theriac_ops::cross_entropy;

use crate::{Kind, Pool, Settings, Start, Untargeted};

/// The defence: a transform that moves images against what may have been done to them, and a
/// classifier of the images so moved.
///
/// As a [`Transform`] it goes in front of any classifier, other defences included; gradients are
/// those of `model`. What arrives is moved by a constant, so the gradient through it is that of the
/// identity (BPDA): an attack on it is adaptive as it stands, and the evaluator says that the
/// defence is dynamic.
#[derive(Clone, Copy, Debug)]
pub struct Counteract<C> {
    /// Gives the gradients, and classifies.
    pub model: C,
    /// Labels, step, bound.
    pub settings: Settings,
}

impl<C: Classifier> Counteract<C> {
    /// The defence around a classifier.
    ///
    /// # Errors
    /// Those of [`Settings::check`].
    pub fn new(model: C, settings: Settings) -> Result<Self> {
        settings.check(model.classes())?;
        Ok(Self { model, settings })
    }

    /// The counter-perturbation at x, shape (N, C, H, W), in [-mu, mu]; x + delta may leave the cube.
    ///
    /// # Errors
    /// Those of the classifier; [`theriac::Error::NotFinite`] for a gradient that is not finite.
    pub fn delta(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.settings.check(self.model.classes())?;
        let x = Pixels::clamp(x.tensor())?; // without its graph
        let pass = pass.eval();
        match (self.settings.start, self.settings.sequential) {
            (Start::Image, false) => self.at_once(&x, &pass),
            _ => self.one_by_one(&x, &pass),
        }
    }

    /// All gradients at x, from one forward pass.
    fn at_once(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let (_, gradients) = jacobian(x, pass, |x| {
            let logits = self.model.logits(x, pass)?;
            let losses = self.labels(&logits, pass)?.into_iter();
            let losses = losses.map(|label| Ok(cross_entropy(&logits, label.tensor())?));
            Ok(Tensor::stack(
                &losses.collect::<Result<Vec<_>>>()?,
                D::Minus1,
            )?)
        })?;
        let mut sum = x.tensor().zeros_like()?;
        for gradient in gradients {
            sum = (sum + gradient.sign()?)?;
        }
        self.clipped(&(sum * (self.sign() * self.settings.step.get()))?)
    }

    /// A forward pass for each label, at another place each.
    fn one_by_one(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        pass.meter.forward(pass.samples);
        let labels = self.labels(&self.model.logits(x, pass)?, pass)?;
        let (step, bound) = (self.settings.step.get(), self.settings.bound.get());
        let mut sum = x.tensor().zeros_like()?;
        for (i, label) in labels.iter().enumerate() {
            let pass = pass.fork(i as u64);
            let radius = match self.settings.start {
                Start::Image => 0.0,
                Start::Bound => bound,
                Start::Step => step,
            };
            let start = (pass.uniform("counteract start", x)? * radius)?;
            let so_far = match self.settings.sequential {
                true => self.clipped(&sum)?,
                false => x.tensor().zeros_like()?,
            };
            let at = Pixels::clamp(&((x.tensor() + so_far)? + &start)?)?;
            let loss = |x: &Pixels| {
                Ok(cross_entropy(
                    &self.model.logits(x, &pass)?,
                    label.tensor(),
                )?)
            };
            let (_, slopes) = gradient(&at, &pass, loss)?;
            sum = ((sum + start)? + (slopes.sign()? * (self.sign() * step))?)?;
        }
        self.clipped(&sum)
    }

    fn clipped(&self, sum: &Tensor) -> Result<Tensor> {
        let bound = self.settings.bound.get();
        Ok(sum.clamp(-bound, bound)?)
    }

    fn sign(&self) -> f64 {
        // Toward a label is down its loss.
        match self.settings.kind {
            Kind::Targeted => Aim::Toward(&()).sign(),
            Kind::Untargeted => Aim::Away(&()).sign(),
        }
    }

    /// The labels l_1 .. l_N of each image, N tensors of shape (N images).
    fn labels(&self, logits: &Tensor, pass: &Pass<'_>) -> Result<Vec<Labels>> {
        let classes = self.model.classes();
        let predicted = Labels::most_likely(logits)?;
        let away = self.settings.kind == Kind::Untargeted;
        if away && self.settings.untargeted == Untargeted::Predicted {
            return Ok(vec![predicted]);
        }
        let predicted = predicted.to_vec()?;
        let drawn = predicted.into_iter().zip(pass.samples);
        let drawn: Vec<Vec<u32>> = drawn
            .map(|(label, &sample)| self.draw(label, sample, pass))
            .collect();
        let of = |i: usize| {
            let labels: Vec<u32> = drawn.iter().map(|labels| labels[i]).collect();
            Labels::new(&labels, classes, logits.device())
        };
        (0..self.settings.labels).map(of).collect()
    }

    fn draw(&self, predicted: u32, sample: u32, pass: &Pass<'_>) -> Vec<u32> {
        let (classes, sample) = (self.model.classes() as u32, u64::from(sample));
        let other = |label: u32| if label < predicted { label } else { label + 1 };
        let order = |n| pass.rng.permutation("counteract labels", sample, n);
        let labels = match self.settings.pool {
            Pool::NonPredicted => order(classes - 1).into_iter().map(other).collect(),
            Pool::Any => order(classes),
            Pool::WithReplacement => (0..self.settings.labels as u64)
                .map(|i| {
                    let rng = pass.rng.fork(i);
                    other(rng.below("counteract label", sample, classes - 1))
                })
                .collect(),
        };
        labels.into_iter().take(self.settings.labels).collect()
    }
}

impl<C: Classifier> Transform for Counteract<C> {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        let moved = Pixels::clamp(&(x.tensor().detach() + self.delta(x, pass)?)?)?;
        x.through(|x| Ok(vjp(x, moved.tensor().clone(), |slopes| Ok(slopes.clone()))?))
    }
}

impl<C: Classifier> Classifier for Counteract<C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.model.logits(&self.apply(x, pass)?, pass)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}
