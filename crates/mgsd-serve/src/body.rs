//! Request bodies: JSON, bounded in size, in time, and in what all of them together hold in memory.

use crate::app::App;
use crate::reply::{ApiError, Reply};
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);
/// What one unit of the memory for bodies stands for.
pub const UNIT: usize = 64 << 10;

/// A share of the memory for bodies, given back when it is dropped.
pub struct Share {
    memory: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
    paid: usize,
}

impl Share {
    /// A share of nothing yet.
    pub fn new(memory: &Arc<Semaphore>) -> Self {
        Self { memory: Arc::clone(memory), permits: Vec::new(), paid: 0 }
    }

    /// Enlarges the share to cover so many bytes; refuses when others hold the memory.
    pub fn cover(&mut self, bytes: usize) -> Reply<()> {
        let units = bytes.div_ceil(UNIT);
        if units > self.paid {
            let permit = Arc::clone(&self.memory).try_acquire_many_owned((units - self.paid) as u32);
            self.permits
                .push(permit.map_err(|_| ApiError::busy("bodies of other requests fill the memory; try again"))?);
            self.paid = units;
        }
        Ok(())
    }
}

/// A body with its share of the memory.
pub struct Held {
    bytes: Vec<u8>,
    share: Share,
}

impl std::ops::Deref for Held {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the body of a request that says it is JSON. Saying so keeps pages of other sites from asking without a
/// preflight.
pub async fn read_json(app: &App, request: Request) -> Reply<Held> {
    let headers = request.headers();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::not_json());
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > app.most_body) {
        return Err(ApiError::too_large(app.most_body));
    }
    match tokio::time::timeout(ARRIVAL, read(app, request.into_body())).await {
        Ok(body) => body,
        Err(_) => Err(ApiError::slow_body(ARRIVAL.as_secs())),
    }
}

async fn read(app: &App, mut body: Body) -> Reply<Held> {
    let mut held = Held { bytes: Vec::new(), share: Share::new(&app.body_memory) };
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| ApiError::malformed(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = held.bytes.len() + data.len();
        if length > app.most_body {
            return Err(ApiError::too_large(app.most_body));
        }
        held.share.cover(length)?;
        held.bytes.extend_from_slice(&data);
    }
    Ok(held)
}
