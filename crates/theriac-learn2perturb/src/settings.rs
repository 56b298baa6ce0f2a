//! Learn2Perturb: the noise of activations is learnt.
//!
//! ```text
//! h <- h + theta n,   n ~ N(0, 1),   theta one for each value of an activation
//! minimise CE + gamma g(theta),   g(theta) = -sum sqrt(theta) / tau,   tau = 1 + 1/2 + ... + 1/k
//! in the k-th epoch with noise
//! ```
//!
//! Jeddi, Shafiee, Karg, Scharfenberger & Wong, "Learn2Perturb: an end-to-end feature perturbation
//! learning to improve adversarial robustness", CVPR 2020, sections 3.1 to 3.3 (equations 5, 7, 8,
//! algorithm 1). Where paper and the authors' code disagree, the code's reading is the default, but
//! for noise of each image's own and a warm-up of 20 epochs, which the paper prints.

use candle_core::Var;
use serde::{Deserialize, Serialize};
use theriac::{Error, Result};
use theriac_nn::{Params, Share, Twin};
use theriac_train::{Group, LabelSource, Schedule, Sgd};

use crate::layers::NAME;
use crate::theta::Theta;
use crate::{Alternating, Injection};

/// Values of theta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThetaShape {
    /// One for each value of an activation (section 3.2).
    #[default]
    Element,
    /// One for each channel.
    Channel,
    /// One for each layer.
    Layer,
}

/// Where noise is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// After the first convolution and after each block, before the ReLU: the authors' code.
    #[default]
    Block,
    /// After each convolution: section 3.3.
    EveryConv,
}

/// How the regulariser moves theta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThetaUpdate {
    /// A step by the regulariser, then the pass of the batch at the new theta, then a step by the
    /// cross entropy: the authors' code.
    #[default]
    TwoStep,
    /// Both gradients at the old theta, subtracted together: algorithm 1.
    Alg1,
}

/// What the gradient of the regulariser is multiplied by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegRate {
    /// gamma and the learning rate: the authors' code.
    #[default]
    Lr,
    /// gamma alone: algorithm 1.
    One,
}

/// How square roots of theta become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegReduce {
    /// Their sum over all layers: the authors' code.
    #[default]
    Sum,
    /// Their mean over all layers.
    Mean,
}

/// Whether the two steps of theta share a momentum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThetaMomentum {
    /// One buffer for both: the authors' code.
    #[default]
    Shared,
    /// One for each.
    Separate,
}

/// The settings of the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Learn2Perturb {
    /// Values of theta.
    pub theta: ThetaShape,
    /// Where noise is added.
    pub placement: Placement,
    /// Whether each image has noise of its own (the paper) or the batch shares one draw (the code).
    pub noise_share: Share,
    /// Order of the updates.
    pub theta_update: ThetaUpdate,
    /// Whether the cross entropy leaves theta alone: Learn2Perturb-R of section 4.3.
    pub regulariser_only: bool,
    /// What the gradient of the regulariser is multiplied by.
    pub reg_lr: RegRate,
    /// Sum or mean.
    pub reg_reduce: RegReduce,
    /// One momentum of theta, or two.
    pub theta_momentum: ThetaMomentum,
    /// k of the first epoch with noise. The code has 0, which divides by 0: here the regulariser
    /// then rests in that epoch.
    pub tau_offset: usize,
    /// Where theta starts (unprinted; the code's).
    pub init: f64,
    /// Least theta, to which each update is projected (unprinted; the code's).
    pub minimum: f64,
    /// Weight of the regulariser.
    pub gamma: f64,
    /// Epochs without noise. The paper has 20, the code 10.
    pub noise_delay: usize,
    /// Epochs without adversarial images.
    pub adv_delay: usize,
}

impl Default for Learn2Perturb {
    fn default() -> Self {
        Self {
            theta: ThetaShape::Element,
            placement: Placement::Block,
            noise_share: Share::Sample,
            theta_update: ThetaUpdate::TwoStep,
            regulariser_only: false,
            reg_lr: RegRate::Lr,
            reg_reduce: RegReduce::Sum,
            theta_momentum: ThetaMomentum::Shared,
            tau_offset: 1,
            init: 0.25,
            minimum: 0.01,
            gamma: 1e-4,
            noise_delay: 20,
            adv_delay: 20,
        }
    }
}

