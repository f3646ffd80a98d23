//! Where the hub is, where its cache is, and who asks.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What the environment says of the hub, in the variables of `huggingface_hub`.
#[derive(Clone)]
pub struct Settings {
    /// Address without a slash at the end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Folder of all models (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// What shows who asks (`HF_TOKEN`, or the file that `hf auth login` leaves).
    pub token: Option<String>,
    /// Whether nobody may be asked (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

impl Settings {
    /// `variable` looks a variable up.
    ///
    /// # Errors
    /// When there is no home folder and nothing says where the cache is.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = || {
            let user = || variable("XDG_CACHE_HOME").or_else(|| Some(format!("{}/.cache", variable("HOME")?)));
            variable("HF_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&user()?).join("huggingface")))
        };
        let cache = variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home()?.join("hub")));
        let file = || {
            let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
            std::fs::read_to_string(path).ok()
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let yes = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: cache.ok_or(Error::NoHome)?,
            token: variable("HF_TOKEN")
                .or_else(file)
                .map(|token| token.trim().into())
                .filter(|token: &String| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(yes),
        })
    }
}

/// Without the token.
impl std::fmt::Debug for Settings {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, cache, token, offline } = self;
        let token = token.as_ref().map(|_| "...");
        write!(out, "Settings {{ endpoint: {endpoint:?}, cache: {cache:?}, token: {token:?}, offline: {offline} }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_environment(|name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_variables_of_the_python_library_are_followed() {
        let plain = settings(&[("HOME", "/nobody")]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/nobody/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let at = |pairs: &[(&str, &str)]| settings(pairs).unwrap().cache;
        assert_eq!(at(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(at(&[("HOME", "/h"), ("HF_HOME", "/f")]), Path::new("/f/hub"));
        assert_eq!(at(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        let given =
            [("HOME", "/h"), ("HF_ENDPOINT", "http://mirror/"), ("HF_TOKEN", " secret\n"), ("HF_HUB_OFFLINE", "1")];
        let given = settings(&given).unwrap();
        assert_eq!(
            (given.endpoint.as_str(), given.token.as_deref(), given.offline),
            ("http://mirror", Some("secret"), true)
        );
        assert!(!format!("{given:?}").contains("secret"));
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn the_token_of_a_login_is_found() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let found = settings(&[("HF_HOME", home.path().to_str().unwrap())]).unwrap();
        assert_eq!(found.token.as_deref(), Some("from-file"));
    }
}
