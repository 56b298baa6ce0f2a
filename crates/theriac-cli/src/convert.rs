//! `theriac convert`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor};
use theriac::{Classifier as _, Pixels, Run, scores};
use theriac_nn::{Params, Plain, Saved};

use crate::Common;
use crate::subject::{arch, local};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A state dict of PyTorch: a safetensors file, or one that `torch.save` wrote, called *.pth,
    /// *.pt or *.bin; `hf:OWNER/NAME/FILE` is one on the Hugging Face hub.
    from: PathBuf,
    /// The weights file to write.
    to: PathBuf,
    /// The network, as in `theriac evaluate`.
    #[arg(long, value_name = "NAME")]
    arch: String,
    /// Number of classes.
    #[arg(long, default_value_t = 10, value_name = "K")]
    classes: usize,
    /// The state dict is the entry KEY of what `torch.save` wrote.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Names that begin with OLD begin with NEW; may be given several times.
    #[arg(long, value_name = "OLD=NEW")]
    rename: Vec<String>,
    /// Pairs tensors by their shapes, whatever their names, if each shape comes once.
    #[arg(long)]
    by_shape: bool,
    /// A safetensors file with "input" (pixels in [0, 1]) and the "logits" that PyTorch gives for
    /// it: the converted network must agree.
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
}

/// What wrappers of PyTorch put before names.
const PREFIXES: [&str; 5] = ["module.", "model.", "net.", "network.", "_orig_mod."];

/// Largest difference of a logit, relative to the largest logit.
const CLOSE: f64 = 1e-4;

pub(crate) fn run(options: &Options, common: &Common) -> Result<ExitCode> {
    let from = local(&options.from)?;
    let saved = read(&from, options.key.as_deref())?;
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let network = arch(&options.arch, options.classes)?.build(&Plain, params.frozen())?;
    let names = pairs(options, &saved, &params)?;
    for (path, var) in params.all() {
        let name = names
            .get(&path)
            .with_context(|| absent(&path, &saved, options))?;
        let value = saved[name].to_dtype(DType::F32)?;
        ensure!(
            value.dims() == var.dims(),
            "{name} has shape {:?}, {path} of {} has {:?}",
            value.dims(),
            options.arch,
            var.dims()
        );
        var.set(&value)?;
    }
    let agrees = match &options.verify {
        Some(path) => Some(verified(path, &network)?),
        None => None,
    };
    let about = BTreeMap::from([
        ("model".to_owned(), options.arch.clone()),
        (
            "converted_from".to_owned(),
            from.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        ),
    ]);
    params.save(&options.to, &about)?;
    // What was written must read again.
    params.load(&options.to)?;
    if common.json {
        let told = serde_json::json!({
            "to": options.to, "parameters": params.count(), "largest_difference": agrees,
        });
        println!("{told}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: {} parameters", options.to.display(), params.count());
    match agrees {
        Some(difference) => println!("  logits agree with PyTorch's within {difference:.1e}"),
        None => println!(
            "  logits were not compared: save some with\n    x = torch.rand(8, 1, 28, 28); save_file(\
             {{\"input\": x, \"logits\": model.eval()(x)}}, \"logits.safetensors\")\n  and give \
             --verify logits.safetensors"
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a state dict.
fn read(path: &Path, key: Option<&str>) -> Result<Tensors> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    if !matches!(ending, Some("pth" | "pt" | "bin")) {
        ensure!(
            key.is_none(),
            "--key is for files of torch.save; {} is read as safetensors",
            path.display()
        );
        let saved = Saved::read(path)?;
        let tensor = |name: &str| Ok((name.to_owned(), saved.tensor(name, &Device::Cpu)?));
        return saved.names().map(tensor).collect();
    }
    let mut start = [0; 2];
    let file = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    file.with_context(|| path.display().to_string())?;
    ensure!(
        start == *b"PK",
        "{0} is no file of torch.save since version 1.6; in Python, torch.save(torch.load({0:?}), \
         \"new.pth\") writes one",
        path.display()
    );
    let all = PthTensors::new(path, key).with_context(|| path.display().to_string())?;
    ensure!(
        !all.tensor_infos().is_empty(),
        "{} holds no tensors by name: if its state dict is an entry, give --key, such as \
         --key state_dict",
        path.display()
    );
    let mut tensors = Tensors::new();
    for (name, about) in all.tensor_infos() {
        // candle 0.11 reads a part of a larger storage from the wrong place.
        ensure!(
            about.layout.start_offset() == 0,
            "{name} of {} is part of a larger tensor: save a copy, {{k: v.clone() for k, v in \
             state.items()}}",
            path.display()
        );
        let tensor = all.get(name).with_context(|| name.clone())?;
        tensors.extend(tensor.map(|tensor| (name.clone(), tensor)));
    }
    Ok(tensors)
}

/// Paths of the network and the names in the file that go with them.
fn pairs(options: &Options, saved: &Tensors, params: &Params) -> Result<BTreeMap<String, String>> {
    let names: Vec<&str> = saved
        .keys()
        .map(String::as_str)
        .filter(|name| !name.ends_with("num_batches_tracked"))
        .collect();
    if options.by_shape {
        let paths = params.all();
        ensure!(
            names.len() == paths.len(),
            "{} has {} tensors, {} has {}: --by-shape needs as many",
            options.from.display(),
            names.len(),
            options.arch,
            paths.len()
        );
        return by_shape(saved, &names, &paths);
    }
    let mut pairs = BTreeMap::new();
    for name in names {
        let mut path = name;
        while let Some(rest) = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)) {
            path = rest;
        }
        let mut path = path.to_owned();
        for rule in &options.rename {
            let Some((old, new)) = rule.split_once('=') else {
                bail!("--rename {rule}: write OLD=NEW, such as features.0=conv1");
            };
            if let Some(rest) = path.strip_prefix(old) {
                path = format!("{new}{rest}");
                break;
            }
        }
        if let Some(other) = pairs.insert(path.clone(), name.to_owned()) {
            bail!("{other} and {name} would both become {path}: give another --rename");
        }
    }
    Ok(pairs)
}

/// Pairs tensors that have a shape of their own.
fn by_shape(
    saved: &Tensors,
    names: &[&str],
    paths: &[(String, candle_core::Var)],
) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for (path, var) in paths {
        let alike: Vec<&&str> = names
            .iter()
            .filter(|name| saved[**name].dims() == var.dims())
            .collect();
        let [one] = alike[..] else {
            bail!(
                "{path} of shape {:?} fits {} tensors of the file: name it with --rename",
                var.dims(),
                alike.len()
            );
        };
        pairs.insert(path.clone(), (*one).to_owned());
    }
    Ok(pairs)
}

