//! Every operation and optimiser against vectors computed with PyTorch in double precision.
//!
//! The inputs are exact in `f32`, so each case runs in both element types, and through the
//! kernels as well as through the composed operations of `theriac_ops::portable`.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use candle_core::{DType, Device, Result, Tensor, Var};
use std::collections::HashMap;
use theriac_ops::{Adam, ConvConfig, PoolConfig, Sgd, portable};

struct Golden {
    tensors: HashMap<String, Tensor>,
    dtype: DType,
}

impl Golden {
    fn both() -> [Self; 2] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/layers.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("golden file");
        [DType::F64, DType::F32].map(|dtype| Self {
            tensors: tensors.clone(),
            dtype,
        })
    }

    fn get(&self, name: &str) -> Tensor {
        let tensor = self
            .tensors
            .get(name)
            .unwrap_or_else(|| panic!("no tensor {name}"));
        tensor.to_dtype(self.dtype).unwrap()
    }

    fn var(&self, name: &str) -> Var {
        Var::from_tensor(&self.get(name)).unwrap()
    }

    /// Largest difference relative to the largest entry: 1e-12 in f64, 1e-5 in f32.
    fn check(&self, name: &str, actual: &Tensor) {
        let expected = &self.tensors[name];
        assert_eq!(actual.dtype(), self.dtype, "{name}");
        assert_eq!(actual.dims(), expected.dims(), "{name}");
        let values = |t: &Tensor| {
            t.to_dtype(DType::F64)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        let (actual, expected) = (values(actual), values(expected));
        let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        let tolerance = largest
            * if self.dtype == DType::F64 {
                1e-12
            } else {
                1e-5
            };
        for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
            assert!((a - e).abs() <= tolerance, "{name}[{i}]: {a}, expected {e}");
        }
    }

    /// Names of the cases that start with `prefix`.
    fn cases(&self, prefix: &str) -> Vec<String> {
        let mut cases: Vec<String> = self
            .tensors
            .keys()
            .filter_map(|name| name.strip_suffix(".grad_out"))
            .filter(|name| name.starts_with(prefix))
            .map(String::from)
            .collect();
        cases.sort();
        cases
    }

    /// Runs a function of `inputs` on `case` and checks its value and all gradients.
    fn check_function(
        &self,
        case: &str,
        inputs: &[(&str, &str, &str)],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let vars: Vec<Var> = inputs.iter().map(|(_, name, _)| self.var(name)).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        self.check(&format!("{case}.out"), &y);
        let product = (y * self.get(&format!("{case}.grad_out"))).unwrap();
        let grads = product.sum_all().unwrap().backward().unwrap();
        for ((what, _, grad), var) in inputs.iter().zip(&vars) {
            let actual = grads
                .get(var)
                .unwrap_or_else(|| panic!("{case}: no gradient of {what}"));
            self.check(&format!("{case}.{grad}"), actual);
        }
    }
}

