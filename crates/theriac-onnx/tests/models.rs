//! Real models, against ONNX Runtime: `models.py` brings them and computes what is compared.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the whole binary is tests

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use theriac::{Classifier, Pixels, Result, Run, gradient};
use theriac_onnx::{OnnxModel, Options};

/// The folder that `models.py` filled.
fn folder() -> PathBuf {
    let folder = std::env::var_os("THERIAC_ONNX_MODELS");
    PathBuf::from(folder.expect("THERIAC_ONNX_MODELS is not set; see tests/models.py"))
}

/// What ONNX Runtime computed.
struct Theirs {
    images: Tensor,
    logits: Tensor,
    /// Channel, row and column of squares of pixels of the first image.
    places: Vec<[usize; 3]>,
    /// The slopes of the first logit by all pixels of a square, as central differences.
    slopes: Vec<f64>,
    /// Of these steps.
    steps: Vec<f64>,
}

impl Theirs {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| {
            let view = file.tensor(name).unwrap();
            let from = view.dtype().try_into().unwrap();
            Tensor::from_raw_buffer(view.data(), from, view.shape(), &Device::Cpu).unwrap()
        };
        let places = tensor("places").to_vec2::<u32>().unwrap();
        Self {
            images: tensor("images"),
            logits: tensor("logits"),
            places: places
                .iter()
                .map(|p| [p[0], p[1], p[2]].map(|i| i as usize))
                .collect(),
            slopes: tensor("slopes").to_vec1().unwrap(),
            steps: tensor("steps").to_vec1().unwrap(),
        }
    }
}

/// Pixels on a side of a square.
const SIDE: usize = 8;

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn largest(t: &Tensor) -> Result<f64> {
    Ok(t.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar()?)
}

/// The length of the difference, by the length: rounding turns a few of the choices of ReLU and max
/// pooling, and with each some pixels of a gradient.
fn turned(narrow: &Tensor, wide: &Tensor) -> Result<f64> {
    let length = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
    let apart = length(&(narrow.to_dtype(DType::F64)? - wide)?)?;
    Ok(apart / length(wide)?)
}

/// The largest difference, by the largest value.
fn apart(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    let (ours, theirs) = (ours.to_dtype(DType::F64)?, theirs.to_dtype(DType::F64)?);
    Ok(largest(&(ours - &theirs)?)? / largest(&theirs)?)
}

