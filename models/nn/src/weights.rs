//! Weights from safetensors files: one file or shards, mapped without a copy, each tensor asked for
//! by name and shape, and at the end an account of what nobody asked for.
//!
//! Names: a model crate asks in one canonical layout; [`Rename`] rules bring the layouts in the
//! wild to it.

use crate::ops::QuantizedWeight;
use burn::tensor::{Bytes as TensorBytes, DType, Device, FloatDType, Shape, Tensor, TensorData};
use bytes::Bytes;
use cubecl_environment::bytes::AllocationProperty;
use half::{bf16, f16};
use kiln_registry::{
    CheckpointFiles, DerivedFiles, Error, LoadContext, Progress, Quantization, Result, WeightDType,
};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A tensor whose name begins with the first is called by the second instead. Rules are applied in
/// order, each at most once.
pub type Rename = (&'static str, &'static str);

struct Entry {
    /// The name in the file, for messages.
    stored: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Bytes,
}

/// The tensors of a checkpoint under their canonical names.
pub struct Weights<'a> {
    entries: BTreeMap<String, Entry>,
    device: &'a Device,
    dtype: WeightDType,
    quantize: Option<Quantization>,
    derived: Option<&'a dyn DerivedFiles>,
    progress: Progress<'a>,
    used: RefCell<Used>,
}

#[derive(Default)]
struct Used {
    names: BTreeSet<String>,
    bytes: usize,
}

impl<'a> Weights<'a> {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists. Reads
    /// headers only.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the file which is missing or contradicts itself;
    /// [`Error::Tensor`] when two tensors come to have one name.
    pub fn open(ctx: &LoadContext<'a>, renames: &[Rename]) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (file, bytes, listed) in files(ctx.files)? {
            let fault =
                |e: &dyn Display| Error::checkpoint(&file, format!("not a safetensors file: {e}"));
            let parsed = SafeTensors::deserialize(&bytes).map_err(|e| fault(&e))?;
            if let Some(listed) = &listed {
                let present: BTreeSet<&str> = parsed.names().into_iter().collect();
                if let Some(absent) = listed.iter().find(|n| !present.contains(n.as_str())) {
                    return Err(Error::tensor(
                        absent,
                        format!("{INDEX} says it is in {file}, but it is not"),
                    ));
                }
            }
            let base = bytes.as_ptr() as usize;
            for (stored, view) in parsed.iter() {
                let name = canonical(stored, renames);
                let at = view.data().as_ptr() as usize - base;
                let entry = Entry {
                    stored: stored.to_owned(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    data: bytes.slice(at..at + view.data().len()),
                };
                if let Some(other) = entries.insert(name, entry) {
                    return Err(Error::tensor(
                        stored,
                        format!("the checkpoint holds it twice, also as `{}`", other.stored),
                    ));
                }
            }
        }
        Ok(Self {
            entries,
            device: ctx.device,
            dtype: ctx.dtype,
            quantize: ctx.quantize,
            derived: ctx.derived,
            progress: ctx.progress,
            used: RefCell::default(),
        })
    }

