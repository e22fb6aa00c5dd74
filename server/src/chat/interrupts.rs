//! Ctrl-C: stops the answer that is under way; where there is none, the program.

use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What a shell takes for "ended by an interrupt".
const INTERRUPTED: i32 = 130;

/// Listens to interrupts from its making on.
pub(super) struct Interrupts {
    runtime: Runtime,
    answering: Arc<AtomicBool>,
    pressed: watch::Receiver<()>,
}

impl Interrupts {
    pub(super) fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let answering = Arc::new(AtomicBool::new(false));
        let (press, pressed) = watch::channel(());
        let shared = answering.clone();
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if !shared.load(SeqCst) {
                    std::process::exit(INTERRUPTED);
                }
                press.send_replace(());
            }
        });
        Ok(Self {
            runtime,
            answering,
            pressed,
        })
    }

    /// Runs to the end, or to an interrupt: then `None`.
    pub(super) fn guard<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut pressed = self.pressed.clone();
        pressed.mark_unchanged();
        self.answering.store(true, SeqCst);
        let outcome = self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = pressed.changed() => None,
                outcome = work => Some(outcome),
            }
        });
        self.answering.store(false, SeqCst);
        outcome
    }
}
