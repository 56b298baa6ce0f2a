//! The method's settings, and what follows from them.

use std::fmt;
use std::str::FromStr;

use candle_core::Var;
use serde::{Deserialize, Serialize};
use theriac::{Error, Result};
use theriac_nn::Params;
use theriac_train::{Group, Rule, Schedule};

use crate::layers::NAME;
use crate::{Beneficial, BiasPgd, SignStep};

/// Which way a beneficial bias moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sign {
    /// Up the loss, as equations 4 to 7 say: `b <- b + eta eps sign(g)`.
    #[default]
    Equation,
    /// Down the loss, as the text says: `b <- b - eta eps sign(g)`.
    Text,
}

/// The fully connected layers whose bias is beneficial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// All of them, the logits' too.
    #[default]
    All,
    /// All but the logits'.
    Hidden,
    /// That of the logits.
    Last,
}

/// Where a beneficial bias starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasInit {
    /// At 0.
    #[default]
    Zero,
    /// Uniform in 1 / sqrt(inputs), as an ordinary bias.
    Uniform,
}

/// What becomes of the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasOpt {
    /// It is taken as it is.
    #[default]
    Sgd,
    /// It passes through the optimiser of the weights as if it were a gradient. Adam divides by
    /// its size, so that epsilon has no effect.
    Same,
}

/// How the direction of a step is found. In text: `fgsm`, `pgd:10`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BiasRule {
    /// By one sign.
    #[default]
    Fgsm,
    /// By so many smaller ones, each at the bias moved so far (the paper's section 7.2, future
    /// work).
    Pgd(u32),
}

impl fmt::Display for BiasRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fgsm => f.write_str("fgsm"),
            Self::Pgd(steps) => write!(f, "pgd:{steps}"),
        }
    }
}

impl FromStr for BiasRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let steps = text.strip_prefix("pgd:").map(str::parse);
        match (text, steps) {
            ("fgsm", _) => Ok(Self::Fgsm),
            (_, Some(Ok(steps))) if steps > 0 => Ok(Self::Pgd(steps)),
            _ => Err(Error::Setting {
                name: "bias_rule",
                value: text.to_owned(),
                remedy: "write fgsm, or pgd:10 for ten steps",
            }),
        }
    }
}

impl TryFrom<String> for BiasRule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BiasRule> for String {
    fn from(rule: BiasRule) -> Self {
        rule.to_string()
    }
}

/// A beneficial perturbation network: what its biases are and how they move.
///
/// ```text
/// y = W x + b_BP                      in fully connected layers, in training and at test
/// g = d mean CE / d b_BP              over the batch, from the backward pass of the weights
/// b_BP <- b_BP + s eta eps sign(g)    s = 1 (equations 4 to 7) or -1 (the text)
/// ```
///
/// Wen, Rios & Itti, "Beneficial perturbations network for defending adversarial examples", 2020,
/// sections 3.2 to 3.5. No code was published; every field is a point that the paper leaves open,
/// its default our reading. A beneficial bias is one vector for all images and is frozen at test,
/// so it cannot react to an image. With `s = -1` it is an ordinary bias trained by signs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bpn {
    /// Up or down the loss.
    pub sign: Sign,
    /// Which layers.
    pub layers: Which,
    /// Whether the layers keep an ordinary bias beside the beneficial one.
    pub keep_bias: bool,
    /// Where the biases start.
    pub init: BiasInit,
    /// Epsilon of the step; not printed. What matters is eta times this times the number of steps.
    pub train_eps: f64,
    /// What becomes of the step.
    pub bias_opt: BiasOpt,
    /// How its direction is found.
    pub bias_rule: BiasRule,
    /// Largest value of a bias, if there is a limit; the paper has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias_clip: Option<f64>,
}

impl Default for Bpn {
    fn default() -> Self {
        Self {
            sign: Sign::Equation,
            layers: Which::All,
            keep_bias: false,
            init: BiasInit::Zero,
            train_eps: 1.0,
            bias_opt: BiasOpt::Sgd,
            bias_rule: BiasRule::Fgsm,
            bias_clip: None,
        }
    }
}

