//! What all handlers share.

use crate::boards::Boards;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::openai::{PictureLimits, SamplingDefaults};
use crate::remote::Remote;
use crate::reply::{ApiError, Reply};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mgsd_model::processor::Processor;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The server's state.
pub struct App {
    /// The model.
    pub engine: Engine,
    /// Conversations to tokens.
    pub processor: Processor,
    /// The model's name to clients.
    pub name: String,
    /// When the server was started, in seconds since 1970.
    pub created: u64,
    /// Sampling where a request does not say.
    pub defaults: SamplingDefaults,
    /// Bounds on pictures.
    pub pictures: PictureLimits,
    /// Longest answer.
    pub most_tokens: usize,
    /// Largest body in bytes.
    pub most_body: usize,
    /// Memory for all bodies, in units of [`crate::body::UNIT`].
    pub body_memory: Arc<Semaphore>,
    /// How many preparations may run at once.
    pub workers: Arc<Semaphore>,
    /// Fetches pictures from elsewhere, if that is allowed.
    pub remote: Option<Remote>,
    /// Boards, their pictures and prompts, for the page.
    pub boards: Boards,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Hash of the key that requests must bring.
    pub key: Option<KeyHash>,
    /// Set when the server is being stopped.
    pub draining: AtomicBool,
    /// Requests that were let in and have no response yet.
    pub begun: AtomicUsize,
    /// Number of the next answer.
    pub answers: AtomicU32,
}

impl App {
    /// A number for an answer's identity.
    pub fn next_id(&self) -> u32 {
        self.answers.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs work that takes the processor's time where it does not hold up the connections.
    pub async fn on_worker<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Reply<T> {
        let failed = "preparing the request failed; the server's messages say why";
        let turn = Arc::clone(&self.workers).acquire_owned().await.map_err(|_| ApiError::internal(failed))?;
        // The turn ends with the work, also when whoever asked for it has left.
        let work = move || (work(), turn);
        let (done, _) = tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::internal(failed))?;
        Ok(done)
    }
}

/// A key's hash. Hashes are compared, so that neither the key's length nor how much of it was guessed shows in the time.
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a key.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Whether this is the key, in the same time whatever it is.
    pub fn fits(&self, key: &str) -> bool {
        let other = Self::new(key);
        let difference = self.0.iter().zip(other.0).fold(0u8, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        difference == 0
    }
}

/// Lets requests through that bring the key while the server is up.
pub async fn gate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Some(hash) = &app.key {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        if !hash.fits(key.map_or("", |(_, key)| key.trim())) {
            return ApiError::unauthorized().into_response();
        }
    }
    // Counted before the look at the flag, so that who stops the server sees all that were let in.
    let _begun = Begun::new(&app);
    if app.draining.load(Ordering::SeqCst) {
        return ApiError::unavailable("the server is stopping; try another one").into_response();
    }
    next.run(request).await
}

/// A request that was let in, until its response is there or its client has left.
struct Begun<'a>(&'a App);

impl<'a> Begun<'a> {
    fn new(app: &'a App) -> Self {
        app.begun.fetch_add(1, Ordering::SeqCst);
        Self(app)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::KeyHash;

    #[test]
    fn only_the_key_fits() {
        let hash = KeyHash::new("secret");
        assert!(hash.fits("secret"));
        assert!(["", "secre", "secrets", "Secret"].iter().all(|key| !hash.fits(key)));
    }
}
