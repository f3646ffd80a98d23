//! Pictures from elsewhere, where the server was told that it may fetch them.
//!
//! A request that names an address makes the server ask on its behalf, from where it stands. So it asks only addresses of
//! the public internet, unless told otherwise. What counts is the address that a name resolves to, and the connection goes
//! to that very address, redirects included: a name that changes its mind in between gains nothing.

use crate::app::App;
use crate::body::Share;
use crate::options::{Reach, RemotePictures};
use crate::reply::{ApiError, Reply};
use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Fetches under way at once.
pub const FETCHES: usize = 16;
/// How often a picture may have moved.
const REDIRECTS: u32 = 3;
/// Bytes read between two looks at the limits.
const CHUNK: usize = 64 << 10;

/// Pictures by the URL that a request gives, with their share of the memory for bodies.
#[derive(Default)]
pub struct Fetched {
    pictures: HashMap<String, Vec<u8>>,
    _share: Option<Share>,
}

impl Fetched {
    /// The bytes that were found at a URL.
    pub fn get(&self, url: &str) -> Option<&[u8]> {
        self.pictures.get(url).map(Vec::as_slice)
    }
}

/// Asks other servers for pictures.
pub struct Remote {
    agent: Agent,
    turns: Arc<Semaphore>,
    time: Duration,
}

impl Remote {
    /// Sets up what is needed to ask.
    pub fn new(options: RemotePictures) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            .max_redirects_will_error(true)
            .max_idle_connections(0)
            // A proxy would resolve the names itself.
            .proxy(None)
            .user_agent(concat!("mgsd/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = Guarded { reach: options.reach, names: DefaultResolver::default() };
        let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
        Self { agent, turns: Arc::new(Semaphore::new(FETCHES)), time: options.time }
    }

    /// Fetches the pictures of one request, each named with its place there, one after the other on threads that may
    /// wait. All together they may be as large as a body and take no longer than the options say.
    pub async fn fetch(&self, app: &App, pictures: Vec<(String, String)>) -> Reply<Fetched> {
        let mut fetched = Fetched::default();
        if let Some((at, _)) = pictures.get(app.pictures.count) {
            let message = format!("{at} is one picture too many; a request may have {}", app.pictures.count);
            return Err(ApiError::invalid(at, message));
        }
        let until = Instant::now() + self.time;
        let mut share = Share::new(&app.body_memory);
        let mut held = 0;
        for (at, url) in pictures {
            let turn = tokio::time::timeout_at(until.into(), Arc::clone(&self.turns).acquire_owned()).await;
            let turn = turn.map_err(|_| ApiError::busy("pictures of other requests are being fetched; try again"))?;
            let (agent, most) = (self.agent.clone(), app.most_body);
            let task = tokio::task::spawn_blocking(move || {
                // The turn ends with the fetch, also when the client has left before.
                let _turn = turn;
                let bytes = get(&agent, &url, until, most.saturating_sub(held), |bytes| share.cover(held + bytes));
                let bytes = bytes.map_err(|problem| problem.reply(&at, most))?;
                Ok::<_, ApiError>((url, bytes, share))
            });
            let gone = |_| ApiError::internal("fetching a picture failed; the server's messages say why");
            let (url, bytes, covered) = task.await.map_err(gone)??;
            held += bytes.len();
            share = covered;
            fetched.pictures.insert(url, bytes);
        }
        fetched._share = Some(share);
        Ok(fetched)
    }
}

/// Why there is no picture.
enum Problem {
    /// The server found no room for it.
    Busy(ApiError),
    /// It is larger than what is left of the request's share.
    TooLarge,
    /// Its server or its address is to blame.
    Failed(String),
}

impl Problem {
    fn reply(self, at: &str, most: usize) -> ApiError {
        match self {
            Self::Busy(error) => error,
            Self::TooLarge => {
                let message = format!(
                    "{at}: the request's pictures are larger than {most} bytes together; name smaller ones, or start \
                     the server with a larger --max-body-mib"
                );
                ApiError { code: "image_too_large", ..ApiError::invalid(at, message) }
            }
            Self::Failed(problem) => {
                let message = format!(
                    "{at}: the picture cannot be fetched: {problem}; expected the http or https address of a picture, or \
                     the picture itself as data:image/png;base64,..."
                );
                ApiError { code: "invalid_image_url", ..ApiError::invalid(at, message) }
            }
        }
    }
}

fn get(
    agent: &Agent,
    url: &str,
    until: Instant,
    most: usize,
    mut cover: impl FnMut(usize) -> Reply<()>,
) -> Result<Vec<u8>, Problem> {
    let failed = |error: ureq::Error| Problem::Failed(words(&error));
    let time = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let request = agent.get(url).header("accept", "image/png, image/jpeg, image/*;q=0.5");
    let mut response = request.config().timeout_global(Some(time)).build().call().map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        return Err(Problem::Failed(format!("its server answered {}", status.as_u16())));
    }
    if response.body().content_length().is_some_and(|length| length > most as u64) {
        return Err(Problem::TooLarge);
    }
    // The loop below keeps to the limit itself.
    let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
    let mut bytes = Vec::new();
    loop {
        cover(bytes.len() + CHUNK).map_err(Problem::Busy)?;
        let before = bytes.len();
        let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut bytes);
        read.map_err(|error| failed(ureq::Error::from(error)))?;
        if bytes.len() > most {
            return Err(Problem::TooLarge);
        }
        if bytes.len() == before {
            return Ok(bytes);
        }
    }
}

