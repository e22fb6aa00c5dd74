//! `kiln serve`: a model behind OpenAI's API, until it is told to end.

mod auth;
mod body;
pub(crate) mod config_file;
mod docs;
mod handlers;
mod listen;
mod options;
#[cfg(feature = "otlp")]
mod otlp;
mod router;
mod shutdown;
mod stall;
mod state;
mod trace;

pub(crate) use options::{MediaArgs, ServeArgs};
pub(crate) use state::Shared;

use crate::builtin;
use crate::fetch::Fetcher;
use crate::load::{checkpoint, load, on_the_hub};
use crate::openai::Api;
use anyhow::{Context, Result};
use kiln_engine::Engine;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Loads the model, listens, and serves until a signal ends it.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let log = trace::log(&args.server)?;
    let model = args
        .model_dir
        .as_deref()
        .unwrap_or(Path::new(builtin::NAME));
    let keys = auth::ApiKeys::new(args.server.api_key.clone())?;
    let options = args.engine()?;
    let loaded = load(&checkpoint(model)?, &options.model)?;
    let engine = Engine::start(loaded, &options)?;
    let names = match args.server.served_model_name.as_slice() {
        [] => vec![name_of(model)],
        names => names.to_vec(),
    };
    let profile = engine.profile();
    tracing::info!(
        names = names.join(","),
        context = profile.max_model_len,
        kv_tokens = profile.kv_tokens(),
        "the model is loaded"
    );
    let fetcher = Fetcher::new(args.media.fetch());
    let api = Api::new(engine, fetcher, names, args.server.tool_call_parser)?;
    let server = &args.server;
    let state = Arc::new(state::State::new(
        api,
        keys,
        server.max_body_bytes,
        server.body_timeout,
    ));
    let router = router::router(state.clone(), &server.cors_origin)?;
    let limits = listen::Limits {
        connections: server.max_connections,
        header_bytes: server.max_header_bytes.max(8 << 10),
        header_timeout: server.header_timeout,
        write_timeout: server.write_timeout,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The rest computes.
        .worker_threads(2)
        .thread_name("kiln-http")
        .enable_all()
        .build()?;
    let drained = runtime.block_on(async {
        let signals = shutdown::Signals::listen()?;
        let listener = TcpListener::bind((server.host.as_str(), server.port))
            .await
            .with_context(|| format!("can't listen on {}:{}", server.host, server.port))?;
        let address = listener.local_addr()?;
        announce(&state.api.names[0], &address.to_string());
        let (close, closing) = watch::channel(false);
        tokio::spawn(listen::accept(listener, router, limits, closing));
        let drained = shutdown::wait(signals, &state, server.drain_timeout).await;
        let _ = close.send(true);
        drained
    });
    // What still waits for a media server or a lookup is nobody's any more.
    runtime.shutdown_timeout(Duration::from_millis(100));
    log.end();
    drained
}

/// The line that programs which start a server wait for, and the one for people.
fn announce(model: &str, address: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever closed our stdout can do without.
    let _ = writeln!(out, "Serving {model} on http://{address}");
    let _ = out.flush();
}

/// What a model is called that was given no name: as on the Hugging Face Hub, or the last part of
/// its folder's path.
pub(crate) fn name_of(model: &Path) -> String {
    if let Some(id) = on_the_hub(model) {
        return id.name().to_owned();
    }
    let whole = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    whole
        .file_name()
        .unwrap_or(model.as_os_str())
        .to_string_lossy()
        .into_owned()
}
