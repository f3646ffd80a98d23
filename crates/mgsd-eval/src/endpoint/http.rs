//! One attempt over HTTP.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::address::Address;
use super::key::ApiKey;
use super::reply::{self, Outcome};
use crate::error::{Error, Result};

/// No answer is longer than this.
const MOST_BYTES: u64 = 32 << 20;
/// A connection that lay idle for longer is not used again: many servers close theirs after 5 seconds.
const IDLE: Duration = Duration::from_secs(3);

/// How to connect.
#[derive(Clone, Debug)]
pub(super) struct Http {
    direct: Agent,
    proxied: Agent,
    key: Option<ApiKey>,
    key_header: Option<String>,
    timeout: Duration,
}

/// What [`Http`] is made from.
pub(super) struct Settings<'a> {
    pub key: Option<ApiKey>,
    /// Header for the key; `Authorization: Bearer` when none.
    pub key_header: Option<String>,
    pub timeout: Duration,
    pub connect_timeout: Duration,
    pub connections: usize,
    /// PEM file with the certificates to trust instead of the public ones.
    pub ca_file: Option<&'a Path>,
}

impl Http {
    pub fn new(settings: Settings<'_>) -> Result<Self> {
        let roots = settings.ca_file.map(certificates).transpose()?;
        let agent = |direct: bool| -> Agent {
            let mut config = Agent::config_builder()
                .http_status_as_error(false)
                // A redirect would carry the question elsewhere, the key perhaps with it.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_global(Some(settings.timeout))
                .timeout_connect(Some(settings.connect_timeout))
                .max_idle_connections(settings.connections * 8)
                .max_idle_connections_per_host(settings.connections)
                .max_idle_age(IDLE)
                .user_agent(concat!("mgsd/", env!("CARGO_PKG_VERSION")));
            if let Some(roots) = &roots {
                config = config.tls_config(TlsConfig::builder().root_certs(roots.clone()).build());
            }
            if direct {
                config = config.proxy(None);
            }
            config.build().into()
        };
        if let Some(name) = &settings.key_header {
            ureq::http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| Error::Value {
                field: "--api-key-header",
                value: name.clone(),
                expected: "is no name of an HTTP header; expected one such as api-key".to_string(),
            })?;
        }
        Ok(Self {
            direct: agent(true),
            proxied: agent(false),
            key: settings.key,
            key_header: settings.key_header,
            timeout: settings.timeout,
        })
    }

    /// Posts a body and reads what comes back. The key never stands in the outcome's message.
    pub fn post(&self, to: &Address, body: &[u8]) -> Outcome {
        let outcome = self.attempt(to, body);
        let Some(key) = &self.key else { return outcome };
        match outcome {
            Outcome::Answered(answer) => Outcome::Answered(answer),
            Outcome::Rejected(said) => Outcome::Rejected(key.hide(&said)),
            Outcome::Refused(said) => Outcome::Refused(key.hide(&said)),
            Outcome::Missing(said) => Outcome::Missing(key.hide(&said)),
            Outcome::Busy(said, wait) => Outcome::Busy(key.hide(&said), wait),
            Outcome::Failed(said) => Outcome::Failed(key.hide(&said)),
            Outcome::Unreachable(said) => Outcome::Unreachable(key.hide(&said)),
        }
    }

    fn attempt(&self, to: &Address, body: &[u8]) -> Outcome {
        let agent = if to.loopback { &self.direct } else { &self.proxied };
        let mut request = agent.post(&to.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = match &self.key_header {
                Some(name) => request.header(name, key.expose()),
                None => request.header("authorization", format!("Bearer {}", key.expose())),
            };
        }
        let mut response: Response<Body> = match request.send(body) {
            Ok(response) => response,
            Err(error) => return self.failure(&error),
        };
        let status = response.status().as_u16();
        let wait = asked_wait(response.headers());
        match response.body_mut().with_config().limit(MOST_BYTES).read_to_vec() {
            Ok(bytes) => reply::read(status, wait, &bytes),
            // The status says enough when only the error's text is lost.
            Err(_) if !(200..300).contains(&status) => reply::read(status, wait, b""),
            Err(error) => match self.failure(&error) {
                Outcome::Unreachable(said) => Outcome::Failed(format!("the answer broke off: {said}")),
                other => other,
            },
        }
    }

    fn failure(&self, error: &ureq::Error) -> Outcome {
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                Outcome::Unreachable(format!("cannot connect: {error}"))
            }
            ureq::Error::Timeout(_) => {
                Outcome::Failed(format!("no answer within {} s (--timeout)", self.timeout.as_secs_f64()))
            }
            ureq::Error::Io(source) if broke_off(source.kind()) => {
                Outcome::Failed("the server closed the connection".to_string())
            }
            // Asking again would not change what the server shows.
            ureq::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
                Outcome::Refused(format!("{source}; --ca-file FILE names the certificates to trust"))
            }
            ureq::Error::Io(source) => Outcome::Unreachable(source.to_string()),
            ureq::Error::BodyExceedsLimit(_) => {
                Outcome::Rejected(format!("the answer is larger than {MOST_BYTES} bytes"))
            }
            ureq::Error::HostNotFound => Outcome::Unreachable("no host of this name".to_string()),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                Outcome::Failed(format!("the server does not speak HTTP as expected: {error}"))
            }
            other => Outcome::Unreachable(other.to_string()),
        }
    }
}

/// Whether an error means that somebody was there and went away.
fn broke_off(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(milliseconds) = text("retry-after-ms").and_then(|value| value.trim().parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(milliseconds / 1000.0).ok();
    }
    reply::retry_after(text("retry-after")?, SystemTime::now())
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let bytes = std::fs::read(path).map_err(Error::io("reading the certificates from", path))?;
    let mut found = Vec::new();
    for item in parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => {
                return Err(Error::Json { path: path.to_path_buf(), message: format!("broken PEM: {error}") });
            }
        }
    }
    if found.is_empty() {
        let message = "holds no certificate; expected PEM blocks that begin with BEGIN CERTIFICATE".to_string();
        return Err(Error::Json { path: path.to_path_buf(), message });
    }
    Ok(RootCerts::Specific(Arc::new(found)))
}
