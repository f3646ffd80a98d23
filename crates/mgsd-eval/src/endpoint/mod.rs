//! Models behind OpenAI-compatible endpoints (`POST .../chat/completions`).
//!
//! Questions run on threads, spread over the endpoints by load. What failed for a passing reason is asked again after a
//! growing, jittered wait; what the server rejects is not. Nothing is printed: answers, errors and counts go to the
//! caller.

mod address;
mod estimate;
mod http;
mod key;
mod pool;
mod reply;
mod wire;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

pub use address::Address;
pub use estimate::{Estimate, estimate};
pub use key::ApiKey;
pub use wire::{ContentForm, Dialect, Field, LengthField};

use crate::client::{Answer, Client, Request, Spent};
use crate::error::{Error, Result};
use http::{Http, Settings};
use pool::{Health, NoEndpoint, Pool};
use reply::Outcome;

/// How endpoints are asked.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// Where to ask; questions are spread over all of them.
    pub endpoints: Vec<Address>,
    /// The model's name there.
    pub model: String,
    /// The key, if one is needed.
    pub key: Option<ApiKey>,
    /// Header for the key; `Authorization: Bearer KEY` when none.
    pub key_header: Option<String>,
    /// The provider's peculiarities.
    pub dialect: Dialect,
    /// Questions under way at once.
    pub concurrency: usize,
    /// Longest time from sending a question to the end of its answer.
    pub timeout: Duration,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Attempts for a question, the first included.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles up to a minute, and is shortened at random by up to a half.
    pub backoff: Duration,
    /// A server that asks for a longer pause (`Retry-After`) makes the question fail.
    pub longest_pause: Duration,
    /// First rest of an endpoint that cannot be reached; it doubles up to a minute.
    pub rest: Duration,
    /// When no endpoint has answered for so long, the run ends.
    pub outage: Duration,
    /// The run ends when so many questions were rejected (bad request, say) and none was answered.
    pub hopeless_after: usize,
    /// Most requests to send, attempts counted one by one; what is left over is not asked.
    pub max_requests: Option<u64>,
    /// PEM file with the certificates to trust instead of the public ones.
    pub ca_file: Option<PathBuf>,
}

impl EndpointOptions {
    /// The usual waits: 8 questions at once, 5 minutes for an answer, 6 attempts.
    pub fn new(endpoints: Vec<Address>, model: &str) -> Self {
        Self {
            endpoints,
            model: model.to_string(),
            key: None,
            key_header: None,
            dialect: Dialect::default(),
            concurrency: 8,
            timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            attempts: 6,
            backoff: Duration::from_millis(500),
            longest_pause: Duration::from_secs(120),
            rest: Duration::from_secs(5),
            outage: Duration::from_secs(300),
            hopeless_after: 20,
            max_requests: None,
            ca_file: None,
        }
    }
}

/// A client over endpoints.
pub struct EndpointClient {
    options: EndpointOptions,
    http: Http,
    pool: Pool,
    spent: Mutex<Spent>,
}

/// How a question ended.
enum Ending {
    Answer(Answer),
    /// The question was not asked, or not to its end: it gets no row.
    Unasked,
    /// Nothing more can be asked.
    Over(String),
}

/// No wait between attempts is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

