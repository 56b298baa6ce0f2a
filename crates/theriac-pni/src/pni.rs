//! PNI: noise on weights whose size is learnt.
//!
//! ```text
//! w~ = w + alpha std(w) n,   n ~ N(0, 1) for each weight, in every pass
//! ```
//!
//! He, Rakin & Fan, "Parametric noise injection: trainable randomness to improve deep neural network
//! robustness against adversarial attack", CVPR 2019, section 3.1 (equations 3 and 4). std(w) is the
//! unbiased deviation of the whole tensor, without gradient, as in the authors' code; biases have no
//! noise, and alpha no weight decay. The code also has noise on the input, off by default: not here.

use candle_core::Var;
use serde::{Deserialize, Serialize};
use theriac::{Error, Result};
use theriac_nn::Params;
use theriac_train::{Group, Schedule, Sgd};

use crate::WeightNoise;
use crate::layers::NAME;

/// Values of alpha.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// One for each layer.
    #[default]
    Layer,
    /// One for each output channel.
    Channel,
    /// One for each weight.
    Element,
}

/// The settings of the method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pni {
    /// Values of alpha. Papers that compare with PNI take [`Granularity::Layer`].
    pub granularity: Granularity,
    /// Where alpha starts.
    pub init: f64,
}

impl Default for Pni {
    fn default() -> Self {
        Self {
            granularity: Granularity::Layer,
            init: 0.25,
        }
    }
}

impl Pni {
    /// Where a network gets its layers.
    pub fn hook(&self) -> WeightNoise {
        WeightNoise {
            granularity: self.granularity,
            init: self.init,
        }
    }

    /// The alphas of a network built by [`Pni::hook`].
    ///
    /// # Errors
    /// [`Error::Setting`] if there are none.
    pub fn alphas(&self, params: &Params) -> Result<Vec<(String, Var)>> {
        let mut all = params.trainable();
        all.retain(|(path, _)| is_alpha(path));
        if all.is_empty() {
            return Err(Error::Setting {
                name: "pni",
                value: "no alpha".to_owned(),
                remedy: "build the network with Pni::hook",
            });
        }
        Ok(all)
    }

    /// The groups that [`theriac_train::fit`] moves: alpha by the rule without its decay, all else
    /// by the rule.
    ///
    /// # Errors
    /// Those of [`Pni::alphas`].
    pub fn groups(&self, params: &Params, rule: Sgd, schedule: Schedule) -> Result<Vec<Group>> {
        let alphas = self.alphas(params)?;
        let mut others = params.trainable();
        others.retain(|(path, _)| !is_alpha(path));
        let mut still = rule.fresh();
        still.weight_decay = 0.0;
        Ok(vec![
            Group::new(others, rule, schedule.clone())?,
            Group::new(alphas, still, schedule)?,
        ])
    }
}

fn is_alpha(path: &str) -> bool {
    path.rsplit('.').next() == Some(NAME)
}
