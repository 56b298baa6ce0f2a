//! Golden images, and evaluations of them.

use std::ops::ControlFlow;

use candle_core::{DType, Device};
use theriac::{Batch, Budget, Classifier, Labels, Pixels, Result, Run, Target};
use theriac_data::Dataset;
use theriac_eval::evaluation::{Manifest, Models, Plan, Profile, Shard, Store, Subject};
use theriac_eval::{Evaluation, Measure};

use crate::golden;

/// The first golden images.
pub(crate) struct Golden(Batch<Labels>);

impl Golden {
    pub(crate) fn new(n: usize) -> Self {
        Self(golden::images(n, DType::F32).unwrap())
    }
}

impl Dataset for Golden {
    type Target = Labels;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, indices: &[u32], _: DType, _: &Device) -> theriac_data::Result<Batch<Labels>> {
        let whole = || -> Result<Batch<Labels>> {
            let pixels: Pixels = self.0.pixels.pick(indices)?;
            let target = self.0.target.pick(indices)?;
            let samples = indices.iter().map(|&i| self.0.samples[i as usize]);
            let samples = samples.collect();
            Ok(Batch {
                pixels,
                target,
                samples,
            })
        };
        Ok(whole().unwrap())
    }
}

pub(crate) fn plan(profile: Profile, random: bool) -> Plan {
    let budget = Budget::linf("0.1".parse().unwrap()).unwrap();
    Plan::new(profile, budget, 10, random).unwrap()
}

pub(crate) fn manifest(plan: Plan, images: usize, shard: Shard) -> Manifest {
    let subject = Subject {
        model: "golden".to_owned(),
        images: images as u32,
        shape: vec![1, 28, 28],
        classes: 10,
        ..Subject::default()
    };
    Manifest::new(subject, plan, shard)
}

/// Measures to the end, in batches of `batch`.
pub(crate) fn measure<C: Classifier>(
    model: &C,
    data: &Golden,
    store: &mut Store,
    batch: usize,
) -> Result<Evaluation> {
    let run = Run::new(0, &Device::Cpu);
    let work = Measure {
        models: Models::of(model),
        data,
        run: &run,
        dtype: DType::F32,
        batch,
    };
    let flow = work.run(store, |_| ControlFlow::Continue(()))?;
    assert!(flow.is_continue());
    Evaluation::of(store)
}
