//! One request as the metrics see it: its events with their times, and its end, whatever it is.

use super::{Inner, Metrics};
use kiln_engine::{Event, FinishReason};
use kiln_registry::Result;
use std::time::Instant;

/// Follows a request. Dropped before its last event, it counts the request as aborted.
pub(crate) struct Recorder {
    metrics: Metrics,
    began: Instant,
    /// When each sequence had its last token.
    last: Vec<Option<Instant>>,
    reason: &'static str,
    over: bool,
}

impl Recorder {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            began: Instant::now(),
            last: Vec::new(),
            reason: "abort",
            over: false,
        }
    }

    /// The request was refused before it was queued: it is counted as rejected, not as ended.
    pub(crate) fn refused(&mut self) {
        self.over = true;
    }

    /// Takes an event at the time that it comes.
    pub(crate) fn observe(&mut self, event: &Result<Event>) {
        let inner = &self.metrics.0;
        let now = Instant::now();
        match event {
            Ok(Event::Accepted { .. }) => {}
            Ok(Event::Token { index, .. }) => {
                if self.last.len() <= *index {
                    self.last.resize(*index + 1, None);
                }
                if let Some(last) = self.last[*index].replace(now) {
                    Inner::seconds(&inner.inter_token, now - last);
                }
            }
            Ok(Event::Finished { reason, .. }) => {
                self.reason = match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                };
            }
            Ok(Event::Done { timing, .. }) => {
                self.over = true;
                Inner::seconds(&inner.time_to_first_token, timing.first_token);
                Inner::seconds(&inner.end_to_end, self.began.elapsed().max(timing.finished));
                let waited = timing.queued.saturating_sub(timing.prepared);
                Inner::seconds(&inner.queue, waited);
                Inner::seconds(&inner.preprocessing, timing.prepared);
                inner.success.with_label_values(&[self.reason]).inc();
            }
            Err(_) => {
                self.over = true;
                inner.success.with_label_values(&["error"]).inc();
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.over {
            self.metrics.0.success.with_label_values(&["abort"]).inc();
        }
    }
}
