//! What an attack says about itself.

use theriac::{Budget, Eps, Result};

/// Name, budget and reach of an attack, for an evaluator to hold it to.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Name with all its settings, as printed in reports.
    pub name: String,
    /// The ball that its images must stay in.
    pub budget: Budget,
    /// The largest distance that its steps can add up to (`steps * step`), if it has steps of a
    /// known size.
    pub reach: Option<f64>,
    /// Whether it takes more than one step, so that it should beat FGSM.
    pub iterative: bool,
}

impl Declared {
    /// An attack of `steps` steps of size `step`.
    pub(crate) fn steps(name: &str, budget: Budget, steps: u32, step: Eps) -> Self {
        let name = format!("{name}, {steps} steps of {step}");
        let reach = Some(f64::from(steps) * step.get());
        Self {
            name,
            budget,
            reach,
            iterative: steps > 1,
        }
    }
}

/// An attack that can be described and scaled. Every attack that [`crate::Spec`] names is one.
pub trait Declare: Sized {
    /// What the attack says about itself.
    fn declared(&self) -> Declared;

    /// The same attack with its radius and its step times a factor: the evaluator compares an
    /// attack with itself at a larger epsilon.
    ///
    /// # Errors
    /// When the factor is negative or not finite.
    fn scaled(self, factor: f64) -> Result<Self>;
}
