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

/// Number of elements of a shape, if a slice of `f64` can have so many.
pub(crate) fn elements(what: &'static str, shape: &[usize]) -> Result<usize> {
    const MOST: usize = isize::MAX as usize / size_of::<f64>();
    shape
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .filter(|&product| product <= MOST)
        .ok_or_else(|| {
            geometry(
                what,
                format!("{shape:?}"),
                "no memory holds so many elements",
            )
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
