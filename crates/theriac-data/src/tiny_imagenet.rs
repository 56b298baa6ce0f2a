//! TinyImageNet-200 in its official folders: JPEG files of 64 x 64 pixels.
//!
//! ```text
//! wnids.txt                            200 names of classes, one a line: label 0, 1, ...
//! train/<class>/images/<class>_<k>.JPEG
//! val/val_annotations.txt              <file> TAB <class> TAB ..., one line an image
//! val/images/<file>
//! ```
//!
//! The labels of `test/` were never published, so `val/` is what papers test on. Some files are
//! grey; their three channels are equal.

use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, ImageReader};
use rayon::prelude::*;

use crate::{Dataset, Error, Images, Result};

const SIDE: usize = 64;
/// Labels are bytes.
const MOST_CLASSES: usize = 256;

impl Images {
    /// Reads the training images, or those of `val/`, from the folder `tiny-imagenet-200`: class by
    /// class and by number in a class, or as listed. 12,288 bytes an image stay in memory (1.2 GB for
    /// all 100,000).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Picture`] and [`Error::Line`], naming the file.
    pub fn from_tiny_imagenet(name: &str, folder: &Path, train: bool) -> Result<Self> {
        let names = folder.join("wnids.txt");
        let classes: Vec<String> = text(&names)?
            .lines()
            .map(|it| it.trim().to_owned())
            .collect();
        if classes.is_empty() || classes.len() > MOST_CLASSES {
            return Err(Error::Line {
                path: names,
                line: classes.len(),
                expected: "1 to 256 names of classes, one a line",
            });
        }
        let files = match train {
            true => training(folder, &classes)?,
            false => validation(folder, &classes)?,
        };
        let pixels: Result<Vec<Vec<u8>>> =
            files.par_iter().map(|(path, _)| picture(path)).collect();
        let labels = files.iter().map(|(_, label)| *label);
        let shape = [3, SIDE, SIDE];
        let images = Self::new(name, pixels?.concat(), labels, shape, classes.len())?;
        tracing::debug!(name, n = images.len(), "read TinyImageNet");
        Ok(images)
    }
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(path))
}

type Labelled = (PathBuf, u8);

fn training(folder: &Path, classes: &[String]) -> Result<Vec<Labelled>> {
    let mut files = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let dir = folder.join("train").join(class).join("images");
        let mut own = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
            let path = entry.map_err(Error::io(&dir))?.path();
            if path
                .extension()
                .is_some_and(|it| it.eq_ignore_ascii_case("jpeg"))
            {
                own.push(path);
            }
        }
        // By number: "_10" after "_9".
        own.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
        files.extend(own.into_iter().map(|path| (path, label as u8)));
    }
    Ok(files)
}

fn validation(folder: &Path, classes: &[String]) -> Result<Vec<Labelled>> {
    let list = folder.join("val").join("val_annotations.txt");
    let mut files = Vec::new();
    for (index, line) in text(&list)?.lines().enumerate() {
        let mut parts = line.split('\t');
        let (file, class) = (parts.next(), parts.next());
        let label = class.and_then(|class| classes.iter().position(|it| it == class));
        let (Some(file), Some(label)) = (file, label) else {
            return Err(Error::Line {
                path: list,
                line: index + 1,
                expected: "a file, a tab, and a class of wnids.txt",
            });
        };
        files.push((folder.join("val").join("images").join(file), label as u8));
    }
    Ok(files)
}

