//! `theriac inspect`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use candle_core::{DType, Device};
use serde::Serialize;
use theriac_nn::{Params, Plain, Saved};

use crate::Common;
use crate::subject::{arch, sha256_of};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A safetensors file.
    file: PathBuf,
}

#[derive(Serialize)]
struct Told {
    file: String,
    sha256: String,
    about: std::collections::BTreeMap<String, String>,
    parameters: usize,
    tensors: Vec<(String, Vec<usize>)>,
    fits: Vec<String>,
    normalisation: String,
}

/// Networks whose parameters may be those of a file.
const KNOWN: [&str; 9] = [
    "lenet5",
    "atda-cnn",
    "advertorch-lenet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet18",
];

pub(crate) fn run(options: &Options, common: &Common) -> Result<ExitCode> {
    let saved = Saved::read(&options.file)?;
    let names: Vec<String> = saved.names().map(str::to_owned).collect();
    let tensors: Vec<(String, Vec<usize>)> = names
        .into_iter()
        .map(|name| {
            let shape = saved.shape(&name).unwrap_or_default().to_vec();
            (name, shape)
        })
        .collect();
    let about = saved.about().clone();
    let normalisation = match (about.get("mean"), about.get("std")) {
        (Some(mean), Some(std)) => format!("mean {mean}, deviation {std}"),
        _ => {
            "not stated: none if trained on pixels in [0, 1], else give --mean and --std".to_owned()
        }
    };
    // The last bias or matrix tells the number of classes.
    let mut classes: Vec<usize> = tensors
        .iter()
        .filter(|(_, shape)| shape.len() <= 2)
        .filter_map(|(_, shape)| shape.first().copied())
        .collect();
    classes.sort_unstable();
    classes.dedup();
    let mut fits = Vec::new();
    for name in KNOWN {
        for &classes in &classes {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            let built = arch(name, classes)?.build(&Plain, params.frozen());
            if built.is_ok() && params.check(&saved, "").is_ok() {
                fits.push(name.to_owned());
                break;
            }
        }
    }
    let told = Told {
        file: options.file.display().to_string(),
        sha256: sha256_of(&options.file)?,
        about,
        parameters: tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum(),
        tensors,
        fits,
        normalisation,
    };
    if common.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", told.file);
    println!("  SHA-256        {}", told.sha256);
    println!(
        "  parameters     {} in {} tensors",
        told.parameters,
        told.tensors.len()
    );
    println!("  normalisation  {}", told.normalisation);
    for (name, value) in &told.about {
        println!("  {name:14} {value}");
    }
    match told.fits.is_empty() {
        true => {
            println!("  fits           no known network as it is; `theriac convert` may rename")
        }
        false => println!("  fits           {}", told.fits.join(", ")),
    }
    for (name, shape) in &told.tensors {
        println!("  {name:40} {shape:?}");
    }
    Ok(ExitCode::SUCCESS)
}
