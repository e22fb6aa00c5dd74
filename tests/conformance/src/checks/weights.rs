//! The checkpoint's own tensors, each made wrong in turn. A tensor that nothing depends on may be
//! missing; every other must be asked for by name, shape and type.

use super::Ran;
use crate::drive::Rows;
use crate::fault::{Fault, Of, guard};
use crate::report::{Piece, Problem};
use crate::subject::{Prepared, Subject};
use bytes::Bytes;
use kiln_engine::Checkpoint;
use kiln_registry::{CheckpointFiles, Error, MultiModalModel, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;

const MEND: &str = "ask kiln_nn::weights::Weights for every tensor by name and shape, without a \
                    default, and end with `finish`";

/// The checkpoint with one file in another version, and an index that agrees with it.
struct Altered<'a> {
    checkpoint: &'a Checkpoint,
    file: &'a str,
    bytes: Bytes,
    gone: Option<&'a str>,
}

impl CheckpointFiles for Altered<'_> {
    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        if name == self.file {
            return Ok(Some(self.bytes.clone()));
        }
        let read = self.checkpoint.read(name)?;
        let Some(gone) = self.gone.filter(|_| name.ends_with(".index.json")) else {
            return Ok(read);
        };
        let mut index: Value = match &read {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|e| Error::checkpoint(name, e))?,
            None => return Ok(None),
        };
        if let Some(map) = index["weight_map"].as_object_mut() {
            map.remove(gone);
        }
        Ok(Some(index.to_string().into()))
    }

    fn list(&self) -> Result<Vec<String>> {
        self.checkpoint.list()
    }
}

#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

pub(super) fn check(subject: &Subject, problems: &mut Vec<Problem>) -> Ran {
    let files = subject.checkpoint.list().map_err(|e| e.to_string())?;
    let files = files.iter().filter(|name| name.ends_with(".safetensors"));
    let files: Vec<(&String, Tensors)> = files
        .filter_map(|name| Some((name, parse(&subject.checkpoint.read(name).ok()??)?)))
        .collect();
    if files.is_empty() {
        return Err("the checkpoint has no safetensors file".to_owned());
    }
    let sample = match Sample::new(subject) {
        Ok(sample) => sample,
        Err(fault) => {
            problems.push(fault.problem("a prompt"));
            return Ok(());
        }
    };
    for (file, tensors) in &files {
        for name in tensors.keys() {
            let mut trial = Trial {
                subject,
                sample: &sample,
                file,
                tensors,
                name,
                problems: &mut *problems,
            };
            if trial.missing() {
                trial.misshapen();
                trial.mistyped();
                trial.not_a_number();
            }
        }
    }
    if let Some((file, tensors)) = files.first() {
        let name = "kiln_conformance.surplus.weight";
        let mut more = tensors.clone();
        more.extend(
            tensors
                .values()
                .next()
                .map(|t| (name.to_owned(), t.clone())),
        );
        let loaded = load(subject, file, &more, None).map(drop);
        problems.extend(refused("a surplus tensor", name, loaded));
    }
    Ok(())
}

/// A prompt with an item of each modality, and what the good checkpoint makes of it.
struct Sample {
    prepared: Prepared,
    logits: Rows,
}

impl Sample {
    fn new(subject: &Subject) -> Result<Self, Fault> {
        let items = subject.items(1).unwrap_or_default();
        let prepared = subject.prepare(subject.prompt(0, &items), &items)?;
        let logits = run(subject, subject.model.as_ref(), &prepared)?;
        Ok(Self { prepared, logits })
    }
}

fn run(subject: &Subject, model: &dyn MultiModalModel, prepared: &Prepared) -> Result<Rows, Fault> {
    let ready = subject.fill(model, prepared)?;
    guard(|| Ok(subject.alone(model, &ready))).of(Piece::Forward)?
}

