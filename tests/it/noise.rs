//! Defences that draw random numbers: the same bits over threads, in any batch, after an
//! interruption.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device};
use theriac::{Aim, Attack, Mode, Pass, Result, Rng, Run, craft};
use theriac_advbnn::AdvBnn;
use theriac_adversarial::AdversarialTraining;
use theriac_attacks::Pgd;
use theriac_data::{Loader, Order, Partial};
use theriac_learn2perturb::{Learn2Perturb, Placement, ThetaMomentum, ThetaUpdate};
use theriac_models::{lenet, resnet_v1};
use theriac_nn::{Layers, Network, Params, Plain, Twin};
use theriac_pixeldp::PixelDp;
use theriac_pni::{Granularity, Pni};
use theriac_rse::Rse;
use theriac_train::{
    Adam, Clean, Group, LabelSource, Objective, Outcome, Plan, Schedule, Sgd, fit,
};

use crate::support::{bits, cifar, eps, fashion, linf, pick, snapshot, whole};

const EPOCHS: usize = 4;

fn twin(layers: &dyn Layers, params: &Params) -> Result<Twin<Network>> {
    Twin::build(params, |vb| resnet_v1(layers, vb, 8, 4, 10))
}

fn params(seed: u64) -> Params {
    Params::new(seed, DType::F32, &Device::Cpu)
}

fn pgd() -> Pgd {
    Pgd::new(linf(0.03), eps(0.02), 2)
}

fn nesterov() -> Sgd {
    let mut rule = Sgd::momentum(0.9);
    rule.nesterov = true;
    rule
}

fn rate(rate: f64) -> Schedule {
    Schedule::Steps {
        rate,
        milestones: vec![1, 3],
        factor: 0.5,
    }
}

fn adversarial() -> AdversarialTraining<Pgd> {
    AdversarialTraining {
        attack: pgd(),
        clean_weight: 0.5,
        label: LabelSource::Predicted,
        mode: Mode::Eval,
    }
}

/// What trains: network, objective, groups.
type Training<O> = (Twin<Network>, O, Vec<Group>);

fn learn2perturb(seed: u64, method: &Learn2Perturb) -> Result<Training<impl Objective<Network>>> {
    let params = params(seed);
    let (plain, twin) = (twin(&Plain, &params)?, twin(&method.hook(), &params)?);
    let made = method.training(plain, pgd(), nesterov(), nesterov(), rate(0.05))?;
    Ok((twin, made.0, made.1))
}

fn pni(seed: u64) -> Result<Training<impl Objective<Network>>> {
    let method = Pni {
        granularity: Granularity::Channel,
        ..Pni::default()
    };
    let params = params(seed);
    let twin = twin(&method.hook(), &params)?;
    let groups = method.groups(&params, nesterov(), rate(0.05))?;
    Ok((twin, adversarial(), groups))
}

fn rse(seed: u64) -> Result<Training<impl Objective<Network>>> {
    let params = params(seed);
    let twin = twin(&Rse::default().hook(), &params)?;
    let groups = vec![Group::new(params.trainable(), nesterov(), rate(0.05))?];
    Ok((twin, Clean, groups))
}

fn advbnn(seed: u64) -> Result<Training<impl Objective<Network>>> {
    let (method, params) = (AdvBnn::default(), params(seed));
    let twin = twin(&method.hook(), &params)?;
    let objective = method.objective(pgd(), &params, 24)?;
    let groups = vec![Group::new(params.trainable(), Adam::default(), rate(0.01))?];
    Ok((twin, objective, groups))
}

fn pixeldp(seed: u64) -> Result<Training<impl Objective<Network>>> {
    let (method, params) = (PixelDp::default(), params(seed));
    let twin = twin(&method.hook(), &params)?;
    let objective = method.objective(Clean, &params)?;
    let groups = vec![Group::new(params.trainable(), nesterov(), rate(0.05))?];
    Ok((twin, objective, groups))
}

/// Trains on 24 images in batches of 8; `stop` ends it in the middle of that epoch.
fn train<O: Objective<Network>>(
    (twin, mut objective, mut groups): Training<O>,
    state: Option<&Path>,
    stop: Option<usize>,
) -> Result<Vec<(String, Vec<u64>)>> {
    let images = cifar(24);
    let loader = Loader::new(&images, 8, Order::Shuffled(Rng::new(4)), Partial::Keep)?;
    let plan = Plan {
        epochs: EPOCHS,
        batches: loader.batches(),
        state,
        until: None,
    };
    let run = Run::new(11, &Device::Cpu);
    let epoch = |e| loader.epoch(e).map(|batch| Ok(batch?));
    let outcome = fit(
        &twin,
        &mut objective,
        &mut groups,
        plan,
        &run,
        epoch,
        |at| match stop == Some(at.epoch) && at.batch == 2 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        },
    )?;
    assert_eq!(matches!(outcome, Outcome::Stopped(_)), stop.is_some());
    snapshot(&twin.params)
}

