//! How a line of the event stream is read.
//!
//! What serde derives for a flattened enum puts every field of a line into an intermediate form twice, and the supervisor reads
//! two lines for each connection. Here the fields that all events have are taken out as they come, in whatever order, and the
//! others go to [`EventBody`] as they are.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use crate::{Event, EventBody, EventSource};

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Event, D::Error> {
        deserializer.deserialize_map(Line)
    }
}

struct Line;

impl<'de> Visitor<'de> for Line {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Event, A::Error> {
        let mut head = Head::default();
        let body = EventBody::deserialize(MapAccessDeserializer::new(Rest { map, head: &mut head }))?;
        let Head { v, time, mono_ns, source } = head;
        Ok(Event {
            v: v.ok_or_else(|| Error::missing_field("v"))?,
            time: time.ok_or_else(|| Error::missing_field("time"))?,
            mono_ns: mono_ns.ok_or_else(|| Error::missing_field("mono_ns"))?,
            source: source.ok_or_else(|| Error::missing_field("source"))?,
            body,
        })
    }
}

/// What all events have.
#[derive(Default)]
struct Head {
    v: Option<u32>,
    time: Option<String>,
    mono_ns: Option<u64>,
    source: Option<EventSource>,
}

/// A line without what all events have, which is put aside when its turn comes.
struct Rest<'a, A> {
    map: A,
    head: &'a mut Head,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            let name = match self.map.next_key::<Key<'de>>()? {
                None => return Ok(None),
                Some(Key(name)) => name,
            };
            match &*name {
                "v" => take(&mut self.map, &mut self.head.v, "v")?,
                "time" => take(&mut self.map, &mut self.head.time, "time")?,
                "mono_ns" => take(&mut self.map, &mut self.head.mono_ns, "mono_ns")?,
                "source" => take(&mut self.map, &mut self.head.source, "source")?,
                _ => {
                    return match name {
                        Cow::Borrowed(name) => seed.deserialize(BorrowedStrDeserializer::new(name)),
                        Cow::Owned(name) => seed.deserialize(StrDeserializer::new(&name)),
                    }
                    .map(Some);
                }
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

fn take<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    place: &mut Option<T>,
    name: &'static str,
) -> Result<(), A::Error> {
    if place.replace(map.next_value()?).is_some() {
        return Err(Error::duplicate_field(name));
    }
    Ok(())
}

/// The name of a field, which most lines have as it is.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key<'de>, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Borrowed(name)))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Owned(name.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_slice, from_str, json, to_string, to_value, to_vec};

    use super::*;

    /// As serde would derive it.
    #[derive(serde::Deserialize)]
    struct Derived {
        v: u32,
        time: String,
        mono_ns: u64,
        source: EventSource,
        #[serde(flatten)]
        body: EventBody,
    }

    fn derived(line: &[u8]) -> Option<Event> {
        let Derived { v, time, mono_ns, source, body } = from_slice(line).ok()?;
        Some(Event { v, time, mono_ns, source, body })
    }

    fn head() -> Value {
        json!({ "v": 1, "time": "2026-11-25T12:00:00.000000Z", "mono_ns": 7, "source": "gateway" })
    }

    fn bodies() -> Vec<Value> {
        let flow = |guest: &str, remote: &str| {
            json!({
                "type": "flow.opened", "flow": 1, "direction": "egress", "protocol": "tcp", "guest": guest, "remote": remote,
                "group": "public", "names": ["a.example", "quo\"ted"], "rule": { "index": 0, "text": "allow@any" },
            })
        };
        let counters = json!({ "bytes_out": 1, "bytes_in": 2 });
        vec![
            flow("172.16.0.2:40000", "192.0.2.1:443"),
            flow("[fd42::2]:40000", "[2001:db8::1]:443"),
            json!({ "type": "flow.closed", "flow": 1, "by": "guest", "counters": counters, "duration_ms": 3 }),
            json!({ "type": "gateway.notice", "message": "line\nfeed \u{1f600} \\" }),
            json!({ "type": "dns.more", "verdict": "deny", "count": 3 }),
        ]
    }

    /// The fields of both in an order that begins with the `from`th.
    fn line(head: &Value, body: &Value, from: usize) -> String {
        let fields = head.as_object().unwrap().iter().chain(body.as_object().unwrap());
        let mut fields: Vec<String> =
            fields.map(|(name, value)| format!("{}:{}", to_string(name).unwrap(), to_string(value).unwrap())).collect();
        let from = from % fields.len();
        fields.rotate_left(from);
        format!("{{{}}}", fields.join(","))
    }

    #[test]
    fn reads_fields_in_any_order_as_they_were_written() {
        for body in bodies() {
            let event: Event = from_str(&line(&head(), &body, 0)).unwrap();
            let mut expected = head();
            expected.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            assert_eq!(to_value(&event).unwrap(), expected);
            assert_eq!(from_slice::<Event>(&to_vec(&event).unwrap()).unwrap(), event);
            for from in 1..13 {
                assert_eq!(from_str::<Event>(&line(&head(), &body, from)).unwrap(), event);
            }
            // Names and texts that nothing can be borrowed from.
            assert_eq!(serde_json::from_value::<Event>(expected).unwrap(), event);
            let escaped = line(&head(), &body, 0).replace("\"type\"", "\"\\u0074ype\"").replace("\"v\"", "\"\\u0076\"");
            assert_eq!(from_str::<Event>(&escaped).unwrap(), event);
        }
    }

    #[test]
    fn what_is_unknown_is_passed_over_and_what_is_missing_or_twice_is_an_error() {
        let body = &bodies()[2];
        let text = line(&head(), body, 0);
        let event: Event = from_str(&text).unwrap();
        let more = text.replacen('{', "{\"later\":[{\"v\":2}],", 1);
        assert_eq!(from_str::<Event>(&more).unwrap(), event);
        for (name, twice) in [("v", "1"), ("time", "\"x\""), ("mono_ns", "1"), ("source", "\"gateway\"")] {
            let mut without = head();
            without.as_object_mut().unwrap().remove(name);
            let error = from_str::<Event>(&line(&without, body, 0)).unwrap_err().to_string();
            assert!(error.contains(&format!("missing field `{name}`")), "{error}");
            let double = text.replacen('{', &format!("{{\"{name}\":{twice},"), 1);
            let error = from_str::<Event>(&double).unwrap_err().to_string();
            assert!(error.contains(&format!("duplicate field `{name}`")), "{error}");
        }
        for nonsense in ["{}", "[]", "7", "null", "{\"v\":1", "{\"v\":-1}"] {
            assert!(from_str::<Event>(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn agrees_with_what_serde_derives_about_lines_that_are_cut_or_changed() {
        for text in bodies().iter().map(|body| line(&head(), body, 0)) {
            for at in 0..text.len() {
                for byte in [b'"', b'x', b'0', b',', b'}'] {
                    let mut changed = text.clone().into_bytes();
                    changed[at] = byte;
                    assert_eq!(from_slice::<Event>(&changed).ok(), derived(&changed), "{at} {byte} of {text}");
                }
                assert_eq!(from_slice::<Event>(&text.as_bytes()[..at]).ok(), None);
            }
        }
    }
}
