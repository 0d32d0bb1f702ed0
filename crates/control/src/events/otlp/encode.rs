//! Events and totals in the JSON of OTLP: names as the protocol has them in camel case, 64-bit numbers as strings, enums as numbers.

use cofferdam_model::{Event, EventBody, since_1970};
use serde_json::{Value, json};

use crate::summary::Totals;

/// The name of this program as a source of logs and metrics.
const NAME: &str = "cofferdam";
// SeverityNumber, logs.proto.
const INFO: u32 = 9;
const WARN: u32 = 13;
/// AggregationTemporality of metrics.proto: from the beginning on.
const CUMULATIVE: u32 = 2;
/// What a collector's word is cut to.
const LONGEST_WORD: usize = 200;

/// Who says it: one run.
pub(super) struct Resource {
    resource: Value,
    scope: Value,
}

impl Resource {
    pub(super) fn new(version: &str, instance: &[u8]) -> Resource {
        let instance: String = instance.iter().map(|byte| format!("{byte:02x}")).collect();
        let attributes = [("service.name", NAME), ("service.version", version), ("service.instance.id", &instance)]
            .map(|(key, text)| attribute(key, text_value(text)));
        Resource { resource: json!({ "attributes": attributes }), scope: json!({ "name": NAME, "version": version }) }
    }

    pub(super) fn logs(&self, records: Vec<Value>) -> Value {
        let scope = json!({ "scope": self.scope, "logRecords": records });
        json!({ "resourceLogs": [{ "resource": self.resource, "scopeLogs": [scope] }] })
    }

    pub(super) fn metrics(&self, totals: &Totals, lost: u64, began: u128, now: u128) -> Value {
        let point = |count: u64, attributes: &[(&str, &str)]| {
            let attributes: Vec<Value> =
                attributes.iter().map(|(key, text)| attribute(key, text_value(text))).collect();
            json!({
                "attributes": attributes,
                "startTimeUnixNano": began.to_string(),
                "timeUnixNano": now.to_string(),
                "asInt": i64::try_from(count).unwrap_or(i64::MAX).to_string(),
            })
        };
        let sum = |name: &str, unit: &str, description: &str, points: Vec<Value>| {
            json!({
                "name": name,
                "unit": unit,
                "description": description,
                "sum": { "aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": points },
            })
        };
        let way = |way| [("network.io.direction", way)];
        let state = |state| [("cofferdam.state", state)];
        let verdict = |verdict| [("cofferdam.verdict", verdict)];
        let metrics = [
            sum(
                "cofferdam.network.io",
                "By",
                "Payload of flows that have ended",
                vec![point(totals.bytes_out, &way("transmit")), point(totals.bytes_in, &way("receive"))],
            ),
            sum(
                "cofferdam.flows",
                "{flow}",
                "Flows by what became of them",
                vec![
                    point(totals.flows_opened, &state("opened")),
                    point(totals.flows_denied, &state("denied")),
                    point(totals.flows_failed, &state("failed")),
                ],
            ),
            sum(
                "cofferdam.dns.queries",
                "{query}",
                "Look-ups by their verdict",
                vec![
                    point(totals.dns_queries.saturating_sub(totals.dns_denied), &verdict("allow")),
                    point(totals.dns_denied, &verdict("deny")),
                ],
            ),
            sum(
                "cofferdam.events.lost",
                "{event}",
                "Events that nobody was told of one by one",
                vec![point(lost, &[])],
            ),
        ];
        let scope = json!({ "scope": self.scope, "metrics": metrics });
        json!({ "resourceMetrics": [{ "resource": self.resource, "scopeMetrics": [scope] }] })
    }
}

/// One event, and the same as a value, whose fields become attributes.
pub(super) fn record(event: &Event, value: &Value, observed: u128) -> Value {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
    let (severity, word) = if is_notable(&event.body) { (WARN, "WARN") } else { (INFO, "INFO") };
    let mut attributes = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        // These have a place of their own.
        if !matches!(key.as_str(), "v" | "time" | "type") {
            flatten(&mut attributes, &format!("{NAME}.{key}"), value);
        }
    }
    json!({
        "timeUnixNano": since_1970(&event.time).map_or(observed, |time| time.as_nanos()).to_string(),
        "observedTimeUnixNano": observed.to_string(),
        "severityNumber": severity,
        "severityText": word,
        "eventName": format!("{NAME}.{kind}"),
        "body": text_value(kind),
        "attributes": attributes,
    })
}

/// How many records a collector says that it has rejected, and its words.
pub(super) fn rejected(reply: &[u8], field: &str) -> (u64, String) {
    let reply: Value = serde_json::from_slice(reply).unwrap_or_default();
    let partial = reply.get("partialSuccess");
    let count = partial.and_then(|partial| partial.get(field)).map_or(0, |count| match count {
        Value::String(text) => text.parse().unwrap_or(0),
        Value::Number(number) => number.as_u64().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => 0,
    });
    let words = partial.and_then(|partial| partial.get("errorMessage")).and_then(Value::as_str).unwrap_or_default();
    let why = if count > 0 && words.is_empty() { "it has rejected them" } else { words };
    (count, why.chars().take(LONGEST_WORD).collect())
}