/// Interrupts in every epoch and continues with objects that know nothing; then once more on
/// several threads.
fn continues<O: Objective<Network>>(
    make: impl Fn(u64) -> Result<Training<O>> + Sync,
) -> Result<()> {
    let straight = train(make(1)?, None, None)?;
    for epoch in 0..EPOCHS {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.safetensors");
        train(make(1)?, Some(&state), Some(epoch))?;
        assert_eq!(state.exists(), epoch > 0);
        // With a whole epoch in the file, where the new network starts must not matter.
        let seed = if epoch == 0 { 1 } else { 99 };
        let resumed = train(make(seed)?, Some(&state), None)?;
        assert!(resumed == straight, "interrupted in epoch {epoch}");
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let again = pool.unwrap().install(|| train(make(1)?, None, None))?;
        assert!(again == straight, "{threads} threads");
    }
    Ok(())
}

/// Noise starts in epoch 1, adversarial images in epoch 2: interruptions before, between, behind.
#[test]
fn learn2perturb_continues() -> Result<()> {
    let base = Learn2Perturb {
        noise_delay: 1,
        adv_delay: 2,
        ..Learn2Perturb::default()
    };
    for method in [
        base.clone(),
        Learn2Perturb {
            theta_momentum: ThetaMomentum::Separate,
            regulariser_only: true,
            ..base.clone()
        },
        Learn2Perturb {
            theta_update: ThetaUpdate::Alg1,
            ..base
        },
    ] {
        continues(|seed| learn2perturb(seed, &method))?;
    }
    Ok(())
}

#[test]
fn parametric_noise_injection_continues() -> Result<()> {
    continues(pni)
}

#[test]
fn random_self_ensembles_continue() -> Result<()> {
    continues(rse)
}

#[test]
fn adversarial_bayesian_networks_continue() -> Result<()> {
    continues(advbnn)
}

#[test]
fn pixeldp_continues() -> Result<()> {
    continues(pixeldp)
}

/// The attack draws its own noise in each step; so does the network.
#[test]
fn adversarial_images_do_not_depend_on_the_batch() -> Result<()> {
    let batch = whole(&cifar(21))?;
    let moved = |twin: &Twin<Network>, at: &[u32]| -> Result<Vec<u64>> {
        let run = Run::new(9, &Device::Cpu);
        let part = pick(&batch, at)?;
        let (pass, aim) = (run.eval(&part.samples), Aim::Away(&part.target));
        bits(craft(&pgd(), &twin.frozen, &part.pixels, aim, &pass)?.tensor())
    };
    let all: Vec<u32> = (0..21).collect();
    let networks = [
        learn2perturb(1, &Learn2Perturb::default())?.0,
        pni(1)?.0,
        rse(1)?.0,
        advbnn(1)?.0,
        pixeldp(1)?.0,
    ];
    for (i, twin) in networks.iter().enumerate() {
        let together = moved(twin, &all)?;
        let each = together.len() / 21;
        for size in [1, 5, 16] {
            let parts = all.chunks(size).map(|at| moved(twin, at));
            let parts = parts.collect::<Result<Vec<_>>>()?.concat();
            assert!(parts == together, "network {i}, batches of {size}");
        }
        let order = Rng::new(3).permutation("order", 0, 21);
        let mixed = moved(twin, &order)?;
        for (image, &from) in mixed.chunks(each).zip(&order) {
            let at = from as usize * each;
            assert!(
                image == &together[at..at + each],
                "network {i}, image {from}"
            );
        }
    }
    Ok(())
}

