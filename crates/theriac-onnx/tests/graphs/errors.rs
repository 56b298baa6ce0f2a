//! What is refused, and how.

use candle_core::{DType, Device, Tensor};
use prost::Message as _;
use theriac::{Classifier as _, Pixels, Run};
use theriac_onnx::proto::{ModelProto, NodeProto, StringStringEntryProto, TensorProto, data_type};
use theriac_onnx::{Error, OnnxModel, Options, Summary};

use crate::support::{Graph, float, image, int, ints, text};

const DIMS: [i64; 3] = [2, 4, 4];

fn of(file: &ModelProto, options: &Options) -> Result<OnnxModel, Error> {
    OnnxModel::from_bytes("graph.onnx", &file.encode_to_vec(), options)
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let graph = Graph::new(DIMS)
        .node("Relu", &["x"], "a", &[])
        .node("ConvTranspose", &["a"], "b", &[])
        .node("LSTM", &["b"], "c", &[])
        .flat("c");
    let text = graph.complaint();
    for part in [
        "graph.onnx",
        "ConvTranspose that gives \"b\"",
        "nor LSTM",
        "AveragePool",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Not where the output does not need it.
    let aside = Graph::new(DIMS)
        .node("LSTM", &["x"], "aside", &[])
        .flat("x");
    aside.read(DType::F32).unwrap();
    let mut foreign = Graph::new(DIMS).node("Relu", &["x"], "h", &[]).flat("h");
    foreign.nodes[0].domain = "com.example".to_owned();
    assert!(foreign.complaint().contains("com.example.Relu"));
}

#[test]
fn quantised_models_are_refused_by_name() {
    for op in [
        "QuantizeLinear",
        "QLinearConv",
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
    ] {
        let graph = Graph::new(DIMS).node(op, &["x"], "h", &[]).flat("h");
        let error = graph.read(DType::F32).unwrap_err();
        assert!(matches!(error, Error::Quantised { .. }), "{error}");
        assert!(error.to_string().contains(op), "{error}");
    }
}

#[test]
fn images_stay_apart() {
    let graph = || Graph::new(DIMS);
    let mixing = [
        graph()
            .node("ReduceMean", &["x"], "h", &[ints("axes", &[0])])
            .flat("h"),
        graph().node("ReduceMean", &["x"], "h", &[]).flat("h"),
        graph()
            .node("Transpose", &["x"], "h", &[ints("perm", &[1, 0, 2, 3])])
            .flat("h"),
        graph()
            .node("Concat", &["x", "x"], "h", &[int("axis", 0)])
            .flat("h"),
        graph()
            .node("Softmax", &["x"], "s", &[int("axis", 0)])
            .node("Relu", &["s"], "h", &[])
            .flat("h"),
        graph()
            .ints("s", &[-1])
            .node("Reshape", &["x", "s"], "h", &[])
            .flat("h"),
        graph()
            .ints("s", &[-1, 16])
            .node("Reshape", &["x", "s"], "y", &[]),
        graph()
            .ints("s", &[7, -1])
            .node("Reshape", &["x", "s"], "y", &[]),
        graph().node("Flatten", &["x"], "y", &[int("axis", 2)]),
        graph().node("Flatten", &["x"], "y", &[int("axis", 0)]),
        graph()
            .floats("c", &[2, 1, 1, 1], &[1.0, 2.0])
            .node("Mul", &["x", "c"], "h", &[])
            .flat("h"),
        graph()
            .ints("p", &[1, 0, 0, 0, 0, 0, 0, 0])
            .node("Pad", &["x", "p"], "h", &[])
            .flat("h"),
    ];
    for graph in mixing {
        let text = graph.complaint();
        let says = ["images", "batch"].iter().any(|word| text.contains(word));
        assert!(says, "{text}");
    }
}

#[test]
fn an_output_that_is_not_of_classes_is_refused() {
    let image_out = Graph::new(DIMS).node("Relu", &["x"], "y", &[]);
    assert!(
        image_out.complaint().contains("(N, 2, 4, 4)"),
        "{}",
        image_out.complaint()
    );
    let one = Graph::new([1, 1, 1]).flat("x");
    assert!(
        one.complaint().contains("at least 2"),
        "{}",
        one.complaint()
    );
    let constant = Graph::new(DIMS)
        .floats("c", &[1, 3], &[1.0; 3])
        .node("Flatten", &["x"], "f", &[])
        .node("Identity", &["c"], "y", &[]);
    assert!(
        constant.complaint().contains("reads 0 inputs"),
        "{}",
        constant.complaint()
    );
}

#[test]
fn one_of_several_outputs_is_chosen_by_name() {
    let mut file = Graph::new(DIMS)
        .node("Flatten", &["x"], "logits", &[])
        .node("Softmax", &["logits"], "y", &[])
        .proto();
    let graph = file.graph.as_mut().unwrap();
    graph.output = vec![image("y", &[-1, 32]), image("logits", &[-1, 32])];
    let text = of(&file, &Options::default()).unwrap_err().to_string();
    assert!(text.contains("\"y\", \"logits\""), "{text}");
    let output = |name: &str| Options {
        output: Some(name.to_owned()),
        ..Options::default()
    };
    assert_eq!(of(&file, &output("logits")).unwrap().classes(), 32);
    let text = of(&file, &output("z")).unwrap_err().to_string();
    assert!(text.contains("\"z\""), "{text}");
}

#[test]
fn open_sizes_are_asked_for_and_fixed_ones_kept() {
    let mut graph = Graph::new(DIMS)
        .node("GlobalAveragePool", &["x"], "h", &[])
        .flat("h");
    graph.image = vec![-1, 2, -1, -1];
    let text = graph.complaint();
    assert!(
        text.contains("(2, ?, ?)") && text.contains("(C, H, W)"),
        "{text}"
    );
    let size = |image| Options {
        image: Some(image),
        ..Options::default()
    };
    assert_eq!(
        of(&graph.proto(), &size([2, 5, 6])).unwrap().image,
        [2, 5, 6]
    );
    let text = of(&graph.proto(), &size([3, 5, 6]))
        .unwrap_err()
        .to_string();
    assert!(text.contains("[3, 5, 6]"), "{text}");

    let model = Graph::new(DIMS).flat("x").read(DType::F32).unwrap();
    let x = Tensor::zeros((1, 2, 4, 5), DType::F32, &Device::Cpu).unwrap();
    let run = Run::new(0, &Device::Cpu);
    let text = model
        .logits(&Pixels::new(x).unwrap(), &run.eval(&[0]))
        .unwrap_err()
        .to_string();
    assert!(text.contains("[2, 4, 4]"), "{text}");
}

#[test]
fn inputs_must_be_one_image_of_floats() {
    let edit = |change: &dyn Fn(&mut ModelProto)| {
        let mut file = Graph::new(DIMS).flat("x").proto();
        change(&mut file);
        of(&file, &Options::default()).unwrap_err().to_string()
    };
    let text = edit(&|file| {
        let input = &mut file.graph.as_mut().unwrap().input[0];
        let tensor = input.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        tensor.elem_type = data_type::UINT8;
    });
    assert!(text.contains("uint8"), "{text}");
    let text = edit(&|file| file.graph.as_mut().unwrap().input[0] = image("x", &[-1, 784]));
    assert!(text.contains("2 dimensions"), "{text}");
    let text = edit(&|file| {
        let graph = file.graph.as_mut().unwrap();
        graph.input.push(image("z", &[-1, 2, 4, 4]));
        graph.node[0].input.push("z".to_owned());
    });
    assert!(text.contains("2 inputs"), "{text}");
    let text = edit(&|file| file.opset_import[0].version = 6);
    assert!(text.contains("version_converter"), "{text}");
    let text = edit(&|file| file.graph.as_mut().unwrap().node[0].input[0] = "w".to_owned());
    assert!(text.contains("reads 0 inputs"), "{text}");
}

#[test]
fn nodes_with_settings_out_of_range_are_named() {
    let conv = |attributes: &[_]| {
        Graph::new(DIMS)
            .floats("w", &[2, 2, 3, 3], &[0.5; 36])
            .node("Conv", &["x", "w"], "h", attributes)
            .flat("h")
            .complaint()
    };
    for (attributes, word) in [
        (vec![ints("strides", &[0, 1])], "strides"),
        (vec![ints("pads", &[0, 0, -1, 0])], "pads"),
        (vec![ints("pads", &[1, 1])], "pads"),
        (vec![ints("dilations", &[9, 9])], "does not fit"),
        (vec![int("group", 3)], "groups"),
        (vec![int("group", -1)], "groups"),
        (vec![text("auto_pad", "SOME")], "auto_pad"),
        (vec![ints("kernel_shape", &[2, 2])], "kernel_shape"),
        (vec![ints("pads", &[60_000; 4])], "values"),
    ] {
        let text = conv(&attributes);
        assert!(
            text.contains(word) && text.contains("Conv that gives \"h\""),
            "{word}: {text}"
        );
    }
    let graph = |op: &str, attributes: &[_]| {
        Graph::new(DIMS)
            .node(op, &["x"], "h", attributes)
            .flat("h")
            .complaint()
    };
    assert!(graph("Pad", &[ints("pads", &[0; 8]), text("mode", "reflect")]).contains("reflect"));
    assert!(graph("Cast", &[int("to", 7)]).contains("int64"));
    assert!(graph("Clip", &[float("min", 2.0), float("max", 1.0)]).contains("bounds"));
    assert!(graph("MaxPool", &[]).contains("kernel"));
    assert!(graph("LRN", &[]).contains("size"));
    assert!(graph("Concat", &[int("axis", 7)]).contains("axis 7"));
    assert!(graph("Add", &[]).contains("input 1 is missing"));
}

#[test]
fn damaged_constants_are_named() {
    let broken = |change: &dyn Fn(&mut TensorProto)| {
        let mut graph = Graph::new(DIMS)
            .floats("w", &[1, 2, 1, 1], &[0.5; 2])
            .node("Mul", &["x", "w"], "h", &[])
            .flat("h");
        change(&mut graph.constants[0]);
        let text = graph.complaint();
        assert!(text.contains("\"w\""), "{text}");
        text
    };
    assert!(broken(&|t| t.dims[0] = 3).contains("16 bytes"));
    assert!(broken(&|t| t.dims[0] = -3).contains("negative"));
    assert!(broken(&|t| t.dims[0] = i64::MAX).contains("more than"));
    assert!(broken(&|t| t.data_type = 8).contains("string"));
    assert!(broken(&|t| t.data_type = 99).contains("99"));
    assert!(broken(&|t| t.raw_data = vec![0; 9]).contains("9 bytes"));
}

/// All ways to write a constant give the same values.
#[test]
fn constants_are_read_however_they_are_written() {
    let values = [0.5f32, -1.5];
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let plain = TensorProto {
        name: "w".to_owned(),
        dims: vec![1, 2, 1, 1],
        data_type: data_type::FLOAT,
        ..TensorProto::default()
    };
    let half = |data_type, bits: [i32; 2]| TensorProto {
        data_type,
        int32_data: bits.to_vec(),
        ..plain.clone()
    };
    let ways = [
        TensorProto {
            float_data: values.to_vec(),
            ..plain.clone()
        },
        TensorProto {
            raw_data: raw.clone(),
            ..plain.clone()
        },
        half(data_type::FLOAT16, [0x3800, 0xbe00]),
        half(data_type::BFLOAT16, [0x3f00, 0xbfc0]),
    ];
    for way in ways {
        let mut graph = Graph::new([2, 1, 1])
            .node("Mul", &["x", "w"], "h", &[])
            .flat("h");
        graph.constants.push(way);
        let pixels = graph.pixels();
        let expected: Vec<f64> = (0..6).map(|i| pixels[i] * [0.5, -1.5][i % 2]).collect();
        graph.check(&expected);
    }

    // In a file beside the model.
    let folder = tempfile::tempdir().unwrap();
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let outside = |location: &str, offset: &str| TensorProto {
        data_location: 1,
        external_data: vec![entry("location", location), entry("offset", offset)],
        ..plain.clone()
    };
    let path = folder.path().join("graph.onnx");
    std::fs::write(folder.path().join("weights"), [&[9; 4][..], &raw].concat()).unwrap();
    let open = |constant: TensorProto| {
        let mut graph = Graph::new([2, 1, 1])
            .node("Mul", &["x", "w"], "h", &[])
            .flat("h");
        graph.constants.push(constant);
        std::fs::write(&path, graph.proto().encode_to_vec()).unwrap();
        assert!(
            graph.complaint().contains("by its path"),
            "{}",
            graph.complaint()
        );
        OnnxModel::open(&path, &Options::default())
    };
    let model = open(outside("weights", "4")).unwrap();
    let x = Pixels::new(Tensor::ones((1, 2, 1, 1), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let logits = model
        .logits(&x, &Run::new(0, &Device::Cpu).eval(&[0]))
        .unwrap();
    assert_eq!(crate::support::list(&logits), [0.5, -1.5]);
    for (location, offset, word) in [
        ("weights", "5", "needed"),
        ("weights", "x", "offset"),
        ("none", "0", "none"),
        ("../weights", "0", "beside the model"),
        ("/weights", "0", "beside the model"),
    ] {
        let text = open(outside(location, offset)).unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn other_files_are_no_models() {
    let read = |bytes: &[u8]| OnnxModel::from_bytes("a.onnx", bytes, &Options::default());
    for bytes in [&b""[..], b"PK\x03\x04", b"{\"a\": 1}", &[0xff; 64]] {
        let error = read(bytes).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error}");
    }
    let missing = OnnxModel::open("no/such.onnx".as_ref(), &Options::default()).unwrap_err();
    assert!(missing.to_string().contains("no/such.onnx"), "{missing}");
}

#[test]
fn a_summary_says_what_is_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    let mut file = Graph::new(DIMS)
        .floats("c", &[2, 1, 1], &[1.0, 2.0])
        .node("LSTM", &["x", "c"], "h", &[])
        .flat("h")
        .proto();
    file.producer_name = "by hand".to_owned();
    let graph = file.graph.as_mut().unwrap();
    graph.input.push(image("c", &[2, 1, 1]));
    graph.node.push(NodeProto {
        op_type: "Crop".to_owned(),
        domain: "com.example".to_owned(),
        ..NodeProto::default()
    });
    std::fs::write(&path, file.encode_to_vec()).unwrap();
    let summary = Summary::open(&path).unwrap();
    assert_eq!(
        (&summary.producer[..], summary.opset),
        ("by hand", Some(17))
    );
    assert_eq!(summary.inputs, ["x: float32 (n, 2, 4, 4)"]);
    assert_eq!(summary.constants, [("c".to_owned(), vec![2, 1, 1])]);
    let operations: Vec<_> = summary
        .operations
        .iter()
        .map(|(op, n)| (&op[..], *n))
        .collect();
    assert_eq!(
        operations,
        [("Flatten", 1), ("LSTM", 1), ("com.example.Crop", 1)]
    );
}
