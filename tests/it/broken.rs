//! Deliberately broken attacks: each must be caught, and the test says by what.

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Attack, Batch, Budget, Eps, Labels, Mode, Model, Pass, Pixels, Result, Run, gradient,
};
use theriac_eval::{Checks, Declared, Evaluator, Finding, Robust, Verdict};
use theriac_nn::{Params, Twin};

use crate::golden;
use crate::golden_models::{Net, load};
use crate::reference::Reference;
use crate::support::snapshot;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    /// The control: BIM as it should be.
    None,
    /// Steps are not projected onto the ball.
    LeavesTheBall,
    /// Steps lower the loss.
    WrongSign,
    /// The step is scaled by the mean loss of the batch.
    SeesTheBatch,
    /// The network runs in training mode.
    TrainingMode,
    /// The loop ends a step early.
    OneStepShort,
    /// Steps are far too small for the ball.
    TinySteps,
}

/// BIM with a flaw.
#[derive(Clone, Copy)]
struct Broken {
    flaw: Flaw,
    budget: Budget,
    step: Eps,
    steps: u32,
}

impl Attack<Net> for Broken {
    fn perturb(
        &self,
        model: &Net,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let mut x = clean.clone();
        let steps = self.steps - u32::from(self.flaw == Flaw::OneStepShort);
        let mode = if self.flaw == Flaw::TrainingMode {
            Mode::Train
        } else {
            pass.mode
        };
        let pass = Pass { mode, ..*pass };
        for _ in 0..steps {
            let (loss, g) = gradient(&x, &pass, |x| model.loss(x, aim.target(), &pass))?;
            let size = self.step.get()
                * match self.flaw {
                    Flaw::WrongSign => -1.0,
                    Flaw::SeesTheBatch => loss.to_dtype(DType::F64)?.mean_all()?.to_scalar()?,
                    Flaw::TinySteps => 0.01,
                    _ => 1.0,
                };
            let moved = (x.tensor() + (self.budget.norm().steepest(&g)? * size)?)?;
            x = match self.flaw {
                Flaw::LeavesTheBall => Pixels::clamp(&moved)?,
                _ => self.budget.project(&moved, clean)?,
            };
        }
        Ok(x)
    }
}

/// FGSM that also takes a training step on the network it attacks.
struct Trains {
    budget: Budget,
    params: Params,
}

impl Attack<Net> for Trains {
    fn perturb(
        &self,
        model: &Net,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let (_, g) = gradient(clean, pass, |x| model.loss(x, aim.target(), pass))?;
        let grads = model
            .loss(clean, aim.target(), pass)?
            .sum_all()?
            .backward()?;
        for (_, var) in self.params.trainable() {
            let g = grads.get(&var).expect("the live network has gradients");
            var.set(&(var.as_tensor() - (g * 0.01)?)?)?;
        }
        let step = (self.budget.norm().steepest(&g)? * self.budget.eps().get())?;
        self.budget.project(&(clean.tensor() + step)?, clean)
    }
}

/// BIM as in the golden files, with a flaw.
fn broken(flaw: Flaw, reference: &Reference, steps: u32) -> Result<Broken> {
    Ok(Broken {
        flaw,
        budget: reference.budget()?,
        step: reference.step()?,
        steps,
    })
}

const STEPS: u32 = 6;

/// What [`theriac::contract::attack`] says on 18 images, more than one task.
fn contract(attack: &dyn Attack<Net>, twin: &Twin<Net>, budget: Budget) -> Result<()> {
    let batch = golden::images(18, DType::F32)?;
    theriac::contract::attack(attack, &twin.live, &batch.pixels, &batch.target, budget)
}

/// The contract's complaint about a flaw, on a model of the golden files.
fn complaint(flaw: Flaw, model: &str) -> Result<String> {
    let attack = broken(flaw, &Reference::new(model, "bim", DType::F32)?, STEPS)?;
    Ok(
        match contract(&attack, &load(model, DType::F32)?, attack.budget) {
            Ok(()) => "none".to_owned(),
            Err(error) => error.to_string(),
        },
    )
}

fn disagreements(flaw: Flaw) -> Result<Vec<String>> {
    let reference = Reference::new("std", "bim", DType::F64)?;
    reference.disagreements(|steps| Ok(Box::new(broken(flaw, &reference, steps)?)))
}

fn evaluate(flaw: Flaw) -> Result<Robust> {
    let attack = broken(flaw, &Reference::new("std", "bim", DType::F32)?, STEPS)?;
    let step = if flaw == Flaw::TinySteps { 0.01 } else { 1.0 } * attack.step.get();
    let declared = Declared {
        reach: Some(f64::from(STEPS) * step),
        ..Declared::gradients(&format!("BIM, {flaw:?}"), Some(attack.budget))
    };
    let twin = load("std", DType::F32)?;
    let run = Run::new(2, &Device::Cpu);
    let evaluator = Evaluator {
        checks: Checks::cheap(),
        ..Evaluator::new(&twin.frozen, &run)
    };
    let batch: Result<Batch<Labels>> = golden::images(100, DType::F32);
    evaluator.attack(&attack, &declared, [batch], |_| {})
}

