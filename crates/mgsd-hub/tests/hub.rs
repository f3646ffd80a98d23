//! Fetching from a hub that lives in the test, with all that hubs and networks do.

use mgsd_hub::{Error, Name, Settings, folder, named};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does besides answering.
#[derive(Clone, Copy, Default)]
struct Manners {
    /// Whether it sends parts of files.
    ranges: bool,
    /// Every second answer with a file ends after this many bytes.
    breaks_after: Option<usize>,
    /// The first so many answers are 503.
    busy: usize,
    /// Whether it asks for `Authorization: Bearer secret`.
    private: bool,
    /// Whether files are on another path, behind a redirect.
    redirects: bool,
}

struct Hub {
    endpoint: String,
    /// Request lines, with the range if there is one.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(files: &[(&str, Vec<u8>)], manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let files: HashMap<String, Vec<u8>> =
            files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Who breaks off breaks off.
                let _ = answer(stream, &files, manners, &seen);
            }
        });
        Self { endpoint, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn settings(&self, cache: &Path) -> Settings {
        Settings { endpoint: self.endpoint.clone(), cache: cache.into(), token: None, offline: false }
    }
}

/// One request on a connection of its own.
fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    manners: Manners,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let range = headers.get("range").cloned();
    let count = {
        let mut asked = asked.lock().unwrap();
        asked.push(range.iter().fold(path.clone(), |all, range| format!("{all} {range}")));
        asked.len()
    };
    let mut reply = |status: &str, more: &str, body: &[u8], sent: usize| {
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")?;
        stream.write_all(&body[..sent.min(length)])
    };
    if count <= manners.busy {
        return reply("503 Service Unavailable", "", b"", 0);
    }
    if manners.private && headers.get("authorization").is_none_or(|who| who != "Bearer secret") {
        return reply("401 Unauthorized", "", b"", 0);
    }
    if path == "/api/models/org/model/revision/main?blobs=true" {
        let siblings: Vec<String> = files
            .iter()
            .map(|(name, bytes)| {
                let (size, hash) = (bytes.len(), etag(name, bytes));
                match name.ends_with(".safetensors") {
                    true => {
                        format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"00","lfs":{{"sha256":"{hash}"}}}}"#)
                    }
                    false => format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{hash}"}}"#),
                }
            })
            .collect();
        let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","));
        return reply("200 OK", "", body.as_bytes(), usize::MAX);
    }
    let file = path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/"));
    if let (Some(file), true) = (file, manners.redirects) {
        return reply("302 Found", &format!("Location: /store/{file}\r\n"), b"", 0);
    }
    let Some(bytes) = file.or(path.strip_prefix("/store/")).and_then(|file| files.get(file)) else {
        return reply("404 Not Found", "", b"", 0);
    };
    let sent = manners.breaks_after.filter(|_| count.is_multiple_of(2)).unwrap_or(usize::MAX);
    let range = range.filter(|_| manners.ranges).and_then(|range| {
        let (begin, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(begin.parse::<usize>().ok()?..end.parse::<usize>().ok()? + 1)
    });
    match range {
        Some(range) => {
            let header = format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, bytes.len());
            reply("206 Partial Content", &header, &bytes[range], sent)
        }
        None => reply("200 OK", "", bytes, sent),
    }
}

/// The SHA-256 of a large file; of a small one something of the right form, different for each.
fn etag(name: &str, bytes: &[u8]) -> String {
    if name.ends_with(".safetensors") {
        return Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    }
    name.bytes().fold(String::new(), |all, byte| format!("{all}{byte:02x}")).chars().cycle().take(40).collect()
}

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 31 + seed * 7 + i / 255) as u8).collect()
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", bytes(5_000, 1)),
        ("preprocessor_config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-1.safetensors", bytes(300_000, 2)),
        ("model-2.safetensors", bytes(400_001, 3)),
        ("merges.txt", Vec::new()),
        ("README.md", bytes(100, 4)),
        ("pytorch_model.bin", bytes(100, 5)),
    ]
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn fetch(settings: &Settings) -> mgsd_hub::Result<PathBuf> {
    folder(&name("org/model"), settings, &mut |_| {})
}

