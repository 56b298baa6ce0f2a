#![doc = include_str!("../README.md")]

mod figure;
mod model;
mod picture;

pub use figure::{Axis, Bar, Bars, Curve, Line, Mark, Scale, Stroke};
pub use model::{
    Block, Cell, Check, Details, Fact, Finding, Head, Kind, Page, Section, Table, Verdict,
};
pub use picture::{Colour, ImageRow, Images, Picture};
