use std::io;
use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a page cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that cannot be shown.
    #[error("{place}: {what} is {value}: {fix}")]
    Value {
        /// The section and block.
        place: String,
        /// Which value of the block.
        what: String,
        /// The value.
        value: String,
        /// What would be right.
        fix: &'static str,
    },
    /// A row of a table or of pictures that does not fit its heads.
    #[error("{place}: row {row} has {found}, expected {expected}: one for each column")]
    Row {
        /// The section and block.
        place: String,
        /// The row's number from 1 on, with its name.
        row: String,
        /// How many there are of what.
        found: String,
        /// The number of columns.
        expected: usize,
    },
    /// A picture whose bytes are not its pixels.
    #[error(
        "{place}: {found} bytes for {width} x {height} pixels of {channels} bytes, expected \
         {expected}: give the bytes row by row, channels last"
    )]
    Picture {
        /// The section, block, row and column.
        place: String,
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Bytes of a pixel.
        channels: usize,
        /// How many bytes there are.
        found: usize,
        /// How many there should be.
        expected: u64,
    },
    /// Two things of one anchor.
    #[error("anchor \"{id}\" of {second} is that of {first} too: give one of them another id")]
    Duplicate {
        /// The anchor.
        id: String,
        /// The first that has it.
        first: String,
        /// The second.
        second: String,
    },
    /// A link that leads nowhere.
    #[error("{place}: the link to \"#{target}\" leads nowhere; known anchors: {known}")]
    Link {
        /// The section and block.
        place: String,
        /// The anchor that is not there.
        target: String,
        /// The anchors that are, separated by commas.
        known: String,
    },
    /// A figure could not be drawn.
    #[error("cannot draw {name}: {reason}")]
    Plot {
        /// The caption.
        name: String,
        /// The drawing library's reason.
        reason: String,
    },
    /// A picture could not be encoded.
    #[error("cannot encode a picture of {width} x {height} pixels: {source}")]
    Png {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// The encoder's reason.
        source: png::EncodingError,
    },
    /// The template could not be filled.
    #[error("cannot fill the page's template: {0}")]
    Template(#[from] askama::Error),
    /// The page could not be turned into JSON.
    #[error("cannot write the page as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A file or folder could not be written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb that failed: "make", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
