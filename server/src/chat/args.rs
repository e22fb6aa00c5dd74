//! What `kiln chat` takes on the command line.

use super::conversation::Attachment;
use crate::cli::{CacheArgs, LoadArgs, MediaArgs, SamplingArgs};
use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub(crate) struct ChatArgs {
    /// A model (a folder, org/name on the Hugging Face Hub, `builtin`), or the URL of a running
    /// server, such as http://localhost:8000.
    #[arg(default_value = crate::builtin::NAME, value_name = "MODEL|URL")]
    pub(crate) model: String,
    /// Text of a system message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) media: MediaArgs,
    /// Tell behind each answer how long it took.
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// With a URL: the model to ask for [default: the server's first].
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// With a URL: the server's key.
    #[arg(long, value_name = "KEY", env = "KILN_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
}

impl ChatArgs {
    /// The files that the first question is about.
    pub(super) fn media(&self) -> Result<Vec<Attachment>> {
        self.media
            .files()
            .map(|(modality, file)| Attachment::read(modality, file))
            .collect()
    }
}
