//! A data set as data: what it is, which files it has, where they come from.

use std::path::Path;

use serde::Deserialize;

use crate::Error;

const BUILT_IN: [&str; 3] = [
    include_str!("../mnist.toml"),
    include_str!("../fashion-mnist.toml"),
    include_str!("../cifar10.toml"),
];

/// One data set, as its TOML file tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Name on the command line and of the folder.
    pub name: String,
    /// Full name.
    pub title: String,
    /// Licence of the data, not of this crate.
    pub licence: String,
    /// The authors' page.
    pub homepage: String,
    /// What to cite.
    pub citation: String,
    /// Byte format of the unpacked files.
    pub format: Format,
    /// Channels, height, width of an image.
    pub shape: [usize; 3],
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Size of the embedded sample, where there is one.
    pub sample: Option<SampleSize>,
    /// The files, in reading order.
    pub files: Vec<File>,
    /// Where the files come from, in the order in which they are tried.
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// Byte format of the unpacked files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// IDX3 images and IDX1 labels in files of their own.
    Idx,
    /// Records of one label byte and C * H * W pixel bytes, channel planes in turn.
    CifarBinary,
}

/// The published division of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Images to train on.
    Train,
    /// Images to evaluate on.
    Test,
}

impl Split {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Train, Self::Test];

    /// `train` or `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Pixels only.
    Images,
    /// Labels only.
    Labels,
    /// Labels and pixels, record by record.
    Records,
}

/// One unpacked file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// File name, without a folder and without `.gz`.
    pub name: String,
    /// The split it belongs to.
    pub split: Split,
    /// What it holds.
    pub role: Role,
    /// Number of images (or labels) in it.
    pub count: usize,
    /// SHA-256 of the unpacked bytes, in lower-case hexadecimal.
    pub sha256: String,
}

/// Numbers of images in the embedded sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleSize {
    /// Images taken from the training split.
    pub train: usize,
    /// Images taken from the test split.
    pub test: usize,
}

/// A place that offers the files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A folder that a system package fills.
    Folder {
        /// Absolute path.
        path: String,
        /// Name of the (Debian) package.
        package: String,
    },
    /// A data set repository on the Hugging Face hub that holds Parquet files of PNG images.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit. The checksums of [`File`] hold whichever it is.
        revision: String,
        /// Column of the images, a struct with the PNG file in its field `bytes`.
        image: String,
        /// Column of the labels, 64-bit integers.
        label: String,
        /// Parquet files of the training split, in order.
        train: Vec<String>,
        /// Parquet files of the test split, in order.
        test: Vec<String>,
    },
}

impl Description {
    /// All built-in descriptions.
    ///
    /// # Errors
    /// [`Error::Description`] where a description file is wrong.
    pub fn list() -> Result<Vec<Self>, Error> {
        BUILT_IN.iter().map(|text| Self::parse(text)).collect()
    }

