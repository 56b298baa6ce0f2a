//! What each operation of ONNX becomes.

mod activation;
mod affine;
mod constant;
mod conv;
mod cut;
mod dense;
mod merge;
mod normalise;
mod pool;
mod shape;

use crate::error::{Said, refuse};
use crate::graph::{Builder, Value};
use crate::node::Node;

type Operation = fn(&mut Builder<'_>, &Node<'_>) -> Said<Vec<Value>>;

/// By name, for errors and for those who search.
const OPERATIONS: [(&str, Operation); 59] = [
    ("Abs", activation::abs),
    ("Add", affine::add),
    ("AveragePool", pool::average_pool),
    ("BatchNormalization", affine::batch_normalization),
    ("Cast", constant::cast),
    ("Clip", activation::clip),
    ("Concat", merge::concat),
    ("Constant", constant::constant),
    ("ConstantOfShape", constant::constant_of_shape),
    ("Conv", conv::conv),
    ("Div", affine::div),
    ("Dropout", constant::identity),
    ("Elu", activation::elu),
    ("Erf", activation::erf),
    ("Exp", activation::exp),
    ("Expand", shape::expand),
    ("Flatten", shape::flatten),
    ("Gather", cut::gather),
    ("Gelu", activation::gelu),
    ("Gemm", dense::gemm),
    ("GlobalAveragePool", pool::global_average_pool),
    ("GlobalMaxPool", pool::global_max_pool),
    ("HardSigmoid", activation::hard_sigmoid),
    ("HardSwish", activation::hard_swish),
    ("Identity", constant::identity),
    ("LRN", normalise::lrn),
    ("LayerNormalization", normalise::layer_normalization),
    ("LeakyRelu", activation::leaky_relu),
    ("Log", activation::log),
    ("LogSoftmax", activation::log_softmax),
    ("MatMul", dense::matmul),
    ("Max", activation::max),
    ("MaxPool", pool::max_pool),
    ("Min", activation::min),
    ("Mul", affine::mul),
    ("Neg", affine::neg),
    ("PRelu", activation::prelu),
    ("Pad", cut::pad),
    ("Pow", activation::pow),
    ("Range", constant::range),
    ("Reciprocal", activation::reciprocal),
    ("ReduceMean", normalise::reduce_mean),
    ("ReduceSum", normalise::reduce_sum),
    ("Relu", activation::relu),
    ("Reshape", shape::reshape),
    ("Selu", activation::selu),
    ("Shape", constant::shape),
    ("Sigmoid", activation::sigmoid),
    ("Slice", cut::slice),
    ("Softmax", activation::softmax),
    ("Softplus", activation::softplus),
    ("Split", merge::split),
    ("Sqrt", activation::sqrt),
    ("Squeeze", shape::squeeze),
    ("Sub", affine::sub),
    ("Sum", merge::sum),
    ("Tanh", activation::tanh),
    ("Transpose", shape::transpose),
    ("Unsqueeze", shape::unsqueeze),
];

/// The names of all operations that are supported.
pub(crate) fn names() -> String {
    OPERATIONS.map(|(name, _)| name).join(", ")
}

pub(crate) fn is_known(op: &str) -> bool {
    OPERATIONS.iter().any(|(name, _)| *name == op)
}

/// Whether an operation rounds to few bits.
pub(crate) fn is_quantised(op: &str) -> bool {
    let signs = [
        "QLinear",
        "Quantize",
        "Integer",
        "QuantizeLinear",
        "QGemm",
        "QAttention",
    ];
    signs.iter().any(|sign| op.contains(sign))
}

/// The results of a node.
pub(crate) fn run(builder: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let op = &node.proto.op_type[..];
    match OPERATIONS.iter().find(|(name, _)| *name == op) {
        Some((_, operation)) => operation(builder, node),
        None => refuse!("it is not supported"),
    }
}
