//! Files from the hub into the cache.

use crate::cache::{Repo, has_what_it_needs, make_folder_of};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::settings::Settings;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

/// How far a fetch is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file that is being fetched.
    pub file: &'a str,
    /// Bytes there of all files that had to be fetched.
    pub done: u64,
    /// Bytes of all files that have to be fetched.
    pub total: u64,
}

/// The hub's answer about a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

/// A file of a revision.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

/// A file to be there.
struct Wanted {
    file: String,
    /// What its bytes are called in the cache: the same as the hub's entity tag.
    etag: String,
    size: u64,
    /// Whether that is the SHA-256 of its bytes, as it is for large files; of others it is a hash of git's.
    summed: bool,
}

/// Bytes asked for at a time: what is lost at most when a connection breaks off.
const PIECE: u64 = 64 << 20;
/// How long a piece may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often the same bytes are asked for in vain.
const TRIES: u32 = 5;
/// An answer about a revision is shorter.
const LONGEST_ANSWER: u64 = 16 << 20;

pub(crate) fn model(
    name: &Name,
    repo: &Repo,
    settings: &Settings,
    watch: &mut dyn FnMut(&Progress),
) -> Result<PathBuf> {
    // The others of a run find everything there when it is their turn.
    let _lock = repo.lock("mgsd")?;
    if let Some(found) = repo.whole(&name.revision) {
        return Ok(found);
    }
    let hub = Hub::new(name, settings);
    let (commit, wanted) = hub.files()?;
    let refused = || Error::Refused {
        name: name.clone(),
        endpoint: settings.endpoint.clone(),
        why: "it lacks config.json, tokenizer.json (or vocab.json and merges.txt), processor_config.json or \
              preprocessor_config.json, or weights as safetensors"
            .into(),
    };
    // Before gigabytes are fetched.
    let listed = |file: &str| wanted.iter().any(|wanted| wanted.file == file);
    let weights = wanted.iter().any(|wanted| wanted.file.ends_with(".safetensors"));
    if !has_what_it_needs(&listed) || !weights {
        return Err(refused());
    }
    let missing: Vec<&Wanted> = wanted.iter().filter(|wanted| !repo.blob(&wanted.etag).exists()).collect();
    let total = missing.iter().map(|wanted| wanted.size).sum();
    let mut done = 0;
    for wanted in missing {
        let Wanted { file, etag, size, .. } = wanted;
        let mut tell = |there: u64| watch(&Progress { file, done: done + there, total });
        tell(0);
        let _lock = repo.lock(etag)?;
        // The Python library may have fetched it meanwhile.
        if !repo.blob(etag).exists() {
            hub.fetch(&commit, wanted, &repo.blob(etag), &mut tell)?;
        }
        done += size;
    }
    for Wanted { file, etag, .. } in &wanted {
        repo.link(&commit, file, etag)?;
    }
    repo.note(&name.revision, &commit)?;
    repo.whole(&commit).ok_or_else(refused)
}

/// Whether a file belongs to a model as we load it.
fn is_of_use(file: &str) -> bool {
    let kinds = [".json", ".safetensors", ".jinja", ".txt", ".model"];
    !file.contains('/') && kinds.iter().any(|kind| file.ends_with(kind))
}

/// Whether a name from the hub may become a file's.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains(['\\', ':'])
}