/// Parameters that are arranged once for all steps of an attack must not freeze what is drawn anew in
/// each: with and without them an attack of several steps gives the same bits.
#[test]
fn attacks_meet_fresh_noise_in_every_step() -> Result<()> {
    // One chunk of images, which `craft` does not cut.
    let batch = whole(&cifar(5))?;
    let run = Run::new(9, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let networks = [
        learn2perturb(1, &Learn2Perturb::default())?.0,
        pni(1)?.0,
        rse(1)?.0,
        advbnn(1)?.0,
        pixeldp(1)?.0,
    ];
    let attack = Pgd::new(linf(0.03), eps(0.01), 5);
    for (i, twin) in networks.iter().enumerate() {
        let aim = Aim::Away(&batch.target);
        let kept = craft(&attack, &twin.frozen, &batch.pixels, aim, &pass)?;
        let alone = attack.perturb(&twin.frozen, &batch.pixels, aim, &pass)?;
        assert!(bits(kept.tensor())? == bits(alone.tensor())?, "network {i}");
        // The steps do see other noise: with that of the first step in all of them, others come out.
        let mut x = batch.pixels.clone();
        let one = Pgd {
            short_reach: true,
            ..Pgd::new(linf(0.03), eps(0.01), 1)
        };
        for step in 0..5 {
            x = match step {
                0 => one.perturb(&twin.frozen, &batch.pixels, aim, &pass)?,
                _ => one.perturb_from(&x, &twin.frozen, &batch.pixels, aim, &pass)?,
            };
        }
        assert!(bits(x.tensor())? != bits(alone.tensor())?, "network {i}");
    }
    Ok(())
}

/// With fresh draws a random network answers differently, in both modes.
#[test]
fn every_pass_draws_anew() -> Result<()> {
    let batch = whole(&cifar(5))?;
    let run = Run::new(9, &Device::Cpu);
    for twin in [
        learn2perturb(1, &Learn2Perturb::default())?.0,
        pni(1)?.0,
        rse(1)?.0,
        advbnn(1)?.0,
        pixeldp(1)?.0,
    ] {
        for mode in [Mode::Eval, Mode::Train] {
            let logits = |step| {
                let pass = Pass {
                    mode,
                    ..run.eval(&batch.samples).at(step)
                };
                bits(&twin.frozen.forward(batch.pixels.tensor(), &pass)?)
            };
            let first = logits(0)?;
            assert_ne!(first, logits(1)?);
        }
        let pass = run.eval(&batch.samples);
        let clean = |draws| {
            let pass = Pass { draws, ..pass };
            let aim = Aim::Away(&batch.target);
            let attack: &dyn Attack<Network> = &pgd();
            bits(
                attack
                    .perturb(&twin.frozen, &batch.pixels, aim, &pass)?
                    .tensor(),
            )
        };
        // Averaged over draws the attack takes other steps.
        assert_ne!(clean(1)?, clean(3)?);
    }
    Ok(())
}

/// Three epochs on 256 images lower the loss, noise and adversarial images included.
fn learns<O: Objective<Network>>((twin, mut objective, mut groups): Training<O>) -> Result<()> {
    let images = fashion(256);
    let loader = Loader::new(&images, 32, Order::Shuffled(Rng::new(6)), Partial::Keep)?;
    let plan = Plan {
        epochs: 3,
        batches: loader.batches(),
        state: None,
        until: None,
    };
    let run = Run::new(5, &Device::Cpu);
    let epoch = |e| loader.epoch(e).map(|batch| Ok(batch?));
    let go_on = |_| ControlFlow::Continue(());
    let outcome = fit(&twin, &mut objective, &mut groups, plan, &run, epoch, go_on)?;
    let Outcome::Done(history) = outcome else {
        panic!("nobody stopped it");
    };
    let losses: Vec<f64> = history.iter().map(|epoch| epoch.loss).collect();
    assert!(losses[2] < losses[0], "{losses:?}");
    Ok(())
}

#[test]
fn noisy_networks_learn() -> Result<()> {
    let small = |layers: &dyn Layers, params: &Params| Twin::build(params, |vb| lenet(layers, vb));
    let all = |params: &Params| Group::new(params.trainable(), Adam::default(), rate(2e-3));

    let method = Learn2Perturb {
        placement: Placement::EveryConv,
        init: 0.05,
        noise_delay: 0,
        adv_delay: 0,
        ..Learn2Perturb::default()
    };
    let params = [1, 2, 3, 4, 5].map(params);
    let plain = small(&Plain, &params[0])?;
    let noisy = small(&method.hook(), &params[0])?;
    let (objective, groups) = method.training(plain, pgd(), nesterov(), nesterov(), rate(0.05))?;
    learns((noisy, objective, groups))?;

    let noisy = small(&Pni::default().hook(), &params[1])?;
    learns((noisy, adversarial(), vec![all(&params[1])?]))?;

    let rse = Rse {
        channels: 1,
        ..Rse::default()
    };
    let noisy = small(&rse.hook(), &params[2])?;
    learns((noisy, Clean, vec![all(&params[2])?]))?;

    let method = AdvBnn::default();
    let noisy = small(&method.hook(), &params[3])?;
    let objective = method.objective(pgd(), &params[3], 256)?;
    learns((noisy, objective, vec![all(&params[3])?]))?;

    let method = PixelDp {
        channels: 1,
        ..PixelDp::default()
    };
    let noisy = small(&method.hook(), &params[4])?;
    let objective = method.objective(Clean, &params[4])?;
    learns((noisy, objective, vec![all(&params[4])?]))
}
