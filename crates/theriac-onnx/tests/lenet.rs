//! A file as the exporter of PyTorch writes it (`data/export.py`), against PyTorch.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use safetensors::SafeTensors;
use theriac::{Classifier, Labels, Pixels, Result, Run, contract, gradient};
use theriac_nn::Normalised;
use theriac_onnx::{OnnxModel, Options};

const FILE: &[u8] = include_bytes!("data/lenet.onnx");
const PYTORCH: &[u8] = include_bytes!("data/lenet.safetensors");
const IDS: [u32; 5] = [0, 1, 2, 3, 4];

fn model(dtype: DType) -> OnnxModel {
    let options = Options {
        dtype,
        ..Options::default()
    };
    OnnxModel::from_bytes("lenet.onnx", FILE, &options).unwrap()
}

/// A tensor of PyTorch's.
fn theirs(name: &str, dtype: DType) -> Tensor {
    let file = SafeTensors::deserialize(PYTORCH).unwrap();
    let view = file.tensor(name).unwrap();
    let from = view.dtype().try_into().unwrap();
    let tensor = Tensor::from_raw_buffer(view.data(), from, view.shape(), &Device::Cpu);
    tensor.unwrap().to_dtype(dtype).unwrap()
}

fn assert_close(ours: &Tensor, name: &str, tolerance: f64) {
    let theirs = theirs(name, ours.dtype());
    let largest = |t: &Tensor| t.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
    let apart = largest(&(ours - &theirs).unwrap()).unwrap();
    let scale = largest(&theirs).unwrap();
    assert!(
        apart <= tolerance * scale,
        "{name}: {apart} apart, of {scale}"
    );
}

#[test]
fn logits_and_gradients_are_those_of_pytorch() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-6)] {
        let (model, run) = (model(dtype), Run::new(0, &Device::Cpu));
        assert_eq!((model.image, model.classes()), ([1, 28, 28], 10));
        let (x, pass) = (Pixels::new(theirs("images", dtype))?, run.eval(&IDS));
        assert_close(&model.logits(&x, &pass)?, "logits", tolerance);
        let weights = theirs("weights", dtype);
        let sum = |x: &Pixels| Ok((model.logits(x, &pass)? * &weights)?.sum(1)?);
        let (_, slopes) = gradient(&x, &pass, sum)?;
        assert_close(&slopes, "gradient", tolerance);
        let apart = model.network.step_by_step(x.tensor(), &pass)?;
        assert_close(&apart, "logits", tolerance);
    }
    Ok(())
}

#[test]
fn it_keeps_what_a_classifier_promises() -> Result<()> {
    let x = Pixels::new(theirs("images", DType::F64).affine(0.9, 0.05)?)?;
    let labels = Labels::new(&[1, 7, 3, 0, 9], 10, &Device::Cpu)?;
    contract::classifier(&model(DType::F64), &x, &labels)
}

#[test]
fn it_can_stand_behind_a_normalisation() -> Result<()> {
    let (plain, run) = (model(DType::F64), Run::new(0, &Device::Cpu));
    let pass = run.eval(&IDS);
    let x = Pixels::new(theirs("images", DType::F64))?;
    let expected = plain
        .network
        .forward(&x.tensor().affine(4.0, -1.0)?, &pass)?;
    let normalised = Normalised::new(plain.network, &[0.25], &[0.25])?;
    let apart = (normalised.logits(&x, &pass)? - expected)?
        .abs()?
        .max_all()?;
    assert!(apart.to_scalar::<f64>()? < 1e-12);
    Ok(())
}

#[test]
fn no_beginning_of_a_file_is_a_model() {
    for len in 0..FILE.len() {
        // The last bytes are the version of the operators and the producer, without which it reads.
        let read = OnnxModel::from_bytes("lenet.onnx", &FILE[..len], &Options::default());
        assert!(read.is_err(), "{len} bytes of {}", FILE.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// An error or a model, never a panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = OnnxModel::from_bytes("any.onnx", &bytes, &Options::default());
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(
        damage in prop::collection::vec((0..FILE.len(), any::<u8>()), 1..8),
        // Most of a file are weights; the graph is where they are not.
        graph in prop::collection::vec((0..2000usize, any::<u8>()), 0..4),
        image in prop::option::of([1..4usize, 1..40usize, 1..40usize]),
    ) {
        let mut bytes = FILE.to_vec();
        for (at, byte) in damage.into_iter().chain(graph) {
            bytes[at] = byte;
        }
        let options = Options { image, ..Options::default() };
        let _ = OnnxModel::from_bytes("damaged.onnx", &bytes, &options);
    }
}
