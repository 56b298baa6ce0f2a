use std::io;
use std::path::{Path, PathBuf};

/// Any error of an experiment, as it crosses from the experiment to the runner.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with tables, the store and reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read, written, locked or renamed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb that failed: "read", "write", "lock".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A table's TOML does not have the form of a table.
    #[error("{}: {source}", path.display())]
    Toml {
        /// The TOML file.
        path: PathBuf,
        /// Line, column and the names that are known there.
        source: Box<toml::de::Error>,
    },
    /// A table's CSV of printed numbers cannot be parsed.
    #[error("{}: {source}", path.display())]
    Csv {
        /// The CSV file.
        path: PathBuf,
        /// Line and reason.
        source: csv::Error,
    },
    /// A table is well-formed but contradicts itself or its CSV.
    #[error("{}: {problem}", path.display())]
    Table {
        /// The file that holds the contradiction.
        path: PathBuf,
        /// The value and what would be right.
        problem: String,
    },
    /// A name that nothing bears.
    #[error("{place}: unknown {what} \"{name}\"; known: {known}")]
    Unknown {
        /// The file or argument that used the name.
        place: String,
        /// The kind of thing: "row", "column", "reading".
        what: &'static str,
        /// The name as given.
        name: String,
        /// The names that exist, separated by commas.
        known: String,
    },
    /// The merged settings of a cell do not fit the experiment's settings.
    #[error("{}: row \"{row}\", column \"{column}\": {problem}", path.display())]
    Settings {
        /// The TOML file.
        path: PathBuf,
        /// The row of the cell.
        row: String,
        /// The column of the cell.
        column: String,
        /// The key, and the keys or values that are known.
        problem: String,
    },
    /// A value could not be turned into JSON.
    #[error("cannot write {what} as JSON: {source}")]
    Json {
        /// What was being written.
        what: String,
        /// serde's reason.
        source: serde_json::Error,
    },
    /// A file in the store is not what its name says.
    #[error("{}: {problem}; delete it and run again", path.display())]
    Corrupt {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Making an artefact failed; its partial folder is kept and resumed next time.
    #[error("{stage}: {source}")]
    Make {
        /// The stage given to `memo`.
        stage: String,
        /// The error of the closure.
        source: BoxError,
    },
    /// A figure could not be drawn.
    #[error("cannot draw {name}: {reason}")]
    Plot {
        /// The table's id.
        name: String,
        /// The drawing library's reason.
        reason: String,
    },
    /// An argument of the command line has no meaning.
    #[error("{argument}: {problem}")]
    Argument {
        /// The option, as typed.
        argument: &'static str,
        /// The value and what would be right.
        problem: String,
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

    pub(crate) fn table(path: &Path, problem: impl Into<String>) -> Self {
        Self::Table {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    /// An unknown name, with the known ones listed.
    pub fn unknown<'a>(
        place: impl Into<String>,
        what: &'static str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut known = known.into_iter().collect::<Vec<_>>().join(", ");
        if known.is_empty() {
            known = "none".into();
        }
        Self::Unknown {
            place: place.into(),
            what,
            name: name.into(),
            known,
        }
    }
}

/// The user asked the run to stop. The work done so far stays in the store.
///
/// A loop that returns this error when [`Lab::interrupted`](crate::Lab::interrupted) is true is
/// resumed, not reported as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; run the same command again to continue")]
pub struct Interrupted;
