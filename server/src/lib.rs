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

mod builtin;
mod cli;
mod commands;
mod inspect;
mod linked;
mod load;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Runs the command that the process's arguments name. Exit codes: 0; 1 for a failure; 2 for what
/// the caller can mend.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Run(args) => commands::run(args),
        Command::Models(args) => commands::models(args),
        Command::Inspect(args) => commands::inspect(args),
        Command::Profile(args) => commands::profile(args),
        Command::Trace(args) => commands::trace(args),
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
