//! The tools of a request, and which of them must be called.

use crate::openai::ApiError;
use crate::openai::chat::Named;
use crate::openai::json::{At, Fields, FromJson};
use kiln_engine::Grammar;
use serde_json::{Value, json};

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// The JSON schema of its arguments.
    parameters: Value,
    /// As it was sent: what the template shows the model.
    pub(crate) whole: Value,
}

impl FromJson for Tool {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(value.clone(), at)?;
        let kind: Option<String> = fields.take("type", at)?;
        if let Some(kind) = kind.filter(|kind| kind != "function") {
            return Err(ApiError::field(
                At::Field(at, "type"),
                format!("`{kind}` is no kind of tool: function"),
            ));
        }
        let inner = At::Field(at, "function");
        let mut function = Fields::of(fields.need("function", at)?, &inner)?;
        let name: String = function.need("name", &inner)?;
        let parameters = function.take("parameters", &inner)?;
        Ok(Self {
            name,
            parameters: parameters.unwrap_or_else(|| json!({"type": "object"})),
            whole: value,
        })
    }

    fn schema() -> Value {
        json!({"type": "object", "required": ["type", "function"], "properties": {
            "type": {"const": "function"},
            "function": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "parameters": {"type": "object", "description": "a JSON schema"},
            }},
        }})
    }
}

/// Which tool is called.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ToolChoice {
    Auto,
    None,
    Required,
    Function(String),
}

impl FromJson for ToolChoice {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        match value.as_str() {
            Some("auto") => return Ok(Self::Auto),
            Some("none") => return Ok(Self::None),
            Some("required") => return Ok(Self::Required),
            Some(_) => {
                return Err(ApiError::field(
                    at,
                    "it must be auto, none, required, or an object that names a function",
                ));
            }
            None => {}
        }
        let mut fields = Fields::of(value, at)?;
        let function: Named = fields.need("function", at)?;
        Ok(Self::Function(function.0))
    }

    fn schema() -> Value {
        json!({"anyOf": [{"enum": ["auto", "none", "required"]}, {"type": "object"}]})
    }
}

/// What a request makes of tools.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolUse {
    tools: Vec<Tool>,
    choice: ToolChoice,
    /// At most one call.
    pub(crate) one: bool,
}

impl ToolUse {
    pub(crate) fn new(
        tools: Vec<Tool>,
        choice: Option<ToolChoice>,
        one: bool,
    ) -> Result<Self, ApiError> {
        let choice = match choice {
            Some(choice) => choice,
            None if tools.is_empty() => ToolChoice::None,
            None => ToolChoice::Auto,
        };
        match &choice {
            ToolChoice::Required if tools.is_empty() => {
                Err(ApiError::field("tool_choice", "there are no tools to call"))
            }
            ToolChoice::Function(name) if !tools.iter().any(|tool| tool.name == *name) => Err(
                ApiError::field("tool_choice", format!("there is no tool named `{name}`")),
            ),
            _ => Ok(Self { tools, choice, one }),
        }
    }

    /// What the template shows the model.
    pub(crate) fn shown(&self) -> Vec<Value> {
        if self.choice == ToolChoice::None {
            return Vec::new();
        }
        self.tools.iter().map(|tool| tool.whole.clone()).collect()
    }

    /// Whether calls are looked for in free text.
    pub(crate) fn reads_calls(&self) -> bool {
        self.choice == ToolChoice::Auto && !self.tools.is_empty()
    }

    /// The function that the whole answer is arguments of.
    pub(crate) fn named(&self) -> Option<&str> {
        match &self.choice {
            ToolChoice::Function(name) => Some(name),
            _ => None,
        }
    }

    /// What the functions are called.
    pub(crate) fn names(&self) -> Vec<String> {
        self.tools.iter().map(|tool| tool.name.clone()).collect()
    }

    /// Whether the whole answer is a list of calls.
    pub(crate) fn required(&self) -> bool {
        self.choice == ToolChoice::Required
    }

    /// What a call that must come is held to: arguments of the named function, or a list of calls.
    pub(crate) fn constraint(&self) -> Option<Grammar> {
        match &self.choice {
            ToolChoice::Function(name) => {
                let tool = self.tools.iter().find(|tool| tool.name == *name)?;
                Some(Grammar::JsonSchema(tool.parameters.clone()))
            }
            ToolChoice::Required => {
                let calls: Vec<Value> = self
                    .tools
                    .iter()
                    .map(|tool| {
                        json!({
                            "type": "object",
                            "properties": {"name": {"const": tool.name}, "arguments": tool.parameters},
                            "required": ["name", "arguments"],
                            "additionalProperties": false,
                        })
                    })
                    .collect();
                let mut list = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}});
                if self.one {
                    list["maxItems"] = 1.into();
                }
                // Definitions that schemas refer to stand at the root.
                if let Some(definitions) = self
                    .tools
                    .iter()
                    .find_map(|tool| tool.parameters.get("$defs"))
                {
                    list["$defs"] = definitions.clone();
                }
                Some(Grammar::JsonSchema(list))
            }
            ToolChoice::Auto | ToolChoice::None => None,
        }
    }
}
