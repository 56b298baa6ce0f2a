//! No result depends on threads, batch size or order.

use candle_core::Device;
use theriac::{Aim, Attack, Batch, CHUNK, Labels, Mode, Model, Pass, Result, Run, craft, gradient};
use theriac_attacks::{MiFgsm, Pgd, Restarts};
use theriac_epochwise::{EpochWise, Reading};
use theriac_nn::{Network, Twin};
use theriac_train::{Rule, Sgd};

use crate::support::{
    bits, cifar, eps, fashion, halved, linf, network, pick, resnet, snapshot, train, whole,
};

const IMAGES: usize = 70;

fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(f)
}

fn attacks() -> Result<[Box<dyn Attack<Network>>; 3]> {
    let pgd = Pgd::new(linf(0.2), eps(0.05), 5);
    Ok([
        Box::new(pgd),
        Box::new(MiFgsm::new(linf(0.2), 5)?),
        Box::new(Restarts {
            attack: pgd,
            times: 2,
        }),
    ])
}

/// The bits of the adversarial images of a batch.
fn adversarial(
    attack: &dyn Attack<Network>,
    twin: &Twin<Network>,
    batch: &Batch<Labels>,
) -> Result<Vec<u64>> {
    let run = Run::new(9, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let moved = craft(
        attack,
        &twin.frozen,
        &batch.pixels,
        Aim::Away(&batch.target),
        &pass,
    )?;
    bits(moved.tensor())
}

#[test]
fn adversarial_images_do_not_depend_on_threads() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(IMAGES))?);
    assert!(batch.len() > 3 * CHUNK, "fewer tasks than threads");
    for attack in attacks()? {
        let one = on_threads(1, || adversarial(&attack, &twin, &batch))?;
        for threads in [2, 3] {
            let several = on_threads(threads, || adversarial(&attack, &twin, &batch))?;
            assert!(several == one, "{threads} threads");
        }
    }
    Ok(())
}

#[test]
fn trained_weights_do_not_depend_on_threads() -> Result<()> {
    let trained = || -> Result<_> {
        let twin = network(1)?;
        let mut objective = EpochWise::new(eps(0.2), Reading::default())?;
        let history = train(&twin, &mut objective, &fashion(128), 2)?;
        let losses: Vec<u64> = history.iter().map(|epoch| epoch.loss.to_bits()).collect();
        Ok((snapshot(&twin.params)?, losses))
    };
    let one = on_threads(1, trained)?;
    for threads in [2, 3] {
        assert!(on_threads(threads, trained)? == one, "{threads} threads");
    }
    Ok(())
}

#[test]
fn adversarial_images_do_not_depend_on_the_batch_size() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(IMAGES))?);
    let indices: Vec<u32> = (0..IMAGES as u32).collect();
    for attack in attacks()? {
        let together = adversarial(&attack, &twin, &batch)?;
        for size in [1, 7, 16, 64] {
            let parts = indices.chunks(size);
            let parts = parts.map(|part| adversarial(&attack, &twin, &pick(&batch, part)?));
            let parts = parts.collect::<Result<Vec<_>>>()?.concat();
            assert!(parts == together, "batches of {size}");
        }
    }
    Ok(())
}

#[test]
fn adversarial_images_do_not_depend_on_the_order() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(IMAGES))?);
    let order = theriac::Rng::new(3).permutation("order", 0, IMAGES as u32);
    let shuffled = pick(&batch, &order)?;
    for attack in attacks()? {
        let straight = adversarial(&attack, &twin, &batch)?;
        let mixed = adversarial(&attack, &twin, &shuffled)?;
        let each = straight.len() / IMAGES;
        for (image, &from) in mixed.chunks(each).zip(&order) {
            let at = from as usize * each;
            assert!(image == &straight[at..at + each], "image {from}");
        }
    }
    Ok(())
}

/// The bits of the gradient of the loss by the pixels.
fn pixel_gradient(net: &Network, batch: &Batch<Labels>, mode: Mode) -> Result<Vec<u64>> {
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        mode,
        ..run.eval(&batch.samples)
    };
    let (_, gradient) = gradient(&batch.pixels, &pass, |x| net.loss(x, &batch.target, &pass))?;
    bits(&gradient)
}

#[test]
fn norms_over_the_batch_do_not_depend_on_threads() -> Result<()> {
    let batch = halved(whole(&cifar(40))?)?;
    let stepped = || -> Result<_> {
        let twin = resnet(8, 1)?;
        let (run, variables) = (Run::new(0, &Device::Cpu), twin.params.trainable());
        let mut sgd = Sgd::momentum(0.9);
        for _ in 0..2 {
            let pass = run.train(&batch.samples);
            let losses = twin.live.loss(&batch.pixels, &batch.target, &pass)?;
            sgd.step(&variables, &losses.mean_all()?.backward()?, 0.1)?;
        }
        let gradient = pixel_gradient(&twin.frozen, &batch, Mode::Train)?;
        Ok((snapshot(&twin.params)?, gradient))
    };
    let one = on_threads(1, stepped)?;
    for threads in [2, 3] {
        assert!(on_threads(threads, stepped)? == one, "{threads} threads");
    }
    Ok(())
}

#[test]
fn gradients_do_not_depend_on_the_batch_size() -> Result<()> {
    let (twin, batch) = (resnet(8, 1)?, halved(whole(&cifar(40))?)?);
    // Running statistics that are not the initial ones.
    pixel_gradient(&twin.frozen, &batch, Mode::Train)?;
    let indices: Vec<u32> = (0..40).collect();
    for net in [&twin.frozen, &twin.live] {
        let together = pixel_gradient(net, &batch, Mode::Eval)?;
        for size in [1, 7, 16, 25] {
            let parts = indices.chunks(size);
            let parts = parts.map(|part| pixel_gradient(net, &pick(&batch, part)?, Mode::Eval));
            let parts = parts.collect::<Result<Vec<_>>>()?.concat();
            assert!(parts == together, "batches of {size}");
        }
    }
    Ok(())
}
