//! Where parameters start.

/// Initial distribution of a weight tensor.
///
/// fan_in and fan_out count inputs and outputs of one unit, times the kernel area. Values are
/// drawn from a stream keyed by (seed, parameter path): they depend neither on construction order
/// nor on what else a network holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Init {
    /// PyTorch's default for convolutions and linear layers: weight and bias
    /// U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    #[default]
    Torch,
    /// Glorot & Bengio 2010: U(-b, b), b = sqrt(6 / (fan_in + fan_out)); bias 0.
    Glorot,
    /// He et al. 2015, fan out: N(0, 2 / fan_out); bias 0. The usual choice for residual networks.
    He,
    /// N(0, 0.02^2), bias 0: transformers.
    Small,
}

impl Init {
    pub(crate) fn weight(self, fan_in: usize, fan_out: usize) -> candle_nn::Init {
        match self {
            Self::Torch => uniform(1.0 / (fan_in as f64).sqrt()),
            Self::Glorot => uniform((6.0 / (fan_in + fan_out) as f64).sqrt()),
            Self::Small => candle_nn::Init::Randn {
                mean: 0.0,
                stdev: 0.02,
            },
            Self::He => candle_nn::Init::Randn {
                mean: 0.0,
                stdev: (2.0 / fan_out as f64).sqrt(),
            },
        }
    }

    pub(crate) fn bias(self, fan_in: usize) -> candle_nn::Init {
        match self {
            Self::Torch => uniform(1.0 / (fan_in as f64).sqrt()),
            Self::Glorot | Self::He | Self::Small => candle_nn::init::ZERO,
        }
    }
}

fn uniform(bound: f64) -> candle_nn::Init {
    candle_nn::Init::Uniform {
        lo: -bound,
        up: bound,
    }
}
