//! Events for an OpenTelemetry collector: OTLP over HTTP, as JSON.
//!
//! An [`Exporter`] is a reader of the event stream like a file is: its `Sink` has a bounded queue and a thread,
//! and gives it whole lines. Each piece of them becomes one request for logs; every `METRICS`, and at the end, one for
//! metrics follows.
//!
//! | State | Event                                 | Next  | Effect                                             |
//! |-------|---------------------------------------|-------|----------------------------------------------------|
//! | up    | lines                                 | up    | a request; a second one where the first may be repeated |
//! | up    | neither is taken                      | down  | the lines are counted as not taken                 |
//! | down  | lines before the time of the next try | down  | the same, and nobody is asked                      |
//! | down  | lines after it                        | up    | as above; the time doubles until one is taken      |
//!
//! Nobody waits for the collector but this thread, and the end of a run does for what is queued, up to `FAREWELL` in all: what is
//! not sent by then is not taken. What was not taken is counted and told once.
//!
//! Here is no secret: an event has none. An endpoint with a password in it is refused, since command lines are for everybody to read.

mod encode;
mod http;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_model::{Event, EventBody, LimitKind};
use serde_json::Value;

use super::sink::Pace;
use crate::summary::{Advice, Summary};

use encode::Resource;
use http::{Client, LIMIT, Reply};

pub use http::{Endpoint, EndpointError};

/// How often metrics are sent while events come.
const METRICS: Duration = Duration::from_secs(10);
/// Before a request that may be repeated is.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a collector that takes nothing is left alone, at first and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// How long the end of a run waits for the collector: for what is queued and for the last metrics, whatever it does.
const FAREWELL: Duration = Duration::from_secs(10);

/// Lines for one request, and how long they are gathered: some 1,500 events, which are a megabyte and a half there. It is this
/// exporter that keeps to [`FAREWELL`], and is waited for beyond it.
pub(crate) const PACE: Pace =
    Pace { piece: 512 * 1024, gather: Duration::from_secs(1), patience: Duration::from_secs(15) };

/// Sends events to a collector.
pub struct Exporter {
    client: Client,
    resource: Resource,
    began: u128,
    summary: Summary,
    lost: u64,
    /// There were events.
    has_begun: bool,
    metrics_due: Instant,
    rest: Duration,
    /// Nobody is asked before.
    resting: Option<Instant>,
    outcome: Arc<Mutex<Outcome>>,
    /// By when all is to be done, once the run has ended.
    end: Arc<OnceLock<Instant>>,
}

/// What became of what was sent.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    not_taken: u64,
    /// Why, the last time.
    reason: Option<String>,
}

/// How to reach what became of it once the exporter is gone.
#[derive(Debug)]
pub(crate) struct Told {
    endpoint: String,
    outcome: Arc<Mutex<Outcome>>,
    end: Arc<OnceLock<Instant>>,
}

impl Exporter {
    #[must_use]
    pub fn new(endpoint: Endpoint, version: &str) -> Exporter {
        let mut instance = [0; 16];
        // Without it runs are not told apart in the collector's view; that is no reason not to run.
        let _ = getrandom::fill(&mut instance);
        Exporter {
            client: Client::new(endpoint, version),
            resource: Resource::new(version, &instance),
            began: now(),
            summary: Summary::new(Advice::default()),
            lost: 0,
            has_begun: false,
            metrics_due: Instant::now() + METRICS,
            rest: REST,
            resting: None,
            outcome: Arc::default(),
            end: Arc::default(),
        }
    }

    pub(crate) fn told(&self) -> Told {
        let (outcome, end) = (Arc::clone(&self.outcome), Arc::clone(&self.end));
        Told { endpoint: self.client.endpoint().to_string(), outcome, end }
    }

