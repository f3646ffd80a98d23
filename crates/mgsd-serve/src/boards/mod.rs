//! Boards for the page.
use crate::app::App;
use crate::error::Result;
use axum::Router;
use mgsd_data::prompts::Prompts;
use mgsd_tasks::RenderOptions;
use std::sync::Arc;

/// Texts and pictures.
pub struct Boards {
    prompts: Prompts,
    pictures: RenderOptions,
}

impl Boards {
    /// Opens the set of texts.
    pub fn new(prompts: &str, pictures: RenderOptions) -> Result<Self> {
        Ok(Self { prompts: Prompts::open(prompts)?, pictures })
    }
}

/// Routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
}
