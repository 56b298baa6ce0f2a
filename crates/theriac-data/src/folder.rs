//! A folder of pictures with a folder for each class, as ImageNet unpacks.
//!
//! ```text
//! <root>/<class>/<any>.JPEG        classes in the order of their names: label 0, 1, ...
//! ```
//!
//! As torchvision's `ImageFolder`: for ImageNet the names are WordNet ids, whose order is that of the
//! usual class numbers. Pictures stay on the disk; a batch is decoded, on all cores, when it is asked
//! for.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::ImageReader;
use rayon::prelude::*;
use theriac::{Batch, Labels, Pixels};

use crate::{Dataset, Error, Images, Result};

/// What is taken for a picture.
const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];

/// How a picture becomes an image of a fixed size: the shorter side is resized to `resize`, then the
/// square of `crop` pixels in the middle is cut out.
///
/// As torchvision's `Resize(resize)` and `CenterCrop(crop)` on a Pillow image: with antialiasing, within
/// one level of 255 of what Pillow computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The shorter side after resizing.
    pub resize: u32,
    /// Side of the square.
    pub crop: u32,
    /// How pixels are interpolated.
    pub filter: Filter,
}

/// How pixels are interpolated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// A triangle: residual networks of torchvision.
    #[default]
    Bilinear,
    /// A cubic with a = -0.5: DeiT of timm.
    Bicubic,
}

impl Prepare {
    /// 256, then 224, bilinear: residual networks.
    pub const IMAGENET: Self = Self {
        resize: 256,
        crop: 224,
        filter: Filter::Bilinear,
    };
}

/// What becomes of a picture that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Corrupt {
    /// An error that names it.
    #[default]
    Fail,
    /// A warning that names it; its batch is smaller.
    Skip,
}

/// Pictures in folders, decoded when they are asked for.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<(PathBuf, u32)>,
    classes: Vec<String>,
    prepare: Prepare,
    corrupt: Corrupt,
}

impl ImageFolder {
    /// Lists the pictures; decodes none. An image's id is its position in the order of the files'
    /// paths.
    ///
    /// # Errors
    /// [`Error::Io`] when a folder cannot be read, [`Error::Setting`] for a folder without classes or
    /// pictures, or sizes that make no sense.
    pub fn open(root: &Path, prepare: Prepare, corrupt: Corrupt) -> Result<Self> {
        if prepare.crop == 0 || prepare.crop > prepare.resize {
            return Err(Error::Setting {
                name: "crop",
                value: format!("{} of {}", prepare.crop, prepare.resize),
                remedy: "use 1 to the side that pictures are resized to".to_owned(),
            });
        }
        let nothing = |remedy: &str| Error::Setting {
            name: "folder",
            value: root.display().to_string(),
            remedy: remedy.to_owned(),
        };
        let folders = entries(root)?.into_iter().filter(|path| path.is_dir());
        let (mut files, mut classes) = (Vec::new(), Vec::new());
        for (label, folder) in folders.enumerate() {
            let pictures = entries(&folder)?
                .into_iter()
                .filter(|path| is_picture(path));
            files.extend(pictures.map(|path| (path, label as u32)));
            classes.push(name(&folder));
        }
        if classes.is_empty() {
            return Err(nothing("it has no folder for each class"));
        }
        if files.is_empty() {
            return Err(nothing(
                "its folders of classes hold no .jpg, .jpeg or .png",
            ));
        }
        tracing::debug!(root = %root.display(), n = files.len(), classes = classes.len(), "listed");
        Ok(Self {
            root: root.to_owned(),
            files,
            classes,
            prepare,
            corrupt,
        })
    }

    /// Names of the classes, by label.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The file of each image, by id.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The images of each `every`-th file from the first on: a sample that has all classes.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0.
    pub fn every(mut self, every: usize) -> Result<Self> {
        if every == 0 {
            return Err(Error::Setting {
                name: "every",
                value: "0".to_owned(),
                remedy: "use 1 for all images".to_owned(),
            });
        }
        self.files = self.files.into_iter().step_by(every).collect();
        Ok(self)
    }

    /// The images at `indices` in memory, with these ids: for a sample of a large folder. What
    /// cannot be decoded fails or is left out, as in a batch.
    ///
    /// # Errors
    /// [`Error::Index`] past the end, [`Error::Setting`] for no indices, [`Error::Picture`].
    pub fn images(&self, indices: &[u32]) -> Result<Images> {
        let (bytes, labels, ids) = self.read(indices)?;
        let crop = self.prepare.crop as usize;
        let images = Images::new(
            &name(&self.root),
            bytes,
            labels,
            [3, crop, crop],
            self.classes.len(),
        )?;
        images.with_ids(ids)
    }

