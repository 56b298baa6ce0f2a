//! Images by the name of their data set.

use std::path::PathBuf;

use theriac_data::{Dataset as _, Images};
use theriac_datasets::{Options, Role, Split, embedded, resolve};
use theriac_tables::{BoxError, Lab};

/// The first `n` images of a split: of the samples in the repository, or of the whole data set from
/// the user's folder.
///
/// # Errors
/// If the data set is unknown or not there, or has fewer images.
pub fn images(
    name: &str,
    samples: bool,
    split: Split,
    n: usize,
    lab: &Lab,
) -> Result<Images, BoxError> {
    let whole = match samples {
        true => sample(name, split)?,
        false => whole(name, split, lab)?,
    };
    Ok(match n == whole.len() {
        true => whole,
        false => whole.take(n)?,
    })
}

fn sample(name: &str, split: Split) -> Result<Images, BoxError> {
    let sample = embedded(name)?;
    let part = match split {
        Split::Train => sample.train,
        Split::Test => sample.test,
    };
    let (shape, classes) = (sample.shape, sample.classes);
    let images = Images::new(name, part.images, part.labels, shape, classes)?;
    Ok(images.with_ids(part.indices)?)
}

fn whole(name: &str, split: Split, lab: &Lab) -> Result<Images, BoxError> {
    let from_env = Options::from_env();
    let options = Options {
        data_dir: lab.data_dir.clone().or(from_env.data_dir),
        ..from_env
    };
    match name {
        TINY_IMAGENET => return tiny_imagenet(split, &options),
        CIFAR100 => return cifar100(split, &options),
        _ => {}
    }
    let files = resolve(name, &options)?;
    let paths = |role| files.paths(split, role);
    let (images, labels) = (paths(Role::Images), paths(Role::Labels));
    Ok(match (images.first(), labels.first()) {
        (Some(images), Some(labels)) => Images::from_idx(name, images, labels, 10)?,
        _ => Images::from_cifar10(name, &paths(Role::Records))?,
    })
}

const TINY_IMAGENET: &str = "tiny-imagenet";
const CIFAR100: &str = "cifar100";

/// Nobody may pass it on, so it is not fetched: the user unpacks it.
fn tiny_imagenet(split: Split, options: &Options) -> Result<Images, BoxError> {
    let from = "http://cs231n.stanford.edu/tiny-imagenet-200.zip";
    let folder = unpacked(options, "tiny-imagenet-200", "wnids.txt", from)?;
    let train = split == Split::Train;
    Ok(Images::from_tiny_imagenet(TINY_IMAGENET, &folder, train)?)
}

/// No package or hub repository has its binary files: the user unpacks them.
fn cifar100(split: Split, options: &Options) -> Result<Images, BoxError> {
    let from = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz";
    let folder = unpacked(options, "cifar-100-binary", "train.bin", from)?;
    let file = format!("{}.bin", split.as_str());
    Ok(Images::from_cifar100(CIFAR100, &[folder.join(file)])?)
}

/// A folder that the user has unpacked, known by one of its files.
fn unpacked(options: &Options, name: &str, file: &str, from: &str) -> Result<PathBuf, BoxError> {
    let places = options.data_dir.iter().chain(&options.store);
    let mut folders = places.map(|place| place.join(name));
    let there = |folder: &PathBuf| folder.join(file).exists();
    if let Some(folder) = folders.clone().find(there) {
        return Ok(folder);
    }
    let first = folders.next().unwrap_or_else(|| name.into());
    Err(format!(
        "{}: not there; unpack {from} so that {name}/{file} lies in the folder that --data-dir \
         names",
        first.display()
    )
    .into())
}
