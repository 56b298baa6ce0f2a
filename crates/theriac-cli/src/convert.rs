//! `theriac convert`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::pickle::{TensorInfo, read_pth_tensor_info};
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
    let place = || path.display().to_string();
    let all = read_pth_tensor_info(path, false, key).with_context(place)?;
    ensure!(
        !all.is_empty(),
        "{} holds no tensors by name: if its state dict is an entry, give --key, such as \
         --key state_dict",
        path.display()
    );
    let file = std::fs::File::open(path).with_context(place)?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).with_context(place)?;
    let tensors = all.into_iter().map(|about| {
        let tensor = stored(&mut archive, &about);
        let tensor = tensor.with_context(|| format!("{}: {}", path.display(), about.name))?;
        Ok((about.name, tensor))
    });
    tensors.collect()
}

/// One tensor. (candle reads no permuted ones.)
fn stored(
    archive: &mut zip::ZipArchive<impl std::io::Read + std::io::Seek>,
    about: &TensorInfo,
) -> Result<Tensor> {
    let mut bytes = Vec::new();
    archive.by_name(&about.path)?.read_to_end(&mut bytes)?;
    let size = about.dtype.size_in_bytes();
    let all = Tensor::from_raw_buffer(&bytes, about.dtype, &[bytes.len() / size], &Device::Cpu)?;
    let (held, layout) = (all.elem_count(), &about.layout);
    let mut positions = vec![layout.start_offset() / size]; // in bytes, here alone in candle
    for (&extent, &stride) in layout.dims().iter().zip(layout.stride()) {
        ensure!(
            extent.saturating_mul(positions.len()) <= held,
            "shape {:?} of {held} values: the file is damaged",
            layout.dims()
        );
        let along = |from| (0..extent).map(move |i: usize| i.saturating_mul(stride) + from);
        positions = positions.into_iter().flat_map(along).collect();
    }
    let positions = positions.into_iter().map(|position| match position < held {
        true => Ok(position as u32),
        false => bail!("value {position} of {held}: the file is damaged"),
    });
    let positions = Tensor::new(positions.collect::<Result<Vec<u32>>>()?, &Device::Cpu)?;
    Ok(all.index_select(&positions, 0)?.reshape(layout.dims())?)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(name)
    }

    /// `b = torch.arange(24.).reshape(2, 3, 4)` as `plain`, `b.permute(2, 0, 1)`, `b[1]` as `part`,
    /// `b.bfloat16()` as `half`, and `torch.tensor(7)` as `steps`; `nested.pth` has them in an entry.
    #[test]
    fn files_of_torch_save_hold_what_was_saved() {
        for (name, key) in [("state.pth", None), ("nested.pth", Some("state_dict"))] {
            let tensors = read(&file(name), key).unwrap();
            let values = |name: &str, dims: &[usize]| -> Vec<f32> {
                assert_eq!(tensors[name].dims(), dims, "{name}");
                let flat = tensors[name].flatten_all().unwrap();
                flat.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
            };
            let all: Vec<f32> = (0..24).map(|i| i as f32).collect();
            assert_eq!(values("plain", &[2, 3, 4]), all);
            assert_eq!(values("half", &[2, 3, 4]), all);
            assert_eq!(values("part", &[3, 4]), all[12..]);
            assert_eq!(values("steps", &[]), [7.0]);
            let permuted: Vec<f32> = (0..4)
                .flat_map(|k| (0..6).map(move |ij| (4 * ij + k) as f32))
                .collect();
            assert_eq!(values("permuted", &[4, 2, 3]), permuted);
        }
    }

    #[test]
    fn other_files_say_what_to_do() {
        let complaint = |name: &str, key| format!("{:#}", read(&file(name), key).unwrap_err());
        assert!(complaint("old.pth", None).contains("torch.save(torch.load("));
        assert!(complaint("nested.pth", None).contains("--key state_dict"));
        assert!(complaint("state.pth", Some("model")).contains("model"));
        assert!(complaint("none.pth", None).contains("none.pth"));
        let whole = std::fs::read(file("state.pth")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for part in [0, 1, 2, 100, whole.len() / 2, whole.len() - 1] {
            let path = folder.path().join("part.pth");
            std::fs::write(&path, &whole[..part]).unwrap();
            assert!(read(&path, None).is_err(), "{part} bytes");
        }
    }
}
