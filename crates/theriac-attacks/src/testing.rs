//! A model whose worst perturbations are known.

use candle_core::{DType, Device, Tensor};
use theriac::{Attack, Budget, Classifier, Eps, Labels, Pass, Pixels, Result, Rng, Run};

const SIDE: usize = 4;
const IMAGES: usize = 20;

/// Logits (w.x + b, 0): the worst point of a Linf ball is `x -+ eps sign(w)`, clipped.
pub(crate) struct Affine(Tensor);

impl Affine {
    pub(crate) fn new() -> Self {
        let w = Rng::new(5).normal("w", 0, SIDE * SIDE);
        let w = Tensor::from_vec(w, (SIDE * SIDE, 1), &Device::Cpu).unwrap();
        Self(w.to_dtype(DType::F64).unwrap())
    }

    pub(crate) fn worst(&self, clean: &Pixels, labels: &Labels, eps: f64) -> Result<Pixels> {
        // Label 0 wants w.x high, so the worst point lowers it; label 1 the other way round.
        let side = labels.tensor().to_dtype(DType::F64)?.affine(2.0, -1.0)?;
        let step = (self.0.sign()? * eps)?.reshape((1, 1, SIDE, SIDE))?;
        let step = step.broadcast_mul(&side.reshape(((), 1, 1, 1))?)?;
        Pixels::clamp(&(clean.tensor() + step)?)
    }
}

impl Classifier for Affine {
    fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
        let z = x.tensor().flatten_from(1)?.matmul(&self.0)?;
        Ok(Tensor::cat(&[&z, &z.zeros_like()?], 1)?)
    }

    fn classes(&self) -> usize {
        2
    }
}

/// Random images with the model's own labels.
pub(crate) fn images(model: &Affine) -> (Pixels, Labels, Run) {
    let run = Run::new(1, &Device::Cpu);
    let values = Rng::new(2).uniform("x", 0, IMAGES * SIDE * SIDE);
    let x = Tensor::from_vec(values, (IMAGES, 1, SIDE, SIDE), &Device::Cpu).unwrap();
    let x = Pixels::new(x.to_dtype(DType::F64).unwrap()).unwrap();
    let ids: Vec<u32> = (0..IMAGES as u32).collect();
    let labels = theriac::predict(model, &x, &run.eval(&ids)).unwrap();
    (x, labels, run)
}

pub(crate) fn linf(eps: f64) -> Budget {
    Budget::linf(Eps::unit(eps).unwrap()).unwrap()
}

pub(crate) fn contract(attack: &impl Attack<Affine>, budget: Budget) -> Result<()> {
    let model = Affine::new();
    let (clean, labels, _) = images(&model);
    theriac::contract::attack(attack, &model, &clean, &labels, budget)
}
