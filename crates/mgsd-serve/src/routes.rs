//! Which address leads where.

use crate::app::{self, App};
use crate::reply::ApiError;
use crate::{boards, openai, page};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*name}", get(openai::model))
        .route("/v1/chat/completions", post(openai::completions))
        .merge(boards::routes())
        .layer(from_fn_with_state(Arc::clone(&app), app::gate));
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .merge(page::routes())
        .merge(guarded)
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing_there)
        .layer(from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

/// 200 while requests are taken.
async fn health(State(app): State<Arc<App>>) -> Response {
    if app.draining.load(Ordering::Relaxed) {
        return ApiError::unavailable("the server is stopping").into_response();
    }
    match app.engine.failure() {
        Some(_) => app.engine.gone().into_response(),
        None => axum::Json(serde_json::json!({"status": "ok", "model": app.name})).into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    (StatusCode::OK, [kind], app.metrics.text()).into_response()
}

async fn nothing_there(request: Request) -> ApiError {
    let path = request.uri().path().chars().take(200).collect::<String>();
    ApiError::not_found(format!("there is nothing at {path}; see /v1/models, /v1/chat/completions, /health, /metrics"))
}

async fn wrong_method(request: Request) -> ApiError {
    let path = request.uri().path().chars().take(200).collect::<String>();
    ApiError::method(format!("{path} does not answer to {}", request.method()))
}

/// Counts every response by its route, and keeps browsers from guessing what it is.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = match matched.as_deref() {
        Some("/v1/chat/completions") => "chat",
        Some(path) if path.starts_with("/v1/models") => "models",
        Some("/health") => "health",
        Some("/metrics") => "metrics",
        Some(path) if path.starts_with("/api/") => "boards",
        Some(_) => "page",
        None => "none",
    };
    let mut response = next.run(request).await;
    app.metrics.responded(route, response.status().as_u16());
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if app.draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