    /// Bytes, labels and ids.
    fn read(&self, indices: &[u32]) -> Result<(Vec<u8>, Vec<u32>, Vec<u32>)> {
        let file = |&index: &u32| {
            self.files.get(index as usize).ok_or_else(|| Error::Index {
                origin: self.root.display().to_string(),
                index,
                len: self.files.len(),
            })
        };
        let files = indices.iter().map(file).collect::<Result<Vec<_>>>()?;
        let decoded: Vec<Result<Vec<u8>>> = files
            .par_iter()
            .map(|(path, _)| self.decode(path))
            .collect();
        let (mut bytes, mut labels, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = None;
        for ((decoded, &index), (_, label)) in decoded.into_iter().zip(indices).zip(files) {
            match (decoded, self.corrupt) {
                (Ok(pixels), _) => {
                    bytes.extend(pixels);
                    labels.push(*label);
                    samples.push(index);
                }
                (Err(error), Corrupt::Skip) => {
                    tracing::warn!(%error, "skipped");
                    first.get_or_insert(error);
                }
                (Err(error), Corrupt::Fail) => return Err(error),
            }
        }
        match first {
            Some(error) if labels.is_empty() => Err(error),
            _ => Ok((bytes, labels, samples)),
        }
    }

    /// One image as bytes (3, crop, crop).
    fn decode(&self, path: &Path) -> Result<Vec<u8>> {
        let damaged = |what: String| Error::Picture {
            path: path.to_owned(),
            what,
        };
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        let picture = reader.map_err(Error::io(path))?.decode();
        let picture = picture
            .map_err(|error| damaged(error.to_string()))?
            .into_rgb8();
        let (width, height) = picture.dimensions();
        let Prepare { resize, crop, .. } = self.prepare;
        let long =
            |side: u32, short: u32| (u64::from(resize) * u64::from(side) / u64::from(short)) as u32;
        let (to_width, to_height) = match width <= height {
            true => (resize, long(height, width)),
            false => (long(width, height), resize),
        };
        let failed = |error: &dyn std::fmt::Display| damaged(error.to_string());
        let from = Image::from_vec_u8(width, height, picture.into_raw(), PixelType::U8x3)
            .map_err(|error| failed(&error))?;
        let mut to = Image::new(to_width, to_height, PixelType::U8x3);
        let filter = match self.prepare.filter {
            Filter::Bilinear => FilterType::Bilinear,
            Filter::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
        Resizer::new()
            .resize(&from, &mut to, &options)
            .map_err(|error| failed(&error))?;
        // Half to even, as Python rounds.
        let margin = |side: u32| (f64::from(side - crop) / 2.0).round_ties_even() as usize;
        let (top, left) = (margin(to_height), margin(to_width));
        let (row, crop) = (3 * to_width as usize, crop as usize);
        let pixels = to.buffer();
        let mut planes = Vec::with_capacity(3 * crop * crop);
        for channel in 0..3 {
            for y in top..top + crop {
                let line = &pixels[y * row..(y + 1) * row];
                planes.extend((left..left + crop).map(|x| line[3 * x + channel]));
            }
        }
        Ok(planes)
    }
}

impl Dataset for ImageFolder {
    type Target = Labels;

    fn len(&self) -> usize {
        self.files.len()
    }

    fn batch(&self, indices: &[u32], dtype: DType, device: &Device) -> Result<Batch<Labels>> {
        let (bytes, labels, samples) = self.read(indices)?;
        let crop = self.prepare.crop as usize;
        let bytes = Tensor::from_vec(bytes, (labels.len(), 3, crop, crop), device)?;
        Ok(Batch {
            pixels: Pixels::from_bytes(&bytes, dtype)?,
            target: Labels::new(&labels, self.classes.len(), device)?,
            samples,
        })
    }
}

/// What a folder holds, in the order of names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        paths.push(entry.map_err(Error::io(folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    ENDINGS.contains(&ending.to_lowercase().as_str())
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, RgbImage};

    use super::*;
    use crate::{Loader, Order, Partial};

    const SMALL: Prepare = Prepare {
        resize: 16,
        crop: 12,
        filter: Filter::Bilinear,
    };

    /// Waves, as smooth as photographs are; `shift` tells pictures apart.
    fn picture(width: u32, height: u32, shift: u32) -> RgbImage {
        let wave = |at: u32, length: u32| (2 * (at % length)).abs_diff(length);
        RgbImage::from_fn(width, height, |x, y| {
            let at = |c: u32| 20 + wave(3 * x + 11 * c + 7 * shift, 64) + wave(5 * y + 3 * c, 96);
            image::Rgb([at(0), at(1), at(2)].map(|level| level as u8))
        })
    }

