#![doc = include_str!("../README.md")]

mod cell;
mod claim;
mod error;
mod event;
pub mod interrupt;
mod lab;
pub mod log;
mod measured;
mod plot;
pub mod report;
mod results;
mod run;
mod scale;
mod store;
mod table;
mod text;
pub mod ui;

pub use cell::{Cell, CellName, CellSpec};
pub use claim::{Claim, Comparison, Judgement, Place};
pub use error::{BoxError, Error, Interrupted, Result};
pub use event::Event;
pub use interrupt::Interrupt;
pub use lab::Lab;
pub use measured::{Check, CheckOutcome, DRAWS, Machine, Measured, Outcome, Record};
pub use plot::svg;
pub use results::{Results, Statistics, Summary};
pub use run::{Experiment, device, main};
pub use scale::Scale;
pub use store::Store;
pub use table::{Column, Kind, Plot, Printed, Reading, Row, ScaleSettings, Selection, Table, Unit};
pub use text::{aligned, ours, text};