fn compare(path: &Path) -> Result<()> {
    let theirs = Theirs::read(&path.with_extension("safetensors"));
    let (n, c, h, w) = theirs.images.dims4()?;
    let ids: Vec<u32> = (0..n as u32).collect();
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&ids);
    let open = |dtype| {
        let options = Options {
            image: Some([c, h, w]),
            dtype,
            ..Options::default()
        };
        OnnxModel::open(path, &options)
    };
    let began = Instant::now();
    let model = open(DType::F32)?;
    let opened = began.elapsed();
    let x = Pixels::new(theirs.images.clone())?;
    let logits = model.logits(&x, &pass)?;
    let by_logits = apart(&logits, &theirs.logits)?;

    // The gradient of the first logit: in f32 as stretches and in f64 node by node; by single
    // pixels and by squares of them also as differences, of ours in f64 and of ONNX Runtime.
    let first = |model: &OnnxModel, x: &Pixels, pass: &theriac::Pass<'_>| {
        let column = |x: &Pixels| Ok(model.logits(x, pass)?.narrow(1, 0, 1)?.squeeze(1)?);
        gradient(x, pass, column)
    };
    let one = pass.narrow(0, 1)?;
    let x = x.narrow(0, 1)?;
    let began = Instant::now();
    let (_, narrow) = first(&model, &x, &one)?;
    let both = began.elapsed();
    let wide_model = open(DType::F64)?;
    let x = Pixels::new(x.tensor().to_dtype(DType::F64)?)?;
    let (_, wide) = first(&wide_model, &x, &one)?;
    let by_type = turned(&narrow, &wide)?;
    let slopes: Vec<f64> = wide.flatten_all()?.to_vec1()?;
    let difference = |pixels: &[usize], by: f64| -> Result<f64> {
        let moved = |by: f64| -> Result<f64> {
            let mut values: Vec<f64> = x.tensor().flatten_all()?.to_vec1()?;
            pixels.iter().for_each(|pixel| values[*pixel] += by);
            let x = Tensor::from_vec(values, (1, c, h, w), &Device::Cpu)?;
            Ok(wide_model.network.forward(&x, &one)?.to_vec2::<f64>()?[0][0])
        };
        Ok((moved(by)? - moved(-by)?) / (2.0 * by))
    };
    let mut steepest: Vec<usize> = (0..slopes.len()).collect();
    steepest.sort_by(|a, b| slopes[*b].abs().total_cmp(&slopes[*a].abs()));
    let mut by_ours = 0f64;
    for pixel in steepest.into_iter().step_by(20).take(6) {
        by_ours = by_ours.max((difference(&[pixel], 5e-6)? / slopes[pixel] - 1.0).abs());
    }
    let (mut differences, mut sums) = (Vec::new(), Vec::new());
    for ([channel, row, column], step) in theirs.places.iter().zip(&theirs.steps) {
        let square = (0..SIDE * SIDE).map(|i| (row + i / SIDE, column + i % SIDE));
        let square: Vec<usize> = square.map(|(y, x)| (channel * h + y) * w + x).collect();
        sums.push(square.iter().map(|pixel| slopes[*pixel]).sum::<f64>());
        differences.push(difference(&square, *step)?);
    }
    let scale = length(theirs.slopes.iter().copied()).max(f64::MIN_POSITIVE);
    let apart = |ours: &[f64]| {
        let pairs = ours.iter().zip(&theirs.slopes);
        length(pairs.map(|(ours, theirs)| ours - theirs)) / scale
    };
    let (by_step, by_theirs) = (apart(&differences), apart(&sums));
    println!(
        "{:32} {:>14}  logits {by_logits:.1e}  gradient f32/f64 {by_type:.1e}, by differences \
         {by_ours:.1e}; {} squares: differences by ONNX Runtime's {by_step:.1e}, gradient by those \
         {by_theirs:.1e}; opened in {:.1} s, gradient of one image {:.2} s",
        path.file_stem().unwrap_or_default().to_string_lossy(),
        format!("{c}x{h}x{w}/{}", model.classes()),
        theirs.places.len(),
        opened.as_secs_f64(),
        both.as_secs_f64(),
    );
    let name = path.display();
    assert!(by_logits < 1e-4, "{name}: logits");
    assert!(by_type < 2e-2, "{name}: gradients in f32 and f64");
    assert!(by_ours < 1e-4, "{name}: gradient and differences in f64");
    assert!(
        by_step < 2e-2,
        "{name}: differences here and of ONNX Runtime"
    );
    // A step of theirs passes bends of the network: what counts is that differences by equal steps
    // agree, and gradients with differences by small ones.
    assert!(
        by_theirs < 0.15,
        "{name}: gradient and differences of ONNX Runtime"
    );
    Ok(())
}

#[test]
#[ignore = "needs models from PyPI; run by tests/models.py"]
fn real_models_agree_with_onnx_runtime() -> Result<()> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut models: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    assert!(models.len() >= 3, "only {} models", models.len());
    let only = std::env::var("THERIAC_ONNX_MODEL").ok();
    models.retain(|path| {
        only.as_ref()
            .is_none_or(|only| path.to_string_lossy().contains(only))
    });
    for model in models {
        compare(&model)?;
    }
    Ok(())
}

/// A file cut off anywhere is refused.
#[test]
#[ignore = "needs models from PyPI; run by tests/models.py"]
fn a_beginning_of_a_real_model_is_refused() {
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for part in 0..50 {
            let len = bytes.len() * part / 50;
            let read = OnnxModel::from_bytes("part.onnx", &bytes[..len], &Options::default());
            assert!(read.is_err(), "{len} bytes of {}", path.display());
        }
    }
}
