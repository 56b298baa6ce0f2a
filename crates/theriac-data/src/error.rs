//! What can go wrong between a file and a batch.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure names the file or setting, the value that was found, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened, read or unpacked.
    #[error(
        "{}: cannot read it: {source}; check the path, or fetch the file again",
        .path.display()
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The first bytes are not those of the format.
    #[error(
        "{}: starts with {found:#010x}, expected {expected:#010x} ({what}); images and labels may \
         be swapped, or this is another format",
        .path.display()
    )]
    Magic {
        /// The file.
        path: PathBuf,
        /// The first four bytes, most significant first.
        found: u32,
        /// What they must be.
        expected: u32,
        /// The format in words.
        what: &'static str,
    },
    /// Too few bytes.
    #[error(
        "{}: ends after {found} bytes, expected {expected}; the file is cut off, fetch it again",
        .path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Unpacked bytes found.
        found: u64,
        /// Unpacked bytes expected.
        expected: u64,
    },
    /// Too many bytes.
    #[error(
        "{}: goes on after the {expected} bytes that it announces; it is not one IDX file, fetch \
         it again",
        .path.display()
    )]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Unpacked bytes expected.
        expected: u64,
    },
    /// A length that is no whole number of records.
    #[error(
        "{}: {found} bytes are not one or more records of {record}; the file is cut off or of \
         another format",
        .path.display()
    )]
    Records {
        /// The file.
        path: PathBuf,
        /// Unpacked bytes found.
        found: u64,
        /// Bytes of a record.
        record: usize,
    },
    /// A header that announces no image, or images of no size.
    #[error("{}: announces dimensions {dims:?}; each must be positive", .path.display())]
    Dimensions {
        /// The file.
        path: PathBuf,
        /// Dimensions found.
        dims: Vec<u32>,
    },
    /// A label that is not a class.
    #[error(
        "{origin}: label {label} of image {position} is not a class, expected 0..{classes}; the \
         file is damaged or the number of classes is wrong"
    )]
    Label {
        /// File or data set.
        origin: String,
        /// The label found.
        label: u32,
        /// Which image has it.
        position: usize,
        /// Number of classes.
        classes: usize,
    },
    /// A picture that cannot be decoded, or of another size.
    #[error("{}: {what}; the file is damaged or of another data set, fetch it again", .path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A line of a text file that is not what it should be.
    #[error("{}: line {line} is not {expected}; fetch the file again", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What it should be.
        expected: &'static str,
    },
    /// Images, labels or ids that do not pair up.
    #[error(
        "{origin}: {images} images but {entries} {what}; take all files from the same split of \
         the same data set"
    )]
    Counts {
        /// Files or data set.
        origin: String,
        /// Number of images.
        images: usize,
        /// Number of the others.
        entries: usize,
        /// What the others are.
        what: &'static str,
    },
    /// An index past the end.
    #[error("{origin}: no image {index}, it has {len}; use indices 0..{len}")]
    Index {
        /// Name of the data set.
        origin: String,
        /// The index asked for.
        index: u32,
        /// Number of images.
        len: usize,
    },
    /// A setting that cannot be meant.
    #[error("{name} = {value}: {remedy}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: String,
        /// What to write instead.
        remedy: String,
    },
    /// The batch could not be built.
    #[error(transparent)]
    Batch(#[from] theriac::Error),
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

impl From<Error> for theriac::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Batch(inner) => inner,
            Error::Candle(inner) => Self::Candle(inner),
            other => Self::Other(Box::new(other)),
        }
    }
}
