//! From a name to local files: look, download if allowed, check, store.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::description::{Description, File, Role, Source, Split};
use crate::format::hex;

/// Where to look and what is allowed. The default looks nowhere but in system folders.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A folder with one folder per data set. If given, the files must be there.
    pub data_dir: Option<PathBuf>,
    /// The folder that downloads are put in, and looked for in first.
    pub store: Option<PathBuf>,
    /// Never open the network.
    pub offline: bool,
    /// Address of the hub, where it is not the public one.
    pub endpoint: Option<String>,
}

impl Options {
    /// The options that the environment sets: `THERIAC_DATA` (`data_dir`), `HF_ENDPOINT`
    /// (`endpoint`) and, inside a checkout of the workspace, its `datasets/store/`.
    ///
    /// For the edges of a program; nothing else in this crate reads the environment.
    pub fn from_env() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let workspace_store = || {
            let here = std::env::current_dir().ok()?;
            let datasets = here.ancestors().map(|folder| folder.join("datasets"));
            let mut known = datasets.filter(|folder| folder.join("cifar10.toml").is_file());
            Some(known.next()?.join("store"))
        };
        Self {
            data_dir: set("THERIAC_DATA").map(PathBuf::from),
            store: workspace_store(),
            offline: false,
            endpoint: set("HF_ENDPOINT").and_then(|value| value.into_string().ok()),
        }
    }
}

/// What a download reports while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file of this many bytes begins; also sent again when a broken download resumes.
    Begin {
        /// File in the repository.
        file: &'a str,
        /// Its full length.
        bytes: u64,
    },
    /// This many more bytes have arrived (or were there from an earlier try).
    Advance {
        /// Length of the piece.
        bytes: u64,
    },
    /// The file is here.
    End,
    /// The downloaded images are being written in the format of the description.
    Convert {
        /// Name of the split.
        split: &'static str,
    },
    /// An unpacked file passed its check and is in the store.
    Stored {
        /// Where it is.
        path: &'a Path,
    },
}

/// One file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// File name in the description.
    pub name: String,
    /// The split it belongs to.
    pub split: Split,
    /// What it holds.
    pub role: Role,
    /// Where it is; the name may end in `.gz`.
    pub path: PathBuf,
    /// SHA-256 of the unpacked bytes that the description asks for.
    pub sha256: String,
}

/// All files of a data set, in reading order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Name of the data set.
    pub name: String,
    /// The files.
    pub files: Vec<LocalFile>,
}

impl Files {
    /// The files of one split, in reading order.
    pub fn of(&self, split: Split) -> impl Iterator<Item = &LocalFile> {
        self.files.iter().filter(move |f| f.split == split)
    }

    /// Paths of one split and role, in reading order.
    pub fn paths(&self, split: Split, role: Role) -> Vec<&Path> {
        self.of(split)
            .filter(|f| f.role == role)
            .map(|f| f.path.as_path())
            .collect()
    }

    /// Reads every file and compares its SHA-256.
    ///
    /// # Errors
    /// [`Error::Checksum`] for the first file that differs, [`Error::Io`] if one cannot be read.
    pub fn verify(&self) -> Result<(), Error> {
        self.files.iter().try_for_each(LocalFile::verify)
    }
}

impl LocalFile {
    /// Reads the file and compares the SHA-256 of its unpacked bytes.
    ///
    /// # Errors
    /// [`Error::Checksum`] if it differs, [`Error::Io`] if the file cannot be read.
    pub fn verify(&self) -> Result<(), Error> {
        let mut reader = self.open()?;
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader
                .read(&mut buffer)
                .map_err(Error::io(&self.path, "read it"))?
            {
                0 => break,
                n => digest.update(&buffer[..n]),
            }
        }
        self.check(hex(&digest.finalize()))
    }

    pub(crate) fn read_verified(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.open()?
            .read_to_end(&mut bytes)
            .map_err(Error::io(&self.path, "read it"))?;
        self.check(crate::format::sha256(&bytes))?;
        Ok(bytes)
    }

    fn open(&self) -> Result<Box<dyn Read>, Error> {
        let file = fs::File::open(&self.path).map_err(Error::io(&self.path, "open it"))?;
        Ok(match is_gz(&self.path) {
            true => Box::new(MultiGzDecoder::new(file)),
            false => Box::new(file),
        })
    }

    fn check(&self, found: String) -> Result<(), Error> {
        if found == self.sha256 {
            return Ok(());
        }
        Err(Error::Checksum {
            file: self.name.clone(),
            origin: self.path.display().to_string(),
            found,
            expected: self.sha256.clone(),
        })
    }
}

