//! What all downloads share. This crate alone in the workspace opens the network.

use hf_hub::api::Progress;

use crate::files::Event;

pub(crate) const PUBLIC: &str = "https://huggingface.co";

/// Our progress events from those of the client.
pub(crate) struct Bar<'a>(pub(crate) &'a mut dyn FnMut(Event<'_>));

impl Progress for Bar<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        (self.0)(Event::Begin {
            file: filename,
            bytes: size as u64,
        });
    }

    fn update(&mut self, size: usize) {
        (self.0)(Event::Advance { bytes: size as u64 });
    }

    fn finish(&mut self) {
        (self.0)(Event::End);
    }
}
