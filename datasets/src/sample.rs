//! The embedded samples: a stratified part of a data set inside the library.
//!
//! A sample takes the first n / K images of each of the K classes, in the order of the original
//! index. On disk a split is a CSV file of `index,label` lines and a row of PNG contact sheets of
//! 20 rows and 25 columns: lossless, small, and a browser shows them.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::description::{Description, SampleSize, Split};
use crate::files::{Files, write_whole};
use crate::format::decode;
use crate::picture::Picture;

const COLUMNS: usize = 25;
const ROWS: usize = 20;
/// Images on a full sheet; keeps each file under 1.5 MB.
const PER_SHEET: usize = COLUMNS * ROWS;

/// A stratified part of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Name of the data set.
    pub name: String,
    /// Channels, height, width of an image.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Images to train on.
    pub train: SampleSplit,
    /// Images to evaluate on.
    pub test: SampleSplit,
}

/// The images of one split of a sample.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampleSplit {
    /// Pixels as bytes, shape (N, C, H, W).
    pub images: Vec<u8>,
    /// One class per image.
    pub labels: Vec<u8>,
    /// Index of each image in the split that it was taken from, ascending.
    pub indices: Vec<u32>,
}

struct PackedSplit {
    csv: &'static str,
    sheets: &'static [&'static [u8]],
}

macro_rules! packed {
    ($split:literal: $($sheet:literal)*) => {
        PackedSplit {
            csv: include_str!(concat!("../samples/", $split, ".csv")),
            sheets: &[$(include_bytes!(concat!("../samples/", $split, "-", $sheet, ".png"))),*],
        }
    };
}

/// Name, training split, test split.
const PACKED: [(&str, PackedSplit, PackedSplit); 2] = [
    (
        "fashion-mnist",
        packed!("fashion-mnist-train":
            "00" "01" "02" "03" "04" "05" "06" "07" "08" "09" "10" "11"),
        packed!("fashion-mnist-test": "00" "01"),
    ),
    (
        "cifar10",
        packed!("cifar10-train": "00" "01" "02" "03"),
        packed!("cifar10-test": "00"),
    ),
];

/// The embedded sample of the data set called `name`, without touching the disk.
///
/// # Errors
/// [`Error::UnknownName`] if there is no such data set, [`Error::Sample`] if it has no sample.
///
/// ```
/// let sample = theriac_datasets::embedded("fashion-mnist")?;
/// assert_eq!(sample.train.labels.len(), 6000);
/// assert_eq!(sample.test.images.len(), 1000 * 28 * 28);
/// # Ok::<(), theriac_datasets::Error>(())
/// ```
pub fn embedded(name: &str) -> Result<Sample, Error> {
    let about = Description::load(name)?;
    let Some((_, train, test)) = PACKED.iter().find(|(packed, ..)| *packed == name) else {
        let with: Vec<_> = PACKED.iter().map(|(name, ..)| *name).collect();
        return Err(Error::Sample {
            name: name.to_owned(),
            problem: format!(
                "there is none, only of {}; {}",
                with.join(", "),
                about.remedy()
            ),
        });
    };
    Ok(Sample {
        name: about.name.clone(),
        shape: about.shape,
        classes: about.classes.len(),
        train: train.unpack(&about)?,
        test: test.unpack(&about)?,
    })
}

impl PackedSplit {
    fn unpack(&self, about: &Description) -> Result<SampleSplit, Error> {
        let wrong = |problem: String| Error::Sample {
            name: about.name.clone(),
            problem,
        };
        let mut split = SampleSplit::default();
        for line in self.csv.lines().skip(1) {
            let parsed = line.split_once(',').and_then(|(index, label)| {
                Some((index.parse::<u32>().ok()?, label.parse::<u8>().ok()?))
            });
            let (index, label) = parsed.ok_or_else(|| wrong(format!("bad CSV line {line:?}")))?;
            split.indices.push(index);
            split.labels.push(label);
        }
        for sheet in self.sheets {
            let sheet = Picture::decode(sheet).map_err(wrong)?;
            split
                .images
                .extend(untile(&sheet, about.shape).map_err(wrong)?);
        }
        // The last sheet may have empty places.
        let needed = split.labels.len() * about.shape.iter().product::<usize>();
        if split.images.len() < needed {
            let found = split.images.len();
            return Err(wrong(format!("{found} bytes of pixels, expected {needed}")));
        }
        split.images.truncate(needed);
        Ok(split)
    }
}

