//! How fast a folder of pictures streams, beside decoding alone, and how much memory that takes.
//!
//! `cargo run --release --example pictures -- 10000` makes that many JPEGs of 500 x 375 pixels in a
//! temporary folder, reads them once in shuffled order, and prints rates and peak memory.

#![allow(clippy::print_stdout)] // a program

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use image::{ImageFormat, RgbImage};
use rayon::prelude::*;
use theriac::Rng;
use theriac_data::{Corrupt, ImageFolder, Loader, Order, Partial, Prepare};

// As our programs: the default allocator gives the memory of each batch back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLASSES: usize = 100;
const BATCH: usize = 64;

/// Waves with noise: JPEGs of it are about as large as those of photographs.
fn picture(number: usize) -> RgbImage {
    let (width, height) = (500, 375);
    let noise = Rng::new(0).uniform("picture", number as u64, (width * height) as usize);
    let wave = |at: u32, length: u32| (2 * (at % length)).abs_diff(length);
    RgbImage::from_fn(width, height, |x, y| {
        let grain = (40.0 * noise[(y * width + x) as usize]) as u32;
        let at = |c: u32| grain + wave(x + 31 * c + number as u32, 130) + wave(y + 7 * c, 80);
        image::Rgb([at(0), at(1), at(2)].map(|level| level.min(255) as u8))
    })
}

/// The largest resident set of this process so far, in MB, where the system says.
fn peak() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn make(folder: &Path, count: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
    for class in 0..CLASSES {
        fs::create_dir(folder.join(format!("n{class:08}")))?;
    }
    (0..count).into_par_iter().try_for_each(|number| {
        let class = folder.join(format!("n{:08}", number % CLASSES));
        let path = class.join(format!("{number:08}.JPEG"));
        Ok(picture(number).save_with_format(path, ImageFormat::Jpeg)?)
    })
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let count = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 10_000,
    };
    let folder = tempfile::tempdir()?;
    make(folder.path(), count)?;
    let images = ImageFolder::open(folder.path(), Prepare::IMAGENET, Corrupt::Fail)?;
    let files: Vec<&Path> = images.files().collect();
    let bytes: u64 = files
        .iter()
        .map(|file| fs::metadata(file).map_or(0, |about| about.len()))
        .sum();
    println!(
        "{count} JPEGs of {:.0} kB",
        bytes as f64 / 1e3 / count as f64
    );

    let start = Instant::now();
    files.par_iter().try_for_each(|file| {
        let decoded = image::load_from_memory_with_format(&fs::read(file)?, ImageFormat::Jpeg)?;
        std::hint::black_box(decoded);
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    })?;
    let decoding = count as f64 / start.elapsed().as_secs_f64();
    println!(
        "decoding alone: {decoding:.0} a second; peak memory {:.0} MB",
        peak().unwrap_or(f64::NAN)
    );

    let order = Order::Shuffled(Rng::new(1));
    let loader = Loader::new(&images, BATCH, order, Partial::Keep)?;
    let (start, mut seen) = (Instant::now(), 0);
    for batch in loader.epoch(0) {
        seen += batch?.samples.len();
    }
    let streaming = seen as f64 / start.elapsed().as_secs_f64();
    println!(
        "streaming: {streaming:.0} a second, {:.2} of that; peak memory {:.0} MB",
        streaming / decoding,
        peak().unwrap_or(f64::NAN)
    );
    Ok(())
}
