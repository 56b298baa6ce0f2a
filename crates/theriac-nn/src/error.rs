//! What can go wrong between a network and a file.

use std::path::PathBuf;

/// Errors of parameters and checkpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{path}: {source}; check that the folder exists, is writable and has space")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },

    /// The file is no safetensors file, or is cut off.
    #[error("{path}: not a whole safetensors file ({reason}); fetch or save it again")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },

    /// Names or shapes that do not fit the network.
    #[error(
        "{path}: does not fit this network. Missing: {missing:?}. Unexpected: {unexpected:?}. \
         Shape differs: {misshapen:?}. Build the network that the file was saved from, or rename \
         its tensors to these parameter paths"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Parameters of the network that the file lacks.
        missing: Vec<String>,
        /// Tensors of the file that the network lacks.
        unexpected: Vec<String>,
        /// Name, shape in the file, shape in the network.
        misshapen: Vec<String>,
    },

    /// One parameter asked for with two shapes.
    #[error("parameter {name:?} exists with shape {have:?} and was asked for with shape {want:?}")]
    Reshaped {
        /// The path.
        name: String,
        /// The shape it has.
        have: Vec<usize>,
        /// The shape asked for.
        want: Vec<usize>,
    },

    /// A tensor of the file that is not there.
    #[error("{path}: no tensor {name:?}; the file holds {holds:?}")]
    Absent {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it holds instead.
        holds: Vec<String>,
    },

    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<Error> for theriac::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => Self::Candle(error),
            other => theriac::BoxError::from(other).into(),
        }
    }
}
