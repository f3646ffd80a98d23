//! Models by their names on the Hugging Face Hub, in the cache that `huggingface_hub` keeps.
//!
//! A name is `organisation/model`, or `organisation/model@revision`. What the cache holds whole is taken from there
//! without asking anybody; the rest is fetched into it, file by file, and a fetch that was broken off goes on where it
//! was. The layout (`models--ORG--NAME/{blobs,refs,snapshots}`) and the environment variables are those of the Python
//! library, so that both find what the other has fetched.

mod cache;
mod error;
mod fetch;
mod name;
mod settings;

pub use error::{Error, Result};
pub use fetch::Progress;
pub use name::Name;
pub use settings::Settings;

use cache::Repo;
use std::path::{Path, PathBuf};

/// The name that is meant when `given` stands where a folder could: there is none, and it looks like a name.
pub fn named(given: &Path) -> Option<Name> {
    given.to_str().and_then(Name::parse).filter(|_| !given.exists())
}

/// The folder of a model, which is fetched unless the cache holds it whole. `watch` hears how that goes.
///
/// # Errors
/// A name that nobody knows, a hub that cannot be reached, a full disk.
pub fn folder(name: &Name, settings: &Settings, watch: &mut dyn FnMut(&Progress)) -> Result<PathBuf> {
    let repo = Repo::new(&settings.cache, name);
    if let Some(found) = repo.whole(&name.revision) {
        return Ok(found);
    }
    if settings.offline {
        return Err(Error::Offline { name: name.clone() });
    }
    fetch::model(name, &repo, settings, watch)
}
