//! A network as one operation against the same network as single operations.

use candle_core::{DType, Device, Result, Tensor, Var};
use theriac_ops::network::{Network, Op, Parameters, PreparedCache, Step};
use theriac_ops::{ConvConfig, conv2d, cross_entropy, linear, relu};

fn values(len: usize, seed: f32) -> Vec<f32> {
    (0..len)
        .map(|i| ((i as f32 + seed) * 12.9898).sin() * 0.3)
        .collect()
}

struct Case {
    x: Var,
    parameters: [Var; 4],
    labels: Tensor,
}

impl Case {
    fn new(n: usize) -> Result<Self> {
        let var = |shape: &[usize], seed| {
            let len = shape.iter().product();
            Var::from_tensor(&Tensor::from_vec(values(len, seed), shape, &Device::Cpu)?)
        };
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
        Ok(Self {
            x: var(&[n, 2, 6, 5], 0.1)?,
            parameters: [
                var(&[4, 2, 3, 3], 0.2)?,
                var(&[4], 0.3)?,
                var(&[3, 120], 0.4)?,
                var(&[3], 0.5)?,
            ],
            labels: Tensor::from_vec(labels, n, &Device::Cpu)?,
        })
    }

    fn steps() -> [Step; 3] {
        let conv = Op::Conv {
            outputs: 4,
            kernel: (3, 3),
            stride: 1,
            padding: 1,
            dilation: 1,
        };
        [
            Step { op: conv, input: 0 },
            Step {
                op: Op::Relu,
                input: 1,
            },
            Step {
                op: Op::Linear { outputs: 3 },
                input: 2,
            },
        ]
    }

    fn together(&self, parameters: [&Tensor; 4], x: &Tensor) -> Result<Tensor> {
        let network = Network::new([2, 6, 5], &Self::steps(), true)?;
        let [w1, b1, w2, b2] = parameters.map(|p| Some(p.clone()));
        let parameters: [Parameters; 3] = [
            [w1, b1, None, None],
            [const { None }; 4],
            [w2, b2, None, None],
        ];
        let prepared = network.prepare(&parameters, true)?;
        Ok(network.forward(&prepared, x, &parameters)?.0)
    }

    fn apart(&self, [w1, b1, w2, b2]: [&Tensor; 4], x: &Tensor) -> Result<Tensor> {
        let config = ConvConfig {
            padding: 1,
            ..ConvConfig::default()
        };
        let h = relu(&conv2d(x, w1, Some(b1), config)?)?;
        linear(&h.flatten_from(1)?, w2, Some(b2))
    }

    fn live(&self) -> [&Tensor; 4] {
        std::array::from_fn(|i| self.parameters[i].as_tensor())
    }
}

fn close(a: &Tensor, b: &Tensor) -> Result<()> {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
    let scale = b.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference <= 1e-5 * scale, "{difference} of {scale}");
    Ok(())
}

#[test]
fn value_and_all_gradients_are_those_of_single_operations() -> Result<()> {
    let case = Case::new(21)?;
    let (a, b) = (
        case.together(case.live(), &case.x)?,
        case.apart(case.live(), &case.x)?,
    );
    close(&a, &b)?;
    let loss = |z: &Tensor| cross_entropy(z, &case.labels)?.sum_all();
    let (grads_a, grads_b) = (loss(&a)?.backward()?, loss(&b)?.backward()?);
    for var in case.parameters.iter().chain([&case.x]) {
        let (Some(a), Some(b)) = (grads_a.get(var), grads_b.get(var)) else {
            panic!("a gradient is missing");
        };
        close(a, b)?;
    }
    Ok(())
}

#[test]
fn one_forward_pass_serves_many_backward_passes() -> Result<()> {
    let case = Case::new(5)?;
    let z = case.together(case.live(), &case.x)?;
    for class in 0..3 {
        let logit = z.narrow(1, class, 1)?.sum_all()?;
        let expected = case
            .apart(case.live(), &case.x)?
            .narrow(1, class, 1)?
            .sum_all()?
            .backward()?;
        let grads = logit.backward()?;
        for var in [&case.x, &case.parameters[0]] {
            let (Some(a), Some(b)) = (grads.get(var), expected.get(var)) else {
                panic!("a gradient is missing");
            };
            close(a, b)?;
        }
    }
    Ok(())
}

#[test]
fn constants_have_no_gradient() -> Result<()> {
    let case = Case::new(2)?;
    let [w1, b1, w2, b2] = case.live();
    let constants = [&w1.detach(), &b1.detach(), &w2.detach(), &b2.detach()];
    let grads = case.together(constants, &case.x)?.sum_all()?.backward()?;
    assert!(grads.get(&case.x).is_some() && grads.get(constants[0]).is_none());
    // A single tracked bias, and images that are constant.
    let mixed = [constants[0], constants[1], constants[2], b2];
    let grads = case
        .together(mixed, &case.x.detach())?
        .sum_all()?
        .backward()?;
    assert_eq!(
        grads.get(b2).map(|g| g.to_vec1::<f32>()).transpose()?,
        Some(vec![2.0; 3])
    );
    assert!(grads.get(constants[2]).is_none());
    Ok(())
}

#[test]
fn strides_offsets_and_bad_shapes() -> Result<()> {
    let case = Case::new(4)?;
    let turned = case
        .x
        .as_tensor()
        .transpose(0, 1)?
        .contiguous()?
        .transpose(0, 1)?;
    let narrow = case.x.narrow(0, 1, 2)?;
    let whole = case.together(case.live(), &case.x)?;
    close(&case.together(case.live(), &turned)?, &whole)?;
    close(
        &case.together(case.live(), &narrow)?,
        &whole.narrow(0, 1, 2)?,
    )?;
    close(
        &case.together(case.live(), &case.x.flatten_from(1)?)?,
        &whole,
    )?;
    // As many pixels in another shape would be other images.
    for shape in [[2, 2, 5, 5], [4, 2, 5, 6], [4, 1, 12, 5], [0, 2, 6, 5]] {
        let wrong = Tensor::zeros(&shape, DType::F32, &Device::Cpu)?;
        let error = case.together(case.live(), &wrong).expect_err("a shape");
        let text = error.to_string();
        assert!(
            text.contains("network") && text.contains(&format!("{shape:?}")),
            "{text}"
        );
    }
    let [w1, b1, w2, _] = case.live();
    assert!(case.together([w1, b1, w2, b1], &case.x).is_err());
    Ok(())
}

#[test]
fn a_cache_arranges_once_for_each_network() -> Result<()> {
    let cache = PreparedCache::default();
    let parameters: Vec<Parameters> = vec![[const { None }; 4]];
    let step = [Step {
        op: Op::Relu,
        input: 0,
    }];
    let mut made = 0;
    for network in [
        Network::new([1, 2, 2], &step, false)?,
        Network::new([1, 2, 2], &step, false)?,
    ] {
        for _ in 0..3 {
            cache.get_or(&network, || {
                made += 1;
                network.prepare(&parameters, false)
            })?;
        }
    }
    assert_eq!(made, 2);
    Ok(())
}
