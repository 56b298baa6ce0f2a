//! Graphs written by hand.

use candle_core::{DType, Device, Tensor};
use prost::Message as _;
use theriac::{Classifier, Labels, Pixels, Rng, Run, contract};
use theriac_onnx::proto::{
    AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    data_type,
};
use theriac_onnx::{Error, OnnxModel, Options};

/// A graph that reads "x" and gives "y".
#[derive(Clone)]
pub(crate) struct Graph {
    pub(crate) image: Vec<i64>,
    pub(crate) opset: i64,
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) constants: Vec<TensorProto>,
}

impl Graph {
    /// For images (C, H, W) in batches of any size.
    pub(crate) fn new(image: [i64; 3]) -> Self {
        let image = [&[-1], &image[..]].concat();
        Self {
            image,
            opset: 17,
            nodes: Vec::new(),
            constants: Vec::new(),
        }
    }

    /// A node, with attributes.
    pub(crate) fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attribute: &[AttributeProto],
    ) -> Self {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: output.split(' ').map(str::to_owned).collect(),
            op_type: op.to_owned(),
            attribute: attribute.to_vec(),
            ..NodeProto::default()
        });
        self
    }

    /// (N, ...) as (N, features): the last node of most graphs.
    pub(crate) fn flat(self, input: &str) -> Self {
        self.node("Flatten", &[input], "y", &[])
    }

    pub(crate) fn floats(mut self, name: &str, dims: &[i64], values: &[f64]) -> Self {
        self.constants.push(TensorProto {
            name: name.to_owned(),
            dims: dims.to_vec(),
            data_type: data_type::DOUBLE,
            double_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    pub(crate) fn ints(mut self, name: &str, values: &[i64]) -> Self {
        self.constants.push(TensorProto {
            name: name.to_owned(),
            dims: vec![values.len() as i64],
            data_type: data_type::INT64,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    pub(crate) fn proto(&self) -> ModelProto {
        let output = ValueInfoProto {
            name: "y".to_owned(),
            ..ValueInfoProto::default()
        };
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: self.opset,
            }],
            graph: Some(GraphProto {
                node: self.nodes.clone(),
                initializer: self.constants.clone(),
                input: vec![image("x", &self.image)],
                output: vec![output],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    pub(crate) fn read(&self, dtype: DType) -> Result<OnnxModel, Error> {
        let options = Options {
            dtype,
            ..Options::default()
        };
        OnnxModel::from_bytes("graph.onnx", &self.proto().encode_to_vec(), &options)
    }

    /// What is wrong with it.
    pub(crate) fn complaint(&self) -> String {
        self.read(DType::F32).unwrap_err().to_string()
    }

    /// Values of the images that [`Graph::check`] takes.
    pub(crate) fn pixels(&self) -> Vec<f64> {
        let count: i64 = self.image[1..].iter().product();
        noise("pixels", 3 * count as usize, 0.1, 0.9)
    }

    /// The logits of three images are those expected, in f64, in f32, and in f32 node by node; and
    /// the gradient in f64 agrees with central differences.
    pub(crate) fn check(&self, expected: &[f64]) {
        let count: i64 = self.image[1..].iter().product();
        let dims = [3, self.image[1], self.image[2], self.image[3]].map(|d| d as usize);
        let (values, run) = (self.pixels(), Run::new(0, &Device::Cpu));
        assert_eq!(values.len() as i64, 3 * count);
        let x = Tensor::from_vec(values, &dims[..], &Device::Cpu).unwrap();
        let (ids, x) = ([0, 1, 2], Pixels::new(x).unwrap());
        let wide = self.read(DType::F64).unwrap();
        let logits = wide.logits(&x, &run.eval(&ids)).unwrap();
        assert_close(&list(&logits), expected, 1e-9);
        let narrow = self.read(DType::F32).unwrap();
        let single = x.to_dtype(DType::F32).unwrap();
        let together = narrow.logits(&single, &run.eval(&ids)).unwrap();
        assert_close(&list(&together), expected, 1e-5);
        let apart = narrow
            .network
            .step_by_step(single.tensor(), &run.eval(&ids))
            .unwrap();
        assert_close(&list(&apart), expected, 1e-5);
        let labels = Labels::new(&[0, 1, 0], wide.classes(), &Device::Cpu).unwrap();
        contract::classifier(&wide, &x, &labels).unwrap();
        contract::prepared(&narrow, &single).unwrap();
    }
}

/// A value with a shape; dimensions that are not above 0 are left open.
pub(crate) fn image(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| DimensionProto {
        value: Some(match *d {
            d if d > 0 => Dimension::Value(d),
            _ => Dimension::Param("n".to_owned()),
        }),
    };
    let tensor = TensorTypeProto {
        elem_type: data_type::FLOAT,
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i,
        ..AttributeProto::default()
    }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: ints.to_vec(),
        ..AttributeProto::default()
    }
}

pub(crate) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        f,
        ..AttributeProto::default()
    }
}

pub(crate) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: s.as_bytes().to_vec(),
        ..AttributeProto::default()
    }
}

/// Values that are the same in f32.
pub(crate) fn noise(name: &str, count: usize, low: f64, high: f64) -> Vec<f64> {
    let draws = Rng::new(5).uniform(name, 0, count).into_iter();
    draws
        .map(|u| f64::from((low + (high - low) * f64::from(u)) as f32))
        .collect()
}

pub(crate) fn list(t: &Tensor) -> Vec<f64> {
    let t = t.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    t.to_vec1().unwrap()
}

pub(crate) fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(1f64, |m, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (a - e).abs() <= tolerance * scale,
            "at {i}: {a}, expected {e}"
        );
    }
}