    /// The tensors whose canonical names begin with `prefix` and a dot.
    pub fn at(&self, prefix: impl Display) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: format!("{prefix}."),
        }
    }

    /// The tensors by their whole names.
    pub fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
        }
    }

    /// Bytes of all tensors that were handed out, as they are kept.
    pub fn bytes(&self) -> usize {
        self.used.borrow().bytes
    }

    /// Ends the load: what was neither asked for nor may be ignored is an error. A pattern is the
    /// end of a canonical name.
    ///
    /// # Errors
    /// [`Error::Tensor`] that names the first surplus tensor and how many there are.
    pub fn finish(&self, ignored_suffixes: &[&str]) -> Result<()> {
        let used = &self.used.borrow().names;
        let surplus: Vec<_> = self
            .entries
            .iter()
            .filter(|(name, _)| {
                !used.contains(*name) && !ignored_suffixes.iter().any(|s| name.ends_with(s))
            })
            .map(|(_, entry)| entry.stored.as_str())
            .collect();
        match surplus[..] {
            [] => Ok(()),
            [first, ..] => Err(Error::tensor(
                first,
                format!(
                    "the model has no place for it ({} such tensor(s)): config.json and the weights \
                     are of different models",
                    surplus.len()
                ),
            )),
        }
    }

    fn take(&self, name: &str, shape: &[usize], keep: bool) -> Result<(TensorData, DType)> {
        let entry = self.entries.get(name).ok_or_else(|| {
            Error::tensor(
                name,
                "missing: the checkpoint is incomplete or of another model",
            )
        })?;
        if entry.shape != shape {
            return Err(Error::tensor(
                &entry.stored,
                format!(
                    "has shape {:?}, config.json asks for {shape:?}",
                    entry.shape
                ),
            ));
        }
        let stored = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => {
                return Err(Error::tensor(
                    &entry.stored,
                    format!("has type {other:?}; F32, BF16 and F16 are supported"),
                ));
            }
        };
        let wanted = match self.dtype {
            _ if !keep => DType::F32,
            WeightDType::Auto => stored,
            WeightDType::F32 => DType::F32,
            WeightDType::BF16 => DType::BF16,
            WeightDType::F16 => DType::F16,
        };
        let data = TensorData::from_bytes(
            aligned(&entry.data, stored),
            Shape::from(shape.to_vec()),
            stored,
        );
        let mut used = self.used.borrow_mut();
        used.bytes += shape.iter().product::<usize>() * wanted.size();
        used.names.insert(name.to_owned());
        (self.progress)(used.names.len(), self.entries.len());
        Ok((data, wanted))
    }
}

/// A part of the name space.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights<'a>,
    prefix: String,
}

