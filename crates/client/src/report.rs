//! What a run has come to.

use cofferdam_model::{Group, RuleText};
use serde::Deserialize;

use crate::error::Refusal;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It exited with this status.
    Exited(u8),
    /// This signal ended it.
    Signaled(i32),
    /// The run was ended from outside: by [`Running::kill`](crate::Running::kill), or with its sandbox.
    Lost,
}

/// How a run ended, and what it was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finished {
    pub status: Status,
    /// What was tried and denied, most frequent first: by the run's own gateway, or, for a run in its sandbox's network, by the
    /// sandbox's while the run went on, whichever run it was that tried.
    pub denied: Vec<Denied>,
    /// Denials that found no room in `denied`.
    pub denied_beyond: u64,
    pub totals: Totals,
    /// What a person should be told: what the run got less than it asked for, limits that do not hold.
    pub notices: Vec<String>,
    /// The gateway ended before the program did, which had no network from then on.
    pub network_lost: bool,
    /// So many events came too fast to be told: there may be denials among them that `denied` and `totals` have not.
    pub events_lost: u64,
}

/// As [`Finished`], with what the program has written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    pub status: Status,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub denied: Vec<Denied>,
    pub denied_beyond: u64,
    pub totals: Totals,
    pub notices: Vec<String>,
    pub network_lost: bool,
    pub events_lost: u64,
}

impl Finished {
    /// Whether the program exited with 0, and had its network until then.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == Status::Exited(0) && !self.network_lost
    }

    pub(crate) fn with_streams(self, stdout: Vec<u8>, stderr: Vec<u8>) -> Output {
        let Finished { status, denied, denied_beyond, totals, notices, network_lost, events_lost } = self;
        Output { status, stdout, stderr, denied, denied_beyond, totals, notices, network_lost, events_lost }
    }

    /// Of a run that could say nothing any more.
    pub(crate) fn lost() -> Finished {
        Finished {
            status: Status::Lost,
            denied: Vec::new(),
            denied_beyond: 0,
            totals: Totals::default(),
            notices: Vec::new(),
            network_lost: false,
            events_lost: 0,
        }
    }
}

impl Output {
    /// Whether the program exited with 0, and had its network until then.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == Status::Exited(0) && !self.network_lost
    }

    /// Standard output as text; what is no UTF-8 becomes a replacement character. It is a hostile program's: no terminal should
    /// see it as it is.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error, as [`Output::stdout_text`].
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Something that was tried and denied.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Denied {
    /// The name, or the address where no name led to it.
    pub target: String,
    /// Absent for pings and look-ups.
    #[serde(default)]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `dns`.
    #[serde(default)]
    pub protocols: Vec<String>,
    pub count: u64,
    /// Of the address, where one was denied.
    #[serde(default)]
    pub group: Option<Group>,
    /// The rule or default that said no.
    #[serde(default)]
    pub rule: RuleText,
    /// The flag of `cofferdam run` that would allow it, where one does.
    #[serde(default)]
    pub allow_with: Option<String>,
    /// The program kept the address of a name for too long: it has to look the name up again.
    #[serde(default)]
    pub look_up_again: bool,
    /// Names of the processes that tried: of those that were found, and eight at most.
    #[serde(default)]
    pub programs: Vec<String>,
}

/// Counters of a run with a network of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Totals {
    pub flows_opened: u64,
    pub flows_denied: u64,
    pub flows_failed: u64,
    /// Payload, guest to remote.
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub dns_queries: u64,
    pub dns_denied: u64,
}

/// A line of a report.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(crate) enum Line {
    Started,
    Ended(Box<EndedLine>),
    Failed(Refusal),
}

#[derive(Debug, Deserialize)]
pub(crate) struct EndedLine {
    ended: Ended,
    #[serde(default)]
    network_lost: bool,
    #[serde(default)]
    denied: Vec<Denied>,
    #[serde(default)]
    denied_beyond: u64,
    #[serde(default)]
    totals: Totals,
    #[serde(default)]
    notices: Vec<String>,
    #[serde(default)]
    limits: Limits,
}

/// How often limits were reached, as far as a program has to know.
#[derive(Debug, Default, Deserialize)]
struct Limits {
    /// Events that were lost.
    #[serde(default)]
    events: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Exited(u8),
    Signaled(i32),
    TimedOut,
    Lost,
}

impl EndedLine {
    /// How the run ended. One whose time was up has been lost, to us.
    pub(crate) fn end(self) -> End {
        let EndedLine { ended, network_lost, denied, denied_beyond, totals, notices, limits } = self;
        let events_lost = limits.events;
        let (status, end): (Status, fn(Finished) -> End) = match ended {
            Ended::Exited(code) => (Status::Exited(code), End::InTime),
            Ended::Signaled(signal) => (Status::Signaled(signal), End::InTime),
            Ended::Lost => (Status::Lost, End::InTime),
            Ended::TimedOut => (Status::Lost, End::TimedOut),
        };
        end(Finished { status, denied, denied_beyond, totals, notices, network_lost, events_lost })
    }
}

/// Whether a run ended in time.
#[derive(Debug)]
pub(crate) enum End {
    InTime(Finished),
    TimedOut(Finished),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_run_is_read() {
        let end = |json: &str| match serde_json::from_str::<Line>(json).unwrap() {
            Line::Ended(line) => line.end(),
            other @ (Line::Started | Line::Failed(_)) => panic!("{other:?}"),
        };
        let read = |json: &str| match end(json) {
            End::InTime(finished) => finished,
            End::TimedOut(finished) => panic!("{finished:?}"),
        };
        let denied = r#"{"report": "ended", "v": 1, "ended": {"exited": 3}, "exit_status": 3, "network_lost": false, "notices": ["n"],
            "denied": [{"target": "fd00::5", "port": 80, "protocols": ["tcp"], "count": 2, "group": "private",
            "rule": {"index": null, "text": "default egress deny"}, "decision": "x", "allow_with": null, "look_up_again": false}],
            "denied_beyond": 0, "totals": {"flows_denied": 2}, "dropped": {}, "limits": {"events": 5, "pings": 1}}"#;
        let finished = read(denied);
        assert_eq!((finished.status, finished.totals.flows_denied, finished.events_lost), (Status::Exited(3), 2, 5));
        assert_eq!((finished.denied[0].group, finished.denied[0].count), (Some(Group::Private), 2));
        assert_eq!(read(r#"{"report": "ended", "ended": {"signaled": 9}}"#).status, Status::Signaled(9));
        assert!(matches!(end(r#"{"report": "ended", "ended": "timed_out"}"#), End::TimedOut(_)));
        let lost = read(r#"{"report": "ended", "ended": {"exited": 0}, "network_lost": true}"#);
        assert!(!lost.success() && !lost.with_streams(Vec::new(), Vec::new()).success());
        assert!(serde_json::from_str::<Line>(r#"{"report": "more"}"#).is_err());
    }
}