impl Bpn {
    /// Looks at the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] for an epsilon or a limit that is not above 0, and for a direction by
    /// several steps whose result would pass through the optimiser.
    pub fn check(&self) -> Result<()> {
        let positive = |name, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::Setting {
                name,
                value: value.to_string(),
                remedy: "use a finite number above 0",
            }),
        };
        positive("train_eps", self.train_eps)?;
        if let Some(limit) = self.bias_clip {
            positive("bias_clip", limit)?;
        }
        match (self.bias_rule, self.bias_opt) {
            (BiasRule::Pgd(_), BiasOpt::Same) => Err(Error::Setting {
                name: "bias_rule",
                value: self.bias_rule.to_string(),
                remedy: "steps of pgd move the bias themselves: use it with bias_opt = \"sgd\"",
            }),
            _ => Ok(()),
        }
    }

    /// Where a network gets its layers.
    pub fn hook(&self) -> Beneficial {
        Beneficial {
            keep_bias: self.keep_bias,
            init: self.init,
        }
    }

    /// s, in front of the sign.
    pub(crate) fn direction(&self) -> f64 {
        match self.sign {
            Sign::Equation => 1.0,
            Sign::Text => -1.0,
        }
    }

    /// The beneficial biases that move by sign, of a network built by [`Bpn::hook`]. The last
    /// layer is that whose path sorts last.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is none, or if the last is not that of the logits.
    pub fn biases(&self, params: &Params, classes: usize) -> Result<Vec<(String, Var)>> {
        let all = params.trainable().into_iter();
        let mut biases: Vec<(String, Var)> = all.filter(|(path, _)| is_beneficial(path)).collect();
        let wrong = |value: String, remedy| {
            Err(Error::Setting {
                name: "layers",
                value,
                remedy,
            })
        };
        match (self.layers, biases.last()) {
            (_, None) => {
                return wrong(
                    "no beneficial bias".to_owned(),
                    "build the network with Bpn::hook; it needs a fully connected layer",
                );
            }
            (Which::Hidden | Which::Last, Some((path, last))) if last.elem_count() != classes => {
                return wrong(
                    format!("{path} with {} values", last.elem_count()),
                    "name the fully connected layers so that the logits' sorts last",
                );
            }
            (Which::All, _) => {}
            (Which::Hidden, _) => {
                biases.pop();
            }
            (Which::Last, _) => {
                biases.drain(..biases.len() - 1);
            }
        }
        match biases.is_empty() {
            true => wrong(
                "no hidden layer".to_owned(),
                "use layers = \"all\" for a network with one fully connected layer",
            ),
            false => Ok(biases),
        }
    }

    /// The groups that [`theriac_train::fit`] moves: the beneficial biases by sign, all else by
    /// `rule`. With a direction of several steps the biases are in no group: [`Bpn::objective`]
    /// moves them.
    ///
    /// # Errors
    /// Those of [`Bpn::check`] and [`Bpn::biases`].
    pub fn groups<R: Rule + Clone + 'static>(
        &self,
        params: &Params,
        classes: usize,
        rule: R,
        schedule: Schedule,
    ) -> Result<Vec<Group>> {
        self.check()?;
        let biases = self.biases(params, classes)?;
        let mut others = params.trainable();
        others.retain(|(path, _)| biases.iter().all(|(bias, _)| bias != path));
        let through: Option<Box<dyn Rule>> = match self.bias_opt {
            BiasOpt::Sgd => None,
            BiasOpt::Same => Some(Box::new(rule.clone())),
        };
        let mut groups = vec![Group::new(others, rule, schedule.clone())?];
        if self.bias_rule == BiasRule::Fgsm {
            let step = SignStep {
                size: self.direction() * self.train_eps,
                limit: self.bias_clip,
                through,
            };
            groups.push(Group::new(biases, step, schedule)?);
        }
        Ok(groups)
    }

    /// The objective around another one that finds the biases' direction by several steps. For a
    /// direction by one sign, which needs no more than [`Bpn::groups`], it does nothing of its own.
    ///
    /// # Errors
    /// Those of [`Bpn::check`] and [`Bpn::biases`].
    pub fn objective<O>(
        &self,
        objective: O,
        params: &Params,
        classes: usize,
        schedule: Schedule,
    ) -> Result<BiasPgd<O>> {
        self.check()?;
        let steps = match self.bias_rule {
            BiasRule::Fgsm => 0,
            BiasRule::Pgd(steps) => steps,
        };
        let size = self.direction() * self.train_eps;
        let biases = self.biases(params, classes)?;
        Ok(BiasPgd::new(
            objective,
            biases,
            size,
            steps,
            self.bias_clip,
            schedule,
        ))
    }
}

fn is_beneficial(path: &str) -> bool {
    path.rsplit('.').next() == Some(NAME)
}
