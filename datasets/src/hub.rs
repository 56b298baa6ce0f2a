//! Data sets from the Hugging Face hub.
//!
//! The official mirrors keep Parquet files of PNG images; they are turned back into the authors'
//! bytes, which the checksums prove. Rows may come in another order than the numbering of the
//! files (the CIFAR-10 mirror follows the order of the authors' archive), so each run of rows is
//! recognised by its checksum.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArrayType, DataType, Int64Type};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::Error;
use crate::client::{Bar, PUBLIC};
use crate::description::{Description, Source, Split};
use crate::files::{Event, write_whole};
use crate::format::{Content, encode, sha256};
use crate::picture::Picture;

/// Rows read at a time.
const ROWS: usize = 1024;

/// Downloads into `store/NAME/` what is not there, trying one hub source after the other.
pub(crate) fn fetch(
    about: &Description,
    store: &Path,
    endpoint: Option<&str>,
    progress: &mut dyn FnMut(Event<'_>),
) -> Result<(), Error> {
    let mut last = Error::Offline {
        dataset: about.name.clone(),
        remedy: about.remedy(),
    };
    for source in &about.sources {
        let Source::Hub { repo, revision, .. } = source else {
            continue;
        };
        let endpoint = endpoint.unwrap_or(PUBLIC);
        let mirror = Mirror {
            about,
            source,
            origin: format!("{endpoint}/datasets/{repo}"),
            repo: Repo::with_revision(repo.clone(), RepoType::Dataset, revision.clone()),
            endpoint,
            // Beside the data, not in the user's cache: removed once the data is unpacked.
            cache: store.join(".hub").join(&about.name),
        };
        match mirror.fetch(&store.join(&about.name), progress) {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(source = mirror.origin, %error, "source failed");
                last = error;
            }
        }
    }
    Err(last)
}

/// One hub repository as a source of one data set.
struct Mirror<'a> {
    about: &'a Description,
    source: &'a Source,
    origin: String,
    repo: Repo,
    endpoint: &'a str,
    cache: PathBuf,
}