fn absent(path: &str, saved: &Tensors, options: &Options) -> String {
    let names: Vec<&str> = saved.keys().map(String::as_str).take(40).collect();
    format!(
        "{} has nothing for {path} of {}; it has {}: give --rename OLD=NEW",
        options.from.display(),
        options.arch,
        names.join(", ")
    )
}

/// The largest difference between the network's logits and those of a file.
fn verified(path: &Path, network: &theriac_nn::Network) -> Result<f64> {
    let saved = Saved::read(path)?;
    let read = |name: &str| -> Result<Tensor> {
        Ok(saved.tensor(name, &Device::Cpu)?.to_dtype(DType::F32)?)
    };
    let pixels = Pixels::new(read("input")?)?;
    let expected = read("logits")?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let run = Run::new(0, &Device::Cpu);
    let ids: Vec<u32> = (0..pixels.len() as u32).collect();
    let got = scores(network, &pixels, &run.eval(&ids))?;
    ensure!(
        got.len() == expected.len() && network.classes() == expected[0].len(),
        "{}: \"logits\" of {} rows of {}, expected {} of {}",
        path.display(),
        expected.len(),
        expected.first().map_or(0, Vec::len),
        got.len(),
        network.classes()
    );
    let pairs = || got.iter().flatten().zip(expected.iter().flatten());
    let largest = pairs().fold(0.0, |most: f64, (_, b)| most.max(b.abs()));
    let difference = pairs().fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
    ensure!(
        difference <= CLOSE * largest.max(1.0),
        "logits differ from PyTorch's by {difference:.2e} where the largest is {largest:.2e}: another \
         network, or normalised input"
    );
    Ok(difference)
}
