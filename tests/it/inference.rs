//! Defences at inference, around networks and in front of each other.

use candle_core::Device;
use theriac::{
    Aim, Attack as _, Batch, Classifier, Executions, Labels, Pass, Result, Run, Transformed, scores,
};
use theriac_attacks::{Access, Declare as _, Declared, Pgd, Transfer};
use theriac_counteract::{AddBack, Counteract, Settings};
use theriac_eval::{Evaluator, Finding, Reference, Verdict};
use theriac_mixup::{MiOl, Pool, Unchanged};
use theriac_nn::Network;
use theriac_train::Clean;
use theriac_transform::{GaussianNoise, RandomCropPad, RandomCropResize, RandomRotation};

use crate::support::{bits, eps, fashion, linf, network, pick, train, whole};

const IMAGES: usize = 40;

/// Every defence at once: counter-perturbation, then partners, a crop, noise, a rotation.
fn defended<'a>(net: &'a Network, pool: &'a Pool) -> Result<impl Classifier + 'a> {
    let crop = RandomCropResize {
        low: 22,
        high: 28,
        quantise: true,
    };
    let rotation = RandomRotation {
        degrees: 20.0,
        quantise: true,
    };
    let noise = GaussianNoise { sigma: 0.025 };
    let mi_ol = MiOl {
        predictor: net,
        model: net,
        then: (crop, (noise, rotation)),
        pool,
        lambda: 0.5,
        executions: 7,
        average: theriac::Average::Softmax,
    };
    Ok(Transformed {
        model: mi_ol,
        transform: Counteract::new(net, Settings::default())?,
    })
}

fn logits(model: &impl Classifier, batch: &Batch<Labels>) -> Result<Vec<u64>> {
    let run = Run::new(9, &Device::Cpu);
    let rows = scores(model, &batch.pixels, &run.eval(&batch.samples))?;
    Ok(rows.into_iter().flatten().map(f64::to_bits).collect())
}

#[test]
fn what_an_image_gets_depends_on_nothing_but_its_id() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(IMAGES))?);
    let pool = Pool::new(&[whole(&fashion(100))?], 10)?;
    let model = defended(&twin.frozen, &pool)?;
    let on = |threads: usize| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads);
        threads.build().unwrap().install(|| logits(&model, &batch))
    };
    let together = on(1)?;
    assert!(on(3)? == together, "three threads");
    let indices: Vec<u32> = (0..IMAGES as u32).collect();
    for size in [1, 7, 16] {
        let parts = indices.chunks(size);
        let parts = parts.map(|part| logits(&model, &pick(&batch, part)?));
        let parts = parts.collect::<Result<Vec<_>>>()?.concat();
        assert!(parts == together, "batches of {size}");
    }
    let order = theriac::Rng::new(3).permutation("order", 0, IMAGES as u32);
    let mixed = logits(&model, &pick(&batch, &order)?)?;
    for (row, &from) in mixed.chunks(10).zip(&order) {
        let at = from as usize * 10;
        assert!(row == &together[at..at + 10], "image {from}");
    }
    Ok(())
}

#[test]
fn steps_that_go_on_where_others_stopped_give_the_same_bits() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(IMAGES))?);
    let run = Run::new(9, &Device::Cpu);
    let (pass, aim) = (run.eval(&batch.samples), Aim::Away(&batch.target));
    let pgd = |steps| Pgd::new(linf(0.1), eps(0.05), steps);
    let (net, clean) = (&twin.frozen, &batch.pixels);
    let whole = pgd(9).perturb(net, clean, aim, &pass)?;
    let part = pgd(4).perturb(net, clean, aim, &pass)?;
    let rest = pgd(5).perturb_from(&part, net, clean, aim, &pass)?;
    assert!(bits(rest.tensor())? == bits(whole.tensor())?);
    Ok(())
}

fn finding(checks: &[theriac_eval::Check], name: &str) -> Finding {
    let mut checks = checks.iter();
    checks.find(|check| check.name == name).unwrap().finding
}

