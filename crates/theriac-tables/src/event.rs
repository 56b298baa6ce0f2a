use serde::{Deserialize, Serialize};

use crate::{CellName, Unit};

/// What a run tells of itself: one JSON line each with `--events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run begins; `stored` of its `total` cells need no work.
    Begin {
        /// All cells that were asked for.
        total: usize,
        /// Those whose measurement is in the store.
        stored: usize,
    },
    /// Work on a cell begins.
    Cell(CellName),
    /// A stage within a cell goes on.
    Progress {
        /// What is being done.
        label: String,
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// A cell has its value.
    Measured {
        /// Which cell.
        cell: CellName,
        /// The value.
        value: f64,
        /// Its unit.
        unit: Unit,
        /// How many images it is over.
        n: usize,
        /// The 95 % interval.
        interval: Option<(f64, f64)>,
        /// The verdict of its checks.
        verdict: Option<String>,
        /// What it cost.
        seconds: f64,
    },
    /// A cell could not be computed; the others go on.
    Failed {
        /// Which cell.
        cell: CellName,
        /// Why.
        reason: String,
    },
    /// The run is over.
    End {
        /// Cells measured now.
        measured: usize,
        /// Cells failed now.
        failed: usize,
        /// Whether it was asked to stop early.
        interrupted: bool,
    },
}