fn is_notable(body: &EventBody) -> bool {
    body.is_denial()
        || match body {
            EventBody::FlowFailed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayNotice { .. } => true,
            EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::DnsQuery { .. }
            | EventBody::DnsMore { .. }
            | EventBody::FlowOpened { .. }
            | EventBody::FlowDenied { .. }
            | EventBody::FlowClosed { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::GatewayDropped { .. } => false,
        }
}

/// The fields of a value as attributes, those of objects behind a dot. What is null is not there.
fn flatten(attributes: &mut Vec<Value>, key: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(attributes, &format!("{key}.{name}"), value);
            }
        }
        Value::Array(values) => {
            let values: Vec<Value> = values.iter().filter_map(scalar).collect();
            attributes.push(attribute(key, json!({ "arrayValue": { "values": values } })));
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            attributes.extend(scalar(value).map(|value| attribute(key, value)));
        }
    }
}

fn scalar(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => Some(text_value(text)),
        Value::Bool(value) => Some(json!({ "boolValue": value })),
        // Of the numbers in events only those of a flood beyond all time would not fit.
        Value::Number(number) => Some(match number.as_i64() {
            Some(number) => json!({ "intValue": number.to_string() }),
            None => json!({ "doubleValue": number.as_f64()? }),
        }),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn attribute(key: &str, value: Value) -> Value {
    json!({ "key": key, "value": value })
}

fn text_value(text: &str) -> Value {
    json!({ "stringValue": text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(record: &Value) -> Vec<(&str, String)> {
        let list = record["attributes"].as_array().unwrap();
        list.iter().map(|pair| (pair["key"].as_str().unwrap(), pair["value"].to_string())).collect()
    }

    #[test]
    fn an_event_is_a_record_with_its_fields_as_attributes() {
        let line = r#"{"v":1,"time":"1970-01-01T00:00:01.000002Z","mono_ns":18446744073709551615,"source":"gateway","type":"flow.denied","decision":"7k","direction":"egress","protocol":"tcp","guest":"172.16.0.2:4000","remote":"[fd00::5]:22","group":"private","names":["a.example"],"rule":{"index":null,"text":"default egress deny"},"process":{"pid":2,"comm":"curl"}}"#;
        let record = record(&serde_json::from_str(line).unwrap(), &serde_json::from_str(line).unwrap(), 7);
        assert_eq!(record["timeUnixNano"], "1000002000");
        assert_eq!(record["observedTimeUnixNano"], "7");
        assert_eq!((&record["severityNumber"], &record["severityText"]), (&json!(13), &json!("WARN")));
        assert_eq!(record["eventName"], "cofferdam.flow.denied");
        let attributes = attributes(&record);
        for pair in [
            ("cofferdam.remote", r#"{"stringValue":"[fd00::5]:22"}"#),
            ("cofferdam.names", r#"{"arrayValue":{"values":[{"stringValue":"a.example"}]}}"#),
            ("cofferdam.rule.text", r#"{"stringValue":"default egress deny"}"#),
            ("cofferdam.process.pid", r#"{"intValue":"2"}"#),
        ] {
            assert!(attributes.contains(&(pair.0, pair.1.to_owned())), "{pair:?} in {attributes:?}");
        }
        // Beyond 63 bits it is no integer of the protocol's.
        let late = |(key, value): &(&str, String)| *key == "cofferdam.mono_ns" && value.contains("doubleValue");
        assert!(attributes.iter().any(late), "{attributes:?}");
        assert!(attributes.iter().all(|(key, _)| *key != "cofferdam.rule.index" && *key != "cofferdam.type"));
    }

    #[test]
    fn totals_are_sums_from_the_beginning() {
        let totals =
            Totals { bytes_out: u64::MAX, flows_denied: 3, dns_queries: 5, dns_denied: 2, ..Totals::default() };
        let metrics = Resource::new("0.1.0", &[0xab; 16]).metrics(&totals, 4, 1, 2);
        let list = metrics["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().unwrap();
        let counts = |name: &str| -> Vec<String> {
            let metric = list.iter().find(|metric| metric["name"] == name).unwrap();
            assert_eq!(metric["sum"]["isMonotonic"], true);
            let points = metric["sum"]["dataPoints"].as_array().unwrap();
            points.iter().map(|point| point["asInt"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(counts("cofferdam.network.io"), ["9223372036854775807", "0"]);
        assert_eq!(counts("cofferdam.flows"), ["0", "3", "0"]);
        assert_eq!(counts("cofferdam.dns.queries"), ["3", "2"]);
        assert_eq!(counts("cofferdam.events.lost"), ["4"]);
    }

    #[test]
    fn what_a_collector_rejects_is_counted() {
        let field = "rejectedLogRecords";
        for (reply, count, why) in [
            ("", 0, ""),
            ("{}", 0, ""),
            (r#"{"partialSuccess":{}}"#, 0, ""),
            (r#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#, 3, "too old"),
            (r#"{"partialSuccess":{"rejectedLogRecords":3}}"#, 3, "it has rejected them"),
            (r#"{"partialSuccess":{"rejectedLogRecords":[]}}"#, 0, ""),
        ] {
            assert_eq!(rejected(reply.as_bytes(), field), (count, why.to_owned()), "{reply}");
        }
    }
}
