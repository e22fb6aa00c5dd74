//! The engine as a program holds it: load a checkpoint, send requests, read events.

use crate::SamplingParams;
use crate::executor::Executor;
use crate::loaded::{LoadedModel, ModelOptions};
use crate::pipeline::{InputPipeline, Prepared};
use crate::profile::{CacheOptions, MemoryProfile, profile};
use crate::request::{Generation, Request};
use crate::sequence::Admitted;
use crate::stats::{EngineStats, Stats};
use crate::worker::Worker;
use crate::{BlockAllocator, Checkpoint, Scheduler, SchedulerConfig};
use kiln_registry::{Error, Registry, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// How to run a model.
#[derive(Clone)]
pub struct EngineOptions {
    /// How to load the checkpoint.
    pub model: ModelOptions,
    /// What bounds a step and the cache.
    pub cache: CacheOptions,
    /// Requests that may wait, those in preparation included.
    pub max_queue: usize,
    /// Whether the memory of each step is counted, for [`EngineStats::largest_step_bytes`]. The
    /// whole process is counted, and counted anew from each step on: for a program that has one
    /// engine and does nothing else meanwhile.
    pub measure_steps: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            model: ModelOptions::default(),
            cache: CacheOptions::default(),
            max_queue: 256,
            measure_steps: false,
        }
    }
}

/// A running model. Requests may come from any thread; dropping the engine lets the accepted ones
/// finish.
pub struct Engine {
    pipeline: Arc<InputPipeline>,
    profile: MemoryProfile,
    stats: Arc<Stats>,
    max_queue: u64,
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

    /// Profiles a loaded model, sizes its cache, and starts the thread that owns it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that leave nothing to run; what the model answers to its
    /// own dummy data.
    pub fn start(loaded: LoadedModel, options: &EngineOptions) -> Result<Self> {
        let (pipeline, executor, profile) = loaded.profiled(&options.cache)?;
        let scheduler = Scheduler::new(
            SchedulerConfig {
                max_batched_tokens: options.cache.max_batched_tokens,
                max_num_seqs: options.cache.max_num_seqs,
                max_queue: options.max_queue,
            },
            BlockAllocator::new(profile.kv_blocks, profile.block_size)?,
        )?;
        let stats = Arc::new(Stats::default());
        stats.observe(&scheduler);
        let (inbox, outbox) = unbounded_channel();
        let worker = Worker::new(
            executor,
            scheduler,
            pipeline.clone(),
            profile.max_model_len,
            stats.clone(),
            outbox,
            options.measure_steps,
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
            inbox: Some(inbox),
            worker: Some(worker),
        })
    }

    /// Takes a request. It is prepared on the media pool; its events, errors included, come through
    /// the result. Dropping the result cancels it within one step.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many wait.
    pub fn generate(&self, request: Request) -> Result<Generation> {
        let inbox = self.inbox()?;
        let (events, receiver) = unbounded_channel();
        self.stats.preparing.fetch_add(1, Relaxed);
        let (pipeline, stats) = (self.pipeline.clone(), self.stats.clone());
        self.pipeline.pool.spawn(move || {
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
                        events: events.clone(),
                    };
                    match inbox.send(vec![admitted]) {
                        Ok(()) => return,
                        Err(_) => Error::internal("the engine has stopped"),
                    }
                }
                Err(error) => error,
            };
            stats.preparing.fetch_sub(1, Relaxed);
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
        let inbox = self.inbox()?;
        let count = requests.len() as u64;
        let (admitted, generations): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .map(|(prepared, sampling)| {
                let (events, receiver) = unbounded_channel();
                let admitted = Admitted {
                    prepared,
                    sampling,
                    events,
                };
                (admitted, Generation::new(receiver))
            })
            .unzip();
        self.stats.preparing.fetch_add(count, Relaxed);
        inbox.send(admitted).map_err(|_| {
            self.stats.preparing.fetch_sub(count, Relaxed);
            Error::internal("the engine has stopped")
        })?;
        Ok(generations)
    }

    /// The way in, while not too many wait.
    fn inbox(&self) -> Result<UnboundedSender<Vec<Admitted>>> {
        let waiting = self.stats.waiting.load(Relaxed) + self.stats.preparing.load(Relaxed);
        if waiting >= self.max_queue {
            return Err(Error::Overloaded(format!(
                "{waiting} requests are waiting already: try again later"
            )));
        }
        self.inbox
            .clone()
            .ok_or_else(|| Error::internal("the engine has stopped"))
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
    /// Profiles the model without starting it.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn profile(self, options: &CacheOptions) -> Result<MemoryProfile> {
        Ok(self.profiled(options)?.2)
    }

    fn profiled(
        self,
        options: &CacheOptions,
    ) -> Result<(Arc<InputPipeline>, Executor, MemoryProfile)> {
        let mut executor = Executor::new(self.model, self.device, 1, options.block_size.max(1));
        let profile = profile(&mut executor, &self.pipeline, options)?;
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
