//! From words on the command line to a model and images.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use theriac::Classifier;
use theriac_data::{Corrupt, Dataset as _, Filter, ImageFolder, Images, Prepare};
use theriac_datasets::{Event, Hub, Options as Places, Role, Split, Weights, embedded, resolve};
use theriac_models::Spec;
use theriac_nn::{Network, Normalised, Params, Plain, Saved};
use theriac_onnx::OnnxModel;

/// Which network, and how it sees images.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelOptions {
    #[arg(long, value_name = "NAME", help = help())]
    pub(crate) arch: Option<String>,
    /// The file is ONNX, which holds its network. Files called *.onnx are taken for that anyway.
    #[arg(long, conflicts_with = "arch")]
    pub(crate) onnx: bool,
    /// The output of an ONNX file that holds the logits, if it has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) output: Option<String>,
    /// The network was trained on normalised images: their mean, for pixels in [0, 1], one for each
    /// channel or one for all. By default what the file says of itself, else none.
    #[arg(long, value_delimiter = ',', value_name = "M,...", requires = "std")]
    pub(crate) mean: Vec<f64>,
    /// The deviation that goes with the mean.
    #[arg(long, value_delimiter = ',', value_name = "S,...", requires = "mean")]
    pub(crate) std: Vec<f64>,
}

/// A classifier with its parameters.
pub(crate) struct Model {
    pub(crate) classifier: Box<dyn Classifier>,
    pub(crate) params: Params,
    pub(crate) arch: String,
    pub(crate) sha256: String,
}

impl Model {
    /// A fingerprint of all parameters and statistics.
    pub(crate) fn state(&self) -> theriac::Result<String> {
        let mut hash = Sha256::new();
        for (path, var) in self.params.all() {
            hash.update(path.as_bytes());
            let values = var.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
            for value in values.flatten_all()?.to_vec1::<f64>()? {
                hash.update(value.to_le_bytes());
            }
        }
        Ok(hex(&hash.finalize()))
    }
}

/// Of `--arch`.
fn help() -> String {
    format!(
        "The network: {}, or as in TOML: '{{ kind = \"resnet-v1\", depth = 20, width = 64, classes = \
         10 }}'. By default what the file says of itself",
        names()
    )
}

fn names() -> String {
    KNOWN.map(|known| known.name).join(", ")
}

/// A network that has a name.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// For a number of classes.
    pub(crate) spec: fn(usize) -> Spec,
    /// A tensor that its files have.
    pub(crate) tensor: &'static str,
}

const fn known(name: &'static str, tensor: &'static str, spec: fn(usize) -> Spec) -> Known {
    Known { name, spec, tensor }
}

fn resnet(depth: usize, classes: usize) -> Spec {
    Spec::ResnetV1 {
        depth,
        width: 16,
        classes,
    }
}

