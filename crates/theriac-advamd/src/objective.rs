//! Adversarial amendment.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{
    Aim, Attack, Batch, Classifier, Error, Labels, Model, Pass, Pixels, Result, Target as _, craft,
};
use theriac_data::Augment;
use theriac_nn::Twin;
use theriac_train::Objective;

use crate::{AUXILIARY, Deltas};

/// Whether clean images and mediate samples share the statistics of batch norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BnBatches {
    /// They go through the ordinary bank together.
    #[default]
    Joint,
    /// One after the other.
    Separate,
}

/// Settings of the method; each of the three parts of the paper can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Weights b1, b2, b3 of clean images, mediate samples and adversarial images; mediate samples
    /// of weight 0 do not run.
    pub weights: [f64; 3],
    /// Share phi of the perturbation in a mediate sample; the paper has 0.7 for FGSM, 0.6 for
    /// DeepFool, 0.5 for PGD.
    pub phi: f64,
    /// Adversarial images through the auxiliary bank of norms.
    pub auxiliary: bool,
    /// Their loss weighted by the coefficient of their class.
    pub weighted: bool,
    /// Statistics of the ordinary bank.
    pub bn_batches: BnBatches,
    /// Mediate samples through the auxiliary bank as well.
    pub mediate_auxiliary: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: [1.0; 3],
            phi: 0.5,
            auxiliary: true,
            weighted: true,
            bn_batches: BnBatches::Joint,
            mediate_auxiliary: false,
        }
    }
}

/// A model whose loss can be weighted by the class of what it is scored against.
pub trait WeightedLoss: Model {
    /// The loss of each image, shape (N), each part weighted by the coefficient of its class.
    ///
    /// # Errors
    /// When shapes do not fit, or a class has no coefficient.
    fn weighted_loss(
        &self,
        x: &Pixels,
        target: &Self::Target,
        coefficients: &[f64],
        pass: &Pass<'_>,
    ) -> Result<Tensor>;
}

/// A classifier's: `A_y CE(z(x), y)`.
impl<C: Classifier> WeightedLoss for C {
    fn weighted_loss(
        &self,
        x: &Pixels,
        target: &Labels,
        coefficients: &[f64],
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let of = |label: u32| {
            let coefficient = coefficients.get(label as usize).copied();
            coefficient.ok_or_else(|| Error::Setting {
                name: "coefficients",
                value: format!("{} for a label {label}", coefficients.len()),
                remedy: "give one for each class",
            })
        };
        let weights = target.to_vec()?.into_iter().map(of);
        let weights = weights.collect::<Result<Vec<f64>>>()?;
        let losses = self.loss(x, target, pass)?;
        let weights = Tensor::new(weights, losses.device())?.to_dtype(losses.dtype())?;
        Ok((losses * weights)?)
    }
}

/// Where the adversarial images of a batch come from.
pub trait Adversary<M: Model>: Send + Sync {
    /// The adversarial images of clean ones.
    ///
    /// # Errors
    /// Those of the attack, or for an image that was not attacked.
    fn moved(&self, twin: &Twin<M>, batch: &Batch<M::Target>, pass: &Pass<'_>) -> Result<Pixels>;

    /// The mediate samples of clean images, unless they lie on the line to the adversarial ones.
    ///
    /// # Errors
    /// For an image that was not attacked.
    fn mediate(&self, _batch: &Batch<M::Target>) -> Result<Option<Pixels>> {
        Ok(None)
    }
}

impl<M: Model, P: Adversary<M> + ?Sized> Adversary<M> for Box<P> {
    fn moved(&self, twin: &Twin<M>, batch: &Batch<M::Target>, pass: &Pass<'_>) -> Result<Pixels> {
        (**self).moved(twin, batch, pass)
    }

    fn mediate(&self, batch: &Batch<M::Target>) -> Result<Option<Pixels>> {
        (**self).mediate(batch)
    }
}

/// Made once, on the network to amend, as in algorithm 1.
impl<M: Model> Adversary<M> for Deltas {
    fn moved(&self, _: &Twin<M>, batch: &Batch<M::Target>, _: &Pass<'_>) -> Result<Pixels> {
        self.moved(&batch.pixels, &batch.samples, 1.0)
    }
}

/// Mediate samples that an attack came through on its way, a reading of section 4 ("collects the
/// mediate samples in the attack process"): the same attack with the share phi of its steps.
#[derive(Clone, Debug)]
pub struct OnTheWay {
    /// After all steps.
    pub adversarial: Deltas,
    /// After some.
    pub mediate: Deltas,
}

impl<M: Model> Adversary<M> for OnTheWay {
    fn moved(&self, _: &Twin<M>, batch: &Batch<M::Target>, _: &Pass<'_>) -> Result<Pixels> {
        self.adversarial.moved(&batch.pixels, &batch.samples, 1.0)
    }

