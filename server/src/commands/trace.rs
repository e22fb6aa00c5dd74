//! `kiln trace`: the inside of one prompt as a safetensors file.

use crate::cli::TraceArgs;
use crate::load::{checkpoint, load, read_images};
use anyhow::{Context, Result};
use kiln_engine::{PromptInput, Request, Trace};
use kiln_registry::{HostData, HostTensor, MediaCounts, NamedTensors};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;

pub(crate) fn trace(args: &TraceArgs) -> Result<()> {
    let images = read_images(&args.image)?;
    let counts = MediaCounts::new().with("image", images.len());
    let options = args.load.options(&counts)?;
    let loaded = load(&checkpoint(&args.model_dir)?, &options)?;
    let images = images.into_iter().map(|(_, bytes)| bytes);
    let mut request = Request::about_images(args.prompt.clone(), images);
    if args.raw_prompt {
        request.prompt = PromptInput::Text(args.prompt.clone());
    }
    let trace = loaded.trace(&request, args.new_tokens, args.ignore_eos)?;
    let tensors = tensors(&trace)?;
    let bytes: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), raw(tensor)))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, (dtype, shape, data))| {
            Ok((*name, TensorView::new(*dtype, shape.clone(), data)?))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &args.out)
        .with_context(|| format!("can't write {}", args.out.display()))?;
    Ok(())
}

fn tensors(trace: &Trace) -> Result<BTreeMap<String, HostTensor>> {
    let ids = |v: &[u32]| HostTensor::i64([v.len()], v.iter().map(|id| i64::from(*id)).collect());
    let mut out = BTreeMap::from([
        ("input_ids".to_owned(), ids(&trace.input_ids)?),
        ("greedy".to_owned(), ids(&trace.greedy)?),
        ("logits".to_owned(), trace.logits.clone()),
    ]);
    let rows: Vec<i64> = trace
        .placeholders
        .iter()
        .flat_map(|p| [p.item as i64, p.offset as i64, p.length as i64])
        .collect();
    out.insert(
        "placeholders".to_owned(),
        HostTensor::i64([rows.len() / 3, 3], rows)?,
    );
    for (item, tower) in trace.towers.iter().enumerate() {
        if let Some(tower) = tower {
            out.insert(format!("tower.{item}"), tower.clone());
        }
    }
    for (item, features) in trace.features.iter().enumerate() {
        out.insert(format!("image_features.{item}"), features.clone());
    }
    out.extend(batched(&trace.mapped)?);
    Ok(out)
}

/// The items' tensors one behind the other on their first axis, under one name, as the reference
/// batches them. Where items differ behind that axis (tiles), shorter ones are filled up with zeros,
/// as the reference does.
fn batched(items: &[NamedTensors]) -> Result<BTreeMap<String, HostTensor>> {
    let mut by_name = BTreeMap::<&str, Vec<&HostTensor>>::new();
    for item in items {
        for (name, tensor) in item.iter() {
            by_name.entry(name).or_default().push(tensor);
        }
    }
    by_name
        .into_iter()
        .map(|(name, parts)| Ok((name.to_owned(), stack(&parts)?)))
        .collect()
}

fn stack(parts: &[&HostTensor]) -> Result<HostTensor> {
    let rank = parts.iter().map(|t| t.shape().len()).max().unwrap_or(0);
    let mut shape = vec![1; rank];
    for part in parts {
        for (most, extent) in shape.iter_mut().zip(part.shape()) {
            *most = (*most).max(*extent);
        }
    }
    let each: usize = shape.iter().skip(1).product();
    if let Some(shape) = shape.first_mut() {
        *shape = parts.len();
    }
    // Only the second axis differs between items, so filling up is appending.
    Ok(match parts.first().map(|t| t.data()) {
        Some(HostData::I64(_)) => HostTensor::i64(
            shape,
            filled(parts.iter().filter_map(|t| t.as_i64()), each, 0),
        )?,
        Some(HostData::U8(_)) => HostTensor::u8(
            shape,
            filled(parts.iter().filter_map(|t| t.as_u8()), each, 0),
        )?,
        _ => HostTensor::f32(
            shape,
            filled(parts.iter().filter_map(|t| t.as_f32()), each, 0.0),
        )?,
    })
}

fn filled<'a, T: Copy + 'a>(parts: impl Iterator<Item = &'a [T]>, each: usize, zero: T) -> Vec<T> {
    let mut all = Vec::new();
    for (i, part) in parts.enumerate() {
        all.extend_from_slice(part);
        all.resize((i + 1) * each, zero);
    }
    all
}

fn raw(tensor: &HostTensor) -> (Dtype, Vec<usize>, Vec<u8>) {
    let (dtype, bytes) = match tensor.data() {
        HostData::U8(v) => (Dtype::U8, v.clone()),
        HostData::F32(v) => (Dtype::F32, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        HostData::I64(v) => (Dtype::I64, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
    };
    (dtype, tensor.shape().to_vec(), bytes)
}