    fn folder(pictures: &[(&str, u32, u32)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (shift, (name, width, height)) in pictures.iter().enumerate() {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let format = match name.to_lowercase().ends_with("png") {
                true => ImageFormat::Png,
                false => ImageFormat::Jpeg,
            };
            let picture = picture(*width, *height, shift as u32);
            picture.save_with_format(&path, format).unwrap();
        }
        folder
    }

    #[test]
    fn classes_are_folders_in_the_order_of_their_names() {
        let names = [
            "n02/b.JPEG",
            "n02/a.png",
            "n01/z.jpg",
            "n01/notes.txt",
            "n10/c.jpeg",
        ];
        let sizes: Vec<_> = names.iter().map(|name| (*name, 20, 18)).collect();
        let sizes: Vec<_> = sizes
            .into_iter()
            .filter(|s| !s.0.ends_with("txt"))
            .collect();
        let folder = folder(&sizes);
        fs::write(folder.path().join("n01/notes.txt"), "no picture").unwrap();
        fs::write(folder.path().join("README"), "no class").unwrap();
        let images = ImageFolder::open(folder.path(), SMALL, Corrupt::Fail).unwrap();
        assert_eq!(images.classes(), ["n01", "n02", "n10"]);
        let files: Vec<String> = images.files().map(name).collect();
        assert_eq!(files, ["z.jpg", "a.png", "b.JPEG", "c.jpeg"]);
        let loader = Loader::new(&images, 3, Order::Sequential, Partial::Keep).unwrap();
        let batches: Vec<_> = loader.epoch(0).map(|batch| batch.unwrap()).collect();
        let labels = |i: usize| batches[i].target.to_vec().unwrap();
        assert_eq!((labels(0), labels(1)), (vec![0, 1, 1], vec![2]));
        assert_eq!(batches[0].pixels.tensor().dims(), [3, 3, 12, 12]);
        assert_eq!(batches[1].samples, [3]);
        assert_eq!(images.clone().every(2).unwrap().len(), 2);
        assert!(images.every(0).is_err());
    }

    /// Pillow's bytes; `tests/pillow.py` makes them.
    #[test]
    fn prepares_as_pillow_does_within_a_level() {
        let sizes = [
            ("a/0.png", 40, 30),
            ("a/1.png", 17, 33),
            ("a/2.png", 12, 13),
        ];
        let folder = folder(&sizes);
        for (filter, expected) in [
            (
                Filter::Bilinear,
                &include_bytes!("../tests/bilinear.bin")[..],
            ),
            (Filter::Bicubic, &include_bytes!("../tests/bicubic.bin")[..]),
        ] {
            let prepare = Prepare { filter, ..SMALL };
            let images = ImageFolder::open(folder.path(), prepare, Corrupt::Fail).unwrap();
            let batch = images.batch(&[0, 1, 2], DType::F32, &Device::Cpu).unwrap();
            let pixels = batch.pixels.tensor().flatten_all().unwrap();
            let bytes: Vec<i32> = pixels
                .to_vec1::<f32>()
                .unwrap()
                .iter()
                .map(|v| (v * 255.0).round() as i32)
                .collect();
            let gaps = bytes
                .iter()
                .zip(expected)
                .map(|(a, e)| (a - i32::from(*e)).abs());
            assert_eq!(bytes.len(), expected.len());
            assert!(gaps.max().unwrap() <= 1, "{filter:?}");
        }
    }

    #[test]
    fn a_corrupt_picture_names_itself_and_is_skipped_by_choice() {
        let folder = folder(&[
            ("a/0.jpg", 20, 20),
            ("a/1.jpg", 20, 20),
            ("b/2.png", 20, 20),
        ]);
        let broken = folder.path().join("a/1.jpg");
        fs::write(&broken, b"\xff\xd8\xff no picture").unwrap();
        let open = |corrupt| ImageFolder::open(folder.path(), SMALL, corrupt).unwrap();
        let batch =
            |corrupt, indices: &[u32]| open(corrupt).batch(indices, DType::F32, &Device::Cpu);
        let text = batch(Corrupt::Fail, &[0, 1, 2]).unwrap_err().to_string();
        assert!(text.contains("1.jpg"), "{text}");
        let rest = batch(Corrupt::Skip, &[0, 1, 2]).unwrap();
        assert_eq!(rest.samples, [0, 2]);
        assert_eq!(rest.target.to_vec().unwrap(), [0, 1]);
        let kept = open(Corrupt::Skip).images(&[2, 1]).unwrap();
        assert_eq!((kept.ids(), kept.labels()), (&[2][..], &[1][..]));
        assert!(open(Corrupt::Fail).images(&[2, 1]).is_err());
        let text = batch(Corrupt::Skip, &[1]).unwrap_err().to_string();
        assert!(text.contains("1.jpg"), "{text}");
        let text = batch(Corrupt::Skip, &[3]).unwrap_err().to_string();
        assert!(text.contains("no image 3"), "{text}");
    }

    #[test]
    fn folders_that_are_none_are_refused() {
        let folder = folder(&[("a/0.jpg", 20, 20)]);
        let text = |path: &Path, prepare| {
            let opened = ImageFolder::open(path, prepare, Corrupt::Fail);
            opened.unwrap_err().to_string()
        };
        assert!(text(&folder.path().join("none"), SMALL).contains("none"));
        assert!(text(&folder.path().join("a"), SMALL).contains("no folder for each class"));
        fs::remove_file(folder.path().join("a/0.jpg")).unwrap();
        assert!(text(folder.path(), SMALL).contains("no .jpg"));
        let wide = Prepare { crop: 17, ..SMALL };
        assert!(text(folder.path(), wide).contains("crop"));
    }
}