pub(crate) const KNOWN: [Known; 22] = [
    known("lenet5", "fc3.weight", |_| Spec::Lenet),
    known("atda-cnn", "fc2.weight", |_| Spec::AtdaCnn),
    known("advertorch-lenet", "linear2.weight", |_| {
        Spec::AdvertorchLenet
    }),
    known("resnet20", "layer3.2.conv1.weight", |n| resnet(20, n)),
    known("resnet32", "layer3.4.conv1.weight", |n| resnet(32, n)),
    known("resnet44", "layer3.6.conv1.weight", |n| resnet(44, n)),
    known("resnet56", "layer3.8.conv1.weight", |n| resnet(56, n)),
    known("resnet110", "layer3.17.conv1.weight", |n| resnet(110, n)),
    known("resnet18-cifar", "layer4.1.conv2.weight", |classes| {
        Spec::Resnet18Cifar { classes }
    }),
    known("resnet50-cifar", "layer4.2.conv3.weight", |classes| {
        Spec::Resnet50Cifar { classes }
    }),
    known("bottleneck-resnet", "layer3.0.conv3.weight", |classes| {
        Spec::BottleneckResnet { classes }
    }),
    known("wrn-28-10", "block3.layer.3.conv2.weight", |classes| {
        Spec::WideResnet {
            depth: 28,
            widen: 10,
            classes,
        }
    }),
    known("vgg16", "classifier.weight", |classes| Spec::Vgg16 {
        classes,
    }),
    known("resnet18", "layer4.1.conv2.weight", |classes| {
        Spec::Resnet18 { classes }
    }),
    known("resnet34", "layer4.2.conv2.weight", |classes| {
        Spec::Resnet34 { classes }
    }),
    known("resnet50", "layer4.2.conv3.weight", |classes| {
        Spec::Resnet50 { classes }
    }),
    known("efficientnet-lite0", "_conv_head.weight", |classes| {
        Spec::EfficientnetLite0 { classes }
    }),
    known("squeezenet", "classifier.1.weight", |classes| {
        Spec::Squeezenet { classes }
    }),
    known("deit-tiny", "blocks.11.attn.qkv.weight", |classes| {
        Spec::DeitTiny { classes }
    }),
    known("deit-small", "blocks.11.attn.qkv.weight", |classes| {
        Spec::DeitSmall { classes }
    }),
    known("deit-base", "blocks.11.attn.qkv.weight", |classes| {
        Spec::DeitBase { classes }
    }),
    known("deit-cifar", "blocks.5.attn.qkv.weight", |classes| {
        Spec::DeitCifar { patch: 4, classes }
    }),
];

/// The network's name to its description.
pub(crate) fn arch(name: &str, classes: usize) -> Result<Spec> {
    #[derive(serde::Deserialize)]
    struct Line {
        arch: Spec,
    }
    if name.trim_start().starts_with('{') {
        // As files say of themselves, or as tables write it.
        if let Ok(spec) = serde_json::from_str(name) {
            return Ok(spec);
        }
        let line = toml::from_str::<Line>(&format!("arch = {name}"));
        return Ok(line.with_context(|| format!("--arch {name}"))?.arch);
    }
    match KNOWN.iter().find(|known| known.name == name) {
        Some(known) => Ok((known.spec)(classes)),
        None => bail!(
            "--arch {name}: unknown; there are {}, and descriptions such as '{{ kind = \
             \"resnet-v1\", depth = 26, classes = 10 }}'",
            names()
        ),
    }
}

/// Whether a file is taken for ONNX.
pub(crate) fn is_onnx(path: &Path, said: bool) -> bool {
    said || path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// What begins the name of weights on the Hugging Face hub.
const HUB: &str = "hf:";

/// The file of a name: of `hf:OWNER/NAME` the local copy, downloaded if there is none.
pub(crate) fn local(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.to_str().and_then(|path| path.strip_prefix(HUB)) else {
        return Ok(path.to_owned());
    };
    let weights: Weights = name.parse()?;
    let hub = Hub {
        endpoint: Places::from_env().endpoint,
        ..Hub::default()
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {eta}",
    )?);
    let path = weights.fetch(&hub, &mut |event| match event {
        Event::Begin { file, bytes } => {
            bar.set_message(file.to_owned());
            bar.set_length(bytes);
            bar.set_position(0);
        }
        Event::Advance { bytes } => bar.inc(bytes),
        _ => bar.finish_and_clear(),
    });
    bar.finish_and_clear();
    Ok(path?)
}

/// Reads a file into its network, for these images.
pub(crate) fn open(
    name: &Path,
    options: &ModelOptions,
    data: &Images,
    dtype: DType,
    device: &Device,
) -> Result<Model> {
    let path = &local(name)?;
    let params = Params::new(0, dtype, device);
    let (network, arch, said) = match is_onnx(path, options.onnx) {
        true => {
            ensure!(
                options.arch.is_none(),
                "{} holds its network: leave --arch out",
                path.display()
            );
            // Its weights are constants, so there are no parameters to watch.
            (
                from_onnx(path, options, data, dtype, device)?,
                "onnx".to_owned(),
                None,
            )
        }
        false => from_weights(path, options, data.classes(), &params)?,
    };
    ensure!(
        network.classes() == data.classes(),
        "{} ({arch}) tells {} classes apart, the data have {}: choose another network or other data",
        path.display(),
        network.classes(),
        data.classes()
    );
    let given = (!options.mean.is_empty()).then(|| (options.mean.clone(), options.std.clone()));
    let classifier: Box<dyn Classifier> = match given.or(said) {
        None => Box::new(network),
        Some((mean, std)) => Box::new(Normalised::new(network, &mean, &std)?),
    };
    Ok(Model {
        classifier,
        params,
        arch,
        sha256: sha256_of(path)?,
    })
}

