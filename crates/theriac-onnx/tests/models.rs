//! Real models, against ONNX Runtime: `models.py` brings them and computes what is compared.

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
    /// Channel, row and column of single pixels of the first image.
    places: Vec<[usize; 3]>,
    /// The slopes of the first logit there.
    slopes: Vec<f64>,
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
        }
    }
}

fn largest(t: &Tensor) -> Result<f64> {
    Ok(t.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar()?)
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

    // The gradient of the first logit: in f32 as stretches, in f64 node by node, by single pixels of
    // ours in f64, and by those of ONNX Runtime.
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
    let by_type = apart(&narrow, &wide)?;
    let at = |[c, y, x]: [usize; 3]| (c * h + y) * w + x;
    let slopes: Vec<f64> = wide.flatten_all()?.to_vec1()?;
    let scale = theirs.slopes.iter().fold(0f64, |m, s| m.max(s.abs()));
    let (mut by_ours, mut by_theirs) = (0f64, 0f64);
    for (place, slope) in theirs.places.iter().zip(&theirs.slopes) {
        let moved = |by: f64| -> Result<f64> {
            let mut values: Vec<f64> = x.tensor().flatten_all()?.to_vec1()?;
            values[at(*place)] += by;
            let x = Tensor::from_vec(values, (1, c, h, w), &Device::Cpu)?;
            Ok(wide_model.network.forward(&x, &one)?.to_vec2::<f64>()?[0][0])
        };
        let ours = (moved(1e-6)? - moved(-1e-6)?) / 2e-6;
        by_ours = by_ours.max((slopes[at(*place)] - ours).abs() / scale);
        by_theirs = by_theirs.max((slopes[at(*place)] - slope).abs() / scale);
    }
    println!(
        "{:32} {:>12} logits {by_logits:.1e}  gradient f32/f64 {by_type:.1e}, {} pixels: f64 {by_ours:.1e}, \
         ONNX Runtime {by_theirs:.1e}; opened in {:.1} s, gradient of one image {:.2} s",
        path.file_stem().unwrap_or_default().to_string_lossy(),
        format!("{c}x{h}x{w}/{}", model.classes()),
        theirs.places.len(),
        opened.as_secs_f64(),
        both.as_secs_f64(),
    );
    assert!(by_logits < 1e-4, "{}", path.display());
    assert!(
        by_type < 1e-2 && by_ours < 1e-4 && by_theirs < 5e-2,
        "{}",
        path.display()
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