/// One tensor on trial.
struct Trial<'a> {
    subject: &'a Subject,
    sample: &'a Sample,
    file: &'a str,
    tensors: &'a Tensors,
    name: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Trial<'_> {
    /// The tensor taken out. Returns whether the model needs it.
    fn missing(&mut self) -> bool {
        let mut without = self.tensors.clone();
        without.remove(self.name);
        let loaded = match load(self.subject, self.file, &without, Some(self.name)) {
            Ok(model) => {
                let logits = run(self.subject, model.as_ref(), &self.sample.prepared);
                if logits.is_ok_and(|logits| logits == self.sample.logits) {
                    return false;
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.problems
            .extend(refused("a missing tensor", self.name, loaded));
        true
    }

    /// The same elements in the transposed shape, and a row less.
    fn misshapen(&mut self) {
        let stored = &self.tensors[self.name];
        let mut turned = stored.clone();
        turned.shape.reverse();
        let mut short = stored.clone();
        if let Some(rows) = short.shape.first_mut().filter(|rows| **rows > 1) {
            short.data.truncate(short.data.len() / *rows * (*rows - 1));
            *rows -= 1;
        }
        for (what, wrong) in [
            ("a transposed tensor", turned),
            ("a tensor short of a row", short),
        ] {
            if wrong.shape != stored.shape {
                self.refuse(what, wrong);
            }
        }
    }

    fn mistyped(&mut self) {
        let mut wrong = self.tensors[self.name].clone();
        wrong.dtype = Dtype::I64;
        wrong.data = vec![0; wrong.shape.iter().product::<usize>() * 8];
        self.refuse("a tensor of integers", wrong);
    }

    fn refuse(&mut self, what: &str, wrong: Stored) {
        let loaded = self.load_with(wrong).map(drop);
        self.problems.extend(refused(what, self.name, loaded));
    }

    /// A tensor of NaN is refused, or it is seen in the logits, which the engine refuses.
    fn not_a_number(&mut self) {
        let mut poisoned = self.tensors[self.name].clone();
        match poisoned.dtype {
            Dtype::F32 => fill(&mut poisoned.data, &f32::NAN.to_le_bytes()),
            Dtype::BF16 => fill(&mut poisoned.data, &0x7fc0u16.to_le_bytes()),
            Dtype::F16 => fill(&mut poisoned.data, &0x7e00u16.to_le_bytes()),
            _ => return,
        }
        let Ok(model) = self.load_with(poisoned) else {
            return;
        };
        let finite = |rows: &Rows| {
            rows.iter()
                .flatten()
                .all(|b| f32::from_bits(*b).is_finite())
        };
        let (piece, message) = match run(self.subject, model.as_ref(), &self.sample.prepared) {
            Ok(logits) if finite(&logits) => (
                Piece::Forward,
                "is full of NaN, and the logits are numbers".to_owned(),
            ),
            Ok(_) => return,
            Err(Fault {
                error: Error::Internal(error),
                piece,
            }) if error.contains("a panic") => (piece, format!("is full of NaN: {error}")),
            Err(_) => return,
        };
        self.problems.push(Problem::new(
            piece,
            format!("tensor `{}` {message}", self.name),
            "let NaN through: a maximum, a clamp or a mask must not turn it into a number",
        ));
    }

    fn load_with(&self, stored: Stored) -> Result<Box<dyn MultiModalModel>> {
        let mut tensors = self.tensors.clone();
        tensors.insert(self.name.to_owned(), stored);
        load(self.subject, self.file, &tensors, None)
    }
}

/// A load that had to fail with an error about the checkpoint that names the tensor.
fn refused(what: &str, name: &str, loaded: Result<()>) -> Option<Problem> {
    let seen = match loaded {
        Ok(()) => "loads".to_owned(),
        Err(Error::Tensor { tensor, message }) if names(&format!("{tensor} {message}"), name) => {
            return None;
        }
        Err(Error::Checkpoint { message, .. } | Error::Unsupported(message))
            if names(&message, name) =>
        {
            return None;
        }
        Err(error) => format!("does not name it: {error}"),
    };
    let message = format!("{what}, `{name}`: {seen}");
    Some(Problem::new(Piece::Loader, message, MEND))
}

/// Layouts differ in the first parts of a name, not in the last ones.
fn names(message: &str, tensor: &str) -> bool {
    let dots = tensor.rmatch_indices('.').nth(1);
    message.contains(dots.map_or(tensor, |(at, _)| &tensor[at + 1..]))
}

fn load(
    subject: &Subject,
    file: &str,
    tensors: &Tensors,
    gone: Option<&str>,
) -> Result<Box<dyn MultiModalModel>> {
    let views = tensors
        .iter()
        .map(|(name, s)| {
            let view = TensorView::new(s.dtype, s.shape.clone(), &s.data);
            Ok((name, view.map_err(Error::internal)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None).map_err(Error::internal)?;
    subject.load(&Altered {
        checkpoint: &subject.checkpoint,
        file,
        bytes: bytes.into(),
        gone,
    })
}

fn parse(bytes: &[u8]) -> Option<Tensors> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let stored = file.iter().map(|(name, view)| {
        let stored = Stored {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        (name.to_owned(), stored)
    });
    Some(stored.collect())
}

fn fill(data: &mut [u8], element: &[u8]) {
    for chunk in data.chunks_exact_mut(element.len()) {
        chunk.copy_from_slice(element);
    }
}
