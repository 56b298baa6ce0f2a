//! Between (pixels, labels) and the published files.
//!
//! Only for bytes whose checksum is known: reading files of unknown origin, with every error a
//! hostile file deserves, is the work of the crate `theriac-data`.

use sha2::{Digest, Sha256};

use crate::Error;
use crate::description::{Description, Role, Split};
use crate::files::Files;

/// Images of one split: bytes of shape (N, C, H, W) and one label byte per image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) pixels: Vec<u8>,
    pub(crate) labels: Vec<u8>,
}

/// The unpacked files of a split in the order in which `content` has the images.
#[cfg(feature = "hub")]
pub(crate) fn encode(about: &Description, split: Split, content: &Content) -> Vec<Vec<u8>> {
    use crate::description::Format;
    let [_, height, width] = about.shape;
    let pixels: usize = about.shape.iter().product();
    // Checked by the caller to be the number in the description, far below 2^32.
    let be = |n: usize| (n as u32).to_be_bytes();
    match about.format {
        Format::Idx => {
            let n = content.labels.len();
            let images = [[0, 0, 8, 3], be(n), be(height), be(width)].concat();
            let labels = [[0, 0, 8, 1], be(n)].concat();
            vec![
                [&images[..], &content.pixels].concat(),
                [&labels[..], &content.labels].concat(),
            ]
        }
        Format::CifarBinary => {
            let per_file = about.of(split).next().map_or(1, |f| f.count);
            let images: Vec<_> = content.pixels.chunks(pixels).zip(&content.labels).collect();
            let record = |&(image, &label): &(&[u8], &u8)| [&[label], image].concat();
            images
                .chunks(per_file)
                .map(|part| part.iter().flat_map(record).collect())
                .collect()
        }
    }
}

/// The images of a split from its files, each of which is checked against its SHA-256 first.
pub(crate) fn decode(about: &Description, files: &Files, split: Split) -> Result<Content, Error> {
    let pixels: usize = about.shape.iter().product();
    let mut content = Content::default();
    for file in files.of(split) {
        let bytes = file.read_verified()?;
        match file.role {
            Role::Images => content.pixels.extend_from_slice(&bytes[16..]),
            Role::Labels => content.labels.extend_from_slice(&bytes[8..]),
            Role::Records => {
                for record in bytes.chunks(1 + pixels) {
                    content.labels.push(record[0]);
                    content.pixels.extend_from_slice(&record[1..]);
                }
            }
        }
    }
    Ok(content)
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
