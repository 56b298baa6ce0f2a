//! What can be wrong with a file.

use crate::ops;

/// Why a file is no classifier that can be attacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },

    /// The bytes are no ONNX.
    #[error(
        "{file} is not an ONNX model: {reason}; export it again, or fetch it again if it is cut off"
    )]
    Format {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },

    /// Inputs, outputs or versions that do not fit.
    #[error("{file}: {reason}")]
    Graph {
        /// The file.
        file: String,
        /// What, with the remedy.
        reason: String,
    },

    /// An operation that is not supported.
    #[error("{file}: {node} is not supported{}; supported are {}", also(.more), ops::names())]
    Operation {
        /// The file.
        file: String,
        /// Operation and name of the node.
        node: String,
        /// Other operations in the file that are not supported.
        more: Vec<String>,
    },

    /// A quantised model.
    #[error(
        "{file} is quantised ({node}): rounding has no gradient to attack; give the model as it was \
         before quantisation"
    )]
    Quantised {
        /// The file.
        file: String,
        /// The first node that rounds.
        node: String,
    },

    /// A node with something that is not supported or makes no sense.
    #[error("{file}: {node}: {reason}")]
    Node {
        /// The file.
        file: String,
        /// Operation and name of the node.
        node: String,
        /// What, with the remedy.
        reason: String,
    },
}

fn also(more: &[String]) -> String {
    match more {
        [] => String::new(),
        _ => format!(", nor {}", more.join(", ")),
    }
}

impl From<Error> for theriac::Error {
    fn from(error: Error) -> Self {
        Self::Other(Box::new(error))
    }
}

/// What is wrong, before it is known where.
#[derive(Debug)]
pub(crate) struct Reason(pub(crate) String);

/// The result of everything below a node.
pub(crate) type Said<T> = Result<T, Reason>;

impl From<String> for Reason {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

impl From<candle_core::Error> for Reason {
    fn from(error: candle_core::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<theriac::Error> for Reason {
    fn from(error: theriac::Error) -> Self {
        Self(error.to_string())
    }
}

/// Refuses with a reason.
macro_rules! refuse {
    ($($text:tt)*) => { return Err($crate::error::Reason(format!($($text)*))) };
}

/// Refuses with a reason unless something holds.
macro_rules! require {
    ($holds:expr, $($text:tt)*) => { match $holds { true => {} false => $crate::error::refuse!($($text)*) } };
}

pub(crate) use {refuse, require};
