//! Every objective trains, and every attack keeps its contract on what was trained.

use candle_core::{DType, Device};
use theriac::{
    Aim, Attack, Batch, Budget, Classifier, Labels, Mode, Model as _, Result, Run, craft,
};
use theriac_adversarial::AdversarialTraining;
use theriac_atda::Atda;
use theriac_attacks::{Fgsm, MiFgsm, Pgd, Restarts, bim};
use theriac_epochwise::{EpochWise, Reading};
use theriac_nn::{Network, Twin};
use theriac_train::{Clean, LabelSource, Objective};

use crate::golden_models::fresh;
use crate::support::{cifar, eps, fashion, halved, linf, network, resnet, snapshot, train, whole};

const EPS: f64 = 0.2;

/// Two epochs on 256 images lower the loss.
fn learns(mut objective: impl Objective<Network>) -> Result<()> {
    let history = train(&network(1)?, &mut objective, &fashion(256), 2)?;
    let [first, second] = [history[0].loss, history[1].loss];
    assert!(second < first, "loss {first}, then {second}");
    assert!(history.iter().all(|epoch| epoch.images == 256));
    Ok(())
}

fn fgsm_adv() -> AdversarialTraining<Fgsm> {
    let attack = Fgsm { budget: linf(EPS) };
    AdversarialTraining {
        attack,
        clean_weight: 0.5,
        label: LabelSource::Predicted,
        mode: Mode::Eval,
    }
}

#[test]
fn clean_training_learns() -> Result<()> {
    learns(Clean)
}

#[test]
fn fgsm_adversarial_training_learns() -> Result<()> {
    learns(fgsm_adv())
}

#[test]
fn bim_adversarial_training_learns() -> Result<()> {
    let attack = bim(eps(EPS), eps(EPS).over(10)?, 10)?;
    learns(AdversarialTraining {
        attack,
        clean_weight: 0.5,
        label: LabelSource::True,
        mode: Mode::Eval,
    })
}

/// Madry et al. 2018 in small, on a network with batch norm.
fn pgd_adv() -> AdversarialTraining<Pgd> {
    let attack = Pgd::new(linf(8.0 / 255.0), eps(3.0 / 255.0), 3);
    AdversarialTraining {
        attack,
        clean_weight: 0.0,
        label: LabelSource::True,
        mode: Mode::Eval,
    }
}

#[test]
fn pgd_adversarial_training_learns_with_batch_norm() -> Result<()> {
    let history = train(&resnet(8, 1)?, &mut pgd_adv(), &cifar(64), 4)?;
    let losses: Vec<f64> = history.iter().map(|epoch| epoch.loss).collect();
    assert!(losses[3] < losses[0], "{losses:?}");
    // Three steps of PGD and the update.
    assert!(history.iter().all(|epoch| epoch.gradients == 4 * 64));
    Ok(())
}

/// The running statistics of a training step are those of its one pass in training mode.
#[test]
fn crafting_inside_a_training_step_moves_no_statistics() -> Result<()> {
    let batch = halved(whole(&cifar(20))?)?;
    let run = Run::new(1, &Device::Cpu);
    let pass = run.train(&batch.samples);
    let (stepped, apart) = (resnet(8, 1)?, resnet(8, 1)?);
    let before = snapshot(&apart.params)?;
    pgd_adv().loss(&stepped, &batch, &pass)?;
    let aim = Aim::Away(&batch.target);
    let moved = craft(
        &pgd_adv().attack,
        &apart.frozen,
        &batch.pixels,
        aim,
        &pass.eval(),
    )?;
    assert!(snapshot(&apart.params)? == before, "crafting moved them");
    // Clean images have no weight here and do not enter the statistics either.
    apart.live.loss(&moved, &batch.target, &pass)?;
    assert!(snapshot(&apart.params)? != before, "training did not");
    assert!(snapshot(&stepped.params)? == snapshot(&apart.params)?);
    Ok(())
}

#[test]
fn atda_learns() -> Result<()> {
    learns(Atda::new(Fgsm { budget: linf(EPS) }))
}

#[test]
fn epochwise_training_learns() -> Result<()> {
    learns(EpochWise::new(eps(EPS), Reading::default())?)
}

type Bounded<C> = (Budget, Box<dyn Attack<C>>);

fn attacks<C: Classifier>() -> Result<Vec<Bounded<C>>> {
    let (ball, l2) = (linf(EPS), Budget::l2(eps(1.5))?);
    let pgd = Pgd::new(ball, eps(0.1), 3);
    Ok(vec![
        (ball, Box::new(Fgsm { budget: ball })),
        (l2, Box::new(Fgsm { budget: l2 })),
        (ball, Box::new(bim(eps(EPS), eps(0.1), 3)?)),
        (ball, Box::new(pgd)),
        (l2, Box::new(Pgd::new(l2, eps(0.5), 3))),
        (ball, Box::new(MiFgsm::new(ball, 3)?)),
        (
            ball,
            Box::new(Restarts {
                attack: pgd,
                times: 2,
            }),
        ),
    ])
}

/// Every attack keeps the contract and leaves parameters and statistics as they are, on the live
/// and on the frozen twin.
fn attacks_hold<C: Classifier>(twin: &Twin<C>, batch: &Batch<Labels>) -> Result<()> {
    let before = snapshot(&twin.params)?;
    let run = Run::new(1, &Device::Cpu);
    for (budget, attack) in attacks()? {
        let (pixels, labels) = (&batch.pixels, &batch.target);
        theriac::contract::attack(&attack, &twin.frozen, pixels, labels, budget)?;
        craft(
            &attack,
            &twin.live,
            pixels,
            Aim::Away(labels),
            &run.eval(&batch.samples),
        )?;
        assert!(
            snapshot(&twin.params)? == before,
            "crafting moved the network"
        );
    }
    Ok(())
}

#[test]
fn attacks_hold_on_a_trained_network() -> Result<()> {
    let twin = network(1)?;
    train(&twin, &mut fgsm_adv(), &fashion(256), 2)?;
    attacks_hold(&twin, &whole(&fashion(18))?)
}

#[test]
fn attacks_hold_on_a_trained_network_with_batch_norm() -> Result<()> {
    let twin = fresh("bn", DType::F32)?;
    let before = snapshot(&twin.params)?;
    let mut objective = EpochWise::new(eps(EPS), Reading::default())?;
    train(&twin, &mut objective, &fashion(256), 2)?;
    let after = snapshot(&twin.params)?;
    let still: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a == b).collect();
    assert!(
        still.is_empty(),
        "training left {} as they were",
        still.len()
    );
    attacks_hold(&twin, &whole(&fashion(18))?)
}