    /// The built-in description called `name`.
    ///
    /// # Errors
    /// [`Error::UnknownName`], which lists the known names.
    pub fn load(name: &str) -> Result<Self, Error> {
        let all = Self::list()?;
        let known = all
            .iter()
            .map(|d| d.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        all.into_iter()
            .find(|d| d.name == name)
            .ok_or_else(|| Error::UnknownName {
                name: name.to_owned(),
                known,
            })
    }

    /// Reads a description from TOML and checks that it agrees with itself.
    ///
    /// # Errors
    /// [`Error::Description`] naming the key that is wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let this: Self = toml::from_str(text).map_err(|e| Error::Description {
            name: text.lines().next().unwrap_or_default().to_owned(),
            problem: e.to_string(),
        })?;
        match this.problem() {
            None => Ok(this),
            Some(problem) => Err(Error::Description {
                name: this.name,
                problem,
            }),
        }
    }

    fn problem(&self) -> Option<String> {
        if !is_plain(&self.name) {
            return Some(format!("name = {:?} is not a plain folder name", self.name));
        }
        if self.shape.contains(&0) || self.classes.is_empty() || self.classes.len() > 256 {
            return Some(format!(
                "shape = {:?} must be positive and classes = {} between 1 and 256",
                self.shape,
                self.classes.len()
            ));
        }
        for file in &self.files {
            if !is_plain(&file.name) {
                return Some(format!(
                    "file name {:?} is not a plain file name",
                    file.name
                ));
            }
            if file.sha256.len() != 64 || !file.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Some(format!(
                    "sha256 of {} is not 64 hexadecimal digits",
                    file.name
                ));
            }
        }
        for split in Split::ALL {
            let roles: Vec<Role> = self.of(split).map(|f| f.role).collect();
            let good = match self.format {
                Format::Idx => roles == [Role::Images, Role::Labels],
                Format::CifarBinary => {
                    !roles.is_empty() && roles.iter().all(|&r| r == Role::Records)
                }
            };
            // A run of hub rows is cut into files of one length.
            let mut counts = self.of(split).map(|f| f.count);
            let first = counts.next();
            if !good || first == Some(0) || counts.any(|n| Some(n) != first) {
                return Some(format!(
                    "the {} files have roles {roles:?}, which {:?} does not have, or counts that \
                     differ or are 0",
                    split.as_str(),
                    self.format
                ));
            }
        }
        None
    }

    /// The files of one split, in reading order.
    pub fn of(&self, split: Split) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |f| f.split == split)
    }

    /// Number of images in one split.
    pub fn count(&self, split: Split) -> usize {
        self.of(split)
            .filter(|f| f.role != Role::Labels)
            .map(|f| f.count)
            .sum()
    }

    /// Length in bytes of an unpacked file: it follows from format, count and shape.
    pub fn bytes(&self, file: &File) -> u64 {
        let pixels: usize = self.shape.iter().product();
        let bytes = match file.role {
            Role::Images => 16 + file.count * pixels,
            Role::Labels => 8 + file.count,
            Role::Records => file.count * (1 + pixels),
        };
        bytes as u64
    }

    /// What a user can do to get the files, as the end of a sentence.
    pub fn remedy(&self) -> String {
        let names = self
            .files
            .iter()
            .map(|f| f.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let mut ways = vec![
            format!(
                "put {names} (plain or .gz) into DIR/{}/ and pass --data-dir DIR or set \
                 THERIAC_DATA=DIR",
                self.name
            ),
            format!(
                "run `cargo xtask datasets fetch {}` where there is a network (and copy the store)",
                self.name
            ),
        ];
        for source in &self.sources {
            if let Source::Folder { path, package } = source {
                ways.push(format!(
                    "install the system package {package} (it fills {path})"
                ));
            }
        }
        if let Some(size) = self.sample {
            ways.push(format!(
                "use the embedded sample of {} + {} images, which needs no files",
                size.train, size.test
            ));
        }
        ways.join("; or ")
    }
}

/// One component, so that joining it to a folder stays inside that folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && Path::new(name).file_name() == Some(name.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_descriptions_are_whole() {
        let all = Description::list().unwrap();
        let names: Vec<_> = all.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["mnist", "fashion-mnist", "cifar10"]);
        for d in &all {
            assert_eq!(d.classes.len(), 10, "{}", d.name);
            assert_eq!(d.count(Split::Test), 10_000, "{}", d.name);
            assert!(
                matches!(d.sources.last(), Some(Source::Hub { .. })),
                "{}",
                d.name
            );
        }
        assert_eq!(all[2].count(Split::Train), 50_000);
        assert_eq!(all[2].bytes(&all[2].files[0]), 30_730_000);
        assert_eq!(all[0].bytes(&all[0].files[0]), 47_040_016);
    }

    #[test]
    fn unknown_name_lists_the_known_ones() {
        let message = Description::load("mnits").unwrap_err().to_string();
        assert!(message.contains("`mnits`") && message.contains("mnist, fashion-mnist, cifar10"));
    }

    #[test]
    fn contradictions_are_named() {
        let good = include_str!("../mnist.toml");
        for (from, to, word) in [
            (
                "name = \"train-images",
                "name = \"../train-images",
                "plain file name",
            ),
            ("sha256 = \"ba89", "sha256 = \"zz89", "hexadecimal"),
            ("role = \"labels\"", "role = \"records\"", "roles"),
            ("count = 10000", "count = 9999", "counts"),
            ("shape = [1, 28, 28]", "shape = [1, 0, 28]", "shape"),
            ("licence", "license", "unknown field"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let message = Description::parse(&bad).unwrap_err().to_string();
            assert!(message.contains(word), "{from}: {message}");
        }
    }
}
