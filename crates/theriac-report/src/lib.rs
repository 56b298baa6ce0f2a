#![doc = include_str!("../README.md")]

mod error;
mod figure;
mod html;
mod markdown;
mod model;
mod picture;
mod plot;
mod prose;
mod validate;
mod write;

pub use error::{Error, Result};
pub use figure::{Axis, Bar, Bars, Curve, Line, Mark, Scale, Stroke};
pub use model::{
    Block, Cell, Check, Details, Fact, Finding, Head, Kind, Page, Section, Table, Verdict,
};
pub use picture::{Colour, ImageRow, Images, Picture};
