//! ARCHITECTURE.md's arrows: who may depend on whom, by folder.

use super::Fault;
use super::metadata::{Dependency, Member};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use toml_edit::DocumentMut;

/// A place in the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Floor {
    Registry,
    /// Pictures: what other modalities are made of.
    Picture,
    Modality,
    Parts,
    Model,
    Engine,
    Server,
    /// `xtask` and what it holds that is no program on the engine.
    Tools,
    /// A program on the engine among the tools.
    Program,
    Tests,
}

impl Floor {
    fn of(folder: &str) -> Option<Self> {
        let parts: Vec<_> = folder.split('/').collect();
        Some(match parts[..] {
            ["registry"] => Self::Registry,
            ["modalities", "image"] => Self::Picture,
            ["modalities", _] => Self::Modality,
            ["models", "nn"] => Self::Parts,
            ["models", _] => Self::Model,
            ["engine"] => Self::Engine,
            ["server"] => Self::Server,
            ["xtask", "demo-eval" | "quality"] => Self::Program,
            ["xtask"] | ["xtask", _] => Self::Tools,
            ["tests"] | ["tests", _] => Self::Tests,
            _ => return None,
        })
    }

    /// What this floor may stand on, and the rule in words.
    fn below(self) -> (&'static [Self], &'static str) {
        use Floor::{
            Engine, Modality, Model, Parts, Picture, Program, Registry, Server, Tests, Tools,
        };
        match self {
            Registry => (&[], "the registry depends on no member"),
            Picture => (&[Registry], "pictures depend on the registry alone"),
            Modality => (
                &[Registry, Picture],
                "a modality depends on the registry, and on pictures, which films are made of",
            ),
            Parts => (&[Registry], "models/nn depends on the registry alone"),
            Model => (
                &[Registry, Picture, Modality, Parts],
                "a model depends on registry, modalities and models/nn: never on the engine, the \
                 server or another model",
            ),
            Engine => (
                &[Registry],
                "the engine depends on the registry alone: it never names a model or a modality",
            ),
            Server => (
                &[Registry, Engine, Parts, Model, Picture, Modality],
                "the server depends on registry, engine, models and modalities",
            ),
            Tools => (
                &[],
                "xtask depends on no member, so that it builds in seconds",
            ),
            Program => (
                &[Registry, Engine, Model, Picture, Modality, Tools],
                "a program on the engine depends on what the server may, and on the tools",
            ),
            Tests => (
                &[
                    Registry, Picture, Modality, Parts, Model, Engine, Server, Tools, Program,
                    Tests,
                ],
                "tests may depend on anything",
            ),
        }
    }

    /// Whether the arrow is allowed in this kind of table.
    fn may(self, below: Self, dependency: &Dependency) -> bool {
        let dev = dependency.kind.as_deref() == Some("dev");
        // A model's own test runs it through the engine; the kits of tests/ are for everyone.
        self.below().0.contains(&below)
            || dev && below == Self::Tests && self != Self::Registry
            || dev && self == Self::Model && below == Self::Engine
    }
}

/// Every arrow among members that no rule allows.
pub(crate) fn check(members: &[Member]) -> Vec<Fault> {
    let mut faults = vec![];
    for member in members {
        let manifest = format!("{}/Cargo.toml", member.folder);
        let Some(floor) = Floor::of(&member.folder) else {
            faults.push(Fault::new(
                manifest,
                format!("{} stands in a folder that no rule knows", member.name),
                "move it under modalities/, models/, xtask/ or tests/, or give its folder a rule in \
                 xtask/src/check/arrows.rs and ARCHITECTURE.md",
            ));
            continue;
        };
        for dependency in &member.dependencies {
            let target = members.iter().find(|m| m.name == dependency.name);
            let Some(target) = target.filter(|m| m.name != member.name) else {
                continue;
            };
            let allowed = Floor::of(&target.folder).is_none_or(|b| floor.may(b, dependency));
            if !allowed {
                faults.push(Fault::new(
                    &manifest,
                    format!(
                        "{} depends on {} ({} on {}), but {}",
                        member.name,
                        target.name,
                        member.folder,
                        target.folder,
                        floor.below().1
                    ),
                    format!(
                        "take {} out, or move what is needed to a crate below both",
                        target.name
                    ),
                ));
            }
        }
    }
    faults
}

/// Stand-ins for published crates depend on no member; they are no members themselves.
///
/// # Errors
/// When a manifest can't be read.
pub(crate) fn check_vendor(root: &Path, members: &[Member]) -> Result<Vec<Fault>> {
    let mut faults = vec![];
    let Ok(listed) = fs::read_dir(root.join("vendor")) else {
        return Ok(faults);
    };
    for entry in listed {
        let folder = entry?.path();
        let manifest = folder.join("Cargo.toml");
        if manifest.is_file() {
            let at = super::metadata::relative(root, &manifest);
            let text = fs::read_to_string(&manifest).with_context(|| at.clone())?;
            faults.extend(vendored(&at, &text, members)?);
        }
    }
    Ok(faults)
}

