//! Server-sent events: a response that is written while it comes into being.

use crate::engine::CancelOnDrop;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Events that wait for the connection before their writer waits too.
const WAITING: usize = 16;

/// Where events are written to.
pub struct Frames(mpsc::Sender<Bytes>);

impl Frames {
    /// Sends a JSON object as an event; false when nobody listens any more.
    pub async fn json(&self, value: &impl Serialize) -> bool {
        match serde_json::to_string(value) {
            Ok(text) => self.text(&text).await,
            Err(_) => false,
        }
    }

    /// Sends one line as an event; false when nobody listens any more.
    pub async fn text(&self, line: &str) -> bool {
        self.0.send(Bytes::from(format!("data: {line}\n\n"))).await.is_ok()
    }
}

/// A response, and the writer of its events. When the connection is gone the response is dropped, and `guard` with it.
pub fn channel(guard: CancelOnDrop) -> (Frames, Response) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut response = Response::new(Body::new(Events { receiver, _guard: guard }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // A proxy that collects before it sends on would undo the streaming.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (Frames(sender), response)
}

struct Events {
    receiver: mpsc::Receiver<Bytes>,
    _guard: CancelOnDrop,
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.receiver.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