fn is_hash(text: &str) -> bool {
    (32..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

struct Hub<'a> {
    name: &'a Name,
    settings: &'a Settings,
    agent: Agent,
}

impl<'a> Hub<'a> {
    fn new(name: &'a Name, settings: &'a Settings) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_global(Some(PATIENCE))
            // A model that has moved is found on the same host, its bytes often on another, which needs no token.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .user_agent(concat!("mgsd/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { name, settings, agent: Agent::new_with_config(config) }
    }

    /// The commit of the revision, and what it holds that is of use.
    fn files(&self) -> Result<(String, Vec<Wanted>)> {
        let Name { repo, revision } = self.name;
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{repo}/revision/{revision}?blobs=true", self.settings.endpoint);
        let answer = self.again(|| {
            let mut response = self.get(&url, None).map_err(|error| Trouble::Nobody(error.to_string()))?;
            self.judge(&response)?;
            let text = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
            text.map_err(Trouble::passing)
        });
        let (name, endpoint) = (self.name.clone(), self.settings.endpoint.clone());
        let answer = answer.map_err(|trouble| match trouble {
            Trouble::Final(why) => Error::Refused { name, endpoint, why },
            Trouble::Passing(why) | Trouble::Nobody(why) => Error::Unreachable { name, endpoint, why },
            Trouble::Cache(error) => error,
        })?;
        let odd =
            |why: String| Error::Answer { name: self.name.clone(), endpoint: self.settings.endpoint.clone(), why };
        let answer: Revision = serde_json::from_str(&answer).map_err(|error| odd(error.to_string()))?;
        if !is_hash(&answer.sha) {
            return Err(odd(format!("the commit {:?}", answer.sha)));
        }
        let useful = answer.siblings.into_iter().filter(|sibling| is_of_use(&sibling.rfilename));
        let wanted = useful.map(|Sibling { rfilename: file, size, blob_id, lfs }| {
            let summed = lfs.is_some();
            let etag = lfs.map(|lfs| lfs.sha256).or(blob_id).filter(|etag| is_hash(etag));
            match (etag, size) {
                (Some(etag), Some(size)) if is_plain(&file) => Ok(Wanted { file, etag, size, summed }),
                _ => Err(odd(format!("a file {file:?} without a usable name, hash or size"))),
            }
        });
        Ok((answer.sha, wanted.collect::<Result<_>>()?))
    }

    /// One file to `to`, which is there when it is whole.
    fn fetch(&self, commit: &str, wanted: &Wanted, to: &Path, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let Wanted { file, etag, size, summed } = wanted;
        let size = *size;
        make_folder_of(to)?;
        let part = to.with_extension("incomplete");
        let opened = File::options().create(true).append(true).read(true).open(&part);
        let mut out = opened.map_err(Error::cache(&part))?;
        let url = format!("{}/{}/resolve/{commit}/{file}", self.settings.endpoint, self.name.repo);
        let mut there = out.seek(SeekFrom::End(0)).map_err(Error::cache(&part))?;
        if there > size {
            out.set_len(0).map_err(Error::cache(&part))?;
            there = 0;
        }
        let broken = |why| Error::Broken { name: self.name.clone(), file: file.clone(), why };
        let mut vain = 0;
        while there < size {
            let before = there;
            match self.piece(&url, &mut there, size, &mut out, &part) {
                Ok(()) => vain = 0,
                Err(Trouble::Passing(why)) => {
                    vain = if there > before { 0 } else { vain + 1 };
                    if vain == TRIES {
                        return Err(broken(why));
                    }
                    std::thread::sleep(pause(vain));
                }
                Err(Trouble::Final(why) | Trouble::Nobody(why)) => return Err(broken(why)),
                Err(Trouble::Cache(error)) => return Err(error),
            }
            tell(there);
        }
        if *summed && sum(&mut out).map_err(Error::cache(&part))? != etag.to_lowercase() {
            std::fs::remove_file(&part).map_err(Error::cache(&part))?;
            return Err(Error::Damaged { name: self.name.clone(), file: file.clone() });
        }
        out.sync_all().and_then(|()| std::fs::rename(&part, to)).map_err(Error::cache(&part))
    }

    /// Appends what comes after the first `there` bytes, up to a [`PIECE`], and counts it.
    fn piece(&self, url: &str, there: &mut u64, size: u64, out: &mut File, path: &Path) -> Tried<()> {
        let disk = |error| Trouble::Cache(Error::cache(path)(error));
        let mut end = size.min(*there + PIECE);
        let mut response = self.get(url, Some((*there, end))).map_err(Trouble::passing)?;
        self.judge(&response)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // A server that knows no ranges sends everything.
            out.set_len(0).map_err(disk)?;
            (*there, end) = (0, size);
        } else if !begins_at(&response, *there) {
            return Err(Trouble::Final("another part came than was asked for".into()));
        }
        let mut body = response.body_mut().as_reader().take(end - *there);
        let mut room = vec![0; 1 << 20];
        while *there < end {
            match body.read(&mut room) {
                Ok(0) => return Err(Trouble::Passing(format!("it ended after {there} of {size} bytes"))),
                Ok(count) => {
                    out.write_all(&room[..count]).map_err(disk)?;
                    *there += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::passing(error)),
            }
        }
        Ok(())
    }

    fn get(&self, url: &str, range: Option<(u64, u64)>) -> std::result::Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.settings.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some((begin, end)) = range {
            // As it is stored: a compressed answer has other ranges.
            request = request.header("Accept-Encoding", "identity");
            request = request.header("Range", format!("bytes={begin}-{}", end - 1));
        }
        request.call()
    }

    /// What an answer's status means.
    fn judge(&self, response: &Response<Body>) -> Tried<()> {
        let status = response.status();
        let known = match self.settings.token {
            Some(_) => "with this token",
            None => "without a token (HF_TOKEN, or `hf auth login`)",
        };
        match status.as_u16() {
            200 | 206 => Ok(()),
            401 | 403 => Err(Trouble::Final(format!(
                "{status}: there is none, or it is not shown {known}; licences are accepted on its page"
            ))),
            404 => Err(Trouble::Final(format!("{status}: there is no such model, revision or file"))),
            408 | 429 | 500.. => Err(Trouble::Passing(status.to_string())),
            _ => Err(Trouble::Final(status.to_string())),
        }
    }

    /// Tries again, later each time, what may pass.
    fn again<T>(&self, mut what: impl FnMut() -> Tried<T>) -> Tried<T> {
        for vain in 1..TRIES {
            match what() {
                Err(Trouble::Passing(_)) => std::thread::sleep(pause(vain)),
                other => return other,
            }
        }
        what()
    }
}

/// Whether `Content-Range: bytes BEGIN-END/SIZE` begins there.
fn begins_at(response: &Response<Body>, begin: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    first == Some(begin)
}

/// The SHA-256 of a file in hexadecimal.
fn sum(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let (mut sum, mut room) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut room)? {
            0 => return Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => sum.update(&room[..count]),
        }
    }
}

/// How long to wait after so many tries in vain: 0.2, 0.6, 1.8, 5.4 seconds.
fn pause(vain: u32) -> Duration {
    Duration::from_millis(200) * 3_u32.pow(vain.saturating_sub(1))
}

type Tried<T> = std::result::Result<T, Trouble>;

/// Why a request did not bring what it should.
enum Trouble {
    /// It may go better next time.
    Passing(String),
    /// It will not.
    Final(String),
    /// The first question found nobody; most likely the name is a mistaken path.
    Nobody(String),
    /// It is the disk.
    Cache(Error),
}

impl Trouble {
    fn passing(error: impl std::fmt::Display) -> Self {
        Self::Passing(error.to_string())
    }
}
