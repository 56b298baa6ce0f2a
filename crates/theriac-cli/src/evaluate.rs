//! `theriac evaluate` and `theriac merge`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::DType;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use theriac::{Aim, Batch, Budget, Classifier, Eps, Labels, Norm, Run, Work, gradient, scores};
use theriac_attacks::Loss;
use theriac_data::{Dataset, Images};
use theriac_eval::evaluation::{
    Manifest, Models, Plan, Profile, Shard, Store, Subject, is_random, read_manifest,
};
use theriac_eval::{Evaluation, Measure};
use theriac_tables::Interrupt;

use crate::subject::{self, DataOptions, Model, ModelOptions};
use crate::{Common, INTERRUPTED, page};

/// Images by which the plan and the forecast are made.
const FIRST: usize = 16;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The model: weights as a safetensors file, or an ONNX file.
    model: PathBuf,
    #[command(flatten)]
    network: ModelOptions,
    #[command(flatten)]
    data: DataOptions,
    /// The norm of the ball: linf or l2.
    #[arg(long, default_value = "linf")]
    norm: String,
    /// The radius of the ball for pixels in [0, 1]: 8/255, 0.1.
    #[arg(long, required_unless_present = "plan")]
    eps: Option<Eps>,
    /// How much work: quick, standard (AutoAttack), thorough (AutoAttack plus).
    #[arg(long, default_value = "standard", value_parser = profile)]
    profile: Profile,
    /// A plan of your own, in TOML; `--print-plan` shows one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["eps", "profile"])]
    plan: Option<PathBuf>,
    /// Prints the plan and the forecast, and does nothing.
    #[arg(long)]
    print_plan: bool,
    /// The folder for the report and for all that is needed to go on after an interruption.
    #[arg(long, value_name = "DIR", default_value = "theriac-report")]
    report: PathBuf,
    /// Weights of another model of the same kind, to craft attacks on.
    #[arg(long, value_name = "FILE")]
    surrogate: Option<PathBuf>,
    /// The network of the surrogate, if it is another.
    #[arg(long, value_name = "NAME", requires = "surrogate")]
    surrogate_arch: Option<String>,
    /// Weights of the model without its defence: the attack must break it.
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    /// Also asks the attack a question whose answer is planted.
    #[arg(long)]
    active_test: bool,
    /// A part of the work: i/n, i from 0. Each part takes a folder of its own.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<Shard>,
    /// Images in a batch: a kill loses one at most, and no result depends on it.
    #[arg(long, default_value_t = 128, value_name = "N")]
    batch: usize,
    /// Element type: f32 or f64.
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
}

fn profile(text: &str) -> Result<Profile, String> {
    match text {
        "quick" => Ok(Profile::Quick),
        "standard" => Ok(Profile::Standard),
        "thorough" => Ok(Profile::Thorough),
        _ => Err("choose quick, standard or thorough".to_owned()),
    }
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "f64" => Ok(DType::F64),
        _ => Err("choose f32 or f64".to_owned()),
    }
}

pub(crate) fn norm(text: &str) -> Result<Norm> {
    match text.to_lowercase().as_str() {
        "linf" => Ok(Norm::Linf),
        "l2" => Ok(Norm::L2),
        _ => bail!("--norm {text}: choose linf or l2"),
    }
}

fn shard(text: &str) -> Result<Shard, String> {
    let parts = text.split_once('/');
    let parts = parts.and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
    match parts {
        Some((index, of)) if index < of => Ok(Shard { index, of }),
        _ => Err("write I/N with I from 0 to N - 1, such as 0/4".to_owned()),
    }
}