fn words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "its server took too long".into(),
        ureq::Error::HostNotFound => "there is no host of this name".into(),
        ureq::Error::TooManyRedirects => format!("it was redirected more than {REDIRECTS} times"),
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Resolves names, and keeps to the addresses that may be asked.
#[derive(Debug)]
struct Guarded {
    reach: Reach,
    names: DefaultResolver,
}

impl Resolver for Guarded {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.names.resolve(uri, config, timeout)?;
        if self.reach == Reach::Anywhere {
            return Ok(found);
        }
        let mut allowed = self.empty();
        found.iter().filter(|address| is_public(address.ip())).for_each(|address| allowed.push(*address));
        if allowed.is_empty() {
            let host = uri.host().unwrap_or_default();
            let problem = format!(
                "{host} has no public address, and others are asked only when the server is started with \
                 --allow-private-addresses"
            );
            return Err(ureq::Error::Io(io::Error::new(io::ErrorKind::PermissionDenied, problem)));
        }
        Ok(allowed)
    }
}

/// Whether an address belongs to the public internet, by IANA's registries of special purposes.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match a {
        // This network, this machine, private, multicast and reserved.
        0 | 10 | 127 | 224.. => true,
        // Shared by carriers.
        100 => (64..128).contains(&b),
        // Link-local, where clouds keep what describes a machine.
        169 => b == 254,
        172 => (16..32).contains(&b),
        // Protocols, documentation, relays, private.
        192 => matches!((b, c), (0, 0 | 2) | (88, 99) | (168, _)),
        // Benchmarks, documentation.
        198 => matches!((b, c), (18 | 19, _) | (51, 100)),
        203 => (b, c) == (0, 113),
        _ => false,
    };
    !special
}

/// Only 2000::/3 is given out; of it the addresses for protocols, for documentation, and those that carry an IPv4 address
/// are left out. An IPv4 address in IPv6's clothes is judged by what it is.
fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(address) = address.to_ipv4_mapped() {
        return is_public_v4(address);
    }
    match address.segments() {
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        [0x2002, ..] => false,
        [0x3fff, second, ..] => second >= 0x1000,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let public = |text: &str| is_public(text.parse().unwrap_or_else(|error| panic!("{text}: {error}")));
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "169.253.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(public(address), "{address}");
        }
    }
}