impl Sample {
    /// Takes the sample of the stated size from the full data, whose checksums it verifies.
    ///
    /// # Errors
    /// [`Error::Sample`] if the description asks for no sample or for more images of a class than
    /// there are; [`Error::Checksum`] and [`Error::Io`] from reading the files.
    pub fn take(about: &Description, files: &Files) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::Sample {
            name: about.name.clone(),
            problem: problem.to_owned(),
        };
        let Some(SampleSize { train, test }) = about.sample else {
            return Err(wrong("the description has no [sample]"));
        };
        let take = |split, size| {
            let content = decode(about, files, split)?;
            let indices = stratified(&content.labels, about.classes.len(), size)
                .ok_or_else(|| wrong("a class has too few images, or the size is no multiple"))?;
            let pixels: usize = about.shape.iter().product();
            let of = |&i: &u32| i as usize * pixels..(i as usize + 1) * pixels;
            Ok(SampleSplit {
                images: indices
                    .iter()
                    .flat_map(|i| &content.pixels[of(i)])
                    .copied()
                    .collect(),
                labels: indices
                    .iter()
                    .map(|&i| content.labels[i as usize])
                    .collect(),
                indices,
            })
        };
        Ok(Self {
            name: about.name.clone(),
            shape: about.shape,
            classes: about.classes.len(),
            train: take(Split::Train, train)?,
            test: take(Split::Test, test)?,
        })
    }

    /// Writes the sample as files of `samples/` into `folder`; returns their paths.
    ///
    /// # Errors
    /// [`Error::Sample`] if the images cannot be PNG files, [`Error::Io`] if a file cannot be
    /// written.
    pub fn save(&self, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let save = |(name, bytes): (String, Vec<u8>)| {
            let path = folder.join(name);
            write_whole(&path, &bytes)?;
            Ok(path)
        };
        self.pack()?.into_iter().map(save).collect()
    }

    fn pack(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let wrong = |problem: String| Error::Sample {
            name: self.name.clone(),
            problem,
        };
        let pixels: usize = self.shape.iter().product();
        let mut files = Vec::new();
        for (split, content) in [(Split::Train, &self.train), (Split::Test, &self.test)] {
            let stem = format!("{}-{}", self.name, split.as_str());
            let lines = content.indices.iter().zip(&content.labels);
            let lines: String = lines.map(|(i, label)| format!("{i},{label}\n")).collect();
            files.push((
                format!("{stem}.csv"),
                format!("index,label\n{lines}").into_bytes(),
            ));
            for (i, images) in content.images.chunks(PER_SHEET * pixels).enumerate() {
                let sheet = tile(images, self.shape).encode().map_err(wrong)?;
                files.push((format!("{stem}-{i:02}.png"), sheet));
            }
        }
        Ok(files)
    }
}

/// The first `size / classes` indices of each class, ascending.
fn stratified(labels: &[u8], classes: usize, size: usize) -> Option<Vec<u32>> {
    if !size.is_multiple_of(classes) {
        return None;
    }
    let mut left = vec![size / classes; classes];
    let mut indices = Vec::with_capacity(size);
    for (i, &label) in labels.iter().enumerate() {
        let left = left.get_mut(usize::from(label))?;
        if *left > 0 {
            *left -= 1;
            indices.push(i as u32);
        }
    }
    left.iter().all(|&n| n == 0).then_some(indices)
}

/// Where row `y` of channel `c` of image `i` begins on a sheet that is `height` pixels high.
fn place([_, h, w]: [usize; 3], height: usize, i: usize, c: usize, y: usize) -> usize {
    let width = COLUMNS * w;
    (c * height + i / COLUMNS * h + y) * width + i % COLUMNS * w
}