/// Reads `k3s2p1`-style numbers from a case name.
fn number(case: &str, letter: char) -> usize {
    let settings = case
        .rsplit_once("_k")
        .map_or_else(|| panic!("{case}"), |(_, s)| s);
    let settings = format!("k{settings}");
    let start = settings.find(letter).map(|i| i + 1);
    start.map_or(0, |start| {
        let digits: String = settings[start..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits
            .parse()
            .unwrap_or_else(|_| panic!("{case}: no number after {letter}"))
    })
}

#[test]
fn convolution() {
    for golden in Golden::both() {
        let cases = golden.cases("conv_");
        assert_eq!(cases.len(), 12);
        for case in cases {
            let config = ConvConfig {
                stride: number(&case, 's'),
                padding: number(&case, 'p'),
                dilation: number(&case, 'd'),
                groups: number(&case, 'g'),
            };
            let [x, weight, bias] = ["x", "weight", "bias"].map(|name| format!("{case}.{name}"));
            let inputs = [
                ("x", &*x, "dx"),
                ("weight", &*weight, "dweight"),
                ("bias", &*bias, "dbias"),
            ];
            golden.check_function(&case, &inputs, |t| {
                theriac_ops::conv2d(&t[0], &t[1], Some(&t[2]), config)
            });
            golden.check_function(&case, &inputs, |t| {
                portable::conv2d(&t[0], &t[1], Some(&t[2]), config)
            });
            golden.check_function(&case, &inputs[..2], |t| {
                theriac_ops::conv2d(&t[0], &t[1], None, config)?
                    .broadcast_add(&golden.get(&bias).reshape((1, (), 1, 1))?)
            });
        }
    }
}

#[test]
fn pooling() {
    for golden in Golden::both() {
        let mut cases = golden.cases("maxpool_");
        cases.extend(golden.cases("avgpool_"));
        assert_eq!(cases.len(), 7);
        for case in cases {
            let config = if case == "maxpool_all_zero" {
                PoolConfig {
                    kernel: 2,
                    stride: 2,
                    padding: 0,
                }
            } else {
                let settings = case.trim_end_matches("_nopad");
                let [kernel, stride, padding] = ['k', 's', 'p'].map(|l| number(settings, l));
                PoolConfig {
                    kernel,
                    stride,
                    padding,
                }
            };
            let include = !case.ends_with("_nopad");
            let x = format!("{case}.x");
            let inputs = [("x", &*x, "dx")];
            if case.starts_with("maxpool") {
                golden.check_function(&case, &inputs, |t| theriac_ops::max_pool2d(&t[0], config));
                golden.check_function(&case, &inputs, |t| portable::max_pool2d(&t[0], config));
            } else {
                golden.check_function(&case, &inputs, |t| {
                    theriac_ops::avg_pool2d(&t[0], config, include)
                });
                golden.check_function(&case, &inputs, |t| {
                    portable::avg_pool2d(&t[0], config, include)
                });
            }
        }
    }
}

type Train = fn(&Tensor, &Tensor, &Tensor, f64) -> Result<(Tensor, Tensor, Tensor)>;
type Eval = fn(&Tensor, &Tensor, &Tensor, &Tensor, &Tensor, f64) -> Result<Tensor>;

#[test]
fn batch_norm() {
    let versions: [(Train, Eval); 2] = [
        (theriac_ops::batch_norm_train, theriac_ops::batch_norm_eval),
        (portable::batch_norm_train, portable::batch_norm_eval),
    ];
    for golden in Golden::both() {
        for (case, momentum, eps) in [("bn_a", 0.1, 1e-5), ("bn_b", 0.01, 1e-3)] {
            for (train, eval) in versions {
                let (weight, bias) = (format!("{case}.weight"), format!("{case}.bias"));
                let (gamma, beta) = (golden.get(&weight), golden.get(&bias));
                let mut mean = gamma.zeros_like().unwrap();
                let mut var = gamma.ones_like().unwrap();
                for batch in 0..3 {
                    let name = format!("{case}.b{batch}");
                    let x = format!("{name}.x");
                    let inputs = [
                        ("x", &*x, "dx"),
                        ("gamma", &*weight, "dweight"),
                        ("beta", &*bias, "dbias"),
                    ];
                    golden
                        .check_function(&name, &inputs, |t| Ok(train(&t[0], &t[1], &t[2], eps)?.0));
                    let (_, m, v) = train(&golden.get(&x), &gamma, &beta, eps).unwrap();
                    mean = ((mean * (1.0 - momentum)).unwrap() + (m * momentum).unwrap()).unwrap();
                    var = ((var * (1.0 - momentum)).unwrap() + (v * momentum).unwrap()).unwrap();
                    golden.check(&format!("{name}.running_mean"), &mean);
                    golden.check(&format!("{name}.running_var"), &var);
                }
                let x = golden.get(&format!("{case}.eval_x"));
                let y = eval(&x, &gamma, &beta, &mean, &var, eps).unwrap();
                golden.check(&format!("{case}.eval_out"), &y);
            }
        }
    }
}

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;

#[test]
fn cross_entropy() {
    let versions: [(Loss, Loss); 2] = [
        (theriac_ops::cross_entropy, theriac_ops::cross_entropy_soft),
        (portable::cross_entropy, portable::cross_entropy_soft),
    ];
    for golden in Golden::both() {
        let labels = golden.tensors["ce.labels"].to_dtype(DType::U32).unwrap();
        let classes = golden.get("ce.logits").dim(1).unwrap();
        let hard = candle_core::Tensor::eye(classes, golden.dtype, &Device::Cpu)
            .unwrap()
            .index_select(&labels, 0)
            .unwrap();
        let soft = golden.get("ce.soft");
        let smooth = |p: &Tensor| p.affine(0.9, 0.1 / classes as f64).unwrap();
        for (plain, with_target) in versions {
            let targets = [
                ("plain", None),
                ("plain", Some(hard.clone())),
                ("smooth", Some(smooth(&hard))),
                ("soft", Some(soft.clone())),
                ("soft_smooth", Some(smooth(&soft))),
            ];
            for (name, target) in targets {
                for reduction in ["none", "sum", "mean"] {
                    let case = format!("ce.{name}.{reduction}");
                    let logits = golden.var("ce.logits");
                    let losses = match &target {
                        None => plain(&logits, &labels).unwrap(),
                        Some(target) => with_target(&logits, target).unwrap(),
                    };
                    let loss = match reduction {
                        "none" => losses,
                        "sum" => losses.sum_all().unwrap(),
                        _ => losses.mean_all().unwrap(),
                    };
                    golden.check(&format!("{case}.loss"), &loss);
                    let grads = loss.sum_all().unwrap().backward().unwrap();
                    let grad = grads.get(&logits).expect("gradient of the logits");
                    golden.check(&format!("{case}.dlogits"), grad);
                }
            }
        }
    }
}

fn zeros(golden: &Golden) -> Var {
    Var::zeros(6, golden.dtype, &Device::Cpu).unwrap()
}

type SgdStep = fn(&Sgd, &Var, &Tensor, Option<&Var>, bool) -> Result<()>;
type AdamStep = fn(&Adam, &Var, &Tensor, &Var, &Var, usize) -> Result<()>;

#[test]
fn stochastic_gradient_descent() {
    let plain = Sgd {
        lr: 0.1,
        momentum: 0.0,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    };
    let nesterov = Sgd {
        lr: 0.05,
        momentum: 0.8,
        dampening: 0.0,
        nesterov: true,
        weight_decay: 0.005,
    };
    let cases = [
        ("sgd", plain),
        (
            "sgd_mom",
            Sgd {
                momentum: 0.9,
                ..plain
            },
        ),
        ("sgd_nesterov_wd", nesterov),
        (
            "sgd_mom_damp",
            Sgd {
                momentum: 0.9,
                dampening: 0.3,
                ..plain
            },
        ),
    ];
    let versions: [SgdStep; 2] = [theriac_ops::sgd_step, portable::sgd_step];
    for golden in Golden::both() {
        for (case, sgd) in cases {
            for step in versions {
                let (param, buffer) = (golden.var("opt.p0"), zeros(&golden));
                let buffer = (sgd.momentum != 0.0).then_some(&buffer);
                let trajectory: Vec<Tensor> = (0..10)
                    .map(|t| {
                        let grad = golden.get("opt.grads").get(t).unwrap();
                        step(&sgd, &param, &grad, buffer, t == 0).unwrap();
                        param.as_detached_tensor().copy().unwrap()
                    })
                    .collect();
                let trajectory = Tensor::stack(&trajectory, 0).unwrap();
                golden.check(&format!("opt.{case}.traj"), &trajectory);
            }
        }
    }
}

#[test]
fn adam() {
    let plain = Adam {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
    };
    let decayed = Adam {
        beta1: 0.8,
        beta2: 0.95,
        eps: 1e-6,
        weight_decay: 0.1,
        ..plain
    };
    let decoupled = Adam {
        weight_decay: 0.1,
        decoupled: true,
        ..plain
    };
    let cases = [("adam", plain), ("adam_wd", decayed), ("adamw", decoupled)];
    let versions: [AdamStep; 2] = [theriac_ops::adam_step, portable::adam_step];
    for golden in Golden::both() {
        for (case, adam) in cases {
            for step in versions {
                let (param, m, v) = (golden.var("opt.p0"), zeros(&golden), zeros(&golden));
                let trajectory: Vec<Tensor> = (0..10)
                    .map(|t| {
                        let grad = golden.get("opt.grads").get(t).unwrap();
                        step(&adam, &param, &grad, &m, &v, t + 1).unwrap();
                        param.as_detached_tensor().copy().unwrap()
                    })
                    .collect();
                let trajectory = Tensor::stack(&trajectory, 0).unwrap();
                golden.check(&format!("opt.{case}.traj"), &trajectory);
            }
        }
    }
}
