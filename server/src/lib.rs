//! The whole of the `kiln` binary: the engine with the models that are linked, on the command line.
//!
//! A model outside Kiln's tree is served by a binary that links it; the features of this crate say
//! which of Kiln's own stand beside it. `cargo xtask new-model NAME --out-of-tree DIR` writes one.
//!
//! ```no_run
//! # mod kiln_shiny_vl {}
//! use kiln_shiny_vl as _; // a crate that is only a dependency is not linked
//!
//! fn main() -> std::process::ExitCode {
//!     kiln::main()
//! }
//! ```

mod batch;
mod bench;
mod builtin;
mod chat;
pub mod check;
mod cli;
mod commands;
mod fetch;
mod hub;
mod inspect;
mod linked;
mod load;
mod metrics;
mod openai;
mod page;
mod serve;

use cli::Command;
use std::process::ExitCode;

/// Runs the command that the process's arguments name. Exit codes: 0; 1 for a failure; 2 for what
/// the caller can mend.
pub fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("kiln: {error:#}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = set_threads(cli.threads) {
        eprintln!("kiln: {error:#}");
        return ExitCode::from(2);
    }
    hub::set_offline(cli.offline);
    let result = match &cli.command {
        Command::Run(args) => commands::run(args),
        Command::Chat(args) => chat::chat(args),
        Command::Models(args) => commands::models(args),
        Command::Inspect(args) => commands::inspect(args),
        Command::Profile(args) => commands::profile(args),
        Command::Trace(args) => commands::trace(args),
        Command::Bench(args) => commands::bench(args),
        Command::Batch(args) => batch::batch(args),
        Command::Serve(args) => serve::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln: {error:#}");
            ExitCode::from(if is_callers_fault(&error) { 2 } else { 1 })
        }
    }
}

/// One pool computes: kernels, and nothing beside them, so that there are never more threads than
/// asked for.
fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    anyhow::ensure!(threads > 0, "--threads is 0: at least one must compute");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    Ok(pool.build_global()?)
}

/// A reader that has enough (`kiln run | head`) is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn is_callers_fault(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<kiln_registry::Error>()
        .is_some_and(kiln_registry::Error::is_callers_fault)
}
