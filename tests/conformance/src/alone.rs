//! A test in a process of its own: this binary is started again for that one test.

use std::process::Command;

/// Names the test that the process was started for.
const VARIABLE: &str = "KILN_CONFORMANCE_ALONE";
/// Without this line nothing ran: no test has the name.
const RAN: &str = "kiln-conformance: the test ran alone";

/// Runs `work` in a process of its own, where nothing else allocates meanwhile, with one thread in
/// rayon's pool.
///
/// `test`: the full path of the test that makes this call, its crate included
/// (`concat!(module_path!(), "::", "name")`).
///
/// # Panics
/// When `work` does, with all that it wrote; when the test's binary can't be started again, or has
/// no test of that name.
pub fn alone(test: &str, work: impl FnOnce()) {
    let name = test.split_once("::").map_or(test, |(_, name)| name);
    if std::env::var_os(VARIABLE).is_some_and(|value| value == name) {
        work();
        println!("\n{RAN}");
        return;
    }
    let binary = std::env::current_exe().unwrap_or_else(|error| panic!("this binary: {error}"));
    let output = Command::new(&binary)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        // How many threads hold their buffers at once is chance.
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(
        output.status.success(),
        "{name}, in a process of its own: {}\n{out}{err}",
        output.status
    );
    assert!(
        out.contains(RAN),
        "there is no test `{name}` in this binary: give `alone` the path of the test that calls it"
    );
}
