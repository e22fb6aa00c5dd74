//! The end: the first signal lets running requests finish up to a deadline, a second one does not.

use crate::serve::state::State;
use anyhow::{Result, bail};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often it is looked whether all is done.
const PULSE: Duration = Duration::from_millis(20);

/// How long clients have to read the error that ends their requests.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT, or Ctrl-C where there are none.
pub(crate) struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on signals no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self {
                term: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// Waits for the first signal, then for the requests that run.
///
/// # Errors
/// When a second signal cut them off.
pub(crate) async fn wait(mut signals: Signals, state: &State, patience: Duration) -> Result<()> {
    signals.next().await;
    tracing::info!("draining: new requests are refused, running ones go on");
    state.drain();
    tokio::select! {
        () = signals.next() => {
            state.api.engine.abort();
            idle(state, Instant::now() + LAST_WORDS).await;
            bail!("a second signal ended the requests that ran");
        }
        done = idle(state, Instant::now() + patience) => {
            if done {
                tracing::info!("drained");
            } else {
                tracing::warn!("--drain-timeout is over: what still runs is ended");
                state.api.engine.abort();
                idle(state, Instant::now() + LAST_WORDS).await;
            }
        }
    }
    Ok(())
}

/// Waits until every answer has been sent. Returns whether it was before the deadline.
async fn idle(state: &State, deadline: Instant) -> bool {
    while !state.is_idle() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(PULSE).await;
    }
    true
}