    fn send_logs(&mut self, lines: &[u8]) {
        let observed = now();
        let mut records = Vec::new();
        for line in lines.split(|byte| *byte == b'\n') {
            let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
            if let Ok(event) = serde_json::from_slice::<Event>(line) {
                self.count(&event);
                records.push(encode::record(&event, &value, observed));
            }
        }
        let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return;
        }
        self.has_begun = true;
        match self.send("/v1/logs", &self.resource.logs(records)) {
            Ok(reply) => {
                let (rejected, why) = encode::rejected(&reply, "rejectedLogRecords");
                self.not_taken(rejected, why);
            }
            Err(reason) => self.not_taken(count, reason),
        }
    }

    fn send_metrics(&mut self) {
        self.metrics_due = Instant::now() + METRICS;
        let body = self.resource.metrics(&self.summary.totals(), self.lost, self.began, now());
        // Those that come later count from the beginning as well, so that only the last of them is missed.
        if let Err(reason) = self.send("/v1/metrics", &body) {
            self.not_taken(0, reason);
        }
    }

    fn count(&mut self, event: &Event) {
        self.summary.record(event);
        if let EventBody::LimitReached { limit: LimitKind::Events, count, .. } = event.body {
            self.lost = self.lost.saturating_add(count);
        }
    }

    fn send(&mut self, path: &str, body: &Value) -> Result<Vec<u8>, String> {
        if self.resting.is_some_and(|until| Instant::now() < until) {
            return Err(self.outcome().reason.clone().unwrap_or_default());
        }
        let body = body.to_string();
        let mut reply = self.client.post(path, body.as_bytes(), self.until()?);
        if reply.as_ref().is_ok_and(Reply::may_be_repeated) {
            thread::sleep(AGAIN);
            reply = self.client.post(path, body.as_bytes(), self.until()?);
        }
        let taken = reply.and_then(Reply::taken);
        match &taken {
            Ok(_) => (self.rest, self.resting) = (REST, None),
            Err(_) => {
                self.resting = Some(Instant::now() + self.rest);
                self.rest = (self.rest * 2).min(LONGEST_REST);
            }
        }
        taken
    }

    /// By when a request that begins at this moment has to be done.
    fn until(&self) -> Result<Instant, String> {
        let now = Instant::now();
        let until = now + LIMIT;
        match self.end.get() {
            Some(end) if *end <= now => Err(format!("it was late {} s after the end of the run", FAREWELL.as_secs())),
            Some(end) => Ok(until.min(*end)),
            None => Ok(until),
        }
    }

    fn not_taken(&self, count: u64, reason: String) {
        let mut outcome = self.outcome();
        outcome.not_taken = outcome.not_taken.saturating_add(count);
        if count > 0 || !reason.is_empty() {
            outcome.reason = Some(reason);
        }
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Exporter {
    /// Takes whole lines. What the collector does not take is counted, and no error: the next may be taken.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.send_logs(lines);
        if Instant::now() >= self.metrics_due {
            self.send_metrics();
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Exporter {
    /// The last metrics are those of the whole run, if it ever began.
    fn drop(&mut self) {
        if self.has_begun {
            self.send_metrics();
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").field("endpoint", self.client.endpoint()).finish_non_exhaustive()
    }
}

impl Told {
    /// The run has ended: from here on [`FAREWELL`] goes by.
    pub(crate) fn end(&self) {
        self.end.get_or_init(|| Instant::now() + FAREWELL);
    }

    /// What a person should be told, once the exporter has ended.
    pub(crate) fn notice(&self) -> Option<String> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = outcome.reason.as_ref()?;
        let what = match outcome.not_taken {
            0 => "not all metrics were taken".to_owned(),
            1 => "1 event was not taken".to_owned(),
            count => format!("{count} events were not taken"),
        };
        Some(format!("what was sent to {} is incomplete: {what}: {reason}", self.endpoint))
    }

    pub(crate) fn name(&self) -> String {
        format!("what was sent to {}", self.endpoint)
    }
}

impl Drop for Told {
    /// Whoever forgets about the exporter waits no longer for it.
    fn drop(&mut self) {
        self.end();
    }
}

/// Nanoseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_late_after_the_end_is_counted_and_nobody_is_asked() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let collector = TcpListener::bind(loopback).unwrap();
            let endpoint = format!("http://{}", collector.local_addr().unwrap()).parse().unwrap();
            let mut exporter = Exporter::new(endpoint, "1");
            let told = exporter.told();
            told.end.set(Instant::now()).unwrap();
            let line = r#"{"v":1,"type":"gateway.notice","time":"then","mono_ns":7,"source":"gateway","message":"x"}"#;
            exporter.write_all(format!("{line}\n{line}\n").as_bytes()).unwrap();
            drop(exporter);
            let notice = told.notice().unwrap();
            assert!(notice.ends_with("2 events were not taken: it was late 10 s after the end of the run"), "{notice}");
            collector.set_nonblocking(true).unwrap();
            assert_eq!(collector.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn the_end_of_a_run_is_when_no_request_goes_on_beyond_it() {
        let exporter = Exporter::new("http://127.0.0.1:9".parse().unwrap(), "1");
        let before = Instant::now();
        assert!(exporter.until().unwrap() >= before + LIMIT);
        let told = exporter.told();
        told.end.set(before + LIMIT / 2).unwrap();
        told.end();
        assert_eq!(exporter.until().unwrap(), before + LIMIT / 2, "it does not begin anew");
    }
}
