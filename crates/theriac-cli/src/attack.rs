//! `theriac attack`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Tensor};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;
use theriac::{Aim, Budget, Eps, Pixels, Run};
use theriac_attacks::{
    Apgd, ApgdT, AutoAttack, CarliniWagner, Ddn, Declare, DeepFool, Fab, Fgsm, Fmn, HopSkipJump,
    Loss, MiFgsm, Pgd, Row, Spec, Square, bim, report,
};
use theriac_data::Dataset as _;
use theriac_nn::{Entry, write as write_tensors};

use crate::Common;
use crate::evaluate::{norm, write};
use crate::subject::{self, DataOptions, ModelOptions};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The model: weights as a safetensors file, or an ONNX file.
    model: PathBuf,
    #[command(flatten)]
    network: ModelOptions,
    #[command(flatten)]
    data: DataOptions,
    /// fgsm, bim, pgd, mi-fgsm, apgd, apgd-t, square, auto-attack; without a ball deep-fool, fab,
    /// fmn, ddn, carlini-wagner, hop-skip-jump; or as in TOML: '{ kind = "pgd", budget = { norm =
    /// "linf", eps = "8/255" }, step = "2/255", steps = 50 }'.
    #[arg(long, default_value = "pgd", value_name = "ATTACK")]
    attack: String,
    /// The norm: linf or l2.
    #[arg(long, default_value = "linf")]
    norm: String,
    /// The radius of the ball for pixels in [0, 1], for attacks that have one.
    #[arg(long)]
    eps: Option<Eps>,
    /// The folder for what is found.
    #[arg(long, value_name = "DIR", default_value = "theriac-attack")]
    out: PathBuf,
}

/// Steps of attacks that take steps of a fixed size: each is a quarter of the radius.
const STEPS: u32 = 20;
/// Images at a time.
const BATCH: usize = 128;
/// Images in the picture.
const ROWS: usize = 10;

fn spec(options: &Options) -> Result<Spec> {
    let text = options.attack.trim();
    if text.starts_with('{') {
        #[derive(serde::Deserialize)]
        struct Line {
            attack: Spec,
        }
        let line: Line = toml::from_str(&format!("attack = {text}"))
            .with_context(|| format!("--attack {text}"))?;
        return Ok(line.attack);
    }
    let norm = norm(&options.norm)?;
    let ball = || -> Result<Budget> {
        let eps = options
            .eps
            .with_context(|| format!("{text} needs the radius of its ball: --eps 8/255"))?;
        Ok(Budget::new(norm, eps)?)
    };
    Ok(match text {
        "fgsm" => Spec::Fgsm(Fgsm { budget: ball()? }),
        "bim" => {
            let eps = ball()?.eps();
            Spec::Pgd(bim(eps, eps.over(4)?, STEPS)?)
        }
        "pgd" => {
            let budget = ball()?;
            Spec::Pgd(Pgd::new(budget, budget.eps().over(4)?, STEPS))
        }
        "mi-fgsm" => Spec::MiFgsm(MiFgsm::new(ball()?, STEPS)?),
        "apgd" => Spec::Apgd(Apgd::new(ball()?, Loss::CrossEntropy)),
        "apgd-t" => Spec::ApgdT(ApgdT::new(ball()?)),
        "square" => Spec::Square(Square::new(ball()?)),
        "auto-attack" => Spec::AutoAttack(AutoAttack::standard(ball()?)),
        "deep-fool" => Spec::DeepFool(DeepFool::new(norm)),
        "fab" => Spec::Fab(Fab::new(norm)),
        "fmn" => Spec::Fmn(Fmn::new(norm)),
        "ddn" => Spec::Ddn(Ddn::default()),
        "carlini-wagner" => Spec::CarliniWagner(CarliniWagner::cw()),
        "hop-skip-jump" => Spec::HopSkipJump(HopSkipJump::new(norm)),
        other => anyhow::bail!("--attack {other}: unknown; see `theriac attack --help`"),
    })
}

#[derive(Serialize)]
struct Told {
    attack: String,
    images: usize,
    correct_before: usize,
    correct_after: usize,
    /// Share of the images correct before the attack that it breaks.
    success: f64,
    median_distance: Option<f64>,
    forwards: u64,
    gradients: u64,
}