impl Learn2Perturb {
    /// Refuses numbers that cannot be meant.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let wrong = |name, value: f64, remedy| {
            let value = value.to_string();
            Err(Error::Setting {
                name,
                value,
                remedy,
            })
        };
        if !(self.gamma >= 0.0 && self.gamma.is_finite()) {
            return wrong("gamma", self.gamma, "use a finite number of at least 0");
        }
        if !(self.minimum >= 0.0 && self.minimum.is_finite()) {
            return wrong("minimum", self.minimum, "use a finite number of at least 0");
        }
        if self.minimum == 0.0 && self.gamma > 0.0 {
            return wrong(
                "minimum",
                self.minimum,
                "the regulariser's slope is infinite at theta = 0: use a minimum above 0",
            );
        }
        if !(self.init >= self.minimum && self.init.is_finite()) {
            return wrong("init", self.init, "use at least the minimum");
        }
        Ok(())
    }

    /// Where a network gets its layers.
    pub fn hook(&self) -> Injection {
        Injection {
            theta: self.theta,
            placement: self.placement,
            share: self.noise_share,
            init: self.init,
        }
    }

    /// The thetas of a network built by [`Learn2Perturb::hook`].
    ///
    /// # Errors
    /// [`Error::Setting`] if there are none.
    pub fn thetas(&self, params: &Params) -> Result<Vec<(String, Var)>> {
        let mut all = params.trainable();
        all.retain(|(path, _)| is_theta(path));
        if all.is_empty() {
            return Err(Error::Setting {
                name: "placement",
                value: "no theta".to_owned(),
                remedy: "build the network with Learn2Perturb::hook; it needs a site",
            });
        }
        Ok(all)
    }

    /// What goes into [`theriac_train::fit`] for the twin that was built with
    /// [`Learn2Perturb::hook`]: the objective, the group of the weights and that of theta. `plain` is
    /// the same network without noise over the same parameters, built by [`theriac_nn::Plain`]: the
    /// one that trains in the epochs before [`Learn2Perturb::noise_delay`].
    ///
    /// # Errors
    /// Those of [`Learn2Perturb::check`] and [`Learn2Perturb::thetas`].
    pub fn training<M, A>(
        &self,
        plain: Twin<M>,
        attack: A,
        weights: Sgd,
        theta: Sgd,
        schedule: Schedule,
    ) -> Result<(Alternating<M, A>, Vec<Group>)> {
        self.check()?;
        let thetas = self.thetas(&plain.params)?;
        let mut others = plain.params.trainable();
        others.retain(|(path, _)| !is_theta(path));
        let theta = Theta::new(self.clone(), thetas.clone(), theta)?;
        let groups = vec![
            Group::new(others, weights, schedule.clone())?,
            Group::new(thetas, theta.clone(), schedule.clone())?,
        ];
        let objective = Alternating {
            attack,
            label: LabelSource::Predicted,
            clean_weight: 0.5,
            mode: theriac::Mode::Eval,
            settings: self.clone(),
            plain,
            theta,
            schedule,
            epoch: 0,
        };
        Ok((objective, groups))
    }

    /// tau of an epoch counted from 0; `None` where the regulariser rests.
    pub fn tau(&self, epoch: usize) -> Option<f64> {
        let since = epoch.checked_sub(self.noise_delay)?;
        let tau: f64 = (1..=since + self.tau_offset).map(|i| 1.0 / i as f64).sum();
        (tau > 0.0 && self.gamma > 0.0).then_some(tau)
    }
}

fn is_theta(path: &str) -> bool {
    path.rsplit('.').next() == Some(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tau_is_a_harmonic_number() {
        let method = Learn2Perturb::default();
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-12;
        assert_eq!(method.tau(19), None);
        assert!(close(method.tau(20), 1.0));
        assert!(close(method.tau(23), 1.0 + 0.5 + 1.0 / 3.0 + 0.25));
        // The code's, whose first epoch with noise divides by 0.
        let code = Learn2Perturb {
            tau_offset: 0,
            ..Learn2Perturb::default()
        };
        assert_eq!(code.tau(20), None);
        assert!(close(code.tau(22), 1.5));
    }

    #[test]
    fn text_and_back() {
        let text = "theta = \"channel\"\nplacement = \"every-conv\"\nnoise_share = \"batch\"\n\
            theta_update = \"alg1\"\nreg_lr = \"one\"\nreg_reduce = \"mean\"\n\
            theta_momentum = \"separate\"\nregulariser_only = true\nnoise_delay = 10";
        let read: Learn2Perturb = toml::from_str(text).unwrap();
        let expected = Learn2Perturb {
            theta: ThetaShape::Channel,
            placement: Placement::EveryConv,
            noise_share: Share::Batch,
            theta_update: ThetaUpdate::Alg1,
            reg_lr: RegRate::One,
            reg_reduce: RegReduce::Mean,
            theta_momentum: ThetaMomentum::Separate,
            regulariser_only: true,
            noise_delay: 10,
            ..Learn2Perturb::default()
        };
        assert_eq!(read, expected);
        let written = toml::to_string(&expected).unwrap();
        assert_eq!(toml::from_str::<Learn2Perturb>(&written).unwrap(), expected);
        assert!(toml::from_str::<Learn2Perturb>("gama = 1").is_err());
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        let base = Learn2Perturb::default;
        for (name, wrong) in [
            (
                "gamma",
                Learn2Perturb {
                    gamma: f64::NAN,
                    ..base()
                },
            ),
            (
                "minimum",
                Learn2Perturb {
                    minimum: 0.0,
                    ..base()
                },
            ),
            (
                "minimum",
                Learn2Perturb {
                    minimum: -1.0,
                    ..base()
                },
            ),
            (
                "init",
                Learn2Perturb {
                    init: 0.001,
                    ..base()
                },
            ),
        ] {
            let text = wrong.check().unwrap_err().to_string();
            assert!(text.starts_with(name), "{text}");
        }
        assert!(base().check().is_ok());
    }
}
