//! Logs, set up at the edge of a program: libraries only emit `tracing` events.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::ui::Ui;
use crate::{Error, Result};

/// Sends events of `level` ("warn", "info", "debug,theriac_train=trace") to `ui`, and everything
/// from debug upwards as JSON lines to the file `json`.
///
/// # Errors
/// If the level cannot be parsed, the file cannot be made, or logging is set up already.
pub fn init(level: &str, json: Option<&Path>, ui: &Ui) -> Result<()> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|error| Error::Argument {
            argument: "--log",
            problem: format!("\"{level}\": {error}; known: off, error, warn, info, debug, trace"),
        })?;
    let ui = ui.clone();
    let plain = fmt::layer()
        .with_writer(move || ui.clone())
        .with_filter(filter);
    let json = match json {
        Some(path) => {
            let file = File::create(path).map_err(Error::io("write", path))?;
            let everything = EnvFilter::new("debug");
            Some(
                fmt::layer()
                    .json()
                    .with_writer(Arc::new(file))
                    .with_filter(everything),
            )
        }
        None => None,
    };
    tracing_subscriber::registry()
        .with(plain)
        .with(json)
        .try_init()
        .map_err(|error| Error::Argument {
            argument: "--log",
            problem: error.to_string(),
        })
}
