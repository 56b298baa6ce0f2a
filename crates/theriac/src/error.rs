//! The error type of the traits.

/// Any error that can cross a thread.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between an image and an adversarial image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// Pixels outside [0, 1].
    #[error(
        "pixels lie in [{min}, {max}], expected [0, 1]: divide bytes by 255 (Pixels::from_bytes) \
         and leave normalisation to the model's first layer"
    )]
    Range {
        /// Smallest value found.
        min: f64,
        /// Largest value found.
        max: f64,
    },

    /// NaN or infinity.
    #[error("{what} holds {count} values that are not finite (NaN or infinity){first}: {remedy}")]
    NotFinite {
        /// The tensor.
        what: &'static str,
        /// How many.
        count: usize,
        /// Where, in words that end the clause, or nothing.
        first: String,
        /// What to do.
        remedy: &'static str,
    },

    /// A tensor of the wrong shape.
    #[error("{what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shape in words.
        expected: String,
    },

    /// An empty batch.
    #[error("{what} is empty: a batch needs at least one image")]
    Empty {
        /// The tensor.
        what: &'static str,
    },

    /// A perturbation size that cannot be meant.
    #[error("epsilon {value}: {remedy}")]
    Eps {
        /// The text or number given.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },

    /// A label that is not a class.
    #[error("label {label} at position {position} is not a class: expected 0..{classes}")]
    Label {
        /// The label.
        label: u32,
        /// Where it stands in the batch.
        position: usize,
        /// Number of classes.
        classes: usize,
    },

    /// An adversarial image farther from its clean image than allowed.
    #[error("image {position} moved by {spent} in {norm}, allowed {eps}: the attack left its ball")]
    OverBudget {
        /// Position in the batch.
        position: usize,
        /// The distance found.
        spent: f64,
        /// Name of the norm.
        norm: String,
        /// The distance allowed.
        eps: f64,
    },

    /// The ids of a pass do not match its images.
    #[error(
        "the pass names {samples} sample ids but the tensor holds {images} images: build the pass \
         with the ids of this batch, they key the random numbers"
    )]
    Samples {
        /// Ids in the pass.
        samples: usize,
        /// Images in the tensor.
        images: usize,
    },

    /// A setting that is out of its range.
    #[error("{name} = {value}: {remedy}")]
    Setting {
        /// The field.
        name: &'static str,
        /// The value given.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },

    /// A device that this build or machine does not have.
    #[error("device {name:?}: {reason}; use cpu, cuda:N (built with --features cuda) or metal:N")]
    Device {
        /// The name given.
        name: String,
        /// Why not.
        reason: String,
    },

    /// An error of an implementor of the traits.
    #[error(transparent)]
    Other(#[from] BoxError),
}

/// An error if what belongs to any image is not finite; names the first such image.
pub(crate) fn finite(
    what: &'static str,
    broken: impl Iterator<Item = bool>,
    samples: &[u32],
) -> Result<()> {
    let at: Vec<usize> = broken
        .enumerate()
        .filter(|(_, b)| *b)
        .map(|(i, _)| i)
        .collect();
    let Some(&first) = at.first() else {
        return Ok(());
    };
    let first = match samples.get(first) {
        Some(id) => format!(", first for the image with id {id}"),
        None => format!(", first at position {first} of the batch"),
    };
    Err(Error::NotFinite {
        what,
        count: at.len(),
        first,
        remedy: "check the model's weights and its last layers for overflow",
    })
}
