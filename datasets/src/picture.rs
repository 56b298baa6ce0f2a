//! PNG to and from channel planes.

use std::io::Cursor;

use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Filter, Transformations};

/// An image of 8-bit channel planes, shape (C, H, W).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) shape: [usize; 3],
    pub(crate) planes: Vec<u8>,
}

impl Picture {
    /// Reads an 8-bit grey or RGB PNG file (or one that expands to it without loss).
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut decoder = Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(Transformations::EXPAND);
        let mut reader = decoder
            .read_info()
            .map_err(|e| format!("not a PNG file: {e}"))?;
        let (color, depth) = reader.output_color_type();
        let channels = match (color, depth) {
            (ColorType::Grayscale, BitDepth::Eight) => 1,
            (ColorType::Rgb, BitDepth::Eight) => 3,
            other => return Err(format!("PNG of {other:?}, expected 8-bit grey or RGB")),
        };
        let length = reader.output_buffer_size().ok_or("PNG too large")?;
        let mut interleaved = vec![0; length];
        reader
            .next_frame(&mut interleaved)
            .map_err(|e| format!("damaged PNG file: {e}"))?;
        let (width, height) = reader.info().size();
        let planes = (0..channels)
            .flat_map(|c| interleaved.iter().skip(c).step_by(channels).copied())
            .collect();
        Ok(Self {
            shape: [channels, height as usize, width as usize],
            planes,
        })
    }

    /// The smallest of the PNG files that the filters of the format give.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        let [channels, height, width] = self.shape;
        let color = match channels {
            1 => ColorType::Grayscale,
            3 => ColorType::Rgb,
            _ => return Err(format!("{channels} channels; a PNG file takes 1 or 3")),
        };
        let area = height * width;
        let interleaved: Vec<u8> = (0..area)
            .flat_map(|i| (0..channels).map(move |c| c * area + i))
            .map(|i| self.planes[i])
            .collect();
        let one = |filter| -> Result<Vec<u8>, png::EncodingError> {
            let mut out = Vec::new();
            let mut encoder = Encoder::new(&mut out, width as u32, height as u32);
            encoder.set_color(color);
            encoder.set_depth(BitDepth::Eight);
            encoder.set_compression(Compression::High);
            encoder.set_filter(filter);
            encoder.write_header()?.write_image_data(&interleaved)?;
            Ok(out)
        };
        let filters = [Filter::NoFilter, Filter::Paeth, Filter::Adaptive];
        let files = filters.map(one).into_iter().collect::<Result<Vec<_>, _>>();
        let files = files.map_err(|e| format!("cannot write a PNG file: {e}"))?;
        files
            .into_iter()
            .min_by_key(Vec::len)
            .ok_or_else(|| "no filter".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_of_grey_and_colour() {
        for channels in [1, 3] {
            let planes = (0..channels * 6).map(|i| (i * 37) as u8).collect();
            let picture = Picture {
                shape: [channels, 2, 3],
                planes,
            };
            assert_eq!(
                Picture::decode(&picture.encode().unwrap()).unwrap(),
                picture
            );
        }
    }

    #[test]
    fn hostile_bytes_are_errors() {
        let picture = Picture {
            shape: [3, 4, 4],
            planes: (0..48).collect(),
        };
        let file = picture.encode().unwrap();
        assert!(Picture::decode(&[]).is_err());
        assert!(Picture::decode(&file[..file.len() / 2]).is_err());
        assert!(
            Picture {
                shape: [2, 1, 1],
                planes: vec![0, 0]
            }
            .encode()
            .is_err()
        );
    }
}
