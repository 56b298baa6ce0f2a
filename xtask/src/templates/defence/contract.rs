//! What every objective promises.

use std::error::Error;
use std::ops::ControlFlow;

use candle_core::{DType, Device};
use theriac::{Rng, Run};
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_models::lenet;
use theriac_nn::{Params, Plain, Twin};
use theriac_skeleton::Skeleton;
use theriac_train::{Adam, Group, Outcome, Plan, Schedule, fit};

#[test]
fn the_loss_falls_on_a_tiny_set() -> Result<(), Box<dyn Error>> {
    let data = synthetic(64, [1, 28, 28], 4, &Rng::new(1))?;
    let loader = Loader::new(&data, 16, Order::Shuffled(Rng::new(2)), Partial::Keep)?;
    let params = Params::new(3, DType::F32, &Device::Cpu);
    let twin = Twin::build(&params, |vb| lenet(&Plain, vb))?;
    let rate = Schedule::Constant { rate: 1e-3 };
    let mut groups = [Group::new(params.trainable(), Adam::default(), rate)?];
    let plan = Plan {
        epochs: 5,
        batches: loader.batches(),
        state: None,
        until: None,
    };
    let run = Run::new(4, &Device::Cpu);
    let epoch = |e| {
        loader
            .epoch(e)
            .map(|batch| batch.map_err(|error| theriac::BoxError::from(error).into()))
    };
    let mut objective = Skeleton { weight: 1.0 };
    let go_on = |_| ControlFlow::Continue(());
    match fit(&twin, &mut objective, &mut groups, plan, &run, epoch, go_on)? {
        Outcome::Done(epochs) => assert!(epochs[4].loss < 0.9 * epochs[0].loss, "{epochs:?}"),
        Outcome::Stopped(epochs) => panic!("stopped after {} epochs", epochs.len()),
    }
    Ok(())
}
