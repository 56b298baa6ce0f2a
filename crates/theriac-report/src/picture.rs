//! Pictures as data.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The least width of a shown picture.
const SHOWN: u32 = 96;

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
    /// The bytes: row by row, a pixel's channels side by side (H, W, C). Base64 in JSON.
    #[serde(with = "base64_text")]
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

impl Picture {
    /// Whether the bytes are as many as the pixels need.
    pub(crate) fn validate(&self, place: impl Fn() -> String) -> Result<()> {
        let (width, height, channels) = (self.width, self.height, self.colour.channels());
        if width == 0 || height == 0 {
            return Err(Error::Value {
                place: place(),
                what: "the picture's size".into(),
                value: format!("{width} x {height}"),
                fix: "a picture has at least one pixel",
            });
        }
        let expected = (u64::from(width) * u64::from(height)).saturating_mul(channels as u64);
        if self.bytes.len() as u64 != expected {
            return Err(Error::Picture {
                place: place(),
                width,
                height,
                channels,
                found: self.bytes.len(),
                expected,
            });
        }
        Ok(())
    }

    /// By how much the picture is enlarged where it is shown: small ones to a size at which pixels
    /// can be told apart.
    pub(crate) fn enlargement(&self) -> u32 {
        SHOWN.div_ceil(self.width.max(1))
    }

    /// The picture as a PNG, each pixel as a square of `times` pixels.
    pub(crate) fn png(&self, times: u32) -> Result<Vec<u8>> {
        let size = (
            self.width.saturating_mul(times),
            self.height.saturating_mul(times),
        );
        let colour = match self.colour {
            Colour::Grey => png::ColorType::Grayscale,
            Colour::Rgb => png::ColorType::Rgb,
        };
        let encode = || {
            let mut out = Vec::new();
            let mut encoder = png::Encoder::new(&mut out, size.0, size.1);
            encoder.set_color(colour);
            encoder.set_depth(png::BitDepth::Eight);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.enlarged(times as usize))?;
            writer.finish()?;
            Ok(out)
        };
        encode().map_err(|source| Error::Png {
            width: size.0,
            height: size.1,
            source,
        })
    }

    fn enlarged(&self, times: usize) -> Vec<u8> {
        let channels = self.colour.channels();
        let row = self.width as usize * channels;
        let mut out = Vec::with_capacity(self.bytes.len() * times * times);
        for row in self.bytes.chunks(row.max(1)) {
            let wide: Vec<u8> = row
                .chunks(channels)
                .flat_map(|pixel| pixel.repeat(times))
                .collect();
            out.extend_from_slice(&wide.repeat(times));
        }
        out
    }

    /// The picture in the page itself.
    pub(crate) fn data_uri(&self) -> Result<String> {
        let png = BASE64_STANDARD.encode(self.png(1)?);
        Ok(format!("data:image/png;base64,{png}"))
    }
}

/// Bytes as base64: a tenth of a list of numbers.
mod base64_text {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64_STANDARD.decode(text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png))
            .read_info()
            .unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        bytes.truncate(info.buffer_size());
        (info.width, info.height, bytes)
    }

    fn picture() -> impl Strategy<Value = Picture> {
        (
            1..6u32,
            1..6u32,
            prop_oneof![Just(Colour::Grey), Just(Colour::Rgb)],
        )
            .prop_flat_map(|(width, height, colour)| {
                let bytes = (width * height) as usize * colour.channels();
                prop::collection::vec(any::<u8>(), bytes)
                    .prop_map(move |bytes| Picture::new(width, height, colour, bytes))
            })
    }

    proptest! {
        #[test]
        fn a_png_holds_the_pixels_and_an_enlarged_one_holds_each_as_a_square(
            picture in picture(),
            times in 1..4u32,
        ) {
            let (width, height, bytes) = decode(&picture.png(times).unwrap());
            prop_assert_eq!((width, height), (picture.width * times, picture.height * times));
            let channels = picture.colour.channels();
            for (index, pixel) in bytes.chunks(channels).enumerate() {
                let (x, y) = (index as u32 % width / times, index as u32 / width / times);
                let from = (y * picture.width + x) as usize * channels;
                prop_assert_eq!(pixel, &picture.bytes[from..from + channels]);
            }
        }

        #[test]
        fn json_gives_the_same_picture_back(picture in picture()) {
            let json = serde_json::to_string(&picture).unwrap();
            prop_assert_eq!(serde_json::from_str::<Picture>(&json).unwrap(), picture);
        }
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused_with_both_numbers() {
        let place = || "here".to_owned();
        let error = Picture::rgb(2, 3, vec![0; 6])
            .validate(place)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("here: 6 bytes for 2 x 3 pixels of 3 bytes, expected 18:"),
            "{error}"
        );
        assert!(Picture::grey(0, 3, vec![]).validate(place).is_err());
        assert!(
            Picture::rgb(u32::MAX, u32::MAX, vec![])
                .validate(place)
                .is_err()
        );
        Picture::grey(2, 3, vec![0; 6]).validate(place).unwrap();
    }

    #[test]
    fn small_pictures_are_shown_large_and_large_ones_as_they_are() {
        let shown = |width| width * Picture::grey(width, 1, vec![]).enlargement();
        assert_eq!([8, 28, 32, 96, 224].map(shown), [96, 112, 96, 96, 224]);
    }
}
