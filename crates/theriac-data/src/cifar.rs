//! The binary version of CIFAR-10: records of one label byte and 3072 pixel bytes, the red plane,
//! then the green, then the blue, each row by row.

use std::path::Path;

use crate::bytes::{open, read};
use crate::dataset::check_labels;
use crate::{Dataset, Error, Images, Result};

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;
const RECORD: usize = 1 + PIXELS;
const CLASSES: usize = 10;
/// Far above the 10,000 of a published file: a bound on what a hostile gzip file can fill.
const MOST_RECORDS: u64 = 1_000_000;

impl Images {
    /// Reads one split of CIFAR-10 from its binary files (plain or gzip), in the given order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Records`], [`Error::Label`] naming the file, and
    /// [`Error::Setting`] if `paths` is empty.
    pub fn from_cifar10(name: &str, paths: &[impl AsRef<Path>]) -> Result<Self> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for path in paths {
            let path = path.as_ref();
            let bytes = read(&mut open(path)?, MOST_RECORDS * RECORD as u64 + 1, path)?;
            if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD) {
                let found = bytes.len() as u64;
                return Err(Error::Records {
                    path: path.to_owned(),
                    found,
                    record: RECORD,
                });
            }
            let before = labels.len();
            for record in bytes.chunks_exact(RECORD) {
                labels.push(record[0]);
                pixels.extend_from_slice(&record[1..]);
            }
            check_labels(&path.display().to_string(), &labels[before..], CLASSES)?;
        }
        let images = Self::new(name, pixels, labels, SHAPE, CLASSES)?;
        tracing::debug!(name, n = images.len(), files = paths.len(), "read CIFAR-10");
        Ok(images)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(label: u8, pixel: u8) -> Vec<u8> {
        let mut record = vec![pixel; RECORD];
        record[0] = label;
        record
    }

    #[test]
    fn files_follow_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["1.bin", "2.bin"].map(|name| folder.path().join(name));
        fs::write(&one, [record(3, 1), record(9, 2)].concat()).unwrap();
        fs::write(&two, record(0, 3)).unwrap();
        let images = Images::from_cifar10("cifar10", &[&one, &two]).unwrap();
        assert_eq!(images.labels(), [3, 9, 0]);
        assert_eq!(images.shape(), SHAPE);
        assert_eq!(images.bytes()[2 * PIXELS - 1..2 * PIXELS + 1], [2, 3]);
    }

    #[test]
    fn faults_name_the_file_and_the_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("batch.bin");
        let text = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Images::from_cifar10("cifar10", &[&path])
                .unwrap_err()
                .to_string()
        };
        let whole = [record(1, 0), record(10, 0)].concat();
        assert!(text(&whole).contains("batch.bin: label 10 of image 1"));
        assert!(text(&[]).contains("0 bytes are not one or more records of 3073"));
        // A record boundary is the one place where a cut cannot show.
        for cut in [1, 2, 3072, 3074, 6145] {
            let text = text(&whole[..cut]);
            assert!(text.contains(&format!("batch.bin: {cut} bytes")), "{text}");
        }
        let none: [&Path; 0] = [];
        assert!(
            Images::from_cifar10("cifar10", &none)
                .unwrap_err()
                .to_string()
                .contains("cifar10")
        );
    }
}
