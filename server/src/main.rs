//! The `kiln` binary: the engine with the models that its features link, on the command line.

mod builtin;
mod cli;
mod commands;
mod inspect;
mod linked;
mod load;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
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