impl Mirror<'_> {
    fn fetch(&self, folder: &Path, progress: &mut dyn FnMut(Event<'_>)) -> Result<(), Error> {
        let Source::Hub { train, test, .. } = self.source else {
            return Ok(());
        };
        for (split, names) in [(Split::Train, train), (Split::Test, test)] {
            if self
                .about
                .of(split)
                .all(|file| folder.join(&file.name).is_file())
            {
                continue;
            }
            let paths: Vec<PathBuf> = names
                .iter()
                .map(|name| self.download(name, progress))
                .collect::<Result<_, _>>()?;
            progress(Event::Convert {
                split: split.as_str(),
            });
            if let Err(error) = self.unpack(split, &paths, folder, progress) {
                // Bad bytes would be found again in the cache: start afresh next time.
                let _ = fs::remove_dir_all(&self.cache);
                return Err(error);
            }
        }
        fs::remove_dir_all(&self.cache).map_err(Error::io(&self.cache, "remove it"))?;
        // Fails while another data set is being downloaded, as it should.
        let _ = self.cache.parent().map(fs::remove_dir);
        Ok(())
    }

    /// The local copy of a file of the repository, resumed if an earlier run was cut off.
    fn download(&self, name: &str, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, Error> {
        let cache = Cache::new(self.cache.clone());
        if let Some(path) = cache.repo(self.repo.clone()).get(name) {
            return Ok(path);
        }
        let failed = |cause: &dyn std::fmt::Display| Error::Download {
            file: name.to_owned(),
            origin: self.origin.clone(),
            cause: cause.to_string(),
            remedy: self.about.remedy(),
        };
        tracing::info!(file = name, origin = self.origin, "downloading");
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(self.endpoint.to_owned())
            .with_token(None)
            .with_retries(3)
            .build()
            .map_err(|e| failed(&e))?;
        let repo: ApiRepo = api.repo(self.repo.clone());
        let mut result = repo.download_with_progress(name, Bar(progress));
        if result.as_ref().is_err_and(is_bad_resume) {
            fs::remove_dir_all(&self.cache).map_err(Error::io(&self.cache, "remove it"))?;
            result = repo.download_with_progress(name, Bar(progress));
        }
        result.map_err(|e| failed(&e))
    }

    /// Writes the files of a split from its Parquet files; a file is stored only if its bytes
    /// have the right checksum.
    fn unpack(
        &self,
        split: Split,
        paths: &[PathBuf],
        folder: &Path,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Error> {
        let mut content = Content::default();
        for path in paths {
            let problem = |problem| Error::Content {
                path: path.clone(),
                problem,
            };
            self.read(path, &mut content).map_err(problem)?;
        }
        let (found, expected) = (content.labels.len(), self.about.count(split));
        if found != expected {
            return Err(Error::Content {
                path: paths.first().cloned().unwrap_or_default(),
                problem: format!(
                    "the {} split has {found} rows, expected {expected}",
                    split.as_str()
                ),
            });
        }
        let mut wanted: Vec<_> = self.about.of(split).collect();
        let mut checked = Vec::new();
        for bytes in encode(self.about, split, &content) {
            let sum = sha256(&bytes);
            match wanted.iter().position(|file| file.sha256 == sum) {
                Some(i) => checked.push((wanted.remove(i), bytes)),
                None => {
                    return Err(Error::Checksum {
                        file: wanted
                            .first()
                            .map_or(String::new(), |file| file.name.clone()),
                        origin: self.origin.clone(),
                        found: sum,
                        expected: wanted
                            .first()
                            .map_or(String::new(), |file| file.sha256.clone()),
                    });
                }
            }
        }
        for (file, bytes) in checked {
            let path = folder.join(&file.name);
            write_whole(&path, &bytes)?;
            progress(Event::Stored { path: &path });
        }
        Ok(())
    }

    /// Appends the images and labels of one Parquet file.
    fn read(&self, path: &Path, content: &mut Content) -> Result<(), String> {
        let Source::Hub { image, label, .. } = self.source else {
            return Ok(());
        };
        let text = |e: parquet::errors::ParquetError| e.to_string();
        let file = fs::File::open(path).map_err(|e| e.to_string())?;
        let reader = SerializedFileReader::new(file).map_err(text)?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let column = |wanted: &str| {
            let mut names = (0..schema.num_columns()).map(|i| schema.column(i).path().string());
            names.position(|name| name == wanted).ok_or_else(|| {
                let all: Vec<_> = schema.columns().iter().map(|c| c.path().string()).collect();
                format!("no column {wanted:?}, only {}", all.join(", "))
            })
        };
        let (image, label) = (format!("{image}.bytes"), label);
        let (images, labels) = (column(&image)?, column(label)?);
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group).map_err(text)?;
            let ColumnReader::ByteArrayColumnReader(images) =
                group.get_column_reader(images).map_err(text)?
            else {
                return Err(format!("column {image:?} does not hold byte strings"));
            };
            let ColumnReader::Int64ColumnReader(labels) =
                group.get_column_reader(labels).map_err(text)?
            else {
                return Err(format!("column {label:?} does not hold 64-bit integers"));
            };
            values::<ByteArrayType>(images, &image, |bytes| {
                let picture = Picture::decode(bytes.data())?;
                if picture.shape != self.about.shape {
                    let (found, expected) = (picture.shape, self.about.shape);
                    return Err(format!("image of shape {found:?}, expected {expected:?}"));
                }
                content.pixels.extend(picture.planes);
                Ok(())
            })?;
            values::<Int64Type>(labels, label, |&value| {
                let classes = self.about.classes.len();
                let valid = u8::try_from(value)
                    .ok()
                    .filter(|&v| usize::from(v) < classes);
                let row = content.labels.len();
                content.labels.push(valid.ok_or_else(|| {
                    format!("row {row}: label {value}, expected 0 to {}", classes - 1)
                })?);
                Ok(())
            })?;
        }
        let pixels: usize = self.about.shape.iter().product();
        let (images, labels) = (content.pixels.len() / pixels, content.labels.len());
        if images != labels {
            return Err(format!("{images} images but {labels} labels"));
        }
        Ok(())
    }
}

/// Calls `each` for every value of a column in turn; a null is an error.
fn values<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    name: &str,
    mut each: impl FnMut(&T::T) -> Result<(), String>,
) -> Result<(), String> {
    loop {
        let (mut levels, mut repeats, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (rows, found, _) = column
            .read_records(ROWS, Some(&mut levels), Some(&mut repeats), &mut values)
            .map_err(|e| e.to_string())?;
        if rows == 0 {
            return Ok(());
        }
        if rows != found {
            return Err(format!(
                "column {name:?} has {found} values in {rows} rows, expected one each"
            ));
        }
        values.iter().try_for_each(&mut each)?;
    }
}

/// The rest of a file cannot be had: the earlier piece is already whole, or too long.
fn is_bad_resume(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::TooManyRetries(inner) => is_bad_resume(inner),
        // "Range Not Satisfiable".
        ApiError::RequestError(inner) => inner.to_string().contains("416"),
        _ => false,
    }
}