fn from_onnx(
    path: &Path,
    options: &ModelOptions,
    data: &Images,
    dtype: DType,
    device: &Device,
) -> Result<Network> {
    let model = OnnxModel::open(
        path,
        &theriac_onnx::Options {
            image: Some(data.shape()),
            output: options.output.clone(),
            dtype,
            device: device.clone(),
        },
    )?;
    Ok(model.network)
}

/// Mean and deviation of the pixels.
type Normalisation = (Vec<f64>, Vec<f64>);

/// What a file says of the normalisation of its images.
fn normalisation(path: &Path, saved: &Saved) -> Result<Option<Normalisation>> {
    let list = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(text) = saved.about().get(name) else {
            return Ok(None);
        };
        let numbers = text.split(',').map(|number| number.trim().parse());
        let numbers: Result<Vec<f64>, _> = numbers.collect();
        let numbers = numbers.with_context(|| format!("{}: {name} = {text}", path.display()))?;
        Ok(Some(numbers))
    };
    Ok(list("mean")?.zip(list("std")?))
}

/// The network of a weights file, by its name, and the normalisation that the file states.
fn from_weights(
    path: &Path,
    options: &ModelOptions,
    classes: usize,
    params: &Params,
) -> Result<(Network, String, Option<Normalisation>)> {
    let saved = Saved::read(path)?;
    let about = saved.about();
    let said = about.get("model").or(about.get("network"));
    let name = match (&options.arch, said) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.clone(),
        (None, None) => bail!(
            "{} does not say which network it belongs to: name it with --arch, for instance --arch \
             lenet5",
            path.display()
        ),
    };
    let spec = arch(&name, classes)?;
    let network = spec.build(&Plain, params.frozen())?;
    params.restore(&saved, "").with_context(|| {
        format!(
            "{} is not a {name}; see `theriac inspect` for what it holds, and \
             `theriac convert` for weights from PyTorch",
            path.display()
        )
    })?;
    Ok((network, name, normalisation(path, &saved)?))
}

/// Which images.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DataOptions {
    /// The test images of mnist, fashion-mnist or cifar10; `fashion-mnist:sample` and
    /// `cifar10:sample` for those in the program; a folder of pictures with a folder for each class,
    /// as ImageNet's; or a safetensors file with "images" (bytes, N x C x H x W) and "labels"
    /// (bytes, N).
    #[arg(long, value_name = "DATA")]
    pub(crate) data: String,
    /// The folder of the data sets, one folder each.
    #[arg(long, value_name = "DIR", env = "THERIAC_DATA")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The first N images alone; of a folder of pictures, N from all classes alike.
    #[arg(long, value_name = "N")]
    pub(crate) images: Option<usize>,
    /// Pictures of a folder: the shorter side is resized to this.
    #[arg(long, default_value_t = 256, value_name = "PIXELS")]
    pub(crate) resize: u32,
    /// Then the square of this side in the middle is cut out.
    #[arg(long, default_value_t = 224, value_name = "PIXELS")]
    pub(crate) crop: u32,
    /// With bicubic interpolation, as for DeiT, instead of bilinear.
    #[arg(long)]
    pub(crate) bicubic: bool,
    /// Pictures that cannot be decoded are left out, with a warning, instead of an error.
    #[arg(long)]
    pub(crate) skip_corrupt: bool,
}

