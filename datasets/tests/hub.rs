//! Downloads, against a server on this machine that answers as the hub does.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};
use theriac_datasets::{Description, Error, Event, Files, Hub as Client, Options, Weights};
use tiny_http::{Header, Response, Server};

/// `(path, first byte asked for)` of each request.
type Log = Arc<Mutex<Vec<(String, usize)>>>;

/// A hub with some files; stops when dropped.
struct Hub {
    endpoint: String,
    log: Log,
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
        let endpoint = format!("http://{}", server.server_addr());
        let log = Log::default();
        let thread = std::thread::spawn({
            let (server, log) = (server.clone(), log.clone());
            move || {
                for request in server.incoming_requests() {
                    let range = request.headers().iter().find(|h| h.field.equiv("Range"));
                    let range = range.map_or("bytes=0-", |h| h.value.as_str()).to_owned();
                    let (from, to) = range[6..].split_once('-').unwrap();
                    let (from, to) = (from.parse::<usize>().unwrap(), to.parse::<usize>().ok());
                    let (folder, name) = request.url().split_once("/resolve/main/").unwrap();
                    assert!(["/datasets/owner/tiny", "/owner/tiny"].contains(&folder));
                    log.lock().unwrap().push((name.to_owned(), from));
                    let response = match files.get(name) {
                        None => Response::from_data(vec![]).with_status_code(404),
                        Some(file) if from >= file.len() => {
                            Response::from_data(vec![]).with_status_code(416)
                        }
                        Some(file) => {
                            let end = to.map_or(file.len(), |to| (to + 1).min(file.len()));
                            let mut response =
                                Response::from_data(&file[from..end]).with_status_code(206);
                            for (field, value) in [
                                ("ETag", format!("\"{}\"", etag(file))),
                                ("X-Repo-Commit", "c0ffee".to_owned()),
                                (
                                    "Content-Range",
                                    format!("bytes {from}-{}/{}", end - 1, file.len()),
                                ),
                            ] {
                                response.add_header(Header::from_bytes(field, value).unwrap());
                            }
                            response
                        }
                    };
                    request.respond(response).unwrap();
                }
            }
        });
        Self {
            endpoint,
            log,
            server,
            thread: Some(thread),
        }
    }

    fn requests(&self) -> Vec<(String, usize)> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.server.unblock();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn etag(bytes: &[u8]) -> String {
    sha256(bytes)[..16].to_owned()
}

/// A PNG file of one image of shape (C, 2, 2).
fn png_file(planes: &[u8]) -> Vec<u8> {
    let channels = planes.len() / 4;
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, 2, 2);
    encoder.set_color(if channels == 1 {
        png::ColorType::Grayscale
    } else {
        png::ColorType::Rgb
    });
    let pixels: Vec<u8> = (0..4)
        .flat_map(|i| (0..channels).map(move |c| planes[c * 4 + i]))
        .collect();
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&pixels)
        .unwrap();
    out
}

