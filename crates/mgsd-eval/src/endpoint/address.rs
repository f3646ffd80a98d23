//! Where an endpoint listens.

use ureq::http::Uri;

use crate::error::{Error, Result};

/// The address that questions are posted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The whole URL, query included.
    pub(super) url: String,
    /// The URL without its query, for messages.
    pub(super) shown: String,
    /// Whether the host is this machine itself.
    pub(super) loopback: bool,
}

impl Address {
    /// Reads `http://host:port`, `http://host:port/v1` or a whole `.../chat/completions`.
    ///
    /// # Errors
    /// When it is no http or https URL, or carries a user name or password.
    pub fn parse(text: &str) -> Result<Self> {
        let fail = |value: &str, expected: &str| Error::Value {
            field: "--endpoint",
            value: value.to_string(),
            expected: format!("{expected}; expected a URL such as http://127.0.0.1:8000/v1"),
        };
        let uri: Uri = text.trim().parse().map_err(|_| fail(text, "is no URL"))?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(fail(text, "has no http:// or https:// with a host"));
        };
        if authority.as_str().contains('@') {
            // The value is not repeated: it may hold a password.
            return Err(fail("(hidden)", "carries a user name or a password; keys go to --api-key-env"));
        }
        let path = uri.path().trim_end_matches('/');
        let path = match path {
            "" => "/v1/chat/completions".to_string(),
            whole if whole.ends_with("/chat/completions") => whole.to_string(),
            base => format!("{base}/chat/completions"),
        };
        let shown = format!("{scheme}://{authority}{path}");
        let url = uri.query().map_or_else(|| shown.clone(), |query| format!("{shown}?{query}"));
        let host = authority.host();
        let loopback = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        Ok(Self { url, shown, loopback })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_whole_addresses_lead_to_the_same_place() {
        for (text, url) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
            ("https://h/api/v1", "https://h/api/v1/chat/completions"),
            ("https://h/x/chat/completions?api-version=1", "https://h/x/chat/completions?api-version=1"),
        ] {
            assert_eq!(Address::parse(text).expect(text).url, url);
        }
        let address = Address::parse("https://h/v1/chat/completions?key=abc").expect("address");
        assert!(!address.shown.contains("abc") && !address.loopback);
        assert!(Address::parse("http://127.0.0.1:9").expect("address").loopback);
    }

    #[test]
    fn what_is_no_address_is_refused_and_a_password_not_repeated() {
        for text in ["", "localhost:8000", "ftp://h/v1", "http://"] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
        let error = Address::parse("http://me:secret@h/v1").expect_err("password").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
