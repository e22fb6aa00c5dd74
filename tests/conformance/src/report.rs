//! What the kit answers: findings that name the piece at fault and the mend.

use std::fmt;

/// Problems of one check that are told; the others are counted.
const TOLD: usize = 4;

/// A piece of a model crate, or of what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Piece {
    /// `ModelEntry` itself: architectures and modalities.
    Registration,
    /// `MaxTokens`.
    Maximum,
    /// `.dummy_data(f)`.
    DummyData,
    /// `.input_processor(f)`.
    Processor,
    /// The input mapper.
    Mapper,
    /// The modality crate's decoder.
    Decoder,
    /// `tokenizer.json`.
    Tokenizer,
    /// `LoadModel::load`.
    Loader,
    /// `MultiModalModel::encode`.
    Encoder,
    /// `MultiModalModel::embed`.
    Embed,
    /// Attention and the KV cache in `MultiModalModel::forward`.
    Attention,
    /// `MultiModalModel::forward` or `logits`, attention aside.
    Forward,
    /// What the model says of itself: `hidden_size`, `vocab_size`, ...
    Shape,
    /// The pieces together, in the engine.
    Engine,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registration => "registration",
            Self::Maximum => "declared maximum",
            Self::DummyData => "dummy data",
            Self::Processor => "input processor",
            Self::Mapper => "input mapper",
            Self::Decoder => "decoder of the modality",
            Self::Tokenizer => "tokenizer",
            Self::Loader => "loader",
            Self::Encoder => "encoder",
            Self::Embed => "embed",
            Self::Attention => "attention",
            Self::Forward => "forward pass",
            Self::Shape => "the model's own account",
            Self::Engine => "engine",
        })
    }
}

/// What a check sees: a finding without the check's name.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) piece: Piece,
    pub(crate) message: String,
    pub(crate) mend: String,
}

impl Problem {
    pub(crate) fn new(piece: Piece, message: impl fmt::Display, mend: impl fmt::Display) -> Self {
        Self {
            piece,
            message: message.to_string(),
            mend: mend.to_string(),
        }
    }
}

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check.
    pub check: &'static str,
    /// The piece at fault, as far as the evidence goes.
    pub piece: Piece,
    /// What was seen.
    pub message: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            check,
            piece,
            message,
            mend,
        } = self;
        write!(f, "[{check}] {piece}: {message}\n    mend: {mend}")
    }
}

/// A check that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The check.
    pub check: &'static str,
    /// Why.
    pub reason: String,
}

/// What became of all checks.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Checks that found nothing.
    pub passed: Vec<&'static str>,
    /// Checks that did not run.
    pub skipped: Vec<Skipped>,
}

impl Report {
    /// Fails the test with every finding, each with its mend.
    ///
    /// # Panics
    /// When there is a finding.
    pub fn assert_clean(&self) {
        assert!(self.findings.is_empty(), "{self}");
    }

    pub(crate) fn failed(&self, check: &str) -> bool {
        self.findings.iter().any(|f| f.check == check)
    }

    pub(crate) fn skip(&mut self, check: &'static str, reason: impl fmt::Display) {
        let reason = reason.to_string();
        self.skipped.push(Skipped { check, reason });
    }

    pub(crate) fn add(&mut self, check: &'static str, problems: Vec<Problem>) {
        let more = problems.len().saturating_sub(TOLD);
        if problems.is_empty() {
            self.passed.push(check);
        }
        for (at, problem) in problems.into_iter().take(TOLD).enumerate() {
            let Problem {
                piece,
                mut message,
                mend,
            } = problem;
            if more > 0 && at + 1 == TOLD {
                message.push_str(&format!(" (and {more} more of this check)"));
            }
            self.findings.push(Finding {
                check,
                piece,
                message,
                mend,
            });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} finding(s)", self.findings.len())?;
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        for Skipped { check, reason } in &self.skipped {
            writeln!(f, "  [{check}] not run: {reason}")?;
        }
        write!(f, "  passed: {}", self.passed.join(", "))
    }
}