/// A file as the hub keeps it: one row per `(planes, label)`, two rows per row group.
fn parquet_file(rows: &[(Vec<u8>, i64)]) -> Vec<u8> {
    let schema = "message schema { optional group image { optional binary bytes; \
                  optional binary path (UTF8); } optional int64 label; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(parquet::basic::Compression::SNAPPY)
        .build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(2) {
        let n = rows.len();
        let mut group = writer.next_row_group().unwrap();
        let images: Vec<_> = rows
            .iter()
            .map(|(p, _)| ByteArray::from(png_file(p)))
            .collect();
        let labels: Vec<_> = rows.iter().map(|&(_, label)| label).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&images, Some(&vec![2; n]), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&[], Some(&vec![1; n]), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&labels, Some(&vec![1; n]), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

fn image(seed: u8, channels: u8) -> Vec<u8> {
    (0..channels * 4)
        .map(|i| seed.wrapping_mul(29).wrapping_add(i * 7))
        .collect()
}

/// `(file name, split, role, images in it, unpacked bytes)`.
type Unpacked = (&'static str, &'static str, &'static str, usize, Vec<u8>);

fn description(format: &str, channels: usize, files: &[Unpacked]) -> Description {
    let mut toml = format!(
        "name = 'tiny'\ntitle = ''\nlicence = ''\nhomepage = ''\ncitation = ''\n\
         format = '{format}'\nshape = [{channels}, 2, 2]\nclasses = ['a', 'b', 'c']\n\
         [[sources]]\nkind = 'hub'\nrepo = 'owner/tiny'\nrevision = 'main'\nimage = 'image'\n\
         label = 'label'\ntrain = ['data/train.parquet']\ntest = ['data/test.parquet']\n"
    );
    for (name, split, role, count, bytes) in files {
        let sum = sha256(bytes);
        toml += &format!(
            "[[files]]\nname = '{name}'\nsplit = '{split}'\nrole = '{role}'\ncount = {count}\n\
             sha256 = '{sum}'\n"
        );
    }
    Description::parse(&toml).unwrap()
}

/// Three grey training images and one test image; their IDX files; the files of the hub.
fn grey() -> (Vec<Unpacked>, HashMap<String, Vec<u8>>) {
    let idx = |images: &[(Vec<u8>, i64)]| {
        let n = images.len() as u8;
        let header = [0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 2, 0, 0, 0, 2];
        let pixels = images.iter().flat_map(|(pixels, _)| pixels.clone());
        let labels = images.iter().map(|&(_, label)| label as u8);
        (
            header.into_iter().chain(pixels).collect::<Vec<_>>(),
            [0, 0, 8, 1, 0, 0, 0, n]
                .into_iter()
                .chain(labels)
                .collect::<Vec<_>>(),
        )
    };
    let train = [(image(1, 1), 2), (image(2, 1), 0), (image(3, 1), 1)];
    let test = [(image(4, 1), 1)];
    let (train_files, test_files) = (idx(&train), idx(&test));
    let files = vec![
        ("train-images", "train", "images", 3, train_files.0),
        ("train-labels", "train", "labels", 3, train_files.1),
        ("test-images", "test", "images", 1, test_files.0),
        ("test-labels", "test", "labels", 1, test_files.1),
    ];
    let hub = [
        ("train", parquet_file(&train)),
        ("test", parquet_file(&test)),
    ];
    (
        files,
        hub.map(|(split, file)| (format!("data/{split}.parquet"), file))
            .into(),
    )
}

fn options(store: &Path, endpoint: &str) -> Options {
    Options {
        store: Some(store.to_owned()),
        endpoint: Some(endpoint.to_owned()),
        ..Options::default()
    }
}

/// Every file below `folder`, relative to it.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
        .iter()
        .map(|path| path.strip_prefix(folder).unwrap().to_owned())
        .collect()
}

fn assert_holds(files: &Files, expected: &[Unpacked]) {
    for (file, expected) in files.files.iter().zip(expected) {
        assert_eq!(fs::read(&file.path).unwrap(), expected.4, "{}", expected.0);
    }
    files.verify().unwrap();
}

/// Where the client keeps a piece of a file that it could not finish.
fn part(store: &Path, file: &[u8]) -> PathBuf {
    let blobs = store.join(".hub/tiny/datasets--owner--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    blobs.join(format!("{}.part", etag(file)))
}

#[test]
fn downloads_once_reports_progress_and_cleans_up() {
    let (expected, hub_files) = grey();
    let length = hub_files["data/train.parquet"].len() as u64;
    let hub = Hub::start(hub_files);
    let store = tempfile::tempdir().unwrap();
    let about = description("idx", 1, &expected);

    let (mut begun, mut arrived, mut stored) = (Vec::new(), 0, 0);
    let options = options(store.path(), &hub.endpoint);
    let files = about.resolve(&options, &mut |event| match event {
        Event::Begin { file, bytes } => begun.push((file.to_owned(), bytes)),
        Event::Advance { bytes } if begun.len() <= 2 => arrived += bytes,
        Event::Stored { .. } => stored += 1,
        _ => {}
    });
    assert_holds(&files.unwrap(), &expected);
    assert!(
        begun.contains(&("data/train.parquet".to_owned(), length)),
        "{begun:?}"
    );
    assert_eq!((arrived, stored), (length, 4));
    assert_eq!(tree(store.path()).len(), 4, "{:?}", tree(store.path()));

    let before = hub.requests().len();
    assert_holds(&about.resolve(&options, &mut |_| {}).unwrap(), &expected);
    assert_eq!(
        hub.requests().len(),
        before,
        "the second call must not ask the server"
    );
}

#[test]
fn batches_are_recognised_in_any_order() {
    let rows = [
        (image(1, 3), 0),
        (image(2, 3), 1),
        (image(3, 3), 2),
        (image(4, 3), 1),
    ];
    let record = |(planes, label): &(Vec<u8>, i64)| [&[*label as u8], &planes[..]].concat();
    let batch = |rows: &[_]| rows.iter().flat_map(record).collect::<Vec<u8>>();
    // The hub has the second batch first.
    let expected = vec![
        ("batch_1", "train", "records", 2, batch(&rows[2..])),
        ("batch_2", "train", "records", 2, batch(&rows[..2])),
        ("test", "test", "records", 1, batch(&rows[..1])),
    ];
    let hub = Hub::start(HashMap::from([
        ("data/train.parquet".to_owned(), parquet_file(&rows)),
        ("data/test.parquet".to_owned(), parquet_file(&rows[..1])),
    ]));
    let store = tempfile::tempdir().unwrap();
    let about = description("cifar-binary", 3, &expected);
    let files = about
        .resolve(&options(store.path(), &hub.endpoint), &mut |_| {})
        .unwrap();
    assert_holds(&files, &expected);
}

#[test]
fn wrong_bytes_are_never_stored() {
    let (mut expected, hub_files) = grey();
    let hub = Hub::start(hub_files);
    let store = tempfile::tempdir().unwrap();
    expected[0].4[16] ^= 1;
    let about = description("idx", 1, &expected);
    let error = about
        .resolve(&options(store.path(), &hub.endpoint), &mut |_| {})
        .unwrap_err();
    assert!(
        matches!(&error, Error::Checksum { file, .. } if file == "train-images"),
        "{error}"
    );
    let message = error.to_string();
    assert!(message.contains("owner/tiny") && message.contains(&sha256(&expected[0].4)));
    assert!(tree(store.path()).is_empty(), "{:?}", tree(store.path()));
}

#[test]
fn content_that_disagrees_with_the_description_is_named() {
    let (expected, good) = grey();
    let about = description("idx", 1, &expected);
    let train = [(image(1, 1), 2), (image(2, 1), 0), (image(3, 1), 1)];
    let mut label_3 = train.clone();
    label_3[1].1 = 3;
    let mut colour = train.clone();
    colour[2].0 = image(3, 3);
    let cases = [
        (
            parquet_file(&train[..2]),
            "train split has 2 rows, expected 3",
        ),
        (parquet_file(&label_3), "row 1: label 3, expected 0 to 2"),
        (parquet_file(&colour), "shape [3, 2, 2], expected [1, 2, 2]"),
        (b"not parquet".to_vec(), "train.parquet"),
    ];
    for (file, word) in cases {
        let mut files = good.clone();
        files.insert("data/train.parquet".to_owned(), file);
        let hub = Hub::start(files);
        let store = tempfile::tempdir().unwrap();
        let error = about
            .resolve(&options(store.path(), &hub.endpoint), &mut |_| {})
            .unwrap_err();
        assert!(matches!(error, Error::Content { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(tree(store.path()).is_empty());
    }
}

#[test]
fn a_missing_file_and_a_missing_server_say_what_to_do() {
    let (expected, mut hub_files) = grey();
    hub_files.remove("data/test.parquet");
    let about = description("idx", 1, &expected);
    let store = tempfile::tempdir().unwrap();

    let hub = Hub::start(hub_files);
    let options_404 = options(store.path(), &hub.endpoint);
    let message = about
        .resolve(&options_404, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("data/test.parquet") && message.contains("404"),
        "{message}"
    );
    // What did arrive stays and is not asked for again, but is not taken for the whole.
    assert!(store.path().join("tiny/train-images").is_file());
    assert!(about.locate(&options_404).unwrap().is_none());

    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let refused = options(store.path(), &format!("http://127.0.0.1:{port}"));
    let message = about
        .resolve(&refused, &mut |_| {})
        .unwrap_err()
        .to_string();
    for word in [
        "127.0.0.1",
        "train-images",
        "--data-dir",
        "THERIAC_DATA",
        "/tiny/",
    ] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn a_broken_download_resumes() {
    let (expected, hub_files) = grey();
    let train = hub_files["data/train.parquet"].clone();
    let about = description("idx", 1, &expected);
    let hub = Hub::start(hub_files);
    // The middle of a file, and its very end, where the server has nothing more to give.
    for kept in [train.len() / 2, train.len()] {
        let store = tempfile::tempdir().unwrap();
        fs::write(part(store.path(), &train), &train[..kept]).unwrap();
        let files = about
            .resolve(&options(store.path(), &hub.endpoint), &mut |_| {})
            .unwrap();
        assert_holds(&files, &expected);
        let asked = ("data/train.parquet".to_owned(), kept);
        assert!(hub.requests().contains(&asked), "{:?}", hub.requests());
        assert_eq!(tree(store.path()).len(), 4);
    }
}

#[test]
fn offline_opens_no_connection() {
    let (expected, hub_files) = grey();
    let about = description("idx", 1, &expected);
    let hub = Hub::start(hub_files);
    let store = tempfile::tempdir().unwrap();
    let offline = Options {
        offline: true,
        ..options(store.path(), &hub.endpoint)
    };
    let error = about.resolve(&offline, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert!(hub.requests().is_empty());
}

#[test]
fn weights_are_downloaded_once() {
    let bytes: Vec<u8> = (0..5000).map(|i| (i % 251) as u8).collect();
    let hub = Hub::start(HashMap::from([(
        "model.safetensors".to_owned(),
        bytes.clone(),
    )]));
    let cache = tempfile::tempdir().unwrap();
    let client = Client {
        cache: Some(cache.path().to_owned()),
        endpoint: Some(hub.endpoint.clone()),
        offline: false,
    };
    let offline = Client {
        offline: true,
        ..client.clone()
    };
    let weights: Weights = "owner/tiny".parse().unwrap();
    let text = weights
        .fetch(&offline, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("model.safetensors") && text.contains("by hand"),
        "{text}"
    );
    assert!(hub.requests().is_empty());
    let mut arrived = 0;
    let path = weights.fetch(&client, &mut |event| {
        if let Event::Advance { bytes } = event {
            arrived += bytes;
        }
    });
    assert_eq!(fs::read(path.unwrap()).unwrap(), bytes);
    assert_eq!(arrived, bytes.len() as u64);
    let before = hub.requests();
    for client in [&client, &offline] {
        let path = weights.fetch(client, &mut |_| {}).unwrap();
        assert_eq!(fs::read(path).unwrap(), bytes);
    }
    assert_eq!(hub.requests(), before);
    let other: Weights = "owner/tiny/pytorch_model.bin".parse().unwrap();
    let text = other.fetch(&client, &mut |_| {}).unwrap_err().to_string();
    assert!(
        text.contains("owner/tiny/resolve/main/pytorch_model.bin"),
        "{text}"
    );
}
