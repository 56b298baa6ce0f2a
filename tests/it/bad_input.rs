//! Bad input is named by an error where it enters; nothing panics, nothing passes silently.

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Attack, Batch, Budget, Eps, Error, Labels, Model, Pixels, Result, Run, craft, gradient,
};
use theriac_attacks::{Fgsm, MiFgsm, Pgd, bim};
use theriac_data::{Dataset, Loader, Order, Partial};
use theriac_epochwise::{EpochWise, Reading};
use theriac_eval::{Evaluator, clean_accuracy};

use crate::support::{eps, fashion, linf, network, whole};

fn text<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn eps_8_without_a_unit() -> Result<()> {
    let eight = Eps::unit(8.0)?;
    assert!(text(bim(eight, eps(0.1), 10)).contains("/255"));
    assert!(text(EpochWise::new(eight, Reading::default())).contains("/255"));
    let parsed: Result<Budget> = "8".parse().and_then(Budget::linf);
    assert!(text(parsed).contains("/255"));
    assert!(bim(Eps::of_255(8.0)?, eps(0.1), 10).is_ok());
    Ok(())
}

#[test]
fn settings_out_of_range() -> Result<()> {
    assert!(text(EpochWise::new(eps(0.0), Reading::default())).contains("above 0"));
    let never = Reading {
        reset_every: 0,
        ..Reading::default()
    };
    assert!(text(EpochWise::new(eps(0.2), never)).contains("reset_every = 0"));
    assert!(text(MiFgsm::new(linf(0.2), 0)).contains("epsilon"));
    Ok(())
}

#[test]
fn pixels_that_are_nan_or_normalised() -> Result<()> {
    let batch = whole(&fashion(4))?;
    let nan = (batch.pixels.tensor() * f64::NAN)?;
    assert!(text(Pixels::new(nan.clone())).contains("3136 values that are not finite"));
    let normalised = batch.pixels.tensor().affine(2.0, -1.0)?;
    assert!(text(Pixels::new(normalised)).contains("[-1, 1]"));

    // A clamp lets NaN through; the next gradient and every evaluation refuse it.
    let pixels = Pixels::clamp(&nan)?;
    let (twin, run) = (network(1)?, Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    let attack = Fgsm { budget: linf(0.1) };
    let moved = craft(
        &attack,
        &twin.frozen,
        &pixels,
        Aim::Away(&batch.target),
        &pass,
    );
    assert!(text(moved).contains("not finite"));
    let batch: Result<Batch<Labels>> = Ok(Batch { pixels, ..batch });
    let robust = Evaluator::new(&twin.frozen, &run).spec(
        theriac_attacks::Spec::Fgsm(attack),
        [batch],
        |_| {},
    );
    assert!(text(robust).contains("not finite"));
    Ok(())
}

#[test]
fn weights_that_are_nan() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(4))?);
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    for (path, var) in twin.params.all() {
        if path == "fc2.bias" {
            var.set(&(var.as_tensor() * f64::NAN)?)?;
        }
    }
    let pgd = Pgd::new(linf(0.1), eps(0.05), 2);
    let moved = craft(
        &pgd,
        &twin.frozen,
        &batch.pixels,
        Aim::Away(&batch.target),
        &pass,
    );
    assert!(text(moved).contains("not finite"));
    let accuracy = clean_accuracy(&twin.frozen, [Ok::<_, Error>(batch)], &run, |_| {});
    assert!(accuracy.is_err(), "an accuracy from NaN logits");
    Ok(())
}

#[test]
fn a_batch_of_nothing() -> Result<()> {
    let images = fashion(4);
    assert!(images.batch(&[], DType::F32, &Device::Cpu).is_err());
    assert!(text(Labels::new(&[], 10, &Device::Cpu)).contains("empty"));
    let none = Tensor::zeros((0, 1, 28, 28), DType::F32, &Device::Cpu)?;
    assert!(text(Pixels::new(none.clone())).contains("empty"));
    assert!(text(Pixels::clamp(&none)).contains("empty"));
    assert!(Loader::new(&images, 0, Order::Sequential, Partial::Keep).is_err());
    let (twin, run) = (network(1)?, Run::new(0, &Device::Cpu));
    let nothing: [Result<Batch<Labels>>; 0] = [];
    let spec = theriac_attacks::Spec::Fgsm(Fgsm { budget: linf(0.1) });
    let robust = Evaluator::new(&twin.frozen, &run).spec(spec, nothing, |_| {});
    assert!(text(robust).contains("empty"));
    Ok(())
}

#[test]
fn labels_that_are_no_class_of_the_model() -> Result<()> {
    assert!(text(Labels::new(&[3, 10], 10, &Device::Cpu)).contains("label 10 at position 1"));
    let (twin, batch) = (network(1)?, whole(&fashion(2))?);
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let attack = Fgsm { budget: linf(0.1) };
    // Valid for a model of 100 classes, but this one has ten.
    let hundred = Labels::new(&[3, 57], 100, &Device::Cpu)?;
    let moved = attack.perturb(&twin.frozen, &batch.pixels, Aim::Away(&hundred), &pass);
    assert!(text(moved).contains("label 57"));
    let three = Labels::new(&[1, 2, 3], 10, &Device::Cpu)?;
    let loss = gradient(&batch.pixels, &pass, |x| twin.frozen.loss(x, &three, &pass));
    assert!(loss.is_err(), "three labels for two images");
    Ok(())
}

#[test]
fn ids_that_do_not_match_the_images() -> Result<()> {
    let (twin, batch) = (network(1)?, whole(&fashion(3))?);
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&[0, 1]);
    let pgd = Pgd::new(linf(0.1), eps(0.05), 2);
    let moved = pgd.perturb(&twin.frozen, &batch.pixels, Aim::Away(&batch.target), &pass);
    assert!(text(moved).contains("2 sample ids"));
    Ok(())
}

#[test]
fn images_of_another_size() -> Result<()> {
    let (twin, run) = (network(1)?, Run::new(0, &Device::Cpu));
    let small = Pixels::new(Tensor::zeros((1, 1, 20, 20), DType::F32, &Device::Cpu)?)?;
    let colour = Pixels::new(Tensor::zeros((1, 3, 28, 28), DType::F32, &Device::Cpu)?)?;
    let labels = Labels::new(&[0], 10, &Device::Cpu)?;
    for pixels in [small, colour] {
        let pass = run.eval(&[0]);
        let moved = craft(
            &Fgsm { budget: linf(0.1) },
            &twin.frozen,
            &pixels,
            Aim::Away(&labels),
            &pass,
        );
        assert!(moved.is_err());
    }
    Ok(())
}
