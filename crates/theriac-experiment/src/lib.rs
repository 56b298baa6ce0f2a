#![doc = include_str!("../README.md")]

mod batches;
mod images;
mod measured;
mod training;

pub use batches::batches;
pub use images::images;
pub use measured::{measured, share};
pub use training::{HISTORY, MODEL, Training, about, after, history};

use std::sync::Once;

use theriac_tables::Lab;

/// Takes as many threads as the user said, at the first call.
pub fn use_threads(lab: &Lab) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Some(n) = lab.threads {
            // Fails only when a pool exists already, and then results are the same.
            let _ = rayon::ThreadPoolBuilder::new()
                .num_threads(n)
                .build_global();
        }
    });
}

/// An error of the data as one of the loop.
pub fn into_theriac(error: theriac_data::Error) -> theriac::Error {
    theriac::Error::Other(error.into())
}
