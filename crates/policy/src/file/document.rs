//! From a text to a raw configuration.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::file::error::ConfigError;
use crate::file::raw::{RawFile, RawNetwork, UNSUPPORTED};
use crate::nearest::nearest;

#[derive(Debug, Clone, Copy)]
enum Format {
    Toml,
    Json,
    Yaml,
}

/// Tells the two forms apart without looking at anything else.
#[derive(Deserialize)]
struct Probe {
    network: Option<IgnoredAny>,
}

/// Reads a document: `{network: …}` or the wire form.
pub(super) fn read(name: &str, text: &str) -> Result<RawNetwork, ConfigError> {
    let format = match name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).as_deref() {
        Some("toml") => Format::Toml,
        Some("json") => Format::Json,
        Some("yaml" | "yml") => Format::Yaml,
        Some(_) | None => {
            let message = "unknown kind of file; expected a name that ends in `.toml`, `.json`, `.yaml` or `.yml`";
            return Err(ConfigError::new(name, message));
        }
    };
    // An empty YAML document is null, an empty TOML document a table: both say nothing.
    if text.trim().is_empty() && !matches!(format, Format::Json) {
        return Ok(RawNetwork::default());
    }
    let probe: Probe = decode(format, name, text)?;
    match probe.network {
        Some(_) => decode::<RawFile>(format, name, text).map(|file| file.network),
        None => decode(format, name, text),
    }
}

fn decode<T: DeserializeOwned>(format: Format, name: &str, text: &str) -> Result<T, ConfigError> {
    let message = match format {
        Format::Toml => match toml::from_str(text) {
            Ok(value) => return Ok(value),
            Err(error) => with_place(text, error.span().map(|span| span.start), error.message()),
        },
        Format::Json => match serde_json::from_str(text) {
            Ok(value) => return Ok(value),
            Err(error) => error.to_string(),
        },
        Format::Yaml => match serde_saphyr::from_str(text) {
            Ok(value) => return Ok(value),
            Err(error) => match error.location() {
                Some(place) => {
                    format!("{} at line {} column {}", yaml_message(&error), place.line(), place.column())
                }
                None => yaml_message(&error),
            },
        },
    };
    let message = without_unsupported(&message);
    let help = misspelt(&message);
    Err(ConfigError::new(name, message).help(help))
}

/// The first line of the error: the parser adds a drawing of the document below it.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.split(" at line ").next().unwrap_or(line).to_owned()
}

fn with_place(text: &str, start: Option<usize>, message: &str) -> String {
    let Some(before) = start.and_then(|start| text.get(..start)) else { return message.to_owned() };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{message} at line {line} column {column}")
}

/// Serde lists every field that a struct has as expected, also those that are there only to be refused by name.
fn without_unsupported(message: &str) -> String {
    const LIST: &str = "expected one of ";
    let Some((before, list)) = message.split_once(LIST).filter(|(before, _)| before.contains("unknown field")) else {
        return message.to_owned();
    };
    let (list, after) = list.find(" at line ").and_then(|at| list.split_at_checked(at)).unwrap_or((list, ""));
    let mut fields: Vec<&str> = list.split(", ").collect();
    for unsupported in UNSUPPORTED {
        let is_unsupported = |field: &&str| unsupported.contains(&field.trim_matches('`'));
        // Another struct may have a field of the same name that works, such as the ports of a rule.
        if fields.iter().filter(|field| is_unsupported(field)).count() == unsupported.len() {
            fields.retain(|field| !is_unsupported(field));
        }
    }
    format!("{before}{LIST}{}{after}", fields.join(", "))
}

/// Serde names the unknown word in backticks and then lists those it knows, in backticks or plain.
fn misspelt(message: &str) -> Option<String> {
    if !message.contains("unknown field") && !message.contains("unknown variant") {
        return None;
    }
    let unknown = message.split('`').nth(1)?;
    let (_, known) = message.split_once("expected ")?;
    let known = known.split(" at line ").next().unwrap_or(known);
    let words = known.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let words = words.filter(|word| !matches!(*word, "" | "one" | "of" | "or")).chain(["network"]);
    nearest(unknown, words).map(|word| format!("did you mean `{word}`?"))
}