/// Everything of use is there, byte for byte, and nothing else.
fn is_complete(found: &Path) {
    let mut names: Vec<String> =
        std::fs::read_dir(found).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut expected: Vec<&str> = model().iter().map(|(name, _)| *name).collect();
    expected.retain(|name| !["README.md", "pytorch_model.bin"].contains(name));
    expected.sort();
    assert_eq!(names, expected);
    for (name, bytes) in model().iter().filter(|(name, _)| names.iter().any(|known| known == name)) {
        assert!(std::fs::read(found.join(name)).unwrap() == *bytes, "{name} differs");
    }
}

#[test]
fn a_model_is_fetched_once_into_the_layout_of_the_python_library() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&model(), Manners { ranges: true, ..Manners::default() });
    let settings = hub.settings(cache.path());
    let mut last = (0, 0);
    let found = folder(&name("org/model"), &settings, &mut |progress| last = (progress.done, progress.total)).unwrap();
    assert_eq!(last, (last.1, last.1), "it ends with everything there");
    is_complete(&found);
    let root = cache.path().join("models--org--model");
    assert_eq!(found, root.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let blob = std::fs::canonicalize(found.join("model-1.safetensors")).unwrap();
    assert_eq!(
        blob,
        std::fs::canonicalize(root.join("blobs").join(etag("model-1.safetensors", &bytes(300_000, 2)))).unwrap()
    );
    let asked = hub.asked().len();
    assert_eq!(fetch(&settings).unwrap(), found);
    assert_eq!(fetch(&Settings { offline: true, ..settings.clone() }).unwrap(), found);
    assert_eq!(hub.asked().len(), asked, "what is there is not asked for");
    // Something is lost: it alone is fetched.
    std::fs::remove_file(blob).unwrap();
    is_complete(&fetch(&settings).unwrap());
    assert_eq!(hub.asked().len(), asked + 2, "{:?}", hub.asked());
}

#[test]
fn a_fetch_that_breaks_off_goes_on_where_it_was() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(
        &model(),
        Manners { ranges: true, breaks_after: Some(70_000), redirects: true, busy: 1, ..Manners::default() },
    );
    is_complete(&fetch(&hub.settings(cache.path())).unwrap());
    let asked = hub.asked();
    assert!(asked.iter().any(|line| line.contains("model-1.safetensors bytes=70000-299999")), "{asked:?}");
}

#[test]
fn what_an_earlier_call_left_is_kept_and_too_much_is_not() {
    for (left, range) in [(123_456, "bytes=123456-399999"), (400_002, "bytes=0-399999")] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::start(&model(), Manners { ranges: true, ..Manners::default() });
        let blobs = cache.path().join("models--org--model/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let mut part = bytes(400_001, 3);
        part.resize(left, 0);
        std::fs::write(blobs.join(etag("model-2.safetensors", &bytes(400_001, 3))).with_extension("incomplete"), part)
            .unwrap();
        is_complete(&fetch(&hub.settings(cache.path())).unwrap());
        let range = range.replace("399999", "400000");
        assert!(
            hub.asked().iter().any(|line| line.ends_with(&format!("model-2.safetensors {range}"))),
            "{:?}",
            hub.asked()
        );
    }
}

#[test]
fn what_was_damaged_on_the_disk_is_noticed_and_fetched_anew() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&model(), Manners { ranges: true, ..Manners::default() });
    let blobs = cache.path().join("models--org--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(etag("model-2.safetensors", &bytes(400_001, 3))).with_extension("incomplete");
    // As after a power cut: the length is right, what was not on the disk yet is zero.
    std::fs::write(part, vec![0; 100_000]).unwrap();
    let text = fetch(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(text.contains("model-2.safetensors") && text.contains("checksum"), "{text}");
    is_complete(&fetch(&hub.settings(cache.path())).unwrap());
}

#[test]
fn a_large_file_comes_in_pieces() {
    let cache = tempfile::tempdir().unwrap();
    let large = bytes(100 << 20, 6);
    let mut files = model();
    files.retain(|(name, _)| !name.contains("safetensors"));
    files.push(("model.safetensors", large.clone()));
    let hub = Hub::start(&files, Manners { ranges: true, ..Manners::default() });
    let found = fetch(&hub.settings(cache.path())).unwrap();
    assert!(std::fs::read(found.join("model.safetensors")).unwrap() == large);
    let asked = hub.asked();
    let pieces: Vec<&String> = asked.iter().filter(|line| line.contains("model.safetensors bytes=")).collect();
    assert_eq!(pieces.len(), 2, "{pieces:?}");
}

#[test]
fn a_hub_without_ranges_sends_files_whole() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&model(), Manners { breaks_after: Some(350_000), ..Manners::default() });
    is_complete(&fetch(&hub.settings(cache.path())).unwrap());
}

