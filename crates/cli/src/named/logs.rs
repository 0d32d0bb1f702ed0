//! `cofferdam logs`: what a main command has written.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam_control::named::{Entry, State};
use cofferdam_control::summary::escaped;

use super::open;
use crate::args::LogsArgs;
use crate::output;
use crate::refusal::EXIT_FAILED;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn logs(args: &LogsArgs) -> u8 {
    let entry = match open(&args.name) {
        Ok(entry) => entry,
        Err(refusal) => return refusal.with_status(EXIT_FAILED).tell(false),
    };
    match show(&entry, args.follow) {
        Ok(()) => 0,
        // The reader has what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => output::fail(&format!("cannot show the log of {}: {error}", entry.name()), EXIT_FAILED),
    }
}

fn show(entry: &Entry, follow: bool) -> io::Result<()> {
    let path = entry.path().join("log");
    let mut out = Out { stdout: io::stdout(), is_terminal: io::stdout().is_terminal(), rest: Vec::new() };
    if let Some(mut older) = optional(&entry.path().join("log.1"))? {
        out.copy(&mut older)?;
    }
    let mut file = optional(&path)?;
    loop {
        // Asked first: what was written before its end is there then.
        let is_over = !follow || entry.state() == State::Stopped;
        if let Some(open) = &mut file {
            out.copy(open)?;
            let is_turned =
                std::fs::metadata(&path).is_ok_and(|now| open.metadata().is_ok_and(|was| was.ino() != now.ino()));
            if is_turned {
                file = optional(&path)?;
                continue;
            }
        } else {
            file = optional(&path)?;
        }
        if is_over {
            return out.end();
        }
        thread::sleep(LOOK);
    }
}

fn optional(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(mut file) => {
            file.seek(SeekFrom::Start(0))?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where it goes: as it is, or without what a terminal would act on.
struct Out {
    stdout: io::Stdout,
    is_terminal: bool,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Out {
    fn copy(&mut self, from: &mut File) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let len = from.read(&mut buffer)?;
            if len == 0 {
                return self.stdout.flush();
            }
            let bytes = buffer.get(..len).unwrap_or_default();
            if !self.is_terminal {
                self.stdout.write_all(bytes)?;
                continue;
            }
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                self.rest.extend_from_slice(piece);
                // A line without an end is shown in parts.
                if piece.ends_with(b"\n") || self.rest.len() > 64 * 1024 {
                    self.line()?;
                }
            }
        }
    }

    fn line(&mut self) -> io::Result<()> {
        let line = String::from_utf8_lossy(&self.rest).into_owned();
        let text = escaped(line.trim_end_matches(['\n', '\r'])).replace("\\t", "\t");
        let end = if line.ends_with('\n') { "\n" } else { "" };
        self.rest.clear();
        write!(self.stdout, "{text}{end}")
    }

    fn end(&mut self) -> io::Result<()> {
        if self.rest.is_empty() { Ok(()) } else { self.line() }
    }
}
