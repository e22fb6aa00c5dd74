//! The encoder's part of a step: which items its positions need, from the cache where they are there,
//! from the encoder where not. Beside sequences that run the encoder has a part of the step's time, so
//! that their next tokens do not wait for a whole tower; the prompts that need its rows do.

use super::encoding::{Encoding, Need};
use super::{Worker, is_stream};
use crate::Chunk;
use burn::tensor::Tensor;
use kiln_registry::{Error, Result};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

impl Worker {
    /// Gives requests the rows that the chunks need, as far as the encoder comes; a request whose item
    /// does not encode fails.
    pub(super) fn encode_items(&mut self, chunks: &[Chunk]) {
        let prompts = chunks.iter().filter(|chunk| !is_stream(chunk));
        let prompt_tokens = prompts.map(|chunk| chunk.len).sum();
        let streams = chunks.iter().any(is_stream);
        let seconds = streams.then(|| self.allowance.encoder(prompt_tokens));
        let seconds = seconds.filter(|seconds| seconds.is_finite());
        loop {
            let lacking = self.lacking(chunks);
            if self.encoding.is_none() {
                if lacking.is_empty() {
                    return;
                }
                self.begin(lacking);
            }
            if !self.advance(seconds) {
                return;
            }
        }
    }

    fn begin(&mut self, needs: Vec<Need>) {
        // Rows of those that it held back before are the cache's from now on, or the bound on rows
        // that are held would grow with every call.
        self.held_back.clear();
        let requests = &self.requests;
        let item = |(key, at, _): &Need| Some(requests.get(key)?.item(*at).ok()?.0);
        let most = self.profile.encoder_batch;
        self.encoding = Some(Encoding::new(needs, item, &self.executor, most));
    }

    /// Runs what is in the encoder: at least a piece and for about so many seconds, or to its end.
    /// Returns whether it came to it.
    fn advance(&mut self, seconds: Option<f64>) -> bool {
        let Some(mut encoding) = self.encoding.take() else {
            return true;
        };
        let requests = &self.requests;
        encoding
            .needs
            .retain(|(key, ..)| requests.contains_key(key));
        if encoding.needs.is_empty() {
            return true; // Nobody waits for it any more.
        }
        let began = Instant::now();
        while !encoding.is_done() {
            let Some(seconds) = seconds else {
                encoding.advance_whole(&self.executor);
                continue;
            };
            let piece = Instant::now();
            encoding.advance(&self.executor);
            // The next piece takes as long as this one.
            let next = began.elapsed() + piece.elapsed();
            if next.as_secs_f64() > seconds && !encoding.is_done() {
                self.encoding = Some(encoding);
                return false;
            }
        }
        self.give_all(encoding);
        true
    }

    fn give_all(&mut self, encoding: Encoding) {
        let (needs, made) = encoding.into_parts();
        for (content, result) in &made {
            if let Ok(rows) = result {
                self.stats.encoded_items.fetch_add(1, Relaxed);
                self.encoder_cache.insert(*content, rows);
            }
        }
        for (key, at, content) in needs {
            let missing = || Err(Error::internal("an item was not encoded"));
            let rows = made.get(&content).cloned().unwrap_or_else(missing);
            match rows.and_then(|rows| self.give(key, at, rows, true)) {
                // Until its chunk runs, in this step or the next.
                Ok(()) => drop(self.held_back.insert(key)),
                Err(error) => self.fail(key, error),
            }
        }
    }

    fn give(&mut self, key: u64, at: usize, rows: Tensor<2>, encoded: bool) -> Result<()> {
        let Some(running) = self.requests.get_mut(&key) else {
            return Ok(()); // Another of its items failed.
        };
        // Rows from the cache, too: this range may count others than the one they were made for.
        self.executor.check_rows(&rows, running.item(at)?.1)?;
        running.give_rows(at, rows, encoded);
        Ok(())
    }

    /// The ranges that the chunks need and whose rows are neither there nor in the cache. What is in
    /// the cache is given, before anything new makes it go.
    fn lacking(&mut self, chunks: &[Chunk]) -> Vec<Need> {
        let mut lacking: Vec<Need> = vec![];
        for (key, at, content) in self.needs(chunks) {
            self.stats.encoder_cache_queries.fetch_add(1, Relaxed);
            let Some(rows) = self.encoder_cache.get(&content) else {
                lacking.push((key, at, content));
                continue;
            };
            self.stats.encoder_cache_hits.fetch_add(1, Relaxed);
            if let Err(error) = self.give(key, at, rows, false) {
                self.fail(key, error);
            }
        }
        lacking
    }

    /// The ranges that lack rows which the chunks need.
    fn needs(&self, chunks: &[Chunk]) -> Vec<Need> {
        let mut needs: Vec<Need> = vec![];
        for chunk in chunks {
            let key = self.owner.get(&chunk.id);
            let Some((key, running)) = key.and_then(|key| Some((*key, self.requests.get(key)?)))
            else {
                continue;
            };
            for at in running.ranges_at(&(chunk.start..chunk.start + chunk.len)) {
                let known =
                    running.has_rows(at) || needs.iter().any(|(k, a, _)| (*k, *a) == (key, at));
                if let (false, Ok((item, _))) = (known, running.item(at)) {
                    needs.push((key, at, item.hash));
                }
            }
        }
        needs
    }
}
