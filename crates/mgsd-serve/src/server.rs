//! Listening, serving, and stopping in good order.

use crate::app::{App, KeyHash, Peer};
use crate::boards::Boards;
use crate::connection::{HEAD_TIME, Stalling};
use crate::engine::{Engine, Loader, ModelInfo};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::openai::{PictureLimits, SamplingDefaults};
use crate::options::Options;
use crate::remote::{FETCHES, Remote};
use crate::{body, routes};
use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use mgsd_model::processor::Processor;
use std::future::{Future, poll_fn};
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long connections may take to send what is left once all answers have ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A server that is up.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    runtime: Runtime,
    /// Set to true when connections are to close.
    close: watch::Sender<bool>,
    connections: Arc<Semaphore>,
    most_connections: usize,
    drain: Duration,
}

impl Server {
    /// Binds the address, loads the model with `load`, and serves on threads of its own.
    pub fn start(options: &Options, load: Loader) -> Result<Self> {
        let listen = |source| Error::Listen { address: options.address, source };
        let listener = TcpListener::bind(options.address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let app = Arc::new(app(options, load)?);
        let cores = cores();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.clamp(2, 4))
            .max_blocking_threads(cores.max(2) + if options.remote.is_some() { FETCHES } else { 0 })
            .thread_name("serve")
            .enable_all()
            .build()
            .map_err(|source| Error::Start { what: "the server's threads", source })?;
        let most_connections = options.limits.connections.clamp(1, Semaphore::MAX_PERMITS);
        let connections = Arc::new(Semaphore::new(most_connections));
        let (close, closing) = watch::channel(false);
        let listener = runtime.block_on(async { tokio::net::TcpListener::from_std(listener) }).map_err(listen)?;
        runtime.spawn(accept(listener, Arc::clone(&app), Arc::clone(&connections), closing));
        Ok(Self { app, address, runtime, close, connections, most_connections, drain: options.drain })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is known of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.app.engine.info
    }

    /// Why the server can no longer answer, if that is so.
    pub fn failure(&self) -> Option<Error> {
        self.app.engine.failure().map(Error::ModelStopped)
    }

    /// Refuses new requests from now on; answers under way go on.
    pub fn begin_drain(&self) {
        self.app.draining.store(true, Ordering::SeqCst);
    }

    /// Stops: new requests are refused, answers under way may end within the time that the options give, or until
    /// `hurry` is set. Returns whether all of them ended.
    pub fn stop(self, hurry: &AtomicBool) -> bool {
        self.begin_drain();
        let until = Instant::now() + self.drain;
        // First those that are still being prepared: the engine hears of them before they are done.
        let idle = || self.app.begun.load(Ordering::SeqCst) == 0 && self.app.engine.is_idle();
        while !idle() && self.app.engine.failure().is_none() && Instant::now() < until && !hurry.load(Ordering::Relaxed)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let ended = idle();
        // Answers that are given up tell their clients so before the connections close.
        self.app.engine.stop();
        self.close.send_replace(true);
        let all = self.connections.acquire_many(self.most_connections as u32);
        let closed = self.runtime.block_on(async { tokio::time::timeout(LAST_WORDS, all).await.is_ok() });
        self.runtime.shutdown_timeout(Duration::from_millis(if closed { 100 } else { 10 }));
        ended
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get())
}

fn app(options: &Options, load: Loader) -> Result<App> {
    let processor = Processor::open(&options.model, options.pixels)?;
    let defaults = SamplingDefaults::of_folder(&options.model)?;
    let boards = Boards::new(&options.prompts, options.pictures.clone())?;
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::start(options.capacity.clone(), Arc::clone(&metrics), load)?;
    let limits = options.limits;
    Ok(App {
        engine,
        processor,
        name: options.name.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        defaults,
        pictures: PictureLimits { count: limits.pictures, pixels: limits.pixels },
        most_tokens: limits.tokens.max(1),
        most_body: limits.body,
        body_memory: Arc::new(Semaphore::new((limits.all_bodies / body::UNIT).clamp(1, Semaphore::MAX_PERMITS))),
        workers: Arc::new(Semaphore::new(cores().max(2))),
        remote: options.remote.map(Remote::new),
        boards,
        metrics,
        key: options.api_key.as_deref().map(KeyHash::new),
        draining: AtomicBool::new(false),
        begun: AtomicUsize::new(0),
        answers: AtomicU32::new(0),
    })
}

/// Takes connections until told to close.
async fn accept(
    listener: tokio::net::TcpListener,
    app: Arc<App>,
    connections: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
) {
    let router = routes::router(Arc::clone(&app));
    let mut closed = closing.clone();
    let mut end = pin!(async move {
        // An error means that the server itself is gone.
        let _ = closed.wait_for(|close| *close).await;
    });
    loop {
        let mut next = pin!(async {
            let permit = Arc::clone(&connections).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        });
        let taken = poll_fn(|cx| match end.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => next.as_mut().poll(cx),
        });
        match taken.await {
            None => return,
            Some((Ok((stream, peer)), permit)) => {
                tokio::spawn(serve(
                    stream,
                    Peer(peer),
                    router.clone(),
                    Arc::clone(&app.metrics),
                    closing.clone(),
                    permit,
                ));
            }
            // Out of file handles, or a client that left at once: others go on.
            Some((Err(_), _)) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Serves one connection to its end.
async fn serve(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    metrics: Arc<Metrics>,
    mut closing: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    metrics.connections.fetch_add(1, Ordering::Relaxed);
    // Tokens are small, and each should go out at once. Without it they go out a little later.
    let _ = stream.set_nodelay(true);
    let routed = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        routed.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(Stalling::new(stream), service);
    let mut connection = pin!(connection);
    let mut close = pin!(async move {
        let _ = closing.wait_for(|close| *close).await;
    });
    let mut closing = false;
    // A connection that ends in an error is one whose client is gone.
    let _ = poll_fn(|cx| {
        if !closing && close.as_mut().poll(cx).is_ready() {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await;
    metrics.connections.fetch_sub(1, Ordering::Relaxed);
    drop(permit);
}
