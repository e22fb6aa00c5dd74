//! A copy of the tree to work in, with a target folder of its own that begins with what this one has
//! compiled of other people's crates. Cargo decides what of it is fresh: at worst it compiles more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders that are no part of the tree.
const APART: [&str; 3] = ["target", ".git", "__pycache__"];
/// Packages of the tree: those are compiled anew, since they know where they were compiled.
const OWN: [&str; 2] = ["kiln", "xtask"];

pub(crate) struct Scratch {
    tree: PathBuf,
    target: PathBuf,
}

impl Scratch {
    /// Brings the copy up to date.
    pub(crate) fn new(root: &Path) -> Self {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tmp.join("newcomer");
        let scratch = Self {
            tree: folder.join("tree"),
            target: folder.join("target"),
        };
        let wanted = files(root);
        for (file, content) in &wanted {
            let to = scratch.tree.join(file);
            // What is there already keeps its time, and Cargo what it compiled from it.
            if fs::read(&to).ok().as_ref() != Some(content) {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(&to, content).unwrap();
            }
        }
        for file in files(&scratch.tree).keys() {
            if !wanted.contains_key(file) {
                let mut gone = scratch.tree.join(file);
                fs::remove_file(&gone).unwrap();
                // And the folders that are empty without it.
                while gone.pop() && fs::remove_dir(&gone).is_ok() {}
            }
        }
        // What an earlier run left: the guide writes into `target`.
        match fs::remove_dir_all(scratch.tree.join("target")) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        scratch.begin_with(&tmp.parent().unwrap().join("release"));
        scratch
    }

    /// The files of the copy, without what was built.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.tree)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.tree.join(name)
    }

    /// Runs a script in the copy; all that it said, or, when it failed, that as the error.
    pub(crate) fn run(&self, script: &str) -> Result<String, String> {
        println!("{script}");
        let mut bash = Command::new("bash");
        // What Cargo says of this test to it is not about the copy.
        let inherited = std::env::vars_os().map(|(key, _)| key);
        for key in inherited.filter(|key| key.to_string_lossy().starts_with("CARGO_PKG_")) {
            bash.env_remove(key);
        }
        let output = bash
            .args(["-euc", script])
            .current_dir(&self.tree)
            .env_remove("CARGO_MANIFEST_DIR")
            .env_remove("CARGO_MANIFEST_PATH")
            .env("CARGO_TARGET_DIR", &self.target)
            // Whatever the tree needs was fetched to build this test.
            .env("CARGO_NET_OFFLINE", "true")
            .output()
            .map_err(|error| format!("bash: {error}"))?;
        let [out, err] =
            [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        let said = out + &err;
        if output.status.success() {
            Ok(said)
        } else {
            Err(format!("{script}\n{}\n{said}", output.status))
        }
    }

    /// Copies what was compiled of packages outside the tree, where it is not there yet.
    fn begin_with(&self, compiled: &Path) {
        let to = self.target.join("release");
        for part in [".fingerprint", "build"] {
            for entry in entries(&compiled.join(part)) {
                let name = entry.file_name().unwrap().to_string_lossy().into_owned();
                if !OWN.iter().any(|own| name.starts_with(own)) {
                    copy(&entry, &to.join(part).join(name));
                }
            }
        }
        for entry in entries(&compiled.join("deps")) {
            let name = entry.file_name().unwrap().to_string_lossy().into_owned();
            let own = OWN
                .iter()
                .any(|own| name.trim_start_matches("lib").starts_with(own));
            let library = [".rlib", ".rmeta", ".so", ".dylib", ".dll", ".d"];
            if !own && library.iter().any(|end| name.ends_with(end)) {
                copy(&entry, &to.join("deps").join(name));
            }
        }
    }
}

/// The files of a tree by their paths in it.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let name = path.file_name().unwrap().to_string_lossy();
            if APART.contains(&&*name) {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().to_owned(), content);
            }
        }
    }
    found
}

/// What is in a folder; nothing where there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).into_iter().flatten();
    listed.map(|entry| entry.unwrap().path()).collect()
}

/// A file or a folder, with its times, which Cargo compares.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in entries(from) {
            copy(&entry, &to.join(entry.file_name().unwrap()));
        }
    } else if !to.exists() {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
        let modified = fs::metadata(from).unwrap().modified().unwrap();
        File::options()
            .write(true)
            .open(to)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }
}
