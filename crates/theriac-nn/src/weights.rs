//! Weight and bias of a layer.

use candle_core::Tensor;
use theriac::{Pass, Result};
use theriac_ops::network::{Op, Parameters};

use crate::Form;

/// Weight and bias.
pub type Affine = (Tensor, Option<Tensor>);

type Draw = Box<dyn Fn(&Pass<'_>) -> Result<Affine> + Send + Sync>;

/// The same in every pass, or a function of it.
pub(crate) enum Weights {
    Stored(Affine),
    Drawn(Draw),
}

impl Weights {
    pub(crate) fn of(&self, pass: &Pass<'_>) -> Result<Affine> {
        match self {
            Self::Stored(weights) => Ok(weights.clone()),
            Self::Drawn(draw) => draw(pass),
        }
    }

    /// A computation with these parameters, which hold what [`Weights::of`] gave.
    pub(crate) fn form(&self, op: Op, parameters: Parameters) -> Form {
        Form {
            stored: matches!(self, Self::Stored(_)),
            ..Form::stored(Some(op), parameters)
        }
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stored(weights) => f.debug_tuple("Stored").field(weights).finish(),
            Self::Drawn(_) => f.write_str("Drawn"),
        }
    }
}