impl EndpointClient {
    /// Checks the options; nothing is sent.
    ///
    /// # Errors
    /// When there is no endpoint, a number is 0, or the certificates cannot be read.
    pub fn new(options: EndpointOptions) -> Result<Self> {
        let positive = |field: &'static str, number: u128| {
            if number > 0 {
                return Ok(());
            }
            Err(Error::Value { field, value: "0".into(), expected: "expected at least 1".into() })
        };
        positive("--endpoint", options.endpoints.len() as u128)?;
        positive("--concurrency", options.concurrency as u128)?;
        positive("--attempts", u128::from(options.attempts))?;
        positive("--timeout", options.timeout.as_nanos())?;
        let http = Http::new(Settings {
            key: options.key.clone(),
            key_header: options.key_header.clone(),
            timeout: options.timeout,
            connect_timeout: options.connect_timeout,
            connections: options.concurrency,
            ca_file: options.ca_file.as_deref(),
        })?;
        let pool = Pool::new(options.endpoints.len(), options.rest, options.outage);
        Ok(Self { options, http, pool, spent: Mutex::default() })
    }

    /// The JSON that would be posted for a request, pictures included.
    ///
    /// # Errors
    /// When a picture cannot be drawn or read, or the dialect cannot carry it.
    pub fn body(&self, request: &Request) -> Result<serde_json::Value> {
        wire::body(&self.options.model, request, &self.options.dialect)
            .map_err(|message| Error::Client { client: self.options.model.clone(), message })
    }

    fn count(&self, change: impl FnOnce(&mut Spent)) {
        change(&mut self.spent.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes one request out of the budget; false when it is used up.
    fn budget(&self) -> bool {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.max_requests.is_some_and(|most| spent.requests >= most) {
            spent.budget_used_up = true;
            return false;
        }
        spent.requests += 1;
        true
    }

    fn ask(&self, request: &Request) -> Ending {
        let fail = |message: String| Ending::Answer(Answer { error: Some(message), ..Answer::default() });
        let body = match wire::body(&self.options.model, request, &self.options.dialect) {
            Ok(body) => body.to_string().into_bytes(),
            Err(message) => return fail(message),
        };
        let (mut attempt, mut last) = (0, None);
        loop {
            let at = match self.pool.take(last) {
                Ok(at) => at,
                Err(NoEndpoint::Stopped) => return Ending::Unasked,
                Err(NoEndpoint::Hopeless(reasons)) => return Ending::Over(self.hopeless(&reasons)),
            };
            if !self.budget() {
                self.pool.give_back(at, Health::Well);
                return Ending::Unasked;
            }
            let address = &self.options.endpoints[at];
            let (health, said, wait) = match self.http.post(address, &body) {
                Outcome::Answered(answer) => {
                    self.pool.give_back(at, Health::Well);
                    self.count(|spent| spent.add(&answer));
                    return Ending::Answer(answer);
                }
                Outcome::Rejected(said) => {
                    self.pool.give_back(at, Health::Well);
                    return fail(format!("{}: {said}", address.shown));
                }
                // One that answered before has a proxy in front that does not find it for a moment.
                Outcome::Missing(said) if self.pool.has_answered(at) => (Health::Stumbled(said.clone()), said, None),
                // Another endpoint may take the question: not an attempt of its own.
                Outcome::Refused(said) | Outcome::Missing(said) => {
                    self.pool.give_back(at, Health::Refused(said));
                    continue;
                }
                Outcome::Busy(said, Some(wait)) if wait > self.options.longest_pause => {
                    self.pool.give_back(at, Health::Well);
                    return fail(format!("{}: {said}; asks for a pause of {} s", address.shown, wait.as_secs()));
                }
                Outcome::Busy(said, wait) => (Health::Pause(wait.unwrap_or_default(), said.clone()), said, wait),
                Outcome::Failed(said) => (Health::Stumbled(said.clone()), said, None),
                Outcome::Unreachable(said) => (Health::Gone(said.clone()), said, None),
            };
            self.pool.give_back(at, health);
            attempt += 1;
            if attempt >= self.options.attempts {
                let times = if attempt == 1 { "1 attempt".to_string() } else { format!("{attempt} attempts") };
                return fail(format!("{}: {said} (after {times})", address.shown));
            }
            self.count(|spent| spent.retries += 1);
            if !self.pool.has_another(at) {
                self.pool.sleep(match wait {
                    // All who wait for the same moment come a little apart, and nobody at once, whatever is asked for.
                    Some(wait) => {
                        let wait = wait.max(self.backoff(attempt));
                        wait + wait.min(Duration::from_secs(4)).mul_f64(0.25 * chance())
                    }
                    None => self.backoff(attempt),
                });
            }
            last = Some(at);
        }
    }

    fn backoff(&self, attempt: u32) -> Duration {
        let doubled = self.options.backoff.saturating_mul(1 << (attempt - 1).min(16));
        doubled.min(LONGEST_BACKOFF.max(self.options.backoff)).mul_f64(1.0 - 0.5 * chance())
    }

    fn hopeless(&self, reasons: &[(usize, String)]) -> String {
        let mut text = "no endpoint can be asked any more; ".to_string();
        for (at, reason) in reasons {
            text.push_str(&format!("{}: {reason}; ", self.options.endpoints[*at].shown));
        }
        text + "mend that (address, model name, key), then run again with --resume: answers that are there are kept"
    }
}

/// A random number from 0 to 1, for jitter: the standard library seeds its hashers at random.
fn chance() -> f64 {
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1_u64 << 53) as f64
}

impl Client for EndpointClient {
    fn name(&self) -> String {
        self.options.model.clone()
    }

    fn answer(&mut self, requests: &[Request], on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let halt = || {
            stop.store(true, Ordering::Relaxed);
            self.pool.stop();
        };
        self.pool.start();
        let mut outcome = Ok(());
        let (mut rejected, mut answered) = (0, 0);
        std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel::<(usize, Ending)>();
            for _ in 0..self.options.concurrency.min(requests.len()) {
                let (send, next, stop, this) = (send.clone(), &next, &stop, &*self);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(request) = requests.get(index) else { return };
                        let ending = this.ask(request);
                        let last = !matches!(ending, Ending::Answer(_));
                        if send.send((index, ending)).is_err() || last {
                            return;
                        }
                    }
                });
            }
            drop(send);
            for (index, ending) in receive {
                // An answer that came in before the end was known is paid for: it is kept.
                let result = match ending {
                    Ending::Answer(answer) => {
                        let failure = answer.error.clone();
                        match &failure {
                            Some(_) => rejected += 1,
                            None => answered += 1,
                        }
                        on_answer(index, answer).and(match failure {
                            Some(said) if answered == 0 && rejected >= self.options.hopeless_after => Err(self
                                .over(format!("{rejected} questions failed and none was answered; the last: {said}"))),
                            _ => Ok(()),
                        })
                    }
                    Ending::Unasked => Ok(()),
                    Ending::Over(said) => Err(self.over(said)),
                };
                if let Err(error) = result {
                    halt();
                    if outcome.is_ok() {
                        outcome = Err(error);
                    }
                }
            }
        });
        outcome
    }

    fn spent(&self) -> Option<Spent> {
        Some(self.spent.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl EndpointClient {
    fn over(&self, message: String) -> Error {
        Error::Client { client: self.options.model.clone(), message }
    }
}
