//! The binary version of CIFAR-10: records of one label byte and 3072 pixel bytes, the red plane,
//! then the green, then the blue, each row by row. Records of CIFAR-100 begin with two label bytes,
//! the coarse one of 20 and the fine one of 100.

use std::path::Path;

use crate::bytes::{open, read};
use crate::dataset::check_labels;
use crate::{Dataset, Error, Images, Result};

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;
/// Far above the 10,000 of a published file: a bound on what a hostile gzip file can fill.
const MOST_RECORDS: u64 = 1_000_000;

impl Images {
    /// Reads one split of CIFAR-10 from its binary files (plain or gzip), in the given order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Records`], [`Error::Label`] naming the file, and
    /// [`Error::Setting`] if `paths` is empty.
    pub fn from_cifar10(name: &str, paths: &[impl AsRef<Path>]) -> Result<Self> {
        from_records(name, paths, 1, 10)
    }

    /// Reads one split of CIFAR-100 from its binary file (plain or gzip), with the fine labels.
    ///
    /// # Errors
    /// Those of [`Images::from_cifar10`].
    pub fn from_cifar100(name: &str, paths: &[impl AsRef<Path>]) -> Result<Self> {
        from_records(name, paths, 2, 100)
    }
}

/// Records that begin with so many label bytes, of which the last counts.
fn from_records(
    name: &str,
    paths: &[impl AsRef<Path>],
    head: usize,
    classes: usize,
) -> Result<Images> {
    let record = head + PIXELS;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for path in paths {
        let path = path.as_ref();
        let bytes = read(&mut open(path)?, MOST_RECORDS * record as u64 + 1, path)?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            let (path, found) = (path.to_owned(), bytes.len() as u64);
            return Err(Error::Records {
                path,
                found,
                record,
            });
        }
        let before = labels.len();
        for record in bytes.chunks_exact(record) {
            labels.push(record[head - 1]);
            pixels.extend_from_slice(&record[head..]);
        }
        check_labels(&path.display().to_string(), &labels[before..], classes)?;
    }
    let images = Images::new(name, pixels, labels, SHAPE, classes)?;
    tracing::debug!(name, n = images.len(), files = paths.len(), "read records");
    Ok(images)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(label: u8, pixel: u8) -> Vec<u8> {
        let mut record = vec![pixel; 1 + PIXELS];
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
    fn fine_labels_are_the_second_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.bin");
        let record = |coarse, fine, pixel| [vec![coarse, fine], vec![pixel; PIXELS]].concat();
        fs::write(&path, [record(19, 99, 1), record(3, 0, 2)].concat()).unwrap();
        let images = Images::from_cifar100("cifar100", &[&path]).unwrap();
        assert_eq!((images.labels(), images.classes()), (&[99, 0][..], 100));
        assert_eq!(images.bytes()[PIXELS - 1..PIXELS + 1], [1, 2]);
        fs::write(&path, record(3, 100, 2)).unwrap();
        let text = Images::from_cifar100("cifar100", &[&path]).unwrap_err();
        assert!(text.to_string().contains("label 100 of image 0"), "{text}");
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
