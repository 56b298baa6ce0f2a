//! Training that was interrupted ends with the bits of training that was not.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device};
use theriac::{Classifier, Mode, Result, Rng, Run};
use theriac_adversarial::AdversarialTraining;
use theriac_atda::Atda;
use theriac_attacks::{Fgsm, Pgd};
use theriac_bpn::{BiasOpt, Bpn};
use theriac_data::{Loader, Order, Partial};
use theriac_epochwise::{EpochWise, Reading, Store};
use theriac_mixup::{InterpolatedAdversarial, Mix, Mixup, Pair};
use theriac_models::lenet;
use theriac_nn::{Network, Params, Twin};
use theriac_train::{
    Adam, Clean, Group, LabelSource, Objective, Outcome, Plan, Schedule, Sgd, fit,
};

use crate::golden_models::fresh;
use crate::support::{eps, fashion, linf, network, snapshot};

const EPOCHS: usize = 4;

type Groups = fn(&Params) -> Result<Vec<Group>>;

fn adam(params: &Params) -> Result<Vec<Group>> {
    let rate = Schedule::Constant { rate: 1e-3 };
    Ok(vec![Group::new(params.trainable(), Adam::default(), rate)?])
}

fn momentum(params: &Params) -> Result<Vec<Group>> {
    let schedule = Schedule::Steps {
        rate: 0.05,
        milestones: vec![1, 3],
        factor: 0.5,
    };
    let rule = Sgd::momentum(0.9);
    Ok(vec![Group::new(params.trainable(), rule, schedule)?])
}

/// Trains on 48 images in batches of 16; `stop` ends it in the middle of that epoch.
fn run<C: Classifier>(
    twin: &Twin<C>,
    objective: &mut impl Objective<C>,
    groups: Groups,
    state: Option<&Path>,
    stop: Option<usize>,
) -> Result<Outcome> {
    run_until(twin, objective, groups, state, stop, None)
}

fn run_until<C: Classifier>(
    twin: &Twin<C>,
    objective: &mut impl Objective<C>,
    groups: Groups,
    state: Option<&Path>,
    stop: Option<usize>,
    until: Option<f64>,
) -> Result<Outcome> {
    let images = fashion(48);
    let loader = Loader::new(&images, 16, Order::Shuffled(Rng::new(4)), Partial::Keep)?;
    let plan = Plan {
        epochs: EPOCHS,
        batches: loader.batches(),
        state,
        until,
    };
    let mut groups = groups(&twin.params)?;
    let seeded = Run::new(11, &Device::Cpu);
    let epoch = |e| loader.epoch(e).map(|batch| Ok(batch?));
    fit(
        twin,
        objective,
        &mut groups,
        plan,
        &seeded,
        epoch,
        |progress| match stop == Some(progress.epoch) && progress.batch == 2 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        },
    )
}

fn length(outcome: &Outcome) -> (bool, usize) {
    match outcome {
        Outcome::Done(history) => (true, history.len()),
        Outcome::Stopped(history) => (false, history.len()),
    }
}

fn continues<O: Objective<Network>>(
    objective: impl Fn() -> Result<O>,
    groups: Groups,
) -> Result<()> {
    continues_with(network, objective, groups)
}

/// Interrupts in every epoch and continues with objects that know nothing.
fn continues_with<O: Objective<Network>>(
    network: fn(u64) -> Result<Twin<Network>>,
    objective: impl Fn() -> Result<O>,
    groups: Groups,
) -> Result<()> {
    let twin = network(1)?;
    run(&twin, &mut objective()?, groups, None, None)?;
    let whole = snapshot(&twin.params)?;
    for epoch in 0..EPOCHS {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.safetensors");
        let outcome = run(
            &network(1)?,
            &mut objective()?,
            groups,
            Some(&state),
            Some(epoch),
        )?;
        assert_eq!(length(&outcome), (false, epoch));
        assert_eq!(state.exists(), epoch > 0);
        // With a whole epoch in the file, where the new network starts must not matter.
        let twin = network(if epoch == 0 { 1 } else { 99 })?;
        let outcome = run(&twin, &mut objective()?, groups, Some(&state), None)?;
        assert_eq!(length(&outcome), (true, EPOCHS));
        assert!(
            snapshot(&twin.params)? == whole,
            "interrupted in epoch {epoch}"
        );
    }
    Ok(())
}

