//! What answers OpenAI's requests: an engine, and what stands between it and the wire. It knows no
//! HTTP server, so that a batch of requests in a file goes the same way.

use crate::fetch::{FetchError, Fetcher};
use crate::metrics::Metrics;
use crate::openai::answer::ChatCompletion;
use crate::openai::chat::ChatRequest;
use crate::openai::chat_plan::ChatPlan;
use crate::openai::chat_reply;
use crate::openai::run::Run;
use crate::openai::tools::ToolFormat;
use crate::openai::{ApiError, Head};
use axum::http::StatusCode;
use kiln_engine::{Engine, InputPipeline};
use std::time::{SystemTime, UNIX_EPOCH};

/// An engine that speaks OpenAI's API.
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) metrics: Metrics,
    pub(crate) fetcher: Fetcher,
    /// What the model is called; the first name is the one that answers carry.
    pub(crate) names: Vec<String>,
    /// When the model was loaded, in seconds since 1970.
    pub(crate) created: u64,
    /// How the model writes calls of tools.
    pub(crate) tool_format: Option<ToolFormat>,
}

impl Api {
    pub(crate) fn new(
        engine: Engine,
        fetcher: Fetcher,
        names: Vec<String>,
        tool_format: Option<ToolFormat>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            names.iter().all(|name| !name.is_empty()) && !names.is_empty(),
            "--served-model-name must not be empty"
        );
        let metrics = Metrics::new(&names[0], engine.profile())?;
        let source = engine.pipeline().chat_template().map(|t| t.source());
        Ok(Self {
            metrics,
            fetcher,
            created: now(),
            tool_format: tool_format.or(source.and_then(ToolFormat::of_template)),
            names,
            engine,
        })
    }

    pub(crate) fn pipeline(&self) -> &InputPipeline {
        self.engine.pipeline()
    }

    /// The name that an answer carries: the one that was asked for.
    ///
    /// # Errors
    /// 404 for a model that is not served.
    pub(crate) fn model(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let Some(asked) = asked.filter(|name| !name.is_empty()) else {
            return Ok(self.names[0].clone());
        };
        if self.names.iter().any(|name| name == asked) {
            return Ok(asked.to_owned());
        }
        let message = format!(
            "the model `{}` is not served here; /v1/models lists what is",
            asked.chars().take(100).collect::<String>()
        );
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        Err(error.param("model").code("model_not_found"))
    }

    /// A chat completion that does not stream, whatever the request says of streaming.
    ///
    /// # Errors
    /// The request's error.
    pub(crate) async fn chat(&self, request: ChatRequest) -> Result<ChatCompletion, ApiError> {
        let (run, plan) = self.start_chat(request).await?;
        chat_reply::collect(run, plan).await
    }

    /// A chat that the engine has accepted.
    ///
    /// # Errors
    /// The request's error.
    pub(crate) async fn start_chat(
        &self,
        request: ChatRequest,
    ) -> Result<(Run, ChatPlan), ApiError> {
        let head = Head::new("chatcmpl", self.model(request.model.as_deref())?);
        let (request, plan) = request.into_request(self, head).await?;
        let run = Run::start(&self.engine, &self.metrics, vec![request]).await?;
        Ok((run, plan))
    }
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        if error.busy {
            return Self::overloaded(error.message);
        }
        Self::invalid(error.message).code("invalid_media")
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
