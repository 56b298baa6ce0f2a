//! IDX, the format of MNIST and Fashion-MNIST: a big-endian magic number `00 00 08 d` for
//! unsigned bytes in `d` dimensions, the `d` sizes as big-endian u32, the bytes.

use std::path::Path;

use crate::bytes::{open, read};
use crate::dataset::check_labels;
use crate::{Error, Images, Result};

impl Images {
    /// Reads one split of (Fashion-)MNIST: an IDX3 file of grey images, shape (N, H, W), and an
    /// IDX1 file of labels, shape (N), each plain or gzip.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Magic`], [`Error::Truncated`], [`Error::Trailing`],
    /// [`Error::Dimensions`], [`Error::Label`] or [`Error::Counts`], naming the file.
    pub fn from_idx(name: &str, images: &Path, labels: &Path, classes: usize) -> Result<Self> {
        let ([n, height, width], pixels) =
            read_idx::<3>(images, 0x0000_0803, "IDX3, images of unsigned bytes")?;
        let ([found], classes_of) =
            read_idx::<1>(labels, 0x0000_0801, "IDX1, labels of unsigned bytes")?;
        check_labels(&labels.display().to_string(), &classes_of, classes)?;
        if n != found {
            return Err(Error::Counts {
                origin: format!("{} and {}", images.display(), labels.display()),
                images: n as usize,
                entries: found as usize,
                what: "labels",
            });
        }
        tracing::debug!(path = %images.display(), n, height, width, "read IDX");
        Self::new(
            name,
            pixels,
            classes_of,
            [1, height as usize, width as usize],
            classes,
        )
    }
}