#[test]
fn clean_training_with_momentum_continues() -> Result<()> {
    continues(|| Ok(Clean), momentum)
}

#[test]
fn adversarial_training_with_adam_continues() -> Result<()> {
    let attack = Fgsm { budget: linf(0.2) };
    let label = LabelSource::Predicted;
    continues(
        || {
            Ok(AdversarialTraining {
                attack,
                clean_weight: 0.5,
                label,
                mode: Mode::Eval,
            })
        },
        adam,
    )
}

#[test]
fn adversarial_training_with_random_starts_continues() -> Result<()> {
    let attack = Pgd::new(linf(0.2), eps(0.1), 2);
    let label = LabelSource::True;
    continues(
        || {
            Ok(AdversarialTraining {
                attack,
                clean_weight: 0.0,
                label,
                mode: Mode::Eval,
            })
        },
        adam,
    )
}

#[test]
fn atda_continues() -> Result<()> {
    continues(|| Ok(Atda::new(Fgsm { budget: linf(0.2) })), adam)
}

#[test]
fn epochwise_training_continues() -> Result<()> {
    for store in [Store::F32, Store::U8] {
        // A reset in epoch 3, after some of the interruptions.
        let reading = Reading {
            store,
            reset_every: 3,
            ..Reading::default()
        };
        continues(|| EpochWise::new(eps(0.2), reading), adam)?;
    }
    Ok(())
}

#[test]
fn training_on_mixtures_continues() -> Result<()> {
    let mix = Mix {
        alpha: 0.5,
        pair: Pair::Identity,
        ..Mix::default()
    };
    continues(|| Ok(Mixup { mix }), momentum)?;
    let attack = Pgd::new(linf(0.2), eps(0.1), 2);
    continues(|| Ok(InterpolatedAdversarial::new(attack)), adam)
}

#[test]
fn beneficial_biases_continue() -> Result<()> {
    fn beneficial(seed: u64) -> Result<Twin<Network>> {
        let params = Params::new(seed, DType::F32, &Device::Cpu);
        Twin::build(&params, |vb| lenet(&Bpn::default().hook(), vb))
    }
    /// Momentum for the weights, and for the biases' signs too.
    fn groups(params: &Params, bias_opt: BiasOpt) -> Result<Vec<Group>> {
        let bpn = Bpn {
            bias_opt,
            ..Bpn::default()
        };
        let rate = Schedule::Constant { rate: 0.05 };
        bpn.groups(params, 10, Sgd::momentum(0.9), rate)
    }
    continues_with(
        beneficial,
        || Ok(Clean),
        |params| groups(params, BiasOpt::Sgd),
    )?;
    continues_with(
        beneficial,
        || Ok(Clean),
        |params| groups(params, BiasOpt::Same),
    )
}

/// Training that is to end at a loss ends after the same epoch, interrupted or not, and for good.
#[test]
fn a_loss_to_reach_ends_training() -> Result<()> {
    let losses = |outcome: Outcome| -> Vec<f64> {
        let (Outcome::Done(history) | Outcome::Stopped(history)) = outcome;
        history.iter().map(|epoch| epoch.loss).collect()
    };
    let whole = losses(run(&network(1)?, &mut Clean, momentum, None, None)?);
    let at = Some(whole[1]);
    let ends = 1 + whole.iter().position(|&loss| loss <= whole[1]).unwrap();
    assert!(ends < EPOCHS, "{whole:?}");

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.safetensors");
    let go = |seed, stop| -> Result<(Twin<Network>, Outcome)> {
        let twin = network(seed)?;
        let outcome = run_until(&twin, &mut Clean, momentum, Some(&state), stop, at)?;
        Ok((twin, outcome))
    };
    let (_, stopped) = go(1, Some(ends - 1))?;
    assert_eq!(length(&stopped), (false, ends - 1));
    let (continued, done) = go(1, None)?;
    assert_eq!(length(&done), (true, ends));
    assert_eq!(losses(done), whole[..ends]);
    let (again, done) = go(99, None)?;
    assert_eq!(length(&done), (true, ends));
    assert!(snapshot(&again.params)? == snapshot(&continued.params)?);
    Ok(())
}

