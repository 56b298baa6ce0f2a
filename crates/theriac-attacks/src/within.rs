//! A ball around the result of an attack that has none.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Budget, Cut, Model, Pass, Pixels, Result};

use crate::{Declare, Declared};

/// Projects what an attack finds onto a ball: turns a minimum-norm attack into one with a budget.
///
/// An image that was found farther away is moved back to the edge of the ball, as in foolbox's
/// `clipped` results; it may fool the model still. (AutoAttack gives such an image back clean.)
///
/// ```
/// # use theriac_attacks::{Fab, Within};
/// let budget = theriac::Budget::l2("0.5".parse()?)?;
/// let attack = Within { budget, attack: Fab::new(theriac::Norm::L2) };
/// # let _ = attack; Ok::<(), theriac::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Within<A> {
    /// The ball.
    pub budget: Budget,
    /// The attack.
    pub attack: A,
}

impl<M: Model + ?Sized, A: Attack<M>> Attack<M> for Within<A> {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let found = self.attack.perturb(model, clean, aim, pass)?;
        self.budget.project(found.tensor(), clean)
    }

    fn cut(&self) -> Cut {
        self.attack.cut()
    }
}

impl<A: Declare> Declare for Within<A> {
    fn declared(&self) -> Declared {
        let free = self.attack.declared();
        let name = format!("{} within {}", free.name, self.budget);
        Declared {
            name,
            budget: Some(self.budget),
            ..free
        }
    }

    fn check(&self) -> Result<()> {
        self.attack.check()
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        Ok(Self {
            budget: self.budget.scaled(factor)?,
            attack: self.attack.scaled(factor)?,
        })
    }
}