/// The files of the data set called `name`, downloaded if need be and allowed, without progress.
///
/// Looks in `options.data_dir` (and nowhere else if it is given), then in `options.store`, then
/// in the folders of system packages; then downloads into the store. Presence and length are
/// checked on each call; SHA-256 when a file is downloaded and by [`Files::verify`].
///
/// # Errors
/// See [`Description::resolve`].
pub fn resolve(name: &str, options: &Options) -> Result<Files, Error> {
    Description::load(name)?.resolve(options, &mut |_| {})
}

impl Description {
    /// As [`resolve`], for any description, telling `progress` about a download.
    ///
    /// # Errors
    /// [`Error::Missing`] if `data_dir` lacks a file, [`Error::Size`] if a file has the wrong
    /// length, [`Error::Offline`], [`Error::NoStore`] or [`Error::NoHub`] if a download is needed
    /// but not possible, and [`Error::Download`], [`Error::Content`] or [`Error::Checksum`] if it
    /// fails; each says what to do.
    pub fn resolve(
        &self,
        options: &Options,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Files, Error> {
        match self.locate(options)? {
            Some(files) => Ok(files),
            None => self.fetch(options, progress),
        }
    }

    /// The files if they are on this machine; never opens the network.
    ///
    /// # Errors
    /// [`Error::Missing`] if `data_dir` is given and lacks a file, [`Error::Size`] if a file has
    /// the wrong length.
    pub fn locate(&self, options: &Options) -> Result<Option<Files>, Error> {
        if let Some(dir) = &options.data_dir {
            return self.inspect(&dir.join(&self.name)).map(Some);
        }
        let store = options.store.iter().map(|store| store.join(&self.name));
        let packages = self.sources.iter().filter_map(|source| match source {
            Source::Folder { path, .. } => Some(PathBuf::from(path)),
            Source::Hub { .. } => None,
        });
        for folder in store.chain(packages) {
            match self.inspect(&folder) {
                Ok(files) => return Ok(Some(files)),
                Err(Error::Missing { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }

    /// The files in `folder`, if all are there with their right length.
    fn inspect(&self, folder: &Path) -> Result<Files, Error> {
        let missing = |path: PathBuf| Error::Missing {
            dataset: self.name.clone(),
            path,
            remedy: self.remedy(),
        };
        if !folder.is_dir() {
            return Err(missing(folder.to_owned()));
        }
        let local = |file: &File| {
            let plain = folder.join(&file.name);
            let packed = folder.join(format!("{}.gz", file.name));
            let path = match (plain.is_file(), packed.is_file()) {
                (true, _) => plain,
                (false, true) => packed,
                (false, false) => return Err(missing(plain)),
            };
            let (found, expected) = (unpacked_length(&path)?, self.bytes(file));
            if found != expected {
                return Err(Error::Size {
                    path,
                    found,
                    expected,
                });
            }
            Ok(LocalFile {
                name: file.name.clone(),
                split: file.split,
                role: file.role,
                path,
                sha256: file.sha256.clone(),
            })
        };
        let files = self.files.iter().map(local).collect::<Result<_, _>>()?;
        Ok(Files {
            name: self.name.clone(),
            files,
        })
    }

    fn fetch(
        &self,
        options: &Options,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Files, Error> {
        let (dataset, remedy) = (self.name.clone(), self.remedy());
        if options.offline {
            return Err(Error::Offline { dataset, remedy });
        }
        let Some(store) = &options.store else {
            return Err(Error::NoStore { dataset, remedy });
        };
        #[cfg(feature = "hub")]
        {
            crate::hub::fetch(self, store, options.endpoint.as_deref(), progress)?;
            self.inspect(&store.join(&self.name))
        }
        #[cfg(not(feature = "hub"))]
        {
            let _ = (store, progress);
            Err(Error::NoHub { dataset, remedy })
        }
    }
}

fn is_gz(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

/// Length of the unpacked bytes. A gzip file carries it (modulo 2^32) in its last four bytes,
/// so a cut-off download shows without unpacking.
fn unpacked_length(path: &Path) -> Result<u64, Error> {
    let inner = || -> std::io::Result<u64> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        if !is_gz(path) {
            return Ok(length);
        }
        if length < 4 {
            return Ok(0);
        }
        let mut last = [0; 4];
        file.seek(SeekFrom::End(-4))?;
        file.read_exact(&mut last)?;
        Ok(u64::from(u32::from_le_bytes(last)))
    };
    inner().map_err(Error::io(path, "read its length"))
}

/// Writes `bytes` under a temporary name beside `path` and renames it: `path` is never half
/// written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".tmp");
    // A store may be shared: leave the permissions to the umask, as for any other new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let written = builder.tempfile_in(folder).and_then(|mut file| {
        std::io::Write::write_all(&mut file, bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)
    });
    written.map(drop).map_err(Error::io(path, "write it"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::format::sha256;

    /// Two images of 2 x 2 pixels per split.
    fn tiny() -> (Description, Vec<(String, Vec<u8>)>) {
        let images = [
            &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2][..],
            &[7; 8],
        ]
        .concat();
        let labels = vec![0, 0, 8, 1, 0, 0, 0, 2, 0, 1];
        let mut toml = String::from(
            "name = 'tiny'\ntitle = ''\nlicence = ''\nhomepage = ''\ncitation = ''\n\
             format = 'idx'\nshape = [1, 2, 2]\nclasses = ['a', 'b']\n",
        );
        let mut files = Vec::new();
        for split in ["train", "test"] {
            for (role, bytes) in [("images", &images), ("labels", &labels)] {
                toml += &format!(
                    "[[files]]\nname = '{split}-{role}'\nsplit = '{split}'\nrole = '{role}'\n\
                     count = 2\nsha256 = '{}'\n",
                    sha256(bytes)
                );
                files.push((format!("{split}-{role}"), bytes.clone()));
            }
        }
        (Description::parse(&toml).unwrap(), files)
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn fill(folder: &Path, files: &[(String, Vec<u8>)]) {
        for (name, bytes) in files {
            write_whole(&folder.join(name), bytes).unwrap();
        }
    }

    #[test]
    fn data_dir_is_strict_and_the_store_is_not() {
        let (about, files) = tiny();
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().to_owned();
        let user = Options {
            data_dir: Some(dir.clone()),
            ..Options::default()
        };
        let store = Options {
            store: Some(dir.clone()),
            offline: true,
            ..Options::default()
        };

        let message = about.locate(&user).unwrap_err().to_string();
        assert!(
            message.contains("tiny: missing") && message.contains("THERIAC_DATA"),
            "{message}"
        );
        assert!(about.locate(&store).unwrap().is_none());

        fill(&dir.join("tiny"), &files[..3]);
        let message = about.locate(&user).unwrap_err().to_string();
        assert!(message.contains("test-labels: missing"), "{message}");
        let message = about.resolve(&store, &mut |_| {}).unwrap_err().to_string();
        assert!(
            message.contains("switched off") && message.contains("--data-dir"),
            "{message}"
        );

        fill(&dir.join("tiny"), &files);
        let found = about.locate(&user).unwrap().unwrap();
        found.verify().unwrap();
        assert_eq!(
            found.paths(Split::Train, Role::Images),
            [dir.join("tiny/train-images")]
        );
        assert_eq!(about.locate(&store).unwrap().unwrap(), found);
    }

    #[test]
    fn packed_files_are_found_measured_and_verified() {
        let (about, files) = tiny();
        let root = tempfile::tempdir().unwrap();
        let packed: Vec<_> = files
            .iter()
            .map(|(name, bytes)| (format!("{name}.gz"), gz(bytes)))
            .collect();
        fill(&root.path().join("tiny"), &packed);
        let options = Options {
            data_dir: Some(root.path().into()),
            ..Options::default()
        };
        about.locate(&options).unwrap().unwrap().verify().unwrap();

        let path = root.path().join("tiny/train-images.gz");
        fs::write(&path, &packed[0].1[..packed[0].1.len() - 5]).unwrap();
        assert!(matches!(about.locate(&options), Err(Error::Size { .. })));
        fs::write(&path, [1, 2]).unwrap();
        assert!(matches!(
            about.locate(&options),
            Err(Error::Size { found: 0, .. })
        ));
    }

    #[test]
    fn wrong_length_and_wrong_bytes_are_told_apart() {
        let (about, files) = tiny();
        let root = tempfile::tempdir().unwrap();
        fill(&root.path().join("tiny"), &files);
        let options = Options {
            store: Some(root.path().into()),
            ..Options::default()
        };
        let path = root.path().join("tiny/test-labels");

        fs::write(&path, [0; 10]).unwrap();
        let message = about
            .locate(&options)
            .unwrap()
            .unwrap()
            .verify()
            .unwrap_err()
            .to_string();
        assert!(message.contains("test-labels: SHA-256"), "{message}");
        assert!(message.contains(&about.files[3].sha256), "{message}");

        fs::write(&path, [0; 9]).unwrap();
        let message = about.locate(&options).unwrap_err().to_string();
        assert!(
            message.contains("9 bytes when unpacked, expected 10"),
            "{message}"
        );
    }

    #[test]
    fn a_download_needs_a_store() {
        let (about, _) = tiny();
        let message = about
            .resolve(&Options::default(), &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(message.contains("--store"), "{message}");
    }

    #[test]
    fn writing_leaves_no_other_file_behind() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/file");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