/// Planes of red, green and blue.
fn picture(path: &Path) -> Result<Vec<u8>> {
    let bad = |what: String| Error::Picture {
        path: path.to_owned(),
        what,
    };
    let mut reader = ImageReader::open(path).map_err(Error::io(path))?;
    reader.set_format(ImageFormat::Jpeg);
    let decoded: DynamicImage = reader.decode().map_err(|error| bad(error.to_string()))?;
    let rgb = decoded.into_rgb8();
    if rgb.dimensions() != (SIDE as u32, SIDE as u32) {
        let (width, height) = rgb.dimensions();
        return Err(bad(format!("{width} x {height} pixels, expected 64 x 64")));
    }
    let planes = (0..3).flat_map(|channel| rgb.pixels().map(move |pixel| pixel[channel]));
    Ok(planes.collect())
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;

    fn jpeg(path: &Path, side: u32, pixel: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = pixel.repeat((side * side) as usize);
        let colour = match pixel.len() {
            1 => ExtendedColorType::L8,
            _ => ExtendedColorType::Rgb8,
        };
        let file = fs::File::create(path).unwrap();
        let encoder = JpegEncoder::new_with_quality(file, 100);
        encoder.write_image(&bytes, side, side, colour).unwrap();
    }

    /// Two classes; the first has images 0, 9 and 10.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        fs::write(at("wnids.txt"), "n02\nn01\n").unwrap();
        for (k, grey) in [(0, 0u8), (9, 90), (10, 100)] {
            jpeg(&at(&format!("train/n02/images/n02_{k}.JPEG")), 64, &[grey]);
        }
        jpeg(&at("train/n01/images/n01_0.JPEG"), 64, &[200, 40, 80]);
        fs::write(at("train/n01/n01_boxes.txt"), "n01_0.JPEG\t0\t0\t63\t63\n").unwrap();
        jpeg(&at("val/images/val_0.JPEG"), 64, &[30]);
        jpeg(&at("val/images/val_1.JPEG"), 64, &[60]);
        let list = "val_1.JPEG\tn01\t0\t0\t1\t1\nval_0.JPEG\tn02\t0\t0\t1\t1\n";
        fs::write(at("val/val_annotations.txt"), list).unwrap();
        folder
    }

    fn near(bytes: &[u8], value: u8) -> bool {
        bytes.iter().all(|byte| byte.abs_diff(value) <= 3)
    }

    #[test]
    fn images_come_by_class_and_number_or_as_listed() {
        let folder = folder();
        let read = |train| Images::from_tiny_imagenet("tiny", folder.path(), train).unwrap();
        let train = read(true);
        assert_eq!(
            (train.labels(), train.shape()),
            (&[0, 0, 0, 1][..], [3, 64, 64])
        );
        let plane = SIDE * SIDE;
        let image = |i: usize| &train.bytes()[3 * plane * i..3 * plane * (i + 1)];
        assert!(near(image(0), 0) && near(image(1), 90) && near(image(2), 100));
        for (channel, value) in [200, 40, 80].into_iter().enumerate() {
            let plane = &image(3)[channel * plane..(channel + 1) * plane];
            assert!(near(plane, value), "{channel}: {}", plane[0]);
        }
        let test = read(false);
        assert_eq!(test.labels(), [1, 0]);
        assert!(near(&test.bytes()[..3 * plane], 60));
    }

    #[test]
    fn faults_name_the_file() {
        let refused = |harm: &dyn Fn(&Path), train| {
            let folder = folder();
            harm(folder.path());
            let read = Images::from_tiny_imagenet("tiny", folder.path(), train);
            read.unwrap_err().to_string()
        };
        let missing = refused(&|at| fs::remove_file(at.join("wnids.txt")).unwrap(), true);
        assert!(missing.contains("wnids.txt"), "{missing}");
        let cut =
            |at: &Path| fs::write(at.join("val/images/val_0.JPEG"), [0xff, 0xd8, 0xff]).unwrap();
        assert!(refused(&cut, false).contains("val_0.JPEG"));
        let small = |at: &Path| jpeg(&at.join("train/n01/images/n01_0.JPEG"), 32, &[1]);
        let text = refused(&small, true);
        assert!(
            text.contains("n01_0.JPEG") && text.contains("32 x 32"),
            "{text}"
        );
        let list =
            |at: &Path| fs::write(at.join("val/val_annotations.txt"), "val_0.JPEG\tn07\n").unwrap();
        let text = refused(&list, false);
        assert!(
            text.contains("val_annotations.txt") && text.contains("line 1"),
            "{text}"
        );
    }
}
