//! The token that stands for an item of a modality in a prompt, and what it becomes.

use kiln_registry::{
    DummyInputs, Error, Expansion, InputContext, MediaItem, MediaKind, ProcessedInputs, Prompt,
    Result, expand_placeholders,
};
use std::iter::repeat_n;

/// A modality's placeholder token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholder {
    /// The modality's name.
    pub modality: &'static str,
    /// The key of `config.json` that gives the id, for messages.
    pub key: &'static str,
    /// The id.
    pub token_id: u32,
}

impl Placeholder {
    /// Replaces each of the modality's placeholder tokens by as many as its item has rows: `rows` of a
    /// decoded item; of embeddings that the caller computed, their own. Called once for each
    /// modality: ranges of the ones before are moved along.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when the prompt does not have one placeholder per item;
    /// [`Error::Checkpoint`] as [`token`](Self::token).
    pub fn expand(
        &self,
        ctx: &InputContext,
        items: &[MediaItem],
        prompt: ProcessedInputs,
        rows: impl Fn(&MediaItem) -> Result<usize>,
    ) -> Result<ProcessedInputs> {
        let expansions = items
            .iter()
            .filter(|item| item.modality() == self.modality)
            .map(|item| {
                let count = match (item.kind(), item.content()?.shape()) {
                    (MediaKind::Raw, _) => rows(item)?,
                    (MediaKind::Embeds, [rows, _]) => *rows,
                    (MediaKind::Embeds, shape) => {
                        let message = format!("{} embeddings of shape {shape:?}", self.modality);
                        return Err(Error::invalid(message));
                    }
                };
                Ok(Expansion::repeat(self.token_id, count))
            })
            .collect::<Result<Vec<_>>>()?;
        let token = self.token(ctx)?;
        expand_placeholders(prompt, self.modality, self.token_id, &token, expansions)
    }

    /// Dummy inputs with so many more items, each with its placeholder.
    #[must_use]
    pub fn more_dummies(
        &self,
        mut inputs: DummyInputs,
        item: &MediaItem,
        count: usize,
    ) -> DummyInputs {
        if let Prompt::Tokens(ids) = &mut inputs.prompt {
            ids.extend(repeat_n(self.token_id, count));
        }
        inputs.items.extend(repeat_n(item.clone(), count));
        inputs
    }

    /// The token as text, for prompts and messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the tokenizer has no such token.
    pub fn token(&self, ctx: &InputContext) -> Result<String> {
        ctx.tokenizer().id_to_token(self.token_id).ok_or_else(|| {
            let (key, id) = (self.key, self.token_id);
            Error::checkpoint(
                "config.json",
                format!("`{key}` is {id}, but the tokenizer has no such token"),
            )
        })
    }
}
