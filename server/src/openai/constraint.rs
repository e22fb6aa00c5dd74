//! What an answer must look like: `response_format` as OpenAI has it, `guided_*` as vLLM has it.

use crate::openai::ApiError;
use crate::openai::json::{At, Fields, FromJson, wire};
use kiln_engine::Grammar;
use serde_json::{Value, json};

wire! {
    /// The fields that constrain an answer; at most one may be given.
    pub(crate) struct GuidedFields {
        /// text, json_object, json_schema, regex or grammar.
        response_format: ResponseFormat,
        /// A JSON schema, as an object or a string.
        guided_json: Value,
        /// A regular expression.
        guided_regex: String,
        /// Texts of which the answer is one.
        guided_choice: Vec<String>,
        /// A grammar in Lark's notation.
        guided_grammar: String,
        /// vLLM's newer form: an object with json, regex, choice, grammar or json_object.
        structured_outputs: StructuredOutputs,
    }
}

wire! {
    /// vLLM's newer form.
    pub(crate) struct StructuredOutputs {
        /// A JSON schema.
        json: Value,
        /// A regular expression.
        regex: String,
        /// Texts of which the answer is one.
        choice: Vec<String>,
        /// A grammar in Lark's notation.
        grammar: String,
        /// Any JSON object.
        json_object: bool,
    }
}

impl GuidedFields {
    /// The one constraint, if there is one.
    ///
    /// # Errors
    /// 400 for several, and for a schema that is none.
    pub(crate) fn constraint(self) -> Result<Option<Grammar>, ApiError> {
        let s = self.structured_outputs.unwrap_or_default();
        let given = [
            self.response_format.and_then(|format| format.0),
            schema(self.guided_json, "guided_json")?,
            self.guided_regex.map(Grammar::Regex),
            self.guided_choice.map(Grammar::Choice),
            self.guided_grammar.map(Grammar::Lark),
            schema(s.json, "structured_outputs.json")?,
            s.regex.map(Grammar::Regex),
            s.choice.map(Grammar::Choice),
            s.grammar.map(Grammar::Lark),
            s.json_object
                .filter(|wanted| *wanted)
                .map(|_| Grammar::JsonObject),
        ];
        let mut given = given.into_iter().flatten();
        let constraint = given.next();
        if given.next().is_some() {
            return Err(ApiError::field(
                "response_format",
                "an answer can be held to one form: several are asked for",
            ));
        }
        if matches!(&constraint, Some(Grammar::Choice(list)) if list.is_empty()) {
            return Err(ApiError::field(
                "guided_choice",
                "there is nothing to choose",
            ));
        }
        Ok(constraint)
    }
}

/// A schema as an object, or as the text of one.
fn schema(value: Option<Value>, name: &str) -> Result<Option<Grammar>, ApiError> {
    let parsed = match value {
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map_err(|_| ApiError::field(name, "the string is no JSON"))?,
        Some(value) => value,
        None => return Ok(None),
    };
    if parsed.is_object() || parsed.is_boolean() {
        return Ok(Some(Grammar::JsonSchema(parsed)));
    }
    Err(ApiError::field(name, "a JSON schema is an object"))
}

/// `response_format`; `text` is none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResponseFormat(Option<Grammar>);

impl FromJson for ResponseFormat {
    fn from_json(value: Value, at: &At<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(value, at)?;
        let kind: String = fields.need("type", at)?;
        let constraint = match kind.as_str() {
            "text" => None,
            "json_object" => match fields.take::<Value>("schema", at)? {
                // As llama.cpp's server has it.
                Some(value) => schema(Some(value), &At::Field(at, "schema").to_string())?,
                None => Some(Grammar::JsonObject),
            },
            "json_schema" => {
                let inner = At::Field(at, "json_schema");
                let mut object = Fields::of(fields.need("json_schema", at)?, &inner)?;
                let value: Value = object.need("schema", &inner)?;
                schema(Some(value), &At::Field(&inner, "schema").to_string())?
            }
            "regex" => {
                let pattern = fields.take("pattern", at)?.or(fields.take("regex", at)?);
                let pattern = pattern.ok_or_else(|| At::Field(at, "pattern").missing())?;
                Some(Grammar::Regex(pattern))
            }
            "grammar" => Some(Grammar::Lark(fields.need("grammar", at)?)),
            other => {
                return Err(ApiError::field(
                    At::Field(at, "type"),
                    format!("`{other}` is none of text, json_object, json_schema, regex, grammar"),
                ));
            }
        };
        Ok(Self(constraint))
    }

    fn schema() -> Value {
        json!({"type": "object", "required": ["type"], "properties": {
            "type": {"enum": ["text", "json_object", "json_schema", "regex", "grammar"]},
            "json_schema": {"type": "object"},
            "pattern": {"type": "string"},
            "grammar": {"type": "string"},
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::json::parse;

    fn constraint(body: Value) -> Result<Option<Grammar>, ApiError> {
        parse::<GuidedFields>(body.to_string().as_bytes())?.constraint()
    }

    #[test]
    fn every_way_to_ask_leads_to_one_constraint() {
        let schema = json!({"type": "object"});
        let by_schema = Some(Grammar::JsonSchema(schema.clone()));
        for body in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            json!({"guided_json": schema}),
            json!({"guided_json": schema.to_string()}),
            json!({"structured_outputs": {"json": schema}}),
        ] {
            assert_eq!(constraint(body.clone()).unwrap(), by_schema, "{body}");
        }
        let regex = Some(Grammar::Regex("a+".to_owned()));
        for body in [
            json!({"response_format": {"type": "regex", "pattern": "a+"}}),
            json!({"guided_regex": "a+"}),
            json!({"structured_outputs": {"regex": "a+"}}),
        ] {
            assert_eq!(constraint(body.clone()).unwrap(), regex, "{body}");
        }
        assert_eq!(
            constraint(json!({"response_format": {"type": "text"}})).unwrap(),
            None
        );
        assert_eq!(
            constraint(json!({"response_format": {"type": "json_object"}})).unwrap(),
            Some(Grammar::JsonObject)
        );
    }

    #[test]
    fn contradictions_and_slips_are_named() {
        for (body, param) in [
            (
                json!({"guided_regex": "a", "guided_choice": ["b"]}),
                "response_format",
            ),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_json": 3}), "guided_json"),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
                "response_format.json_schema.schema",
            ),
        ] {
            let error = constraint(body.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
