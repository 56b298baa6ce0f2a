use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{BoxError, Cell, Event, Interrupt, Result, Scale, Store};

/// What an experiment works with: the store, the machine and a way to tell how far it is.
pub struct Lab {
    /// What was computed before.
    pub store: Store,
    /// The scale of the run.
    pub scale: Scale,
    /// The device to compute on: "cpu", "cuda:0", "metal:0".
    pub device: String,
    /// Where the data sets lie, if the user named a folder.
    pub data_dir: Option<PathBuf>,
    /// How many threads to use, if the user gave a number.
    pub threads: Option<usize>,
    /// Raised when the user wants the run to stop.
    pub interrupt: Interrupt,
    events: Box<dyn Fn(&Event) + Send + Sync>,
}

impl Lab {
    /// A lab on the CPU that tells nobody how far it is.
    pub fn quiet(store: Store, scale: Scale) -> Self {
        Self::new(store, scale, Interrupt::default(), |_| {})
    }

    pub(crate) fn new(
        store: Store,
        scale: Scale,
        interrupt: Interrupt,
        events: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Self {
        Self {
            store,
            scale,
            device: "cpu".into(),
            data_dir: None,
            threads: None,
            interrupt,
            events: Box::new(events),
        }
    }

    /// Tells the user that `done` of `total` steps of the stage `label` are done.
    pub fn progress(&self, label: &str, done: u64, total: u64) {
        self.tell(&Event::Progress {
            label: label.into(),
            done,
            total,
        });
    }

    /// Whether the user wants the run to stop. Loops look between batches, save their state and
    /// return [`Interrupted`](crate::Interrupted).
    pub fn interrupted(&self) -> bool {
        self.interrupt.is_raised()
    }

    /// [`Store::memo`] with the cell's seed and its table's revision added to the `spec`. Cells of
    /// other tables share the artefact if stage, spec, seed and revision are the same.
    ///
    /// # Errors
    /// As [`Store::memo`].
    pub fn memo(
        &self,
        cell: &Cell<'_>,
        stage: &str,
        spec: &impl Serialize,
        make: impl FnOnce(&Path) -> Result<(), BoxError>,
    ) -> Result<PathBuf> {
        #[derive(Serialize)]
        struct Whole<'s, S> {
            revision: u32,
            seed: u64,
            spec: &'s S,
        }
        let whole = Whole {
            revision: cell.table.revision,
            seed: cell.seed,
            spec,
        };
        self.store.memo(stage, &whole, make)
    }

    pub(crate) fn tell(&self, event: &Event) {
        (self.events)(event);
    }
}
