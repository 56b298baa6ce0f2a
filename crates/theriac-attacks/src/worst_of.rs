//! The strongest of several attacks.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Cut, Error, Labels, Pass, Pixels, Result, craft};

use crate::active::{Active, pick};
use crate::pgd::better;
use crate::restarts::judge;
use crate::{Access, Declare, Declared};

/// Runs attacks one after the other and keeps, for each image, the first success, else the largest
/// margin. An image that is fooled does not meet the later attacks.
///
/// The attacks must share one ball; which of them broke an image is told by [`crate::report`] on
/// each alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorstOf<A> {
    /// The attacks, cheap ones first.
    pub attacks: Vec<A>,
}

impl<C: Classifier + ?Sized, A: Attack<C>> Attack<C> for WorstOf<A> {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let (mut left, stay) = Active::unbroken(model, clean, aim, pass)?;
        if stay.is_none() {
            return left.finish(clean);
        }
        let mut best: Option<(Vec<f64>, Pixels)> = None;
        for (number, attack) in self.attacks.iter().enumerate() {
            let pass = pass.fork(number as u64);
            let pass = pass.over(&left.samples);
            let aim = aim.at(&left.target);
            let moved = craft(attack, model, &left.clean, aim, &pass)?;
            let (values, done) = judge(model, &moved, aim, &pass)?;
            let (values, x) = better(best, values, &moved)?;
            let Some(stay) = left.leave(&done, &x)? else {
                return left.finish(&x);
            };
            best = Some((pick(&values, &stay), x.pick(&stay)?));
        }
        let nothing = Error::Empty {
            what: "list of attacks",
        };
        let (_, x) = best.ok_or(nothing)?;
        left.finish(&x)
    }

    fn cut(&self) -> Cut {
        Cut::Whole
    }
}

impl<A: Declare> Declare for WorstOf<A> {
    fn declared(&self) -> Declared {
        let all: Vec<Declared> = self.attacks.iter().map(Declare::declared).collect();
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        Declared {
            name: format!("the worst of [{}]", names.join("; ")),
            budget: all.first().and_then(|one| one.budget),
            reach: None,
            iterative: all.iter().any(|one| one.iterative),
            access: all
                .iter()
                .map(|one| one.access)
                .max()
                .unwrap_or(Access::Decisions),
            random: all.iter().any(|one| one.random),
        }
    }

    fn check(&self) -> Result<()> {
        self.attacks.iter().try_for_each(Declare::check)?;
        let budgets: Vec<_> = self
            .attacks
            .iter()
            .map(|one| one.declared().budget)
            .collect();
        let remedy = "the attacks of a list share one ball: give each the same budget (within = \
                      for those that look for the smallest distance)";
        let same = budgets.iter().all(|b| b.is_some() && *b == budgets[0]);
        crate::declared::setting(
            same && !budgets.is_empty(),
            "attacks",
            self.declared().name,
            remedy,
        )
    }

    fn scaled(self, factor: f64) -> Result<Self> {
        let attacks = self.attacks.into_iter().map(|one| one.scaled(factor));
        Ok(Self {
            attacks: attacks.collect::<Result<_>>()?,
        })
    }
}
