//! Adv-BNN: a Bayesian network trained on adversarial images.
//!
//! ```text
//! w = mu + exp(s) n,   n ~ N(0, 1)
//! loss = mean CE(f(x'), y) + (alpha / N) KL,   x' = PGD(x, y)
//! KL = sum log(sigma0) - s + (exp(2 s) + mu^2) / (2 sigma0^2) - 1/2
//! ```
//!
//! Liu, Li, Wu & Hsieh, "Adv-BNN: improved adversarial defense through robust Bayesian neural
//! network", ICLR 2019, equations 6 and 9; N is the number of training images. alpha < 1 weakens the
//! prior: 0.02 in the README of the authors' code, whose argument's default is 1. sigma0 and the
//! first exp(s) are 0.1 there, for ImageNet-143; values for CIFAR-10 are not published.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Batch, Classifier, Error, Labels, Model as _, Pass, Result, craft};
use theriac_nn::{Params, Twin};
use theriac_train::Objective;

use crate::Posterior;
use crate::layers::SUFFIX;

/// The settings of the method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvBnn {
    /// Deviation sigma0 of the prior N(0, sigma0^2).
    pub prior_std: f64,
    /// Deviation of the posterior at the start.
    pub init_std: f64,
    /// Weight alpha of the divergence.
    pub kl_weight: f64,
}

impl Default for AdvBnn {
    fn default() -> Self {
        Self {
            prior_std: 0.1,
            init_std: 0.1,
            kl_weight: 0.02,
        }
    }
}

impl AdvBnn {
    /// Refuses numbers that cannot be meant.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let positive = [("prior_std", self.prior_std), ("init_std", self.init_std)];
        let wrong = positive
            .into_iter()
            .find(|(_, v)| !(*v > 0.0 && v.is_finite()));
        if let Some((name, value)) = wrong {
            return Err(Error::Setting {
                name,
                value: value.to_string(),
                remedy: "use a finite deviation above 0",
            });
        }
        if !(self.kl_weight >= 0.0 && self.kl_weight.is_finite()) {
            return Err(Error::Setting {
                name: "kl_weight",
                value: self.kl_weight.to_string(),
                remedy: "use a finite weight of at least 0",
            });
        }
        Ok(())
    }

    /// Where a network gets its layers.
    pub fn hook(&self) -> Posterior {
        Posterior {
            init_std: self.init_std,
        }
    }

    /// The objective for a network built by [`AdvBnn::hook`] and a training set of so many images.
    ///
    /// # Errors
    /// Those of [`AdvBnn::check`]; [`Error::Setting`] for no images, or a network without posterior.
    pub fn objective<A>(&self, attack: A, params: &Params, images: usize) -> Result<Bayesian<A>> {
        self.check()?;
        let all = params.trainable();
        let mean = |path: &str| all.iter().find(|(other, _)| other == path);
        let posterior: Vec<(Var, Var)> = all
            .iter()
            .filter_map(|(path, log_std)| {
                let (_, mean) = mean(path.strip_suffix(SUFFIX)?)?;
                Some((mean.clone(), log_std.clone()))
            })
            .collect();
        if posterior.is_empty() {
            return Err(Error::Setting {
                name: "adv-bnn",
                value: "no posterior".to_owned(),
                remedy: "build the network with AdvBnn::hook",
            });
        }
        if images == 0 {
            return Err(Error::Setting {
                name: "images",
                value: "0".to_owned(),
                remedy: "give the size of the training set",
            });
        }
        Ok(Bayesian {
            attack,
            settings: *self,
            posterior,
            images,
        })
    }
}

/// Cross entropy of adversarial images and divergence, made by [`AdvBnn::objective`].
///
/// Images are crafted on the frozen twin in evaluation mode, away from the true label, each pass of
/// the attack with a draw of its own.
pub struct Bayesian<A> {
    /// Crafts the images. The authors' PGD has no random start.
    pub attack: A,
    settings: AdvBnn,
    /// mu and s.
    posterior: Vec<(Var, Var)>,
    images: usize,
}

impl<A> Bayesian<A> {
    /// The divergence of the posterior from the prior, in nats: a scalar with gradients.
    ///
    /// # Errors
    /// A candle error.
    pub fn divergence(&self) -> Result<Tensor> {
        let prior = self.settings.prior_std;
        let parts = self.posterior.iter().map(|(mean, log_std)| {
            let spread = (log_std.affine(2.0, 0.0)?.exp()? + mean.sqr()?)?;
            let each = (spread * (0.5 / prior.powi(2)))?.sub(log_std.as_tensor())?;
            each.affine(1.0, prior.ln() - 0.5)?.sum_all()
        });
        let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&parts, 0)?.sum_all()?)
    }
}

impl<C: Classifier, A: Attack<C>> Objective<C> for Bayesian<A> {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let aim = Aim::Away(&batch.target);
        let crafting = pass.eval().fork(0);
        let moved = craft(&self.attack, &twin.frozen, &batch.pixels, aim, &crafting)?;
        let fit = twin.live.loss(&moved, &batch.target, pass)?.mean_all()?;
        let weight = self.settings.kl_weight / self.images as f64;
        Ok((fit + (self.divergence()? * weight)?)?)
    }
}
