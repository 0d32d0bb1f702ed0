//! What a run tells the program that asked for it: JSON lines on a descriptor of that program's choice.

use std::fs::File;
use std::io::Write;

use cofferdam_control::{Finished, Status};
use serde_json::{Value, json};

use crate::refusal::Refusal;

/// The version of what is told.
const VERSION: u32 = 1;

/// Where it is told. Whoever asks for it has to read it.
#[derive(Debug)]
pub(super) struct Report(File);

impl Report {
    /// Opens a descriptor that this process was started with.
    pub(super) fn open(number: u32) -> Result<Report, Refusal> {
        let opened = File::options().append(true).open(format!("/proc/self/fd/{number}"));
        opened.map(Report).map_err(|error| Refusal::setup(format!("cannot write to --report-fd {number}: {error}")))
    }

    pub(super) fn started(&mut self) {
        self.say(json!({ "report": "started" }));
    }

    /// `told`: what could not wait for the end.
    pub(super) fn ended(&mut self, finished: &Finished, told: &[String]) {
        let ended = match finished.status {
            Status::Exited(code) => json!({ "exited": code }),
            Status::Signaled(signal) => json!({ "signaled": signal }),
            Status::TimedOut => "timed_out".into(),
            Status::Lost | Status::GuestLost => "lost".into(),
        };
        let mut line = finished.summary.to_json();
        let notices = told.iter().chain(&finished.notices).map(String::as_str);
        let notices: Vec<&str> = notices.chain(finished.summary.notices().iter().map(String::as_str)).collect();
        if let Some(object) = line.as_object_mut() {
            for (field, value) in [
                ("report", "ended".into()),
                ("ended", ended),
                ("exit_status", finished.exit_status.into()),
                ("network_lost", finished.lost_network.into()),
                ("notices", notices.into()),
            ] {
                object.insert(field.to_owned(), value);
            }
        }
        self.say(line);
    }

    pub(super) fn failed(&mut self, refusal: &Refusal) {
        let mut line = refusal.to_json();
        if let Some(object) = line.as_object_mut() {
            object.insert("report".to_owned(), "failed".into());
        }
        self.say(line);
    }

    fn say(&mut self, mut line: Value) {
        if let Some(object) = line.as_object_mut() {
            object.insert("v".to_owned(), VERSION.into());
        }
        // Somebody who does not listen any more is told nothing; the exit status says the most important.
        let _gone = self.0.write_all(format!("{line}\n").as_bytes());
    }
}
