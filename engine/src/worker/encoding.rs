//! Items that are in the encoder: in batches of equal shapes, each content once, to the end at once or
//! a piece at a time.

use crate::executor::Executor;
use crate::pipeline::{ItemContent, PreparedItem};
use burn::tensor::Tensor;
use kiln_registry::{ContentHash, EncodeTask, Encoded, NamedTensors, Result};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Rows that a request lacks: its key, the placeholder range, the content of the item.
pub(super) type Need = (u64, usize, ContentHash);
/// What the encoder made, or why not.
pub(super) type Made = HashMap<ContentHash, Result<Tensor<2>>>;
/// Items of one call: modality, and the names and shapes of their tensors.
type Form = (String, Vec<(String, Vec<usize>)>);

/// Items of one modality and of equal shapes.
struct Batch {
    modality: String,
    contents: Vec<ContentHash>,
    items: Vec<Arc<NamedTensors>>,
}

impl Batch {
    fn singly(self) -> impl DoubleEndedIterator<Item = Self> {
        let pairs = self.contents.into_iter().zip(self.items);
        pairs.map(move |(content, item)| Self {
            modality: self.modality.clone(),
            contents: vec![content],
            items: vec![item],
        })
    }
}

/// What the encoder has to do, and has done of it.
pub(super) struct Encoding {
    /// Who gets the rows.
    pub(super) needs: Vec<Need>,
    batches: VecDeque<Batch>,
    task: Option<(Batch, Box<dyn EncodeTask>)>,
    made: Made,
}

impl Encoding {
    /// Of the items of these needs, at most `most` at once.
    pub(super) fn new<'a>(
        needs: Vec<Need>,
        item: impl Fn(&Need) -> Option<&'a PreparedItem>,
        executor: &Executor,
        most: usize,
    ) -> Self {
        let mut forms = BTreeMap::<Form, Batch>::new();
        let mut made = Made::new();
        for need in &needs {
            let content = need.2;
            let planned = forms.values().any(|b| b.contents.contains(&content));
            let Some(item) = item(need).filter(|_| !planned && !made.contains_key(&content)) else {
                continue;
            };
            match &item.content {
                ItemContent::Embeds(rows) => {
                    made.insert(content, executor.upload(rows));
                }
                ItemContent::Mapped(tensors) => {
                    let batch = forms.entry(form(item, tensors)).or_insert_with(|| Batch {
                        modality: item.modality.clone(),
                        contents: vec![],
                        items: vec![],
                    });
                    batch.contents.push(content);
                    batch.items.push(tensors.clone());
                }
            }
        }
        let most = most.max(1);
        let batches = forms.into_values().flat_map(|batch| {
            let parts = batch.contents.chunks(most).zip(batch.items.chunks(most));
            let parts = parts.map(|(contents, items)| Batch {
                modality: batch.modality.clone(),
                contents: contents.to_vec(),
                items: items.to_vec(),
            });
            parts.collect::<Vec<_>>()
        });
        Self {
            needs,
            batches: batches.collect(),
            task: None,
            made,
        }
    }

    /// Whether all is made.
    pub(super) fn is_done(&self) -> bool {
        self.batches.is_empty() && self.task.is_none()
    }

    /// Runs one piece: the start of a batch, a layer of it, or its end.
    pub(super) fn advance(&mut self, executor: &Executor) {
        let (batch, task) = match self.task.take() {
            Some((batch, mut task)) if task.remaining() > 0 => {
                let advanced = task.advance();
                (batch, advanced.map(|()| (task, false)))
            }
            Some((batch, task)) => (batch, Ok((task, true))),
            None => {
                let Some(batch) = self.batches.pop_front() else {
                    return;
                };
                let task = executor.begin_encode(&batch.modality, &batch.items);
                // What is not cut has run already.
                let task = task.map(|task| {
                    let over = task.remaining() == 0;
                    (task, over)
                });
                (batch, task)
            }
        };
        match task {
            Ok((task, false)) => self.task = Some((batch, task)),
            Ok((task, true)) => {
                let encoded = executor.finish_encode(task, batch.items.len());
                self.end(batch, encoded);
            }
            Err(error) => self.end(batch, Err(error)),
        }
    }

    /// Runs what is under way to its end, or else a whole batch in one call.
    pub(super) fn advance_whole(&mut self, executor: &Executor) {
        let (batch, encoded) = match (self.task.take(), self.batches.pop_front()) {
            (Some((batch, task)), next) => {
                self.batches.extend(next);
                let encoded = executor.finish_encode(task, batch.items.len());
                (batch, encoded)
            }
            (None, Some(batch)) => {
                let items: Vec<&NamedTensors> = batch.items.iter().map(Arc::as_ref).collect();
                let encoded = executor.encode_mapped(&batch.modality, &items);
                (batch, encoded)
            }
            (None, None) => return,
        };
        self.end(batch, encoded);
    }

    /// What came of a batch. Where it failed, its items go one by one, so that each fails for itself.
    fn end(&mut self, batch: Batch, encoded: Result<Vec<Encoded>>) {
        match encoded {
            Ok(encoded) => {
                let rows = encoded.into_iter().map(|e| Ok(e.features));
                self.made.extend(batch.contents.into_iter().zip(rows));
            }
            Err(_) if batch.items.len() > 1 => {
                for single in batch.singly().rev() {
                    self.batches.push_front(single);
                }
            }
            Err(error) => {
                let results = batch.contents.into_iter().map(|c| (c, Err(error.clone())));
                self.made.extend(results);
            }
        }
    }

    /// Who gets what.
    pub(super) fn into_parts(self) -> (Vec<Need>, Made) {
        (self.needs, self.made)
    }
}

fn form(item: &PreparedItem, tensors: &NamedTensors) -> Form {
    let shapes = tensors
        .iter()
        .map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec()))
        .collect();
    (item.modality.clone(), shapes)
}
