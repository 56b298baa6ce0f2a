//! A file as the exporter of PyTorch writes it (`data/export.py`), against PyTorch.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use prost::Message as _;
use safetensors::SafeTensors;
use theriac::{Classifier, Labels, Pixels, Result, Run, contract, gradient};
use theriac_nn::Normalised;
use theriac_onnx::proto::{AttributeProto, ModelProto, TensorProto, data_type};
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

/// What a change of a graph draws from.
const OPERATIONS: &str = "Abs Add AveragePool BatchNormalization Cast Clip Concat Constant \
    ConstantOfShape Conv Div Elu Expand Flatten Gather Gemm GlobalMaxPool LRN LayerNormalization \
    LogSoftmax MatMul Max MaxPool Mul PRelu Pad Pow Range ReduceMean ReduceSum Reshape Shape Slice \
    Softmax Split Squeeze Sub Sum Transpose Unsqueeze";
const ATTRIBUTES: &str = "axis axes perm pads strides dilations kernel_shape group ceil_mode split \
    starts ends steps value_int value_ints to size keepdims allowzero transB start end";
const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    16,
    1 << 16,
    1 << 40,
    i64::MAX,
    i64::MIN,
];

/// A graph with one thing changed: `what` says which, `by` how.
fn changed(model: &mut ModelProto, what: usize, at: usize, by: [usize; 3]) {
    let graph = model.graph.as_mut().unwrap();
    let constants = graph.initializer.iter().map(|t| t.name.clone());
    let values = graph.node.iter().flat_map(|node| node.output.clone());
    let names: Vec<String> = constants.chain(values).collect();
    let pick = |words: &str, i: usize| {
        let words: Vec<&str> = words.split_whitespace().collect();
        words[i % words.len()].to_owned()
    };
    let number = |i: usize| NUMBERS[i % NUMBERS.len()];
    let (tensors, nodes) = (graph.initializer.len(), graph.node.len());
    let node = &mut graph.node[at % nodes];
    match what % 6 {
        0 => node.op_type = pick(OPERATIONS, by[0]),
        1 => node.attribute.push(AttributeProto {
            name: pick(ATTRIBUTES, by[0]),
            i: number(by[1]),
            ints: (0..by[2] % 5).map(|i| number(by[1] + i * by[2])).collect(),
            ..AttributeProto::default()
        }),
        2 if !node.attribute.is_empty() => {
            let count = node.attribute.len();
            let attribute = &mut node.attribute[by[0] % count];
            attribute.i = number(by[1]);
            if let Some(entry) = attribute.ints.get_mut(by[2] % 4) {
                *entry = number(by[1]);
            }
        }
        3 => node.input.push(names[by[0] % names.len()].clone()),
        4 if !node.input.is_empty() => {
            let count = node.input.len();
            node.input[by[1] % count] = names[by[0] % names.len()].clone();
        }
        _ => {
            let tensor = &mut graph.initializer[at % tensors];
            match by[0] % 3 {
                0 => tensor.dims.insert(0, 1),
                1 => tensor.dims.reverse(),
                _ => tensor.data_type = (by[1] % 18) as i32,
            }
        }
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

    #[test]
    fn a_changed_graph_is_read_or_refused(
        changes in prop::collection::vec((0..6usize, 0..64usize, [0..64usize, 0..64usize, 0..64usize]), 1..6),
    ) {
        let mut model = ModelProto::decode(FILE).unwrap();
        let graph = model.graph.as_mut().unwrap();
        // Whole numbers and a single float, for inputs that take them.
        for values in [&[0][..], &[1], &[-1], &[0, 1], &[2, 3], &[0, -1], &[1, 6, -1], &[0, 0, 1, 0, 0, 0, 0, 1]] {
            graph.initializer.push(TensorProto {
                name: format!("{values:?}"),
                dims: vec![values.len() as i64],
                data_type: data_type::INT64,
                int64_data: values.to_vec(),
                ..TensorProto::default()
            });
        }
        graph.initializer.push(TensorProto {
            name: "half".to_owned(),
            data_type: data_type::FLOAT,
            float_data: vec![0.5],
            ..TensorProto::default()
        });
        for (what, at, by) in changes {
            changed(&mut model, what, at, by);
        }
        let _ = OnnxModel::from_bytes("changed.onnx", &model.encode_to_vec(), &Options::default());
    }
}
