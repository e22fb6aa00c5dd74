//! `cargo xtask soak`: the release binary under clients of every manner for as long as one likes, and
//! then: was every answer the right one, is everything given back, has memory stopped growing.
//!
//! Answers are compared with the first of their kind: a request alone, beside others, streamed or
//! whole, from a slow client or a fast one has the same answer to the byte. Pictures that nobody
//! sent before come in all the time, so that caches fill and evict.

mod clients;
mod http;
mod picture;
mod report;
mod server;

use anyhow::{Context, Result, bail};
use clients::Work;
use report::Report;
use server::Server;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long, and what is too much.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the clients go on.
    #[arg(long, default_value_t = 20.0, value_name = "N")]
    minutes: f64,
    /// Clients of each kind at a time.
    #[arg(long, default_value_t = 3, value_name = "N")]
    clients: usize,
    /// MiB that the process may grow over the second half, and beyond 2% of it.
    #[arg(long, default_value_t = 16.0, value_name = "MIB")]
    growth: f64,
    /// The binary [default: target/release/kiln, built first].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// More flags of `kiln serve`.
    #[arg(last = true)]
    serve: Vec<String>,
}

/// Between two looks at the server.
const LOOK: Duration = Duration::from_secs(1);
/// What the server may take to be idle when nobody asks any more.
const SETTLE: Duration = Duration::from_secs(20);

/// Runs it, prints the table, and fails when anything was not as it must be.
///
/// # Errors
/// When the server can't be started, or something was not as it must be.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    if !(args.minutes > 0.0 && args.minutes < 1e5) || args.clients == 0 {
        bail!("--minutes and --clients must be above 0");
    }
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            let mut build = std::process::Command::new(crate::cargo());
            build.args(["build", "--release", "--quiet", "--locked", "--workspace"]);
            crate::succeed(&mut build)?;
            root.join("target/release/kiln")
        }
    };
    let mut server = Server::start(&binary, &args.serve)?;
    let work = Work::new(root, server.address())?;
    let idle = server.figures().context("reading /metrics at the start")?;
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(args.minutes * 60.0);
    let mut report = Report::new(idle);
    std::thread::scope(|scope| {
        for client in work.clients(args.clients) {
            scope.spawn(move || client.run(until));
        }
        while Instant::now() < until && server.is_running() {
            report.look(began.elapsed(), server.memory(), server.figures());
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        // Clients of a server that is gone need not wait for the end.
        if !server.is_running() {
            work.stop();
        }
    });
    let settled = Instant::now() + SETTLE;
    loop {
        let now = server.figures();
        let is_idle = now.as_ref().is_ok_and(|figures| figures.is_idle());
        if is_idle || Instant::now() > settled {
            report.settled(now);
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    work.ask_all_again();
    report.ended(server.end());
    let faults = report.print(&work.tally(), args.growth);
    if faults > 0 {
        bail!("{faults} things were not as they must be");
    }
    Ok(())
}
