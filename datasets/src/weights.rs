//! Files of model repositories on the Hugging Face hub.

use std::path::PathBuf;
use std::str::FromStr;

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

use crate::Error;
use crate::client::{Bar, PUBLIC};
use crate::files::Event;

/// A file of a model repository: `OWNER/NAME`, `OWNER/NAME/FILE` or `OWNER/NAME@REVISION/FILE`.
///
/// Where they are not said, the revision is `main` and the file `model.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// Owner and name.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Path inside the repository.
    pub file: String,
}

impl FromStr for Weights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Weights {
            text: text.to_owned(),
        };
        let mut parts = text.splitn(3, '/');
        let (owner, name, file) = (parts.next(), parts.next(), parts.next());
        let (owner, name) = owner.zip(name).ok_or_else(wrong)?;
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let file = file.unwrap_or("model.safetensors");
        if [owner, name, revision, file].contains(&"") {
            return Err(wrong());
        }
        Ok(Self {
            repo: format!("{owner}/{name}"),
            revision: revision.to_owned(),
            file: file.to_owned(),
        })
    }
}

/// Where downloaded weights are kept and come from.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// The folder of downloads; by default the one that other programs of the hub share, which
    /// `HF_HOME` moves.
    pub cache: Option<PathBuf>,
    /// Address of the hub, where it is not the public one.
    pub endpoint: Option<String>,
    /// Read what has been downloaded; never open the network.
    pub offline: bool,
}

impl Weights {
    /// The local copy, downloaded if there is none.
    ///
    /// # Errors
    /// [`Error::Download`] says what to do by hand.
    pub fn fetch(&self, hub: &Hub, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, Error> {
        let Self {
            repo,
            revision,
            file,
        } = self;
        let cache = match &hub.cache {
            Some(folder) => Cache::new(folder.clone()),
            None => Cache::from_env(),
        };
        let place = Repo::with_revision(repo.clone(), RepoType::Model, revision.clone());
        if let Some(path) = cache.repo(place.clone()).get(file) {
            return Ok(path);
        }
        let endpoint = hub.endpoint.as_deref().unwrap_or(PUBLIC);
        let failed = |cause: &dyn std::fmt::Display| Error::Download {
            file: file.clone(),
            origin: format!("{endpoint}/{repo}"),
            cause: cause.to_string(),
            remedy: format!(
                "check the name, or bring {endpoint}/{repo}/resolve/{revision}/{file} here by hand \
                 and name that file"
            ),
        };
        if hub.offline {
            return Err(failed(
                &"there is no local copy and downloads are switched off",
            ));
        }
        tracing::info!(file, repo, endpoint, "downloading");
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(endpoint.to_owned())
            .with_retries(3)
            .build()
            .map_err(|error| failed(&error))?;
        let downloaded = api.repo(place).download_with_progress(file, Bar(progress));
        downloaded.map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_repository_revision_and_file() {
        let parsed = |text: &str| {
            let weights: Weights = text.parse().ok()?;
            Some([weights.repo, weights.revision, weights.file])
        };
        let expected = |parts: [&str; 3]| Some(parts.map(str::to_owned));
        for (text, parts) in [
            ("a/b", ["a/b", "main", "model.safetensors"]),
            ("a/b@v1", ["a/b", "v1", "model.safetensors"]),
            ("a/b/c/d.pth", ["a/b", "main", "c/d.pth"]),
            ("a/b@v1/c.bin", ["a/b", "v1", "c.bin"]),
        ] {
            assert_eq!(parsed(text), expected(parts), "{text}");
        }
        for wrong in ["", "a", "a/", "/b", "a/@v", "a/b@", "a/b/"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