/// Lays images of shape (N, C, H, W) out on one sheet, row by row.
fn tile(images: &[u8], shape: [usize; 3]) -> Picture {
    let [c, h, w] = shape;
    let n = images.len() / (c * h * w);
    let height = n.div_ceil(COLUMNS) * h;
    let mut planes = vec![0; c * height * COLUMNS * w];
    for (row, line) in images.chunks_exact(w).enumerate() {
        let (i, channel, y) = (row / (c * h), row / h % c, row % h);
        let start = place(shape, height, i, channel, y);
        planes[start..start + w].copy_from_slice(line);
    }
    Picture {
        shape: [c, height, COLUMNS * w],
        planes,
    }
}

/// Undoes [`tile`]; empty places of the last row come out as black images.
fn untile(sheet: &Picture, shape: [usize; 3]) -> Result<Vec<u8>, String> {
    let [c, h, w] = shape;
    let [channels, height, width] = sheet.shape;
    if channels != c || !height.is_multiple_of(h) || width != COLUMNS * w {
        return Err(format!(
            "sheet of shape {:?} holds no images of {shape:?}",
            sheet.shape
        ));
    }
    let rows = height / h * COLUMNS * c * h;
    let line = |row: usize| {
        let start = place(shape, height, row / (c * h), row / h % c, row % h);
        &sheet.planes[start..start + w]
    };
    Ok((0..rows).flat_map(line).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_samples_are_stratified_and_ordered() {
        for (name, train, test) in [("fashion-mnist", 6000, 1000), ("cifar10", 2000, 500)] {
            let sample = embedded(name).unwrap();
            let size = Description::load(name).unwrap().sample.unwrap();
            assert_eq!((size.train, size.test), (train, test));
            for (split, n) in [(&sample.train, train), (&sample.test, test)] {
                let mut histogram = [0; 10];
                split
                    .labels
                    .iter()
                    .for_each(|&label| histogram[usize::from(label)] += 1);
                assert_eq!(histogram, [n / 10; 10], "{name}");
                assert_eq!(
                    split.images.len(),
                    n * sample.shape.iter().product::<usize>()
                );
                assert!(split.indices.is_sorted_by(|a, b| a < b), "{name}");
                assert_eq!(split.indices.len(), n);
            }
        }
    }

    #[test]
    fn no_sample_of_mnist_and_the_error_says_which_there_are() {
        let message = embedded("mnist").unwrap_err().to_string();
        assert!(message.contains("fashion-mnist, cifar10") && message.contains("--data-dir"));
    }

    #[test]
    fn the_committed_sheets_are_what_the_recipe_writes() {
        let sample = embedded("cifar10").unwrap();
        let files = sample.pack().unwrap();
        let (_, _, test) = &PACKED[1];
        let written = files
            .iter()
            .find(|(name, _)| name == "cifar10-test.csv")
            .unwrap();
        assert_eq!(written.1, test.csv.as_bytes());
        let written = files
            .iter()
            .find(|(name, _)| name == "cifar10-test-00.png")
            .unwrap();
        let [now, then] = [&written.1[..], test.sheets[0]].map(|b| Picture::decode(b).unwrap());
        assert_eq!(now, then);
    }

    #[test]
    fn samples_fit_the_limits_of_the_repository() {
        let splits = PACKED.iter().flat_map(|(_, train, test)| [train, test]);
        let sheets: Vec<usize> = splits
            .flat_map(|s| s.sheets)
            .map(|sheet| sheet.len())
            .collect();
        assert!(sheets.iter().sum::<usize>() < 10_000_000);
        assert!(sheets.iter().all(|&bytes| bytes < 1_500_000));
    }

    #[test]
    fn tiles_come_back_for_any_number_of_images() {
        for (n, shape) in [(1, [1, 2, 3]), (25, [3, 2, 2]), (60, [3, 1, 4])] {
            let length = n * shape.iter().product::<usize>();
            let images: Vec<u8> = (0..length).map(|i| (i * 31) as u8).collect();
            let back = untile(&tile(&images, shape), shape).unwrap();
            assert_eq!(back[..length], images);
            assert!(back[length..].iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn stratified_takes_the_first_of_each_class() {
        let labels = [1, 1, 0, 1, 0, 0];
        assert_eq!(stratified(&labels, 2, 4), Some(vec![0, 1, 2, 4]));
        assert_eq!(stratified(&labels, 2, 3), None);
        assert_eq!(stratified(&labels, 2, 8), None);
        assert_eq!(stratified(&[0, 7], 2, 2), None);
    }
}
