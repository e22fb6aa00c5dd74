//! The engine as a program holds it: load a checkpoint, send requests, read events.

use crate::SamplingParams;
use crate::event::Generation;
use crate::executor::Executor;
use crate::loaded::{LoadedModel, ModelOptions};
use crate::options::EngineOptions;
use crate::pipeline::{InputPipeline, Prepared};
use crate::profile::{CacheOptions, MemoryProfile, profile};
use crate::request::Request;
use crate::sequence::Admitted;
use crate::stats::{EngineStats, Held, Stats};
use crate::worker::{Shutdown, Worker};
use crate::{BlockAllocator, Checkpoint, Scheduler, SchedulerConfig};
use kiln_registry::{Error, Registry, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// A running model. Requests may come from any thread; dropping the engine lets the accepted ones
/// finish.
pub struct Engine {
    pipeline: Arc<InputPipeline>,
    profile: MemoryProfile,
    stats: Arc<Stats>,
    max_queue: u64,
    max_queue_tokens: u64,
    media_queue: u64,
    shutdown: Arc<Shutdown>,
    inbox: Option<UnboundedSender<Vec<Admitted>>>,
    worker: Option<JoinHandle<()>>,
}

impl Engine {
    /// Loads the checkpoint in a folder with whichever linked model claims it.
    ///
    /// # Errors
    /// As [`Engine::start`], and [`Registry::collect`].
    pub fn load(folder: impl AsRef<Path>, options: &EngineOptions) -> Result<Self> {
        let registry = Arc::new(Registry::collect()?);
        let checkpoint = Checkpoint::open(folder)?;
        let loaded = LoadedModel::load(registry, &checkpoint, &options.model, &|_, _| {})?;
        Self::start(loaded, options)
    }

    /// Profiles a loaded model, sizes its caches, and starts the thread that owns it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that leave nothing to run; what the model answers to its
    /// own dummy data.
    pub fn start(loaded: LoadedModel, options: &EngineOptions) -> Result<Self> {
        let (pipeline, executor, profile) = loaded.profiled(options)?;
        let scheduler = Scheduler::new(
            SchedulerConfig {
                max_batched_tokens: options.cache.max_batched_tokens,
                max_num_seqs: options.cache.max_num_seqs,
                max_queue: options.max_queue,
                max_queue_tokens: options.max_queue_tokens,
                max_encoder_tokens: options.encoder_tokens(),
                policy: options.policy,
            },
            BlockAllocator::new(profile.kv_blocks, profile.block_size)?,
        )?;
        let stats = pipeline.stats.clone();
        stats.observe(&scheduler);
        let shutdown = Arc::new(Shutdown::default());
        let (inbox, outbox) = unbounded_channel();
        let worker = Worker::new(
            executor,
            scheduler,
            pipeline.clone(),
            profile,
            options,
            shutdown.clone(),
            outbox,
        );
        let worker = std::thread::Builder::new()
            .name("kiln-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|e| Error::internal(format!("can't start the engine's thread: {e}")))?;
        Ok(Self {
            pipeline,
            profile,
            stats,
            max_queue: options.max_queue as u64,
            max_queue_tokens: options.max_queue_tokens as u64,
            media_queue: options.media_queue as u64,
            shutdown,
            inbox: Some(inbox),
            worker: Some(worker),
        })
    }

    /// Takes a request. It is prepared on the media pool; its events, errors included, come through
    /// the result. Dropping the result cancels it within one step.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many wait, or too many items are in preparation;
    /// [`Error::ShuttingDown`] after [`drain`](Self::drain).
    pub fn generate(&self, request: Request) -> Result<Generation> {
        let inbox = self.inbox(request.media.len() as u64)?;
        let (events, receiver) = unbounded_channel();
        let active = Held::new(&self.stats, |s| &s.active, 1);
        let waiting = [
            Held::new(&self.stats, |s| &s.preparing, 1),
            Held::new(
                &self.stats,
                |s| &s.preparing_items,
                request.media.len() as u64,
            ),
        ];
        let (pipeline, stats) = (self.pipeline.clone(), self.stats.clone());
        self.pipeline.pool.spawn(move || {
            if events.is_closed() {
                stats.cancelled.fetch_add(1, Relaxed);
                return;
            }
            // A panic in a decoder or a model crate's processor is this request's error alone.
            let prepared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pipeline.prepare(&request)
            }))
            .unwrap_or_else(|_| Err(Error::internal("preparing the request failed")));
            let failure = match prepared {
                Ok(prepared) => {
                    let admitted = Admitted {
                        prepared,
                        sampling: request.sampling,
                        priority: request.priority,
                        events: events.clone(),
                        arrival: request.arrival,
                        ready: Instant::now(),
                        active,
                        waiting: Some(waiting),
                    };
                    match inbox.send(vec![admitted]) {
                        Ok(()) => return,
                        Err(_) => Error::internal("the engine has stopped"),
                    }
                }
                Err(error) => error,
            };
            let counter = match failure.is_callers_fault() {
                true => &stats.rejected_invalid,
                false => &stats.failed,
            };
            counter.fetch_add(1, Relaxed);
            let _ = events.send(Err(failure));
        });
        Ok(Generation::new(receiver))
    }

    /// Takes what [`InputPipeline::prepare`] made of requests, all at once: nothing is left to the
    /// media pool, and none runs before all are there.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and [`Error::InvalidInput`] for sampling parameters out of
    /// range. Either all are taken or none.
    pub fn generate_prepared(
        &self,
        requests: Vec<(Prepared, SamplingParams)>,
    ) -> Result<Vec<Generation>> {
        for (_, sampling) in &requests {
            sampling.validate(self.pipeline.shape.vocab_size)?;
        }
        let inbox = self.inbox(0)?;
        let now = Instant::now();
        let (admitted, generations): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .map(|(prepared, sampling)| {
                let (events, receiver) = unbounded_channel();
                let waiting = [
                    Held::new(&self.stats, |s| &s.preparing, 1),
                    Held::new(&self.stats, |s| &s.preparing_items, 0),
                ];
                let admitted = Admitted {
                    prepared,
                    sampling,
                    priority: 0,
                    events,
                    arrival: now,
                    ready: now,
                    active: Held::new(&self.stats, |s| &s.active, 1),
                    waiting: Some(waiting),
                };
                (admitted, Generation::new(receiver))
            })
            .unzip();
        inbox
            .send(admitted)
            .map_err(|_| Error::internal("the engine has stopped"))?;
        Ok(generations)
    }

    /// The way in, while not too much waits.
    fn inbox(&self, items: u64) -> Result<UnboundedSender<Vec<Admitted>>> {
        let refuse = |counter: &AtomicU64, error: Error| {
            counter.fetch_add(1, Relaxed);
            Err(error)
        };
        let stats = &self.stats;
        if self.shutdown.draining.load(Relaxed) {
            return refuse(&stats.rejected_shutdown, Error::ShuttingDown);
        }
        let waiting = stats.waiting.load(Relaxed) + stats.preparing.load(Relaxed);
        if waiting >= self.max_queue {
            let what = format!("{waiting} requests are waiting already: try again later");
            return refuse(&stats.rejected_queue, Error::Overloaded(what));
        }
        let tokens = stats.waiting_tokens.load(Relaxed);
        if tokens >= self.max_queue_tokens {
            let what = format!("requests of {tokens} tokens are waiting already: try again later");
            return refuse(&stats.rejected_queue_tokens, Error::Overloaded(what));
        }
        let preparing = stats.preparing_items.load(Relaxed);
        if items > 0 && preparing > 0 && preparing + items > self.media_queue {
            let what = format!("{preparing} media items are in preparation: try again later");
            return refuse(&stats.rejected_media_queue, Error::Overloaded(what));
        }
        self.inbox
            .clone()
            .ok_or_else(|| Error::internal("the engine has stopped"))
    }

    /// Takes no more requests; those that were taken go on to their end.
    pub fn drain(&self) {
        self.shutdown.draining.store(true, Relaxed);
    }

    /// Takes no more requests, and ends those that were taken with [`Error::ShuttingDown`] within
    /// one step.
    pub fn abort(&self) {
        self.drain();
        self.shutdown.aborting.store(true, Relaxed);
    }

    /// Whether requests are refused since [`drain`](Self::drain) or [`abort`](Self::abort).
    pub fn is_draining(&self) -> bool {
        self.shutdown.draining.load(Relaxed)
    }

    /// Whether every request that was taken has ended.
    pub fn is_idle(&self) -> bool {
        self.stats.active.load(Relaxed) == 0
    }

    /// Whether the thread that owns the model is there.
    pub fn is_alive(&self) -> bool {
        self.worker.as_ref().is_some_and(|w| !w.is_finished())
    }

    /// Where the memory goes.
    pub fn profile(&self) -> &MemoryProfile {
        &self.profile
    }

    /// Counters.
    pub fn stats(&self) -> EngineStats {
        self.stats.read()
    }

    /// The input side: tokenizer, limits, registration.
    pub fn pipeline(&self) -> &Arc<InputPipeline> {
        &self.pipeline
    }
}

impl LoadedModel {
    /// Profiles the model without starting it, beside caches of the default sizes.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn profile(self, options: &CacheOptions) -> Result<MemoryProfile> {
        let options = EngineOptions {
            model: ModelOptions::default(),
            cache: *options,
            ..EngineOptions::default()
        };
        Ok(self.profiled(&options)?.2)
    }

    fn profiled(
        self,
        options: &EngineOptions,
    ) -> Result<(Arc<InputPipeline>, Executor, MemoryProfile)> {
        let block_size = options.cache.block_size.max(1);
        let mut executor = Executor::new(self.model, self.device, 1, block_size);
        let profile = profile(&mut executor, &self.pipeline, options)?;
        let budget = profile.processor_cache_bytes;
        self.pipeline.processor_cache.set_budget(budget);
        Ok((self.pipeline, executor, profile))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Without a sender the thread ends once its requests have.
        self.inbox = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
