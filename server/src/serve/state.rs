//! What all handlers share.

use crate::openai::{Api, ApiError};
use crate::serve::auth::ApiKeys;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// A server's state. Clones share it.
pub(crate) type Shared = Arc<State>;

/// What all handlers share.
pub(crate) struct State {
    pub(crate) api: Api,
    pub(crate) keys: ApiKeys,
    pub(crate) max_body_bytes: usize,
    pub(crate) body_timeout: Duration,
    /// Kibibytes that all bodies under way may hold together.
    pub(crate) body_budget: Arc<Semaphore>,
    draining: AtomicBool,
    /// Requests whose answers are under way.
    in_flight: AtomicUsize,
}

/// Bodies of the largest size that fit into memory side by side.
const BODIES: usize = 16;

impl State {
    pub(crate) fn new(
        api: Api,
        keys: ApiKeys,
        max_body_bytes: usize,
        body_timeout: Duration,
    ) -> Self {
        let kibibytes = (max_body_bytes >> 10).saturating_mul(BODIES);
        Self {
            api,
            keys,
            max_body_bytes,
            body_timeout,
            body_budget: Arc::new(Semaphore::new(
                kibibytes.clamp(BODIES << 10, Semaphore::MAX_PERMITS.min(u32::MAX as usize)),
            )),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// From now on new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.api.engine.drain();
    }

    /// Whether requests are taken.
    ///
    /// # Errors
    /// 503 when the server is about to end, or its engine has.
    pub(crate) fn ready(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(ApiError::shutting_down());
        }
        self.alive()
    }

    /// Whether the engine's thread is there.
    ///
    /// # Errors
    /// 503 when it has ended.
    pub(crate) fn alive(&self) -> Result<(), ApiError> {
        if self.api.engine.is_alive() {
            return Ok(());
        }
        let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        Err(ApiError::new(status, "the engine has stopped").code("engine_dead"))
    }

    /// Whether every answer has been sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) == 0 && self.api.engine.is_idle()
    }

    /// Counts an answer until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(self.clone())
    }
}

/// An answer under way.
pub(crate) struct InFlight(Shared);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}