impl Scope<'_> {
    /// The scope below a name.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        Self {
            weights: self.weights,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    /// Whether the checkpoint has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.entries.contains_key(&self.name(name))
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        self.weights.device
    }

    /// A weight of two or more axes, in the type that the policy keeps weights in.
    ///
    /// # Errors
    /// [`Error::Tensor`] when it is missing or has another shape or an unknown type.
    pub fn weight<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        let (data, wanted) = self.weights.take(&self.name(name), &shape, true)?;
        Ok(self.place(data, wanted))
    }

    /// To what the weights of linear layers are narrowed, if they are.
    pub fn quantization(&self) -> Option<Quantization> {
        self.weights.quantize
    }

    /// A linear layer's weight, rounded to a few bits, from the mapped file as it lies there; or as it
    /// was rounded and kept at an earlier start.
    ///
    /// # Errors
    /// As [`weight`](Self::weight), and when a row is too long for sums of 32 bits.
    pub fn quantized(
        &self,
        name: &str,
        shape: [usize; 2],
        kind: Quantization,
    ) -> Result<QuantizedWeight> {
        let (data, wanted) = self.weights.take(&self.name(name), &shape, true)?;
        if shape[1] > QuantizedWeight::MAX_K {
            let what = format!(
                "has rows of {} elements; {} can be quantized",
                shape[1],
                QuantizedWeight::MAX_K
            );
            return Err(Error::tensor(self.name(name), what));
        }
        let wide = shape[0] * shape[1] * wanted.size();
        let weight = self.rounded_or_kept(&self.name(name), &data, kind);
        let mut used = self.weights.used.borrow_mut();
        used.bytes = used.bytes - wide + weight.bytes();
        Ok(weight)
    }

    fn rounded_or_kept(
        &self,
        name: &str,
        data: &TensorData,
        kind: Quantization,
    ) -> QuantizedWeight {
        let device = self.weights.device;
        let Some(derived) = self.weights.derived else {
            return QuantizedWeight::from_data(data, kind, device, |_, _| {});
        };
        // What it is made from is part of the name: another type rounds to other numbers.
        let file = format!("{name} {kind:?} {:?} {:?}", data.shape(), data.dtype());
        let file = format!("{file} {}", QuantizedWeight::FORMAT);
        let [n, k] = data.shape().dims();
        let kept = derived
            .read(&file)
            .and_then(|kept| QuantizedWeight::from_kept(kept, kind, [n, k], device));
        kept.unwrap_or_else(|| {
            QuantizedWeight::from_data(data, kind, device, |numbers, scales| {
                let scales = Bytes::copy_from_slice(bytemuck::cast_slice(scales));
                derived.keep(&file, &[numbers.clone(), scales]);
            })
        })
    }

    /// A small vector (bias, norm, ...): always f32, since it costs nothing and is summed exactly.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>> {
        let (data, wanted) = self.weights.take(&self.name(name), &[len], false)?;
        Ok(self.place(data, wanted))
    }

    /// A small table that is added to activations (position embeddings): always f32.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn table(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>> {
        let (data, wanted) = self.weights.take(&self.name(name), &shape, false)?;
        Ok(self.place(data, wanted))
    }

    /// Marks all tensors of this scope as known but not needed, such as layers behind the last one
    /// whose output is used.
    pub fn skip(&self) {
        let known = self.weights.entries.range(self.prefix.clone()..);
        let mut used = self.weights.used.borrow_mut();
        for (name, _) in known.take_while(|(name, _)| name.starts_with(&self.prefix)) {
            used.names.insert(name.clone());
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn place<const D: usize>(&self, data: TensorData, wanted: DType) -> Tensor<D> {
        let stored = data.dtype();
        let tensor = Tensor::<D>::from_data(data, (self.weights.device, stored));
        match wanted {
            _ if wanted == stored => tensor,
            DType::BF16 => tensor.cast(FloatDType::BF16),
            DType::F16 => tensor.cast(FloatDType::F16),
            _ => tensor.cast(FloatDType::F32),
        }
    }
}

type Shard = (String, Bytes, Option<Vec<String>>);

/// The weight files, and of each shard the tensors that the index puts into it.
fn files(files: &dyn CheckpointFiles) -> Result<Vec<Shard>> {
    if let Some(bytes) = files.read(SINGLE)? {
        return Ok(vec![(SINGLE.to_owned(), bytes, None)]);
    }
    let Some(index) = files.read(INDEX)? else {
        return Err(Error::checkpoint(
            SINGLE,
            format!(
                "no weights: neither {SINGLE} nor {INDEX} is there (files of other formats, such as \
                 pytorch_model.bin, must be converted to safetensors)"
            ),
        ));
    };
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&index).map_err(|e| Error::checkpoint(INDEX, e))?;
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, file) in index.weight_map {
        shards.entry(file).or_default().push(tensor);
    }
    shards
        .into_iter()
        .map(|(file, tensors)| {
            let bytes = files.read(&file)?.ok_or_else(|| {
                Error::checkpoint(&file, format!("missing, but {INDEX} lists it"))
            })?;
            Ok((file, bytes, Some(tensors)))
        })
        .collect()
}

fn canonical(stored: &str, renames: &[Rename]) -> String {
    let mut name = stored.to_owned();
    for (from, to) in renames {
        if let Some(rest) = name.strip_prefix(from) {
            name = format!("{to}{rest}");
        }
    }
    name
}

/// The bytes themselves where they lie on the type's alignment, which is the rule; else a copy. A
/// header's length, and so every offset, is the file's to choose.
fn aligned(data: &Bytes, dtype: DType) -> TensorBytes {
    if (data.as_ptr() as usize).is_multiple_of(dtype.size()) {
        return TensorBytes::from_shared(data.clone(), AllocationProperty::File);
    }
    match dtype {
        DType::F32 => TensorBytes::from_elems::<f32>(
            data.chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        DType::BF16 => TensorBytes::from_elems::<bf16>(
            data.chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]))
                .collect(),
        ),
        _ => TensorBytes::from_elems::<f16>(
            data.chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests;
