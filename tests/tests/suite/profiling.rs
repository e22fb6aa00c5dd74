//! Start-up profiling through the public engine: it measures, and the cache gets what is left.

use crate::runs::{options, start};
use crate::support::checkpoint;
use kiln_engine::Engine;
use kiln_registry::Error;

// Roomy: what other tests allocate meanwhile is measured, too.
const BUDGET: usize = 1 << 30;

#[test]
fn profiling_measures_and_stays_within_its_budget() {
    for name in ["llava-clip-llama", "llava-next-siglip-qwen2", "text-qwen2"] {
        let mut options = options();
        options.cache.kv_blocks = None;
        options.cache.memory = Some(BUDGET);
        let engine = start(&checkpoint(name), &options);
        let profile = engine.profile();
        let activations = profile.activation_bytes.expect("measured");
        assert!(activations > 0 && profile.weight_bytes > 0, "{profile:?}");
        assert!(profile.kv_blocks > 0, "{profile:?}");
        assert!(
            profile.weight_bytes + activations + profile.kv_bytes() <= BUDGET,
            "{profile:?}"
        );
        options.cache.memory = Some(1 << 10);
        let error = Engine::load(checkpoint(name), &options)
            .err()
            .expect("no room");
        assert!(matches!(error, Error::InvalidInput(_)), "{error:?}");
    }
}
