//! The checks, and which of them build on others.

mod batch;
mod chunks;
mod identity;
mod law;
mod maximum;
pub(crate) mod memory;
mod parity;
mod placeholders;
mod property;
mod registration;
mod repeat;
mod weights;
mod whole;

use crate::fault::guard;
use crate::report::{Piece, Problem, Report};
use crate::subject::Subject;

/// Why a check did not run.
type Ran = Result<(), String>;

struct Check {
    name: &'static str,
    /// Checks whose failure would show here as well.
    needs: &'static [&'static str],
    run: fn(&Subject, &mut Vec<Problem>) -> Ran,
}

const CHECKS: &[Check] = &[
    Check {
        name: "registration",
        needs: &[],
        run: registration::check,
    },
    Check {
        name: "law",
        needs: &[],
        run: law::check,
    },
    Check {
        name: "maximum",
        needs: &["law"],
        run: maximum::check,
    },
    Check {
        name: "repeat",
        needs: &["law"],
        run: repeat::check,
    },
    Check {
        name: "identity",
        needs: &["law", "repeat"],
        run: identity::check,
    },
    Check {
        name: "placeholders",
        needs: &["law"],
        run: placeholders::check,
    },
    Check {
        name: "batch",
        needs: &["law", "repeat"],
        run: batch::check,
    },
    Check {
        name: "chunks",
        needs: &["law", "repeat", "batch"],
        run: chunks::check,
    },
    Check {
        name: "weights",
        needs: &["law", "repeat", "identity"],
        run: weights::check,
    },
    Check {
        name: "engine",
        needs: &[
            "registration",
            "law",
            "maximum",
            "repeat",
            "batch",
            "chunks",
        ],
        run: whole::check,
    },
    Check {
        name: "parity",
        needs: &["registration", "law", "repeat"],
        run: parity::check,
    },
];

/// Needs a process of its own, and is worth nothing where another one fails.
const MEMORY: &[Check] = &[Check {
    name: "memory",
    needs: &[],
    run: memory::check,
}];

/// Runs all checks whose ground holds.
pub(crate) fn run_all(subject: &Subject, report: &mut Report) {
    run(CHECKS, subject, report);
}

/// Runs the check that counts the memory of this process.
pub(crate) fn run_memory(subject: &Subject, report: &mut Report) {
    run(MEMORY, subject, report);
}

fn run(checks: &[Check], subject: &Subject, report: &mut Report) {
    for check in checks {
        if let Some(failed) = check.needs.iter().find(|needed| report.failed(needed)) {
            report.skip(check.name, format!("`{failed}` failed: mend that first"));
            continue;
        }
        let mut problems = vec![];
        match guard(|| Ok((check.run)(subject, &mut problems))) {
            Ok(Ok(())) => report.add(check.name, problems),
            Ok(Err(reason)) if problems.is_empty() => report.skip(check.name, reason),
            Ok(Err(_)) => report.add(check.name, problems),
            Err(panic) => {
                let mend = "no call of the contract may panic: return an error";
                problems.push(Problem::new(Piece::Engine, panic, mend));
                report.add(check.name, problems);
            }
        }
    }
}