/// The images, and what they are called.
pub(crate) fn images(options: &DataOptions) -> Result<Images> {
    let whole = match options.data.split_once(':') {
        Some((name, "sample")) => {
            let sample = embedded(name)?;
            let test = sample.test;
            Images::new(
                &options.data,
                test.images,
                test.labels,
                sample.shape,
                sample.classes,
            )?
            .with_ids(test.indices)?
        }
        _ if Path::new(&options.data).is_dir() => return from_folder(options),
        _ if options.data.ends_with(".safetensors") => from_file(Path::new(&options.data))?,
        _ => from_set(options)?,
    };
    Ok(match options.images {
        Some(n) if n != whole.len() => whole.take(n)?,
        _ => whole,
    })
}

/// All pictures of a folder, or some of each class.
fn from_folder(options: &DataOptions) -> Result<Images> {
    let prepare = Prepare {
        resize: options.resize,
        crop: options.crop,
        filter: match options.bicubic {
            true => Filter::Bicubic,
            false => Filter::Bilinear,
        },
    };
    let corrupt = match options.skip_corrupt {
        true => Corrupt::Skip,
        false => Corrupt::Fail,
    };
    let folder = ImageFolder::open(Path::new(&options.data), prepare, corrupt)?;
    let all = folder.len();
    let n = options.images.unwrap_or(all);
    ensure!(
        (1..=all).contains(&n),
        "--images {n}: {} has {all}",
        options.data
    );
    // Files lie in the order of classes.
    let indices: Vec<u32> = (0..n).map(|i| (i * all / n) as u32).collect();
    Ok(folder.images(&indices)?)
}

fn from_set(options: &DataOptions) -> Result<Images> {
    let from_env = Places::from_env();
    let places = Places {
        data_dir: options.data_dir.clone().or(from_env.data_dir),
        ..from_env
    };
    let name = options.data.as_str();
    let files = resolve(name, &places).with_context(|| {
        format!(
            "--data {name}; `--data {name}:sample` takes the images in the program, if it has any"
        )
    })?;
    let paths = |role| files.paths(Split::Test, role);
    let (images, labels) = (paths(Role::Images), paths(Role::Labels));
    Ok(match (images.first(), labels.first()) {
        (Some(images), Some(labels)) => Images::from_idx(name, images, labels, 10)?,
        _ => Images::from_cifar10(name, &paths(Role::Records))?,
    })
}

fn from_file(path: &Path) -> Result<Images> {
    let saved = Saved::read(path)?;
    let shape = saved.shape("images").unwrap_or_default().to_vec();
    let [n, c, h, w] = shape[..] else {
        bail!(
            "{}: \"images\" has shape {shape:?}, expected bytes of shape (N, C, H, W)",
            path.display()
        );
    };
    let labels = saved.u8("labels")?;
    ensure!(
        labels.len() == n,
        "{}: {} labels for {n} images",
        path.display(),
        labels.len()
    );
    let classes = labels
        .iter()
        .copied()
        .max()
        .map_or(1, |most| usize::from(most) + 1);
    let classes = match saved.about().get("classes") {
        Some(text) => text.parse().with_context(|| format!("classes = {text}"))?,
        None => classes,
    };
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Images::new(
        &name,
        saved.u8("images")?,
        labels,
        [c, h, w],
        classes,
    )?)
}

/// SHA-256 of images, labels and ids.
pub(crate) fn data_sha256(images: &Images) -> String {
    let mut hash = Sha256::new();
    hash.update(images.bytes());
    // One byte each where one is enough.
    let large = images.classes() > 256;
    for label in images.labels() {
        hash.update(&label.to_le_bytes()[..if large { 4 } else { 1 }]);
    }
    for id in images.ids() {
        hash.update(id.to_le_bytes());
    }
    hex(&hash.finalize())
}

pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_networks_have_the_tensor_that_tells_them() {
        for known in &KNOWN {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            (known.spec)(10).build(&Plain, params.frozen()).unwrap();
            let all = params.all();
            assert!(
                all.iter().any(|(path, _)| path == known.tensor),
                "{}",
                known.name
            );
        }
    }
}
