//! Errors by cause: what the caller sent, a limit, something unsupported, a checkpoint, a fault
//! of ours. The engine answers a request with them; the process never dies of one.

use std::fmt;

/// The result of everything in the contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by who has to act.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request can't be served as it was sent (HTTP 400).
    #[error("{0}")]
    InvalidInput(String),

    /// More items of a modality than `--limit-mm-per-prompt` allows.
    #[error(
        "the prompt has {given} {modality} item(s), the limit is {limit}: \
         send fewer, or start with --limit-mm-per-prompt {modality}={given}"
    )]
    TooManyItems {
        /// The modality's name.
        modality: String,
        /// How many the prompt has.
        given: usize,
        /// How many are allowed.
        limit: usize,
    },

    /// The prompt, or the prompt and the tokens asked for, exceed the context.
    #[error(
        "the prompt has {prompt} tokens and asks for {new} new ones, the context holds {context}: \
         shorten the prompt, send fewer or smaller media, or ask for fewer tokens"
    )]
    ContextLength {
        /// Tokens of the prompt after expansion.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// Tokens that one sequence may have.
        context: usize,
    },

    /// The engine can't take more work now; the same request may succeed later (HTTP 429).
    #[error("{0}")]
    Overloaded(String),

    /// The engine takes no more requests, or was told to give up those it had (HTTP 503).
    #[error("the server is shutting down")]
    ShuttingDown,

    /// A valid request or configuration that this build does not support.
    #[error("not supported: {0}")]
    Unsupported(String),

    /// A checkpoint file is missing, malformed, or does not fit its configuration.
    #[error("{file}: {message}")]
    Checkpoint {
        /// The file's name inside the checkpoint.
        file: String,
        /// What is wrong with it, and the mend.
        message: String,
    },

    /// A tensor of a checkpoint is missing, surplus, or of the wrong shape or type.
    #[error("tensor `{tensor}`: {message}")]
    Tensor {
        /// The tensor's name as the model asked for it.
        tensor: String,
        /// What is wrong with it, and the mend.
        message: String,
    },

    /// What is linked into the binary contradicts itself.
    #[error("{0}")]
    Registration(String),

    /// The placeholder law is broken: a fault of the model crate, never of the caller.
    #[error("{modality} item {item}: {message} (a fault of the model crate)")]
    PlaceholderLaw {
        /// The modality's name.
        modality: String,
        /// The item's index within its modality.
        item: usize,
        /// Which two counts disagree.
        message: String,
    },

    /// A fault of Kiln itself.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// A request that can't be served as it was sent.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::InvalidInput(message.to_string())
    }

    /// Something valid that this build does not support.
    pub fn unsupported(message: impl fmt::Display) -> Self {
        Self::Unsupported(message.to_string())
    }

    /// A faulty checkpoint file.
    pub fn checkpoint(file: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Checkpoint {
            file: file.into(),
            message: message.to_string(),
        }
    }

    /// A faulty tensor of a checkpoint.
    pub fn tensor(tensor: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Tensor {
            tensor: tensor.into(),
            message: message.to_string(),
        }
    }

    /// A fault of Kiln itself.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::Internal(message.to_string())
    }

    /// A word for the kind of error, under the names of OpenAI's API where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidInput(_) => "invalid_value",
            Self::TooManyItems { .. } => "too_many_items",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::Overloaded(_) => "rate_limit_exceeded",
            Self::ShuttingDown => "shutting_down",
            Self::Unsupported(_) => "unsupported_value",
            Self::Checkpoint { .. }
            | Self::Tensor { .. }
            | Self::Registration(_)
            | Self::PlaceholderLaw { .. }
            | Self::Internal(_) => "internal_error",
        }
    }

    /// Whether the same request may succeed unchanged, later or elsewhere.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Overloaded(_) | Self::ShuttingDown)
    }

    /// Whether the caller's input is at fault, and another request may succeed unchanged.
    pub fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            Self::InvalidInput(_) | Self::TooManyItems { .. } | Self::ContextLength { .. }
        )
    }
}
