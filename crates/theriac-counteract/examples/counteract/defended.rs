//! A network with its defences.

use candle_core::{DType, Device, Tensor};
use theriac::{
    Batch, Classifier, Executions, Labels, Pass, Pixels, Result, Transform, Transformed, predict,
};
use theriac_counteract::Counteract;
use theriac_data::{Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_experiment::{images, into_theriac};
use theriac_mixup::{MiOl, Pool, Unchanged};
use theriac_tables::{BoxError, Lab};
use theriac_transform::{GaussianNoise, RandomCropPad, RandomCropResize, RandomRotation};

use crate::{Defence, Part, Settings};

/// A network and everything in front of it.
pub(crate) struct Defended<'a, C> {
    pub(crate) network: &'a C,
    pub(crate) defence: &'a Defence,
    /// There if MI-OL is one of the parts.
    pub(crate) pool: Option<&'a Pool>,
}

impl<'a, C: Classifier> Defended<'a, C> {
    /// The counter-perturbation, if there is one.
    pub(crate) fn counteract(&self) -> Result<Option<Counteract<&'a C>>> {
        let ours = self.defence.ours;
        ours.map(|ours| Counteract::new(self.network, ours))
            .transpose()
    }

    /// What happens in each execution, but for MI-OL.
    fn each(&self) -> Box<dyn Transform> {
        let Defence { quantise, .. } = *self.defence;
        let part = |part: &Part| -> Box<dyn Transform> {
            match part {
                Part::Xie => {
                    let [low, high] = self.defence.xie;
                    Box::new(RandomCropPad {
                        low,
                        high,
                        quantise,
                    })
                }
                Part::Guo => {
                    let [low, high] = self.defence.guo;
                    Box::new(RandomCropResize {
                        low,
                        high,
                        quantise,
                    })
                }
                Part::Noise => Box::new(GaussianNoise {
                    sigma: self.defence.sigma,
                }),
                Part::Rotation => Box::new(RandomRotation {
                    degrees: self.defence.degrees,
                    quantise,
                }),
                Part::MiOl => Box::new(Unchanged),
            }
        };
        let parts = self.defence.each.iter().map(part);
        parts
            .reduce(|all, next| Box::new((all, next)))
            .unwrap_or_else(|| Box::new(Unchanged))
    }

    /// The logits of images that the counter-perturbation has moved, or that there is none for;
    /// `labels` are those that MI-OL's partners must not have.
    fn executed(&self, x: &Pixels, labels: Option<&Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let defence = self.defence;
        match (defence.each.first(), self.pool) {
            (None, _) => self.network.logits(x, pass),
            (Some(Part::MiOl), Some(pool)) => {
                let mi_ol = MiOl {
                    predictor: self.network,
                    model: self.network,
                    then: self.each(),
                    pool,
                    lambda: defence.lambda,
                    executions: defence.mixtures,
                    average: defence.average,
                };
                match labels {
                    Some(labels) => mi_ol.logits_given(x, labels, pass),
                    None => mi_ol.logits(x, pass),
                }
            }
            _ => {
                let each = self.each();
                let anew = match defence.recompute {
                    true => self.counteract()?,
                    false => None,
                };
                match anew {
                    Some(counteract) => self.average(self.network, (each, counteract), x, pass),
                    None => self.average(self.network, each, x, pass),
                }
            }
        }
    }

    fn average<T: Transform>(
        &self,
        model: &C,
        each: T,
        x: &Pixels,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let executions = Executions {
            average: self.defence.average,
            ..Executions::new(model, each, self.defence.executions)
        };
        executions.logits(x, pass)
    }
}

impl<C: Classifier> Classifier for Defended<'_, C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let once = match self.defence.recompute && !self.defence.each.is_empty() {
            true => None,
            false => self.counteract()?,
        };
        let Some(counteract) = once else {
            return self.executed(x, None, pass);
        };
        let labels = match self.defence.label_on_x {
            true => Some(predict(self.network, &Pixels::clamp(x.tensor())?, pass)?),
            false => None,
        };
        let rest = Rest {
            defended: self,
            labels: labels.as_ref(),
        };
        let defended = Transformed {
            model: rest,
            transform: counteract,
        };
        defended.logits(x, pass)
    }

    fn classes(&self) -> usize {
        self.network.classes()
    }
}

/// What comes behind the counter-perturbation.
struct Rest<'a, C> {
    defended: &'a Defended<'a, C>,
    labels: Option<&'a Labels>,
}

impl<C: Classifier> Classifier for Rest<'_, C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.defended.executed(x, self.labels, pass)
    }

    fn classes(&self) -> usize {
        self.defended.classes()
    }
}

/// MI-OL's partners, if it is one of the parts.
pub(crate) fn pool(
    settings: &Settings,
    classes: usize,
    lab: &Lab,
    device: &Device,
) -> Result<Option<Pool>, BoxError> {
    if settings.defence.each.first() != Some(&Part::MiOl) {
        return Ok(None);
    }
    let split = match settings.defence.pool_of_test {
        true => Split::Test,
        false => Split::Train,
    };
    let (data, n) = (&settings.recipe.data, settings.defence.pool);
    let data = images(data, settings.samples, split, n, lab)?;
    let loader = Loader::new(&data, 1000, Order::Sequential, Partial::Keep)?
        .dtype(DType::F32)
        .device(device);
    let batches = loader.epoch(0).map(|batch| batch.map_err(into_theriac));
    let batches = batches.collect::<Result<Vec<Batch<Labels>>>>()?;
    Ok(Some(Pool::new(&batches, classes)?))
}