/// Sizes and bytes of one file.
fn read_idx<const D: usize>(
    path: &Path,
    magic: u32,
    what: &'static str,
) -> Result<([u32; D], Vec<u8>)> {
    let mut reader = open(path)?;
    let header = 4 * (1 + D as u64);
    let start = read(&mut reader, header, path)?;
    let mut words = start.chunks_exact(4).map(|word| {
        word.iter()
            .fold(0, |value, &byte| value << 8 | u32::from(byte))
    });
    // The magic number first: in another format the length means nothing.
    match words.next() {
        Some(found) if found != magic => {
            return Err(Error::Magic {
                path: path.to_owned(),
                found,
                expected: magic,
                what,
            });
        }
        _ => {}
    }
    let mut dims = [0; D];
    if words.len() != D {
        let found = start.len() as u64;
        return Err(Error::Truncated {
            path: path.to_owned(),
            found,
            expected: header,
        });
    }
    dims.iter_mut()
        .zip(words)
        .for_each(|(dim, word)| *dim = word);
    let product = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim.into()));
    let length = product.filter(|&length| length > 0 && length < 1 << 40);
    let Some(length) = length else {
        return Err(Error::Dimensions {
            path: path.to_owned(),
            dims: dims.to_vec(),
        });
    };
    let bytes = read(&mut reader, length + 1, path)?;
    let (found, expected) = (header + bytes.len() as u64, header + length);
    if found < expected {
        return Err(Error::Truncated {
            path: path.to_owned(),
            found,
            expected,
        });
    }
    if found > expected {
        return Err(Error::Trailing {
            path: path.to_owned(),
            expected,
        });
    }
    Ok((dims, bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::Dataset;

    fn idx(dims: &[u32], bytes: &[u8]) -> Vec<u8> {
        let magic = [0, 0, 8, dims.len() as u8];
        let dims = dims.iter().flat_map(|dim| dim.to_be_bytes());
        magic
            .into_iter()
            .chain(dims)
            .chain(bytes.iter().copied())
            .collect()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    struct Pair {
        _folder: TempDir,
        images: PathBuf,
        labels: PathBuf,
    }

    impl Pair {
        fn write(images: &[u8], labels: &[u8]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let [i, l] = ["images", "labels"].map(|name| folder.path().join(name));
            fs::write(&i, images).unwrap();
            fs::write(&l, labels).unwrap();
            Self {
                _folder: folder,
                images: i,
                labels: l,
            }
        }

        fn read(&self) -> Result<Images> {
            Images::from_idx("pair", &self.images, &self.labels, 3)
        }
    }

    fn error(images: &[u8], labels: &[u8]) -> Error {
        Pair::write(images, labels).read().unwrap_err()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip_plain_and_packed(
            (height, width, images, labels) in (1..5usize, 1..5usize, 1..6usize)
                .prop_flat_map(|(h, w, n)| {
                    let images = prop::collection::vec(any::<u8>(), n * h * w);
                    (Just(h), Just(w), images, prop::collection::vec(0..3u8, n))
                }),
            pack_images in any::<bool>(),
            pack_labels in any::<bool>(),
        ) {
            let n = labels.len() as u32;
            let mut files = [
                idx(&[n, height as u32, width as u32], &images),
                idx(&[n], &labels),
            ];
            for (file, pack) in files.iter_mut().zip([pack_images, pack_labels]) {
                if pack {
                    *file = gz(file);
                }
            }
            let read = Pair::write(&files[0], &files[1]).read().unwrap();
            prop_assert_eq!(read.bytes(), images);
            let labels: Vec<u32> = labels.into_iter().map(u32::from).collect();
            prop_assert_eq!(read.labels(), labels);
            prop_assert_eq!(read.shape(), [1, height, width]);
            prop_assert_eq!(read.len(), n as usize);
        }

        #[test]
        fn any_bytes_give_an_error_or_images(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut file = idx(&[1, 2, 2], &[]);
            file.truncate(bytes.len() % 17);
            file.extend(&bytes);
            if let Ok(images) = Pair::write(&file, &idx(&[1], &[0])).read() {
                prop_assert_eq!(images.len(), 1);
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let (images, labels) = (idx(&[2, 2, 2], &[9; 8]), idx(&[2], &[0, 2]));
        assert!(Pair::write(&images, &labels).read().is_ok());
        for (whole, other, first) in [(&images, &labels, true), (&labels, &images, false)] {
            for packed in [false, true] {
                let whole = if packed { gz(whole) } else { whole.clone() };
                for cut in 0..whole.len() {
                    let cut = &whole[..cut];
                    let error = if first {
                        error(cut, other)
                    } else {
                        error(other, cut)
                    };
                    let text = error.to_string();
                    let name = if first { "images" } else { "labels" };
                    assert!(text.contains(name), "{text}");
                    if !packed {
                        assert!(matches!(error, Error::Truncated { .. }), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_fault_has_its_name() {
        let (images, labels) = (idx(&[2, 2, 2], &[9; 8]), idx(&[2], &[0, 2]));
        let text = |images: &[u8], labels: &[u8]| error(images, labels).to_string();

        let swapped = text(&labels, &images);
        assert!(
            swapped.contains("0x00000801") && swapped.contains("swapped"),
            "{swapped}"
        );
        assert!(text(&[&images[..], &[0]].concat(), &labels).contains("goes on after the 24"));
        assert!(text(&images, &idx(&[2], &[0, 3])).contains("label 3 of image 1"));
        assert!(text(&images, &idx(&[3], &[0; 3])).contains("2 images but 3 labels"));
        assert!(text(&idx(&[0, 2, 2], &[]), &labels).contains("[0, 2, 2]"));
        let huge = idx(&[u32::MAX, u32::MAX, u32::MAX], &[9; 8]);
        assert!(matches!(error(&huge, &labels), Error::Dimensions { .. }));
        let large = idx(&[u32::MAX, 16, 8], &[9; 8]);
        assert!(matches!(error(&large, &labels), Error::Truncated { .. }));

        let none = Images::from_idx("x", Path::new("no/such/file"), Path::new("x"), 3);
        assert!(none.unwrap_err().to_string().contains("no/such/file"));
    }
}
