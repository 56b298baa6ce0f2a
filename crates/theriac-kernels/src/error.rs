/// What a kernel refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A slice does not have the length its shape asks for.
    #[error("{what} has {got} elements, the shape needs {expected}; pass a slice of that length")]
    Length {
        /// The argument's name.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length the shape implies.
        expected: usize,
    },
    /// A geometry that describes no computation.
    #[error("{what} is {got}; {fix}")]
    Geometry {
        /// The parameter's name.
        what: &'static str,
        /// Its value.
        got: String,
        /// What would be accepted.
        fix: String,
    },
    /// A class label outside the logits' columns.
    #[error("label {label} of sample {sample} is out of range; use labels below {classes}")]
    Label {
        /// Index of the sample in the batch.
        sample: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
}

/// Result of a kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// Refuses a slice of the wrong length.
pub(crate) fn check_len<T>(what: &'static str, slice: &[T], expected: usize) -> Result<()> {
    if slice.len() == expected {
        return Ok(());
    }
    Err(Error::Length {
        what,
        got: slice.len(),
        expected,
    })
}

/// Refuses a geometry, naming the value and the fix.
pub(crate) fn geometry(what: &'static str, got: impl ToString, fix: impl ToString) -> Error {
    Error::Geometry {
        what,
        got: got.to_string(),
        fix: fix.to_string(),
    }
}
