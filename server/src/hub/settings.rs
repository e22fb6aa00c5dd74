//! Where the hub and its cache are: the variables of Hugging Face's own tools.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const ENDPOINT: &str = "https://huggingface.co";

/// Set once, before the command runs, like the number of threads.
static OFFLINE: AtomicBool = AtomicBool::new(false);

/// Fetch nothing: `--offline`.
pub(crate) fn set_offline(offline: bool) {
    OFFLINE.store(offline, Relaxed);
}

/// What the environment says.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) endpoint: String,
    /// The folder of the repositories' folders.
    pub(super) cache: PathBuf,
    pub(super) token: Option<String>,
    pub(super) offline: bool,
}

impl Settings {
    pub(super) fn from_environment() -> Result<Self> {
        let read = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let mut settings = Self::read(&read, std::env::home_dir())?;
        settings.offline |= OFFLINE.load(Relaxed);
        Ok(settings)
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let either = |names: [&str; 2]| names.into_iter().find_map(variable);
        let hugging_face = match (variable("HF_HOME"), variable("XDG_CACHE_HOME"), home) {
            (Some(folder), ..) => PathBuf::from(folder),
            (None, Some(folder), _) => PathBuf::from(folder).join("huggingface"),
            (None, None, Some(home)) => home.join(".cache").join("huggingface"),
            (None, None, None) => bail!("there is no home folder for the cache: set HF_HOME"),
        };
        let cache = either(["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .map_or_else(|| hugging_face.join("hub"), PathBuf::from);
        // Links in the cache are made from whole paths.
        let cache = std::path::absolute(&cache)
            .with_context(|| format!("the cache's folder {}", cache.display()))?;
        let token = either(["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| {
            let file =
                variable("HF_TOKEN_PATH").map_or_else(|| hugging_face.join("token"), PathBuf::from);
            fs::read_to_string(file).ok()
        });
        let token = token
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        // A header holds no line's end; the message must not hold the token.
        if token.as_ref().is_some_and(|t| t.contains(char::is_control)) {
            bail!("the token (HF_TOKEN, or the token file) has more than one line");
        }
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token,
            offline: variable("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v)),
        })
    }
}

/// As Hugging Face's tools read a switch.
fn is_true(text: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Settings {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::read(&variable, Some("/home/x".into())).unwrap()
    }

    #[test]
    fn variables_mean_what_they_mean_to_other_tools() {
        let default = read(&[]);
        assert_eq!(
            default.cache,
            PathBuf::from("/home/x/.cache/huggingface/hub")
        );
        assert_eq!(default.endpoint, ENDPOINT);
        assert!(!default.offline && default.token.is_none());
        let moved = read(&[("XDG_CACHE_HOME", "/c")]);
        assert_eq!(moved.cache, PathBuf::from("/c/huggingface/hub"));
        let moved = read(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/c")]);
        assert_eq!(moved.cache, PathBuf::from("/h/hub"));
        let moved = read(&[("HF_HUB_CACHE", "/k"), ("HF_HOME", "/h")]);
        assert_eq!(moved.cache, PathBuf::from("/k"));
        assert_eq!(read(&[("HF_ENDPOINT", "http://m/")]).endpoint, "http://m");
        assert!(read(&[("HF_HUB_OFFLINE", "true")]).offline);
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn a_token_comes_from_the_environment_or_from_its_file() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().display().to_string();
        fs::write(home.path().join("token"), "from-file\n").unwrap();
        let token = |v: &[(&str, &str)]| read(v).token;
        assert_eq!(token(&[("HF_HOME", &folder)]).unwrap(), "from-file");
        let both = [("HF_HOME", folder.as_str()), ("HF_TOKEN", " own ")];
        assert_eq!(token(&both).unwrap(), "own");
    }
}
