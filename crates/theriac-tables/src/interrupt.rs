//! A polite request to stop.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, process, thread};

use crate::{Error, Interrupted, Result};

/// The exit status of a process that was interrupted: 128 + SIGINT.
pub const INTERRUPTED_STATUS: u8 = 130;

/// A flag that loops look at between batches. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Raised by Ctrl-C, SIGTERM or SIGHUP; the second time the process ends at once. Call it once
    /// in a process.
    ///
    /// # Errors
    /// If the process has a handler already.
    pub fn on_signal() -> Result<Self> {
        let interrupt = Self::default();
        let raised = interrupt.clone();
        ctrlc::set_handler(move || {
            if raised.0.swap(true, Ordering::SeqCst) {
                process::exit(INTERRUPTED_STATUS.into());
            }
        })
        .map_err(|error| Error::Argument {
            argument: "Ctrl-C",
            problem: format!("cannot be caught: {error}"),
        })?;
        Ok(interrupt)
    }

    /// Raises the flag also when standard input ends: the process that started this one is gone.
    pub fn at_end_of_input(&self) {
        let raised = self.clone();
        thread::spawn(move || {
            let mut byte = [0];
            while matches!(io::stdin().read(&mut byte), Ok(1)) {}
            raised.raise();
        });
    }

    /// Raises the flag.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the flag is raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// [`Interrupted`] if the flag is raised, for `?` in loops.
    ///
    /// # Errors
    /// If the flag is raised.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_raised() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }
}
