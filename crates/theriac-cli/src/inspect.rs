//! `theriac inspect`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use candle_core::{DType, Device};
use serde::Serialize;
use theriac::Classifier as _;
use theriac_nn::{Params, Plain, Saved};
use theriac_onnx::{OnnxModel, Summary};

use crate::Common;
use crate::subject::{KNOWN, is_onnx, sha256_of};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A safetensors file, or an ONNX file.
    file: PathBuf,
    /// The file is ONNX. Files called *.onnx are taken for that anyway.
    #[arg(long)]
    onnx: bool,
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

pub(crate) fn run(options: &Options, common: &Common) -> Result<ExitCode> {
    if is_onnx(&options.file, options.onnx) {
        return of_onnx(options, common);
    }
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
    // Large networks are not built in vain.
    for known in KNOWN.iter().filter(|it| saved.shape(it.tensor).is_some()) {
        for &classes in &classes {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            let built = (known.spec)(classes).build(&Plain, params.frozen());
            if built.is_ok() && params.check(&saved, "").is_ok() {
                fits.push(known.name.to_owned());
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

#[derive(Serialize)]
struct ToldOnnx {
    file: String,
    sha256: String,
    producer: String,
    opset: Option<i64>,
    parameters: i64,
    inputs: Vec<String>,
    outputs: Vec<String>,
    operations: std::collections::BTreeMap<String, usize>,
    /// What was left out to get logits.
    notes: Vec<String>,
    /// Channels, height and width, where it can be attacked as it is.
    image: Option<[usize; 3]>,
    classes: Option<usize>,
    /// Why it cannot.
    refused: Option<String>,
}

fn of_onnx(options: &Options, common: &Common) -> Result<ExitCode> {
    let Summary {
        producer,
        opset,
        inputs,
        outputs,
        operations,
        constants,
    } = Summary::open(&options.file)?;
    let opened = OnnxModel::open(&options.file, &theriac_onnx::Options::default());
    let opened = opened.map_err(|error| error.to_string());
    let told = ToldOnnx {
        file: options.file.display().to_string(),
        sha256: sha256_of(&options.file)?,
        producer,
        opset,
        parameters: constants.iter().fold(0, |sum: i64, (_, shape)| {
            sum.saturating_add(shape.iter().fold(1, |n: i64, d| n.saturating_mul(*d)))
        }),
        inputs,
        outputs,
        operations,
        notes: opened
            .as_ref()
            .map(|model| model.notes.clone())
            .unwrap_or_default(),
        image: opened.as_ref().ok().map(|model| model.image),
        classes: opened.as_ref().ok().map(|model| model.classes()),
        refused: opened.err(),
    };
    if common.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", told.file);
    println!("  SHA-256        {}", told.sha256);
    println!("  written by     {}", told.producer);
    if let Some(opset) = told.opset {
        println!("  operators      version {opset}");
    }
    println!("  parameters     {}", told.parameters);
    println!("  reads          {}", told.inputs.join(", "));
    println!("  gives          {}", told.outputs.join(", "));
    let operations = told
        .operations
        .iter()
        .map(|(op, count)| format!("{count} {op}"));
    println!(
        "  operations     {}",
        operations.collect::<Vec<_>>().join(", ")
    );
    for note in &told.notes {
        println!("  note           {note}");
    }
    match (told.image, told.classes, &told.refused) {
        (Some(image), Some(classes), _) => {
            println!("  can be attacked: images (C, H, W) = {image:?}, {classes} classes");
        }
        (_, _, refused) => println!(
            "  refused        {}",
            refused.as_deref().unwrap_or_default()
        ),
    }
    Ok(ExitCode::SUCCESS)
}