fn vendored(at: &str, manifest: &str, members: &[Member]) -> Result<Vec<Fault>> {
    let manifest: DocumentMut = manifest.parse().with_context(|| at.to_owned())?;
    let tables = ["dependencies", "build-dependencies", "dev-dependencies"];
    let names = tables
        .iter()
        .filter_map(|table| manifest.get(table)?.as_table_like())
        .flat_map(|table| table.iter().map(|(name, _)| name));
    let members = names.filter(|name| members.iter().any(|m| m.name == *name));
    let fault = |name| {
        Fault::new(
            at,
            format!("depends on {name}, but a stand-in under vendor/ depends on no member"),
            format!("take {name} out"),
        )
    };
    Ok(members.map(fault).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, folder: &str, dependencies: &[(&str, Option<&str>)]) -> Member {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        };
        Member {
            name: name.to_owned(),
            folder: folder.to_owned(),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    fn house(from: &str, folder: &str, on: &[(&str, Option<&str>)]) -> Vec<Fault> {
        let mut members: Vec<_> = [
            ("kiln-registry", "registry"),
            ("kiln-image", "modalities/image"),
            ("kiln-audio", "modalities/audio"),
            ("kiln-nn", "models/nn"),
            ("kiln-llava", "models/llava"),
            ("kiln-engine", "engine"),
            ("kiln", "server"),
            ("xtask", "xtask"),
            ("kiln-demo", "xtask/demo"),
            ("kiln-tests", "tests"),
            ("kiln-conformance", "tests/conformance"),
        ]
        .iter()
        .filter(|(name, _)| *name != from)
        .map(|(name, folder)| member(name, folder, &[]))
        .collect();
        members.push(member(from, folder, on));
        check(&members)
    }

    #[test]
    fn every_wrong_arrow_names_both_and_the_rule() {
        for (from, folder, on) in [
            ("kiln-registry", "registry", "kiln-engine"),
            ("kiln-image", "modalities/image", "kiln-audio"),
            ("kiln-video", "modalities/video", "kiln-audio"),
            ("kiln-video", "modalities/video", "kiln-nn"),
            ("kiln-nn", "models/nn", "kiln-image"),
            ("kiln-other", "models/other", "kiln-llava"),
            ("kiln-other", "models/other", "kiln-engine"),
            ("kiln-engine", "engine", "kiln-llava"),
            ("kiln-engine", "engine", "kiln-image"),
            ("kiln", "server", "kiln-demo"),
            ("kiln", "server", "kiln-conformance"),
            ("xtask", "xtask", "kiln-registry"),
            ("kiln-demo", "xtask/demo", "kiln-image"),
            ("kiln-demo-eval", "xtask/demo-eval", "kiln"),
        ] {
            for kind in [None, Some("build")] {
                let faults = house(from, folder, &[(on, kind), ("anyhow", None)]);
                let [fault] = &faults[..] else {
                    panic!("{from} on {on}: {faults:?}");
                };
                assert_eq!(fault.file, format!("{folder}/Cargo.toml"));
                let both = format!("{from} depends on {on} (");
                assert!(fault.what.starts_with(&both), "{fault}");
            }
        }
        let fault = &house("kiln-engine", "engine", &[("kiln-llava", Some("dev"))])[0];
        assert!(fault.what.contains("never names a model"), "{fault}");
    }

    #[test]
    fn the_arrows_of_the_house_pass() {
        for (from, folder, on, kind) in [
            ("kiln-image", "modalities/image", "kiln-registry", None),
            ("kiln-video", "modalities/video", "kiln-image", None),
            ("kiln-other", "models/other", "kiln-image", None),
            ("kiln-other", "models/other", "kiln-nn", None),
            ("kiln-other", "models/other", "kiln-engine", Some("dev")),
            (
                "kiln-other",
                "models/other",
                "kiln-conformance",
                Some("dev"),
            ),
            ("kiln", "server", "kiln-llava", None),
            ("kiln-demo-eval", "xtask/demo-eval", "kiln-demo", None),
            ("kiln-tests", "tests", "kiln-llava", Some("dev")),
            ("kiln-conformance", "tests/conformance", "kiln-engine", None),
            ("kiln-engine", "engine", "kiln-engine", Some("dev")),
        ] {
            assert_eq!(house(from, folder, &[(on, kind)]), [], "{from} on {on}");
        }
    }

    #[test]
    fn a_folder_without_a_rule_is_a_fault() {
        let faults = house("kiln-plugins", "plugins", &[]);
        assert!(faults[0].what.contains("no rule knows"), "{faults:?}");
    }

    #[test]
    fn a_stand_in_on_a_member_is_a_fault() {
        let members = [member("kiln-nn", "models/nn", &[])];
        let of = |table: &str| format!("[package]\nname = \"x\"\n[{table}]\nkiln-nn = \"1\"\n");
        for table in ["dependencies", "build-dependencies"] {
            let faults = vendored("vendor/x/Cargo.toml", &of(table), &members).unwrap();
            assert!(faults[0].what.contains("kiln-nn"), "{faults:?}");
        }
        let none = vendored("x", "[dependencies]\nserde = \"1\"\n", &members);
        assert_eq!(none.unwrap(), []);
    }
}