#[test]
fn several_processes_fetch_each_file_once() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&model(), Manners { ranges: true, ..Manners::default() });
    let settings = hub.settings(cache.path());
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| is_complete(&fetch(&settings).unwrap()))));
    });
    // One question about the model and one for each file that is not empty.
    assert_eq!(hub.asked().len(), 1 + 6, "{:?}", hub.asked());
}

#[test]
fn a_private_model_wants_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&model(), Manners { private: true, ranges: true, redirects: true, ..Manners::default() });
    let settings = hub.settings(cache.path());
    let text = fetch(&settings).unwrap_err().to_string();
    assert!(text.contains("401") && text.contains("HF_TOKEN") && text.contains("org/model"), "{text}");
    is_complete(&fetch(&Settings { token: Some("secret".into()), ..settings }).unwrap());
}

#[test]
fn what_cannot_be_had_is_said_with_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&model(), Manners::default());
    let settings = hub.settings(cache.path());
    let said = |text: &str, settings: &Settings| {
        let error = folder(&name(text), settings, &mut |_| {}).unwrap_err();
        (error.to_string(), matches!(error, Error::Unreachable { .. }))
    };
    let (text, _) = said("org/other", &settings);
    assert!(text.contains("org/other is no folder") && text.contains("404"), "{text}");
    let (text, _) = said("org/model", &Settings { offline: true, ..settings.clone() });
    assert!(text.contains("HF_HUB_OFFLINE"), "{text}");
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (text, unreachable) = said("org/model", &Settings { endpoint: format!("http://{gone}"), ..settings.clone() });
    assert!(unreachable && text.contains(&gone.to_string()), "{text}");
    let file = cache.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let (text, _) = said("org/model", &Settings { cache: file, ..settings });
    assert!(text.contains("a-file") && text.contains("HF_HUB_CACHE"), "{text}");
}

#[test]
fn a_model_without_weights_we_read_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    files.retain(|(name, _)| !name.contains("safetensors"));
    let hub = Hub::start(&files, Manners::default());
    let text = fetch(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(text.contains("safetensors"), "{text}");
}

#[test]
fn picture_settings_may_lie_in_either_file_and_without_any_no_weights_are_fetched() {
    let with = |name: &'static str| {
        let mut files = model();
        files.retain(|(name, _)| *name != "preprocessor_config.json");
        files.push((name, b"{}".to_vec()));
        Hub::start(&files, Manners::default())
    };
    let cache = tempfile::tempdir().unwrap();
    let settings = with("processor_config.json").settings(cache.path());
    let found = fetch(&settings).unwrap();
    assert!(found.join("processor_config.json").is_file());
    assert_eq!(fetch(&Settings { offline: true, ..settings }).unwrap(), found);
    let (cache, hub) = (tempfile::tempdir().unwrap(), with("other.json"));
    let text = fetch(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(text.contains("processor_config.json"), "{text}");
    assert!(hub.asked().iter().all(|asked| !asked.contains("safetensors")), "{:?}", hub.asked());
}

#[test]
fn an_answer_that_would_lead_out_of_the_cache_is_refused() {
    for (file, hash) in [("..json", "../../x"), ("a\\\\b.json", "")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let hash = if hash.is_empty() { etag("x", b"") } else { hash.to_string() };
        let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"{file}","size":1,"blobId":"{hash}"}}]}}"#);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 2_000]);
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").unwrap();
        });
        let cache = tempfile::tempdir().unwrap();
        let settings = Settings { endpoint, cache: cache.path().into(), token: None, offline: false };
        let error = fetch(&settings).unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{error}");
    }
}

#[test]
fn folders_and_paths_are_no_names() {
    let there = tempfile::tempdir().unwrap();
    for path in [there.path(), Path::new("nothing"), Path::new("./a/b"), Path::new("/a/b"), Path::new("a/b/c")] {
        assert_eq!(named(path), None, "{}", path.display());
    }
    assert_eq!(named(Path::new("tests/hub.rs")), None, "it is there");
    assert_eq!(named(Path::new("org/model")), Some(name("org/model")));
}
