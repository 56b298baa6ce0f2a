//! Pictures as data.

use serde::{Deserialize, Serialize};

/// A grid of pictures: clean, adversarial, their difference.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// What the grid shows, in prose.
    pub caption: String,
    /// What the columns show; plain text.
    pub columns: Vec<String>,
    /// The rows, with a picture for each column.
    pub rows: Vec<ImageRow>,
}

/// A row of pictures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRow {
    /// What the pictures show, in prose.
    pub label: String,
    /// One for each column.
    pub pictures: Vec<Picture>,
}

impl ImageRow {
    /// A row.
    pub fn new(label: impl Into<String>, pictures: Vec<Picture>) -> Self {
        Self {
            label: label.into(),
            pictures,
        }
    }
}

/// A small picture. It is shown enlarged, pixel by pixel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// What a pixel's bytes are.
    pub colour: Colour,
    /// The bytes: row by row, a pixel's channels side by side (H, W, C).
    pub bytes: Vec<u8>,
    /// What it shows, for those who do not see it; plain text. Row and column where empty.
    #[serde(default)]
    pub alt: String,
}

/// What the bytes of a pixel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colour {
    /// One byte, 0 for black.
    Grey,
    /// Red, green, blue.
    Rgb,
}

impl Colour {
    /// Bytes of a pixel.
    pub const fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

impl Picture {
    /// A grey picture.
    pub fn grey(width: u32, height: u32, bytes: Vec<u8>) -> Self {
        Self::new(width, height, Colour::Grey, bytes)
    }

    /// A picture in colour.
    pub fn rgb(width: u32, height: u32, bytes: Vec<u8>) -> Self {
        Self::new(width, height, Colour::Rgb, bytes)
    }

    fn new(width: u32, height: u32, colour: Colour, bytes: Vec<u8>) -> Self {
        Self {
            width,
            height,
            colour,
            bytes,
            alt: String::new(),
        }
    }

    /// The same picture with a text for those who do not see it.
    #[must_use]
    pub fn with_alt(mut self, alt: impl Into<String>) -> Self {
        self.alt = alt.into();
        self
    }
}
