//! The `kiln` binary with the models that its features link. All of it is in the library, so that a
//! binary of three lines that links a model of its own is as complete as this one.

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln::main()
}