/// A network that has learnt something, attacked in both ways that the tables print.
#[test]
fn an_attacker_who_knows_the_defence_is_stronger_and_the_evaluator_says_so() -> Result<()> {
    let twin = network(1)?;
    train(&twin, &mut Clean, &fashion(1500), 4)?;
    let (net, batch) = (&twin.frozen, whole(&fashion(100))?);
    let (run, budget) = (Run::new(9, &Device::Cpu), linf(0.05));
    let settings = Settings {
        step: eps(0.025),
        bound: eps(0.05),
        ..Settings::default()
    };
    let defended = Counteract::new(net, settings)?;
    let pgd = Pgd::new(budget, eps(0.02), 10);
    let batches = || [Ok::<_, theriac::Error>(batch.clone())];
    let evaluator = Evaluator::new(&defended, &run);

    let oblivious = Declared {
        access: Access::None,
        iterative: false,
        reach: None,
        ..pgd.declared()
    };
    let transfer = Transfer {
        attack: pgd,
        surrogate: net,
    };
    let before = evaluator.attack(&transfer, &oblivious, batches(), |_| {})?;
    assert_eq!(
        finding(&before.checks, "dynamic defence"),
        Finding::Questionable
    );
    assert!(before.verdict >= Verdict::Questionable);
    let text = before.threat_model.to_string();
    assert!(text.contains("oblivious"), "{text}");

    let through = evaluator.attack(&pgd, &pgd.declared(), batches(), |_| {})?;
    let back = AddBack {
        attack: pgd,
        budget,
        rounds: 5,
    };
    let back = evaluator.attack(&back, &pgd.declared(), batches(), |_| {})?;
    let left = [&before, &through, &back].map(|robust| robust.attacked.correct);
    assert!(left[1] < left[0], "{left:?}");
    assert!(left[2] <= left[0], "{left:?}");

    let bare = Evaluator::new(net, &run).attack(&pgd, &pgd.declared(), batches(), |_| {})?;
    assert_eq!(finding(&bare.checks, "dynamic defence"), Finding::Passed);
    Ok(())
}

#[test]
fn a_targeted_attack_leads_to_one_other_class_of_each_image() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(IMAGES))?);
    let (net, run) = (&twin.frozen, Run::new(9, &Device::Cpu));
    let pass: Pass<'_> = run.eval(&batch.samples);
    let targets = Reference::Other.labels(net, &batch, &pass)?.to_vec()?;
    let truth = batch.target.to_vec()?;
    assert!(
        targets
            .iter()
            .zip(&truth)
            .all(|(target, label)| target != label)
    );
    let classes: std::collections::BTreeSet<u32> = targets.iter().copied().collect();
    assert!(classes.len() > 5, "{classes:?}");
    // Drawn once: in a part of the batch, at another step, the same.
    let part = pick(&batch, &[7, 3])?;
    let of_part = run.eval(&part.samples);
    let of_part = Reference::Other.labels(net, &part, &of_part)?.to_vec()?;
    assert_eq!(of_part, [targets[7], targets[3]]);

    // With the whole range of pixels it gets there.
    let pgd = Pgd::new(linf(1.0), eps(0.1), 40);
    let evaluator = Evaluator {
        reference: Reference::Other,
        ..Evaluator::new(net, &run)
    };
    let batches = [Ok::<_, theriac::Error>(batch.clone())];
    let robust = evaluator.attack(&pgd, &pgd.declared(), batches, |_| {})?;
    let reached = robust.outcomes.iter().zip(&targets);
    let reached = reached.filter(|(o, target)| o.moved == **target).count();
    assert!(reached > IMAGES * 9 / 10, "{reached} of {IMAGES}");
    let text = robust.threat_model.to_string();
    assert!(text.contains("targeted at a random other class"), "{text}");
    Ok(())
}

/// The gradient of an average over executions is the average of gradients: an attack through random
/// crops climbs the loss that it is judged by.
#[test]
fn attacks_go_through_random_crops() -> Result<()> {
    let twin = network(1)?;
    train(&twin, &mut Clean, &fashion(1500), 4)?;
    let (net, batch) = (&twin.frozen, whole(&fashion(100))?);
    let crop = RandomCropPad {
        low: 20,
        high: 28,
        quantise: true,
    };
    let model = Executions::new(net, (crop, Unchanged), 10);
    let run = Run::new(9, &Device::Cpu);
    let pgd = Pgd::new(linf(0.05), eps(0.02), 10);
    let batches = || [Ok::<_, theriac::Error>(batch.clone())];
    let evaluator = Evaluator::new(&model, &run);
    let through = evaluator.attack(&pgd, &pgd.declared(), batches(), |_| {})?;
    let transfer = Transfer {
        attack: pgd,
        surrogate: net,
    };
    let oblivious = evaluator.attack(&transfer, &pgd.declared(), batches(), |_| {})?;
    let left = [&through, &oblivious].map(|robust| robust.attacked.correct);
    assert!(left[0] < left[1], "{left:?}");
    assert_eq!(
        finding(&through.checks, "repeatability"),
        Finding::Questionable
    );
    Ok(())
}