/// The error of continuing from a state file; it must leave network and file as they are.
fn refusal<C: Classifier>(
    twin: &Twin<C>,
    objective: &mut impl Objective<C>,
    groups: Groups,
    state: &Path,
) -> Result<String> {
    let (params, bytes) = (snapshot(&twin.params)?, std::fs::read(state).unwrap());
    let error = run(twin, objective, groups, Some(state), None).unwrap_err();
    assert!(
        snapshot(&twin.params)? == params,
        "the network moved: {error}"
    );
    assert!(
        std::fs::read(state).unwrap() == bytes,
        "the file changed: {error}"
    );
    Ok(error.to_string())
}

#[test]
fn a_file_that_does_not_fit_is_refused_and_changes_nothing() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.safetensors");
    run(&network(1)?, &mut Clean, adam, Some(&state), Some(1))?;

    let other = fresh("std", DType::F32)?;
    let text = refusal(&other, &mut Clean, adam, &state)?;
    assert!(text.contains("does not fit this network"), "{text}");
    assert!(
        text.contains("fc2.weight") && text.contains("state.safetensors"),
        "{text}"
    );

    let whole = std::fs::read(&state).unwrap();
    for keep in [0, 5, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&state, &whole[..keep]).unwrap();
        let text = refusal(&network(2)?, &mut Clean, adam, &state)?;
        assert!(
            text.contains("not a whole safetensors file"),
            "{keep} bytes: {text}"
        );
        assert!(text.contains("state.safetensors"), "{text}");
    }

    let weights = folder.path().join("weights.safetensors");
    network(1)?.params.save(&weights, &Default::default())?;
    let text = refusal(&network(2)?, &mut Clean, adam, &weights)?;
    assert!(text.contains("no training history"), "{text}");
    Ok(())
}

#[test]
fn a_file_of_another_optimiser_or_objective_is_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let [clean, atda, carried] = ["clean", "atda", "carried"].map(|name| folder.path().join(name));
    let fgsm = Fgsm { budget: linf(0.2) };
    let epochwise = |store| {
        EpochWise::new(
            eps(0.2),
            Reading {
                store,
                ..Reading::default()
            },
        )
    };
    run(&network(1)?, &mut Clean, adam, Some(&clean), Some(1))?;
    run(
        &network(1)?,
        &mut Atda::new(fgsm),
        momentum,
        Some(&atda),
        Some(1),
    )?;
    run(
        &network(1)?,
        &mut epochwise(Store::F32)?,
        adam,
        Some(&carried),
        Some(1),
    )?;

    let text = refusal(&network(2)?, &mut Clean, momentum, &clean)?;
    assert!(text.contains("groups.0.momentum.0"), "{text}");
    let text = refusal(&network(2)?, &mut Atda::new(fgsm), adam, &atda)?;
    assert!(text.contains("groups.0.first.0"), "{text}");
    let text = refusal(&network(2)?, &mut Atda::new(fgsm), adam, &clean)?;
    assert!(text.contains("objective.centres"), "{text}");
    let text = refusal(&network(2)?, &mut epochwise(Store::F32)?, adam, &clean)?;
    assert!(text.contains("no carried images"), "{text}");
    let text = refusal(&network(2)?, &mut epochwise(Store::U8)?, adam, &carried)?;
    assert!(text.contains("objective.carry.images"), "{text}");
    Ok(())
}