    fn mediate(&self, batch: &Batch<M::Target>) -> Result<Option<Pixels>> {
        let moved = self.mediate.moved(&batch.pixels, &batch.samples, 1.0)?;
        Ok(Some(moved))
    }
}

/// Made anew for each batch, on the network as it is, through its auxiliary norms: the way of AdvProp
/// (Xie et al., CVPR 2020), which the paper builds on. Needs a network of [`crate::TwoBanks`].
#[derive(Clone, Copy, Debug)]
pub struct EachBatch<A> {
    /// The attack.
    pub attack: A,
}

impl<M: Model, A: Attack<M> + Send + Sync> Adversary<M> for EachBatch<A> {
    fn moved(&self, twin: &Twin<M>, batch: &Batch<M::Target>, pass: &Pass<'_>) -> Result<Pixels> {
        let pass = Pass {
            bank: AUXILIARY,
            ..pass.eval()
        };
        let aim = Aim::Away(&batch.target);
        craft(&self.attack, &twin.frozen, &batch.pixels, aim, &pass)
    }
}

/// Adversarial amendment: training that uses adversarial images to raise accuracy on clean ones.
///
/// ```text
/// x_adv = x + delta,   x_med = x + phi delta        delta made once, on the network to amend
/// loss = b1 mean L(x) + b2 mean L(x_med)            through the ordinary bank of norms
///      + b3 mean A_y L(x_adv)                       through the auxiliary one
/// ```
///
/// Yu, Chen & Gan, "Adversarial amendment is the only force capable of transforming an enemy into a
/// friend", IJCAI 2023, section 4, algorithm 1. The labels are the true ones, where it prints the model's
/// output. Test through the ordinary bank.
#[derive(Clone, Debug)]
pub struct AdvAmd<P = Deltas> {
    /// Parts and weights.
    pub settings: Settings,
    /// A_k of each class; see [`crate::Tally`].
    pub coefficients: Vec<f64>,
    /// [`Deltas`] of all training images, [`OnTheWay`] or [`EachBatch`].
    pub adversary: P,
    /// Crops and mirrors clean, mediate and adversarial images alike. Do not augment in the loader:
    /// kept perturbations are those of whole images.
    pub augment: Augment,
}

impl<M: WeightedLoss, P: Adversary<M>> Objective<M> for AdvAmd<P> {
    fn loss(
        &mut self,
        twin: &Twin<M>,
        batch: &Batch<M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let Settings {
            weights: [b1, b2, b3],
            phi,
            auxiliary,
            weighted,
            bn_batches,
            mediate_auxiliary,
        } = self.settings;
        let (target, model) = (&batch.target, &twin.live);
        let seen =
            |x: &Pixels| -> Result<Pixels> { Ok(self.augment.apply(x, &batch.samples, pass.rng)?) };
        let clean = seen(&batch.pixels)?;
        let moved = match b2 != 0.0 || b3 != 0.0 {
            true => seen(&self.adversary.moved(twin, batch, pass)?)?,
            false => clean.clone(),
        };
        let mediate = match b2 != 0.0 {
            true => Some(match self.adversary.mediate(batch)? {
                Some(mediate) => seen(&mediate)?,
                None => between(&clean, &moved, phi)?,
            }),
            false => None,
        };
        let aside = Pass {
            bank: AUXILIARY,
            ..*pass
        };
        let mut total = match (mediate, bn_batches) {
            (Some(mediate), BnBatches::Joint) if !mediate_auxiliary => {
                joint(model, [&clean, &mediate], target, [b1, b2], pass)?
            }
            (mediate, _) => {
                let first = (model.loss(&clean, target, pass)?.mean_all()? * b1)?;
                match mediate {
                    None => first,
                    Some(mediate) => {
                        let pass = if mediate_auxiliary { &aside } else { pass };
                        let second = model.loss(&mediate, target, pass)?.mean_all()?;
                        (first + (second * b2)?)?
                    }
                }
            }
        };
        if b3 != 0.0 {
            let pass = if auxiliary { &aside } else { pass };
            let losses = match weighted {
                true => model.weighted_loss(&moved, target, &self.coefficients, pass)?,
                false => model.loss(&moved, target, pass)?,
            };
            total = (total + (losses.mean_all()? * b3)?)?;
        }
        Ok(total)
    }
}

/// `x + phi (x_adv - x)`.
fn between(clean: &Pixels, moved: &Pixels, phi: f64) -> Result<Pixels> {
    if !(0.0..=1.0).contains(&phi) {
        return Err(Error::Setting {
            name: "phi",
            value: phi.to_string(),
            remedy: "use a share of the perturbation from 0 to 1",
        });
    }
    let delta = (moved.tensor() - clean.tensor())?;
    Pixels::clamp(&(clean.tensor() + (delta * phi)?)?)
}

/// `b1 mean L(x) + b2 mean L(x')` from one pass.
fn joint<M: Model>(
    model: &M,
    [a, b]: [&Pixels; 2],
    target: &M::Target,
    [b1, b2]: [f64; 2],
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let n = a.len();
    let both = Pixels::cat(&[a.clone(), b.clone()])?;
    let at: Vec<u32> = (0..2 * n as u32).map(|i| i % n as u32).collect();
    let samples = pass.samples.repeat(2);
    let losses = model.loss(&both, &target.pick(&at)?, &pass.over(&samples))?;
    let first = (losses.narrow(0, 0, n)?.mean_all()? * b1)?;
    let second = (losses.narrow(0, n, n)?.mean_all()? * b2)?;
    Ok((first + second)?)
}