fn finding(robust: &Robust, name: &str) -> Finding {
    let check = robust.checks.iter().find(|check| check.name == name);
    check.unwrap_or_else(|| panic!("no check {name}")).finding
}

#[test]
fn nothing_is_wrong_without_a_flaw() -> Result<()> {
    for model in ["std", "bn"] {
        assert_eq!(complaint(Flaw::None, model)?, "none");
    }
    assert!(disagreements(Flaw::None)?.is_empty());
    let robust = evaluate(Flaw::None)?;
    assert_eq!(robust.verdict, Verdict::Reliable, "{robust}");
    Ok(())
}

#[test]
fn contract_golden_file_and_verdict_catch_an_attack_that_leaves_its_ball() -> Result<()> {
    let complaint = complaint(Flaw::LeavesTheBall, "std")?;
    assert!(
        complaint.contains("moved by") && complaint.contains("0.03"),
        "{complaint}"
    );
    assert!(!disagreements(Flaw::LeavesTheBall)?.is_empty());
    let robust = evaluate(Flaw::LeavesTheBall)?;
    assert_eq!(robust.verdict, Verdict::Invalid);
    assert_eq!(finding(&robust, "bound"), Finding::Invalid);
    Ok(())
}

#[test]
fn contract_golden_file_and_verdict_catch_the_wrong_sign() -> Result<()> {
    let complaint = complaint(Flaw::WrongSign, "std")?;
    assert!(complaint.contains("the mean loss fell"), "{complaint}");
    assert!(!disagreements(Flaw::WrongSign)?.is_empty());
    let robust = evaluate(Flaw::WrongSign)?;
    assert_eq!(robust.verdict, Verdict::Invalid);
    assert_eq!(finding(&robust, "FGSM shadow"), Finding::Invalid);
    Ok(())
}

#[test]
fn contract_and_golden_file_catch_images_that_see_each_other() -> Result<()> {
    let complaint = complaint(Flaw::SeesTheBatch, "std")?;
    assert!(complaint.contains("cutting the batch"), "{complaint}");
    assert!(!disagreements(Flaw::SeesTheBatch)?.is_empty());
    Ok(())
}

#[test]
fn contract_catches_training_mode_and_the_statistics_show_it() -> Result<()> {
    let complaint = complaint(Flaw::TrainingMode, "bn")?;
    assert!(complaint.contains("left the model changed"), "{complaint}");
    let twin = load("bn", DType::F32)?;
    let before = snapshot(&twin.params)?;
    let attack = broken(
        Flaw::TrainingMode,
        &Reference::new("bn", "bim", DType::F32)?,
        1,
    )?;
    let batch = golden::images(4, DType::F32)?;
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    attack.perturb(&twin.frozen, &batch.pixels, Aim::Away(&batch.target), &pass)?;
    let after = snapshot(&twin.params)?;
    for ((path, before), (_, after)) in before.iter().zip(&after) {
        let moved = before != after;
        assert_eq!(moved, path.contains("running_"), "{path}");
    }
    Ok(())
}

#[test]
fn contract_catches_an_attack_that_trains_the_network() -> Result<()> {
    let twin = load("std", DType::F32)?;
    let before = snapshot(&twin.params)?;
    let budget = Reference::new("std", "fgsm", DType::F32)?.budget()?;
    let attack = Trains {
        budget,
        params: twin.params.clone(),
    };
    let complaint = contract(&attack, &twin, budget).unwrap_err().to_string();
    assert!(
        complaint.contains("the same seed gave other images"),
        "{complaint}"
    );
    assert_ne!(snapshot(&twin.params)?, before);
    Ok(())
}

#[test]
fn only_the_golden_file_catches_a_missing_step() -> Result<()> {
    assert_eq!(complaint(Flaw::OneStepShort, "std")?, "none");
    let found = disagreements(Flaw::OneStepShort)?;
    assert!(
        found
            .iter()
            .any(|text| text.starts_with("the iterates differ")),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn verdict_catches_steps_too_small_for_the_ball() -> Result<()> {
    assert_eq!(complaint(Flaw::TinySteps, "std")?, "none");
    let robust = evaluate(Flaw::TinySteps)?;
    assert_eq!(robust.verdict, Verdict::Invalid);
    assert_eq!(finding(&robust, "reachability"), Finding::Questionable);
    assert_eq!(finding(&robust, "FGSM shadow"), Finding::Invalid);
    Ok(())
}

#[test]
fn contract_catches_pixels_that_are_not_finite() -> Result<()> {
    struct Divides;
    impl Attack<Net> for Divides {
        fn perturb(
            &self,
            _: &Net,
            clean: &Pixels,
            _: Aim<'_, Labels>,
            _: &Pass<'_>,
        ) -> Result<Pixels> {
            let nothing: Tensor = clean.tensor().zeros_like()?;
            Pixels::clamp(&(&nothing / &nothing)?)
        }
    }
    let budget = Reference::new("std", "fgsm", DType::F32)?.budget()?;
    let complaint = contract(&Divides, &load("std", DType::F32)?, budget)
        .unwrap_err()
        .to_string();
    assert!(complaint.contains("not finite"), "{complaint}");
    Ok(())
}
