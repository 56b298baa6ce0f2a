//! What an attack says about itself.

use theriac::{Budget, Eps, Error, Result};

/// What an attack asks of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing: its images were crafted on another model.
    None,
    /// The predicted class alone.
    Decisions,
    /// Logits.
    Scores,
    /// Gradients by the pixels.
    Gradients,
}

/// Name, budget, reach and needs of an attack, for an evaluator to hold it to.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Name with all its settings, as printed in reports.
    pub name: String,
    /// The ball that its images must stay in; `None` for an attack that looks for the smallest
    /// distance and has not been put [`crate::Within`] one.
    pub budget: Option<Budget>,
    /// The largest distance that its steps can add up to (`steps * step`), if it has steps of a
    /// known size.
    pub reach: Option<f64>,
    /// Whether it takes more than one step, so that it should beat FGSM.
    pub iterative: bool,
    /// What it asks of the model.
    pub access: Access,
    /// Whether it draws random numbers.
    pub random: bool,
}

impl Declared {
    /// The ball.
    ///
    /// # Errors
    /// [`Error::Setting`] for an attack that has none.
    pub fn ball(&self) -> Result<Budget> {
        self.budget.ok_or_else(|| Error::Setting {
            name: "attack",
            value: self.name.clone(),
            remedy: "it looks for the smallest distance; put it within a ball: kind = \"within\", \
                     budget = ..., attack = ...",
        })
    }

    /// An attack of `steps` gradient steps of size `step`.
    pub(crate) fn steps(name: &str, budget: Budget, steps: u32, step: Eps) -> Self {
        let reach = Some(f64::from(steps) * step.get());
        Self {
            reach,
            iterative: steps > 1,
            ..Self::gradients(&format!("{name}, {steps} steps of {step}"), Some(budget))
        }
    }

    /// An iterative gradient attack without steps of a known size.
    pub fn gradients(name: &str, budget: Option<Budget>) -> Self {
        Self {
            name: name.to_owned(),
            budget,
            reach: None,
            iterative: true,
            access: Access::Gradients,
            random: false,
        }
    }

    /// An attack by queries, which draws random numbers.
    pub(crate) fn queries(name: &str, budget: Option<Budget>, access: Access) -> Self {
        Self {
            access,
            random: true,
            ..Self::gradients(name, budget)
        }
    }

    pub(crate) fn random(self, random: bool) -> Self {
        Self { random, ..self }
    }

    /// An error if the steps cannot add up to the radius.
    pub(crate) fn check_reach(&self, allowed: bool) -> Result<()> {
        let (Some(reach), Some(budget)) = (self.reach, self.budget) else {
            return Ok(());
        };
        if allowed || reach >= budget.eps().get() * (1.0 - 1e-9) {
            return Ok(());
        }
        Err(Error::Setting {
            name: "steps * step",
            value: format!("{reach} where the radius is {}", budget.eps()),
            remedy: "the attack cannot reach the edge of its ball: take larger or more steps, or \
                     say short_reach = true if that is meant",
        })
    }
}

/// An attack that can be described, checked and scaled. Every attack that [`crate::Spec`] names is
/// one.
pub trait Declare: Sized {
    /// What the attack says about itself.
    fn declared(&self) -> Declared;

    /// Whether the settings make sense; every attack looks before it starts.
    ///
    /// # Errors
    /// Names the setting, its value and what to write instead.
    fn check(&self) -> Result<()>;

    /// The same attack with its radius and its step times a factor: the evaluator compares an
    /// attack with itself at a larger epsilon.
    ///
    /// # Errors
    /// When the factor is negative or not finite.
    fn scaled(self, factor: f64) -> Result<Self>;
}

impl<A: Declare> Declare for Box<A> {
    fn declared(&self) -> Declared {
        (**self).declared()
    }

    fn check(&self) -> Result<()> {
        (**self).check()
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        (*self).scaled(factor).map(Box::new)
    }
}

/// An error naming a setting unless `holds`.
pub(crate) fn setting(
    holds: bool,
    name: &'static str,
    value: impl ToString,
    remedy: &'static str,
) -> Result<()> {
    if holds {
        return Ok(());
    }
    let value = value.to_string();
    Err(Error::Setting {
        name,
        value,
        remedy,
    })
}

/// An error unless a number of steps, restarts or queries is at least 1.
pub(crate) fn at_least_one(name: &'static str, number: u32) -> Result<()> {
    setting(number > 0, name, number, "give at least 1")
}
