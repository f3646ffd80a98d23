//! The web page: files in the binary, which load nothing from elsewhere.

use crate::app::App;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;

/// Only our own files; pictures of boards are data URLs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (StatusCode::OK, headers, content).into_response()
}

macro_rules! script {
    ($router:expr, $($name:literal),*) => {
        $router$(.route(
            concat!("/page/", $name),
            get(|| async { file("text/javascript; charset=utf-8", include_str!(concat!("../web/", $name))) }),
        ))*
    };
}

/// The page and what it loads.
pub fn routes() -> Router<Arc<App>> {
    let router = Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("../web/index.html")) }))
        .route("/page/page.css", get(|| async { file("text/css; charset=utf-8", include_str!("../web/page.css")) }));
    script!(router, "page.js", "answer.js", "api.js", "grid.js", "overlay.js", "state.js")
}
