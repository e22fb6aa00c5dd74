//! The content of media that requests name: data URLs, files of one folder, and the web. What a
//! request makes the server read is the caller's choice, so each way has its bounds: bytes, time,
//! addresses, folders. One URL parser decides what a URL means. All of it runs off the async
//! threads, so many at a time.

mod address;
mod data_url;
mod file;
mod http;

pub(crate) use address::PrivateAddresses;

use bytes::Bytes;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use url::Url;

/// Bounds on what is fetched.
#[derive(Debug, Clone)]
pub(crate) struct FetchOptions {
    /// The folder that `file://` URLs may name files in; `None`: no file at all.
    pub(crate) allowed_path: Option<PathBuf>,
    /// Hosts that may be fetched from; empty: any.
    pub(crate) allowed_domains: Vec<String>,
    /// Addresses inside the network that may be fetched from.
    pub(crate) private: PrivateAddresses,
    /// All of one item: name, connection, every redirect, body.
    pub(crate) timeout: Duration,
    /// Of one item.
    pub(crate) max_bytes: usize,
    /// Items fetched at a time; others wait.
    pub(crate) concurrency: usize,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            allowed_path: None,
            allowed_domains: Vec::new(),
            private: PrivateAddresses::default(),
            timeout: Duration::from_secs(20),
            max_bytes: 64 << 20,
            concurrency: 16,
        }
    }
}

/// Why an item's content can't be had; a sentence without addresses and paths.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FetchError {
    pub(crate) message: String,
    /// The server's doing: too many at once.
    pub(crate) busy: bool,
}

impl FetchError {
    fn new(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            busy: false,
        }
    }
}

/// Fetches what requests name.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    options: Arc<FetchOptions>,
    /// Of what waits for others: media servers, disks.
    slots: Arc<Semaphore>,
    /// Of what only computes, so that no slow media server holds it up.
    decoders: Arc<Semaphore>,
}

impl Fetcher {
    pub(crate) fn new(options: FetchOptions) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(options.concurrency.max(1))),
            decoders: Arc::new(Semaphore::new(DECODERS)),
            options: Arc::new(options),
        }
    }

    /// The content of a URL.
    ///
    /// # Errors
    /// Everything that the options forbid, and what fails on the way.
    pub(crate) async fn url(&self, url: String) -> Result<Bytes, FetchError> {
        // By far the largest ones: not for a parser that copies and percent-encodes them.
        if data_url::strip_scheme(&url).is_some() {
            let work = move |options: &FetchOptions, _| {
                let rest = data_url::strip_scheme(&url).unwrap_or_default();
                data_url::decode(rest, options.max_bytes)
            };
            return self.off_the_async_threads(&self.decoders, work).await;
        }
        let work = move |options: &FetchOptions, deadline| by_url(&url, options, deadline);
        self.off_the_async_threads(&self.slots, work).await
    }

    /// Base64, within the same bound on bytes.
    ///
    /// # Errors
    /// For what is none, empty or too large.
    pub(crate) async fn base64(&self, text: String) -> Result<Bytes, FetchError> {
        let work = move |options: &FetchOptions, _| data_url::base64(&text, options.max_bytes);
        self.off_the_async_threads(&self.decoders, work).await
    }

    async fn off_the_async_threads<T: Send + 'static>(
        &self,
        slots: &Arc<Semaphore>,
        work: impl FnOnce(&FetchOptions, Instant) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let options = self.options.clone();
        let slot = tokio::time::timeout(options.timeout, slots.clone().acquire_owned());
        let Ok(Ok(slot)) = slot.await else {
            return Err(FetchError {
                message: "too many media are being fetched: try again later".to_owned(),
                busy: true,
            });
        };
        let fetched = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work(&options, Instant::now() + options.timeout)
        });
        fetched
            .await
            .unwrap_or_else(|_| Err(FetchError::new("the media could not be fetched")))
    }
}

/// The content of a data URL.
///
/// # Errors
/// For another URL, and for what is no base64, empty or too large.
pub(crate) fn data_url(url: &str, max_bytes: usize) -> Result<Bytes, FetchError> {
    let rest = data_url::strip_scheme(url);
    let rest = rest.ok_or_else(|| FetchError::new("this is no data URL"))?;
    data_url::decode(rest, max_bytes)
}

fn by_url(text: &str, options: &FetchOptions, deadline: Instant) -> Result<Bytes, FetchError> {
    if text.len() > MAX_URL {
        return Err(FetchError::new("the URL is too long"));
    }
    let url = Url::parse(text).map_err(|_| FetchError::new("this is no valid URL"))?;
    match url.scheme() {
        "http" | "https" => http::get(url, options, deadline, &http::look_up),
        "file" => file::read(&url, options),
        scheme => Err(FetchError::new(format!(
            "`{scheme}:` URLs are not taken: data, https, http{}",
            if options.allowed_path.is_some() {
                ", file"
            } else {
                ""
            }
        ))),
    }
}

/// Items decoded from base64 at a time.
const DECODERS: usize = 4;

/// Bytes of a URL that names something.
const MAX_URL: usize = 8 << 10;