pub(crate) fn run(options: &Options, common: &Common) -> Result<ExitCode> {
    let device = theriac::device(&common.device)?;
    let data = subject::images(&options.data)?;
    let open = |path: &Path, network: &ModelOptions| {
        subject::open(path, network, &data, options.dtype, &device)
    };
    let model = open(&options.model, &options.network)?;
    let surrogate = options.surrogate.as_deref().map(|path| {
        let arch = options.surrogate_arch.clone();
        let arch = arch.or(options.network.arch.clone());
        let network = ModelOptions {
            arch,
            ..options.network.clone()
        };
        open(path, &network)
    });
    let surrogate = surrogate.transpose()?;
    let control = options.control.as_deref();
    let control = control.map(|path| open(path, &options.network));
    let control = control.transpose()?;

    let run = Run::new(common.seed, &device);
    let first: Vec<u32> = (0..data.len().min(FIRST) as u32).collect();
    let first = data.batch(&first, options.dtype, &device)?;
    // A wrong input size shows here, before anything is written.
    let random = is_random(&model.classifier, &first, &run)
        .with_context(|| format!("{} on images of {:?}", model.arch, data.shape()))?;
    let mut plan = match &options.plan {
        Some(path) => read_plan(path)?,
        None => {
            let eps = options.eps.context("--eps is missing")?;
            let budget = Budget::new(norm(&options.norm)?, eps)?;
            Plan::new(options.profile, budget, data.classes(), random)?
        }
    };
    if surrogate.is_some() {
        plan = plan.with_transfer();
    }
    if control.is_some() {
        plan = plan.with_control();
    }
    if options.active_test {
        plan = plan.with_active_test();
    }
    plan.check()?;
    let manifest = manifest(options, common, &model, &data, plan);
    let forecast = forecast(&manifest, &model, &first, &run)?;
    if options.print_plan {
        println!("{}", toml::to_string(&manifest.plan)?);
        eprintln!("{forecast}");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{forecast}");

    let mut store = Store::open(&options.report.join("store"), manifest)?;
    let state = || model.state();
    let work = Measure {
        models: Models {
            model: &*model.classifier,
            surrogate: surrogate.as_ref().map(|other| &*other.classifier),
            control: control.as_ref().map(|other| &*other.classifier),
            state: Some(&state),
            detector: None,
        },
        data: &data,
        run: &run,
        dtype: options.dtype,
        batch: options.batch,
    };
    let interrupt = Interrupt::on_signal()?;
    let bar = bar();
    let flow = work.run(&mut store, |progress| {
        bar.set_length(progress.images as u64);
        bar.set_position(progress.done as u64);
        let stage = progress.stage;
        let (number, stages) = (progress.number + 1, progress.stages);
        bar.set_message(format!("{number}/{stages} {stage}"));
        match interrupt.is_raised() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    if flow?.is_break() {
        eprintln!("interrupted; the same command goes on from here");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(Shard { index, of }) = options.shard.filter(|shard| shard.of > 1) {
        eprintln!(
            "part {index} of {of} is done; when all are: theriac merge PART... --data {} --report DIR",
            options.data.data
        );
        return Ok(ExitCode::SUCCESS);
    }
    conclude(&store, &data, &options.report, common)
}

fn read_plan(path: &Path) -> Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

fn manifest(
    options: &Options,
    common: &Common,
    model: &Model,
    data: &Images,
    plan: Plan,
) -> Manifest {
    let mut more = BTreeMap::from([("arch".to_owned(), model.arch.clone())]);
    if !options.network.mean.is_empty() {
        more.insert("mean".to_owned(), format!("{:?}", options.network.mean));
        more.insert("std".to_owned(), format!("{:?}", options.network.std));
    }
    for (name, path) in [
        ("surrogate", &options.surrogate),
        ("control", &options.control),
    ] {
        if let Some(sha256) = path
            .as_deref()
            .and_then(|path| subject::sha256_of(path).ok())
        {
            more.insert(format!("{name}_sha256"), sha256);
        }
    }
    let name = options.model.file_name().unwrap_or_default();
    let subject = Subject {
        model: name.to_string_lossy().into_owned(),
        weights_sha256: model.sha256.clone(),
        data: data.name().to_owned(),
        data_sha256: subject::data_sha256(data),
        images: data.len() as u32,
        shape: data.shape().to_vec(),
        classes: data.classes(),
        seed: common.seed,
        dtype: format!("{:?}", options.dtype).to_lowercase(),
        device: common.device.clone(),
        more,
    };
    Manifest::new(subject, plan, options.shard.unwrap_or(Shard::WHOLE))
}

/// Passes and time that the plan can take at most, from the speed on a few images.
fn forecast(
    manifest: &Manifest,
    model: &Model,
    first: &Batch<Labels>,
    run: &Run,
) -> Result<String> {
    let pass = run.eval(&first.samples);
    let started = Instant::now();
    scores(&model.classifier, &first.pixels, &pass)?;
    let forward = started.elapsed();
    let started = Instant::now();
    let model = &model.classifier;
    gradient(&first.pixels, &pass, |x| {
        Loss::CrossEntropy.of(&model.logits(x, &pass)?, Aim::Away(&first.target))
    })?;
    let both = started.elapsed();
    let n = first.len() as f64;
    let plan = &manifest.plan;
    let images = manifest.positions().count() as u64;
    let few = manifest.positions().filter(|at| *at < plan.few).count() as u64;
    let mut total = Work::default();
    let mut unknown = Vec::new();
    for (stage, (name, work)) in plan
        .stages
        .iter()
        .zip(plan.forecast(manifest.subject.classes))
    {
        let images = if stage.role.is_for_few() { few } else { images };
        match work {
            Some(work) => {
                total.forwards += work.forwards * images;
                total.gradients += work.gradients * images;
            }
            None => unknown.push(name),
        }
    }
    let threads = rayon::current_num_threads().max(1) as f64;
    let seconds = (total.forwards as f64 * forward.as_secs_f64()
        + total.gradients as f64 * both.as_secs_f64())
        / n
        / threads;
    let time = HumanDuration(Duration::from_secs_f64(seconds.clamp(1.0, 1e9)));
    let mut text = format!(
        "{images} images, {} stages, at most {} forward and backward and {} forward passes, about \
         {time} at most (images that are broken leave early)",
        plan.stages.len(),
        total.gradients,
        total.forwards,
    );
    if !unknown.is_empty() {
        text += &format!("; not counted: {}", unknown.join(", "));
    }
    Ok(text)
}

fn bar() -> ProgressBar {
    let style = "{msg:24} {bar:30} {pos}/{len} images, {eta} left in this stage";
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// Prints the evaluation and writes its report.
fn conclude(store: &Store, data: &Images, report: &Path, common: &Common) -> Result<ExitCode> {
    let evaluation = Evaluation::of(store)?;
    let page = page::page(&evaluation, store, data)?;
    let index = page.write(report)?;
    let json = serde_json::to_string_pretty(&evaluation)?;
    write(&report.join("evaluation.json"), json.as_bytes())?;
    match common.json {
        true => println!("{json}"),
        false => println!("{evaluation}\n  report: {}", index.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file under a temporary name and renames it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut file =
        tempfile::NamedTempFile::new_in(dir).with_context(|| dir.display().to_string())?;
    file.write_all(bytes)
        .with_context(|| path.display().to_string())?;
    file.persist(path)
        .with_context(|| path.display().to_string())?;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct MergeOptions {
    /// The report folders of all parts.
    #[arg(required = true)]
    parts: Vec<PathBuf>,
    #[command(flatten)]
    data: DataOptions,
    /// The folder for the joined report.
    #[arg(long, value_name = "DIR", default_value = "theriac-report")]
    report: PathBuf,
}

pub(crate) fn merge(options: &MergeOptions, common: &Common) -> Result<ExitCode> {
    let parts: Vec<PathBuf> = options
        .parts
        .iter()
        .map(|part| part.join("store"))
        .collect();
    let first = parts.first().context("no parts were named")?;
    let subject = read_manifest(first)?.subject;
    let data = subject::images(&options.data)?;
    ensure!(
        subject::data_sha256(&data) == subject.data_sha256,
        "--data {} are not the images that the parts were evaluated on ({}, {} images): give the \
         same --data and --images",
        options.data.data,
        subject.data,
        subject.images
    );
    let store = Store::merge(&parts, &options.report.join("store"))?;
    conclude(&store, &data, &options.report, common)
}
