//! Attacks that are wrong on purpose: each must be stopped, and the test says by what.

use theriac::{Aim, Attack, Budget, Classifier, Cut, Labels, Norm, Pass, Pixels, Result, gradient};
use theriac_attacks::{Ddn, Pgd};

use crate::suite::{Any, Strength, closest, in_a_ball};

#[derive(Clone, Copy, Debug)]
enum Flaw {
    NoProjection,
    WrongSign,
    HalfStep,
    IgnoresTarget,
    SeesTheBatch,
    DrawsForTheBatch,
}

/// PGD with a flaw.
struct Broken {
    flaw: Flaw,
    budget: Budget,
}

impl<C: Classifier + ?Sized> Attack<C> for Broken {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let eps = self.budget.eps().get();
        let labels = theriac::predict(model, clean, pass)?;
        let mut x = clean.clone();
        let aim = match (self.flaw, aim) {
            (Flaw::IgnoresTarget, Aim::Toward(_)) => Aim::Away(&labels),
            _ => aim,
        };
        let mut size = 0.1 * eps;
        for k in 0..30 {
            let pass = pass.at(k);
            let loss = |x: &Pixels| {
                Ok(theriac_ops::cross_entropy(
                    &model.logits(x, &pass)?,
                    aim.target().tensor(),
                )?)
            };
            let (_, g) = gradient(&x, &pass, loss)?;
            match self.flaw {
                Flaw::WrongSign => size = -0.1 * eps,
                Flaw::HalfStep => size = 0.5 * eps / 30.0,
                Flaw::SeesTheBatch => size = 0.1 * eps / clean.len() as f64,
                Flaw::DrawsForTheBatch => {
                    let first = pass.rng.uniform("size", u64::from(pass.samples[0]), 1);
                    size = 0.2 * eps * f64::from(first[0]);
                }
                Flaw::NoProjection | Flaw::IgnoresTarget => {}
            }
            let step = (self.budget.norm().steepest(&g)? * (aim.sign() * size))?;
            let moved = (x.tensor() + step)?;
            x = match self.flaw {
                Flaw::NoProjection => Pixels::clamp(&moved)?,
                _ => self.budget.project(&moved, clean)?,
            };
        }
        Ok(x)
    }
}

/// What the gate says about a flaw.
fn complaint(flaw: Flaw) -> String {
    let strength = Strength {
        linear: 0.999,
        network: 0.8,
    };
    let at = |budget| Ok(Box::new(Broken { flaw, budget }) as Any);
    match in_a_ball(&at, Norm::Linf, strength) {
        Ok(()) => panic!("{flaw:?} passed"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_attack_that_leaves_its_ball_is_stopped() {
    let said = complaint(Flaw::NoProjection);
    assert!(said.contains("is allowed"), "{said}");
}

#[test]
fn an_attack_with_the_wrong_sign_is_stopped() {
    let said = complaint(Flaw::WrongSign);
    assert!(said.contains("the mean loss fell"), "{said}");
}

#[test]
fn an_attack_with_half_of_its_step_is_stopped() {
    let said = complaint(Flaw::HalfStep);
    assert!(said.contains("on a linear model"), "{said}");
}

#[test]
fn an_attack_that_ignores_its_target_is_stopped() {
    let said = complaint(Flaw::IgnoresTarget);
    assert!(said.contains("toward a class"), "{said}");
}

#[test]
fn attacks_whose_images_see_each_other_are_stopped() {
    for flaw in [Flaw::SeesTheBatch, Flaw::DrawsForTheBatch] {
        let said = complaint(flaw);
        assert!(
            said.contains("different images") || said.contains("other images"),
            "{said}"
        );
    }
}

/// A minimum-norm attack that stops far too early, or gives the wrong image back.
struct Far {
    factor: f64,
}

impl<C: Classifier + ?Sized> Attack<C> for Far {
    fn perturb(
        &self,
        model: &C,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let found = Ddn::default().perturb(model, clean, aim, pass)?;
        let delta = ((found.tensor() - clean.tensor())? * self.factor)?;
        Pixels::clamp(&(clean.tensor() + delta)?)
    }

    fn cut(&self) -> Cut {
        Cut::Small
    }
}

#[test]
fn minimum_norm_attacks_that_are_too_far_or_too_near_are_stopped() {
    for (factor, words) in [(1.3, "is enough"), (0.9, "does not fool")] {
        let attack = Box::new(Far { factor }) as Any;
        let said = closest(&attack, Norm::L2, 1.05, 0.0)
            .unwrap_err()
            .to_string();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn settings_that_cannot_reach_the_ball_are_refused() -> Result<()> {
    let at = |budget: Budget| Ok(Box::new(Pgd::new(budget, budget.eps().over(100)?, 30)) as Any);
    let strength = Strength {
        linear: 0.0,
        network: 0.0,
    };
    let said = in_a_ball(&at, Norm::Linf, strength)
        .unwrap_err()
        .to_string();
    assert!(said.contains("short_reach"), "{said}");
    Ok(())
}
