//! What can go wrong between a name and its files.

use std::path::{Path, PathBuf};

/// Every failure names the file or key, the value that was found, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No description carries this name.
    #[error("unknown data set `{name}`; known are: {known}")]
    UnknownName {
        /// The name as asked for.
        name: String,
        /// All names, comma-separated.
        known: String,
    },
    /// A description does not parse or contradicts itself.
    #[error("description of `{name}`: {problem}; correct its TOML file")]
    Description {
        /// Name or first line of the description.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A file that must be there is not.
    #[error("{}: missing, but `{dataset}` needs it; {remedy}", .path.display())]
    Missing {
        /// Name of the data set.
        dataset: String,
        /// The missing file or folder.
        path: PathBuf,
        /// Ways out.
        remedy: String,
    },
    /// A file has the wrong length, so it cannot be the published one.
    #[error(
        "{}: {found} bytes when unpacked, expected {expected}; delete it and fetch it again",
        .path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Length found, unpacked.
        found: u64,
        /// Length expected, unpacked.
        expected: u64,
    },
    /// The bytes differ from the published ones.
    #[error(
        "{file}: SHA-256 of the unpacked bytes is {found}, expected {expected} (from {origin}); \
         nothing was stored from it: delete the file and fetch it again, or use another source"
    )]
    Checksum {
        /// File name in the description.
        file: String,
        /// Where the bytes came from: a path or a hub repository.
        origin: String,
        /// Digest found.
        found: String,
        /// Digest expected.
        expected: String,
    },
    /// No local copy, and downloads were not allowed.
    #[error("`{dataset}` has no local copy and downloads are switched off; {remedy}")]
    Offline {
        /// Name of the data set.
        dataset: String,
        /// Ways out.
        remedy: String,
    },
    /// A download needs a folder to put the files in.
    #[error(
        "`{dataset}` has no local copy and there is no store to download it to; \
         pass --store FOLDER, or {remedy}"
    )]
    NoStore {
        /// Name of the data set.
        dataset: String,
        /// Ways out.
        remedy: String,
    },
    /// The crate was built without its feature `hub`.
    #[error(
        "`{dataset}` has no local copy and this build cannot download; build theriac-datasets \
         with `--features hub`, or {remedy}"
    )]
    NoHub {
        /// Name of the data set.
        dataset: String,
        /// Ways out.
        remedy: String,
    },
    /// Weights on the hub have another form of name.
    #[error(
        "`{text}` names no weights; write OWNER/NAME, OWNER/NAME/FILE or OWNER/NAME@REVISION/FILE"
    )]
    Weights {
        /// The name as asked for.
        text: String,
    },
    /// The network or the server failed.
    #[error("download of {file} from {origin} failed: {cause}; {remedy}")]
    Download {
        /// File in the repository.
        file: String,
        /// Endpoint and repository.
        origin: String,
        /// What the client reported.
        cause: String,
        /// Ways out.
        remedy: String,
    },
    /// A downloaded file does not hold what its description promises.
    #[error("{}: {problem}; the source has changed or the file is damaged", .path.display())]
    Content {
        /// The downloaded file.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
    /// An embedded sample does not exist or does not decode.
    #[error("embedded sample of `{name}`: {problem}")]
    Sample {
        /// Name of the data set.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }
}