pub(crate) fn run(options: &Options, common: &Common) -> Result<ExitCode> {
    let device = theriac::device(&common.device)?;
    let data = subject::images(&options.data)?;
    let model = subject::open(&options.model, &options.network, &data, DType::F32, &device)?;
    let attack = spec(options)?;
    attack.check()?;
    let run = Run::new(common.seed, &device);
    let model = &*model.classifier;
    let norm = match attack.declared().budget {
        Some(budget) => budget.norm(),
        None => norm(&options.norm)?,
    };
    let (mut labels, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let (mut moved, mut rows): (Vec<Pixels>, Vec<Row>) = (Vec::new(), Vec::new());
    let bar = bar(data.len(), common.json);
    // No result depends on the batch: it is what the bar moves by.
    let all: Vec<u32> = (0..data.len() as u32).collect();
    for positions in all.chunks(BATCH) {
        let batch = data.batch(positions, DType::F32, &device)?;
        let pass = run.eval(&batch.samples);
        let aim = Aim::Away(&batch.target);
        before.extend(theriac::predict(model, &batch.pixels, &pass)?.to_vec()?);
        let found = report(&attack, model, &batch.pixels, aim, &pass, norm)?;
        after.extend(theriac::predict(model, &found.last, &pass)?.to_vec()?);
        labels.extend(batch.target.to_vec()?);
        rows.extend(found.rows);
        moved.push(found.last);
        bar.inc(positions.len() as u64);
    }
    bar.finish_and_clear();
    let moved = Pixels::cat(&moved)?;
    save(&options.out, &moved, &labels, &after, &rows)?;
    let first = &all[..all.len().min(ROWS)];
    let clean = data.batch(first, DType::F32, &device)?.pixels;
    if let Some(grid) = grid(&clean, &moved)? {
        write(&options.out.join("grid.png"), &grid)?;
    }
    let right = |predicted: &[u32], i: usize| predicted[i] == labels[i];
    let kept = (0..labels.len()).filter(|&i| right(&before, i) && right(&after, i));
    let (was, kept) = (
        (0..labels.len()).filter(|&i| right(&before, i)).count(),
        kept.count(),
    );
    let mut distances: Vec<f64> = rows
        .iter()
        .enumerate()
        .filter(|(i, row)| right(&before, *i) && row.fooled)
        .map(|(_, row)| row.distance)
        .collect();
    distances.sort_by(f64::total_cmp);
    let told = Told {
        attack: attack.declared().name,
        images: labels.len(),
        correct_before: was,
        correct_after: kept,
        success: 1.0 - kept as f64 / was.max(1) as f64,
        median_distance: distances.get(distances.len() / 2).copied(),
        forwards: rows.iter().map(|row| row.work.forwards).sum(),
        gradients: rows.iter().map(|row| row.work.gradients).sum(),
    };
    if common.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} on {} images", told.attack, told.images);
    println!(
        "  correct before {was}, after {kept}: success {:.1} %",
        100.0 * told.success
    );
    if let Some(median) = told.median_distance {
        println!("  median distance of the broken: {median:.5} ({norm})");
    }
    println!(
        "  {} forward and backward, {} forward passes",
        told.gradients, told.forwards
    );
    println!("  {}", options.out.display());
    println!("  this is one attack, not an evaluation: `theriac evaluate` gives a verdict");
    Ok(ExitCode::SUCCESS)
}

fn bar(images: usize, hidden: bool) -> ProgressBar {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    ProgressBar::with_draw_target(Some(images as u64), target)
}

fn save(dir: &Path, images: &Pixels, labels: &[u32], after: &[u32], rows: &[Row]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let n = labels.len();
    let distances: Vec<f32> = rows.iter().map(|row| row.distance as f32).collect();
    let bytes = |values: &[u32]| values.iter().map(|v| *v as u8).collect::<Vec<u8>>();
    let (labels, after) = (bytes(labels), bytes(after));
    let cpu = images.tensor().to_device(&Device::Cpu)?;
    let entries = vec![
        Entry::tensor("adversarial", &cpu)?,
        Entry::f32("distance", &[n], &distances),
        Entry::u8("label", &[n], &labels),
        Entry::u8("predicted", &[n], &after),
    ];
    write_tensors(
        &dir.join("adversarial.safetensors"),
        entries,
        &BTreeMap::new(),
    )?;
    Ok(())
}

/// Rows of clean image, adversarial image and stretched difference, as PNG; none for images that
/// are neither grey nor of three colours.
fn grid(clean: &Pixels, moved: &Pixels) -> Result<Option<Vec<u8>>> {
    const GAP: usize = 2;
    let (n, channels, height, width) = clean.tensor().dims4()?;
    if channels != 1 && channels != 3 {
        return Ok(None);
    }
    let rows = n.min(ROWS);
    let (wide, high) = (3 * width + 2 * GAP, rows * (height + GAP) - GAP);
    let mut bytes = vec![255u8; wide * high * channels];
    for i in 0..rows {
        let at = |x: &Pixels| -> Result<Tensor> {
            let image = x.tensor().get(i)?.to_dtype(DType::F64)?;
            Ok(image.to_device(&Device::Cpu)?.permute((1, 2, 0))?)
        };
        let (clean, moved) = (at(clean)?, at(moved)?);
        let difference = (&moved - &clean)?;
        let most = difference
            .abs()?
            .flatten_all()?
            .max(0)?
            .to_scalar::<f64>()?;
        let difference = difference.affine(0.5 / most.max(1e-12), 0.5)?;
        for (column, image) in [clean, moved, difference].iter().enumerate() {
            let values = image.flatten_all()?.to_vec1::<f64>()?;
            for (y, line) in values.chunks(width * channels).enumerate() {
                let (top, left) = (i * (height + GAP) + y, column * (width + GAP));
                let start = (top * wide + left) * channels;
                for (place, value) in bytes[start..start + line.len()].iter_mut().zip(line) {
                    *place = (value * 255.0).round().clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, wide as u32, high as u32);
    encoder.set_color(match channels {
        1 => png::ColorType::Grayscale,
        _ => png::ColorType::Rgb,
    });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    Ok(Some(out))
}
