//! An API key that cannot be printed by accident.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// A key for an endpoint. Its `Debug` form and every message of this crate leave the key itself out.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// What stands in a message in the key's place.
const HIDDEN: &str = "[api key]";

impl ApiKey {
    /// A key given as text; blanks around it are dropped. `source` names where it came from, for the message.
    ///
    /// # Errors
    /// When nothing is left, or a character cannot stand in an HTTP header.
    pub fn new(text: &str, source: &str) -> Result<Self> {
        let fail = |expected: &str| Error::Value {
            field: "API key",
            value: source.to_string(),
            expected: format!("{expected}; give the key with --api-key-env NAME or --api-key-file FILE"),
        };
        let key = text.trim();
        if key.is_empty() {
            return Err(fail("holds no key"));
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(fail("holds blanks or characters that no HTTP header may carry; expected one key alone"));
        }
        Ok(Self(key.to_string()))
    }

    /// The key in an environment variable.
    ///
    /// # Errors
    /// When the variable is not set or holds no key.
    pub fn from_env(name: &str) -> Result<Self> {
        let key = std::env::var(name).map_err(|_| Error::Value {
            field: "--api-key-env",
            value: name.to_string(),
            expected: "expected the name of an environment variable that is set; export it first".to_string(),
        })?;
        Self::new(&key, &format!("environment variable {name}"))
    }

    /// The key that a file holds, and nothing else.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let key = std::fs::read_to_string(path).map_err(Error::io("reading the API key from", path))?;
        Self::new(&key, &path.display().to_string())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without the key: servers like to quote it when they refuse it.
    pub(super) fn hide(&self, text: &str) -> String {
        text.replace(&self.0, HIDDEN)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let key = ApiKey::new("  sk-secret\n", "test").expect("key");
        assert_eq!(key.expose(), "sk-secret");
        assert!(!format!("{key:?}").contains("secret"));
        assert_eq!(key.hide("Incorrect API key: sk-secret."), "Incorrect API key: [api key].");
        let error = ApiKey::new("two keys", "a file").expect_err("blank").to_string();
        assert!(error.contains("a file") && !error.contains("two keys"), "{error}");
        let error = ApiKey::from_env("MGSD_NO_SUCH_VARIABLE").expect_err("not set").to_string();
        assert!(error.contains("MGSD_NO_SUCH_VARIABLE"), "{error}");
    }
}
