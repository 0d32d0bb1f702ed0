//! What the command line prints, and how.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;

use cofferdam_control::summary::{escaped, escaped_json};
use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;

/// A kind of text, as a terminal shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Good,
    Bad,
    Notable,
    Faint,
    Strong,
}

/// Whether a stream gets colour: only on a terminal, and never with a `NO_COLOR` that is not empty
/// (<https://no-color.org>) or on a terminal that calls itself dumb.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn stdout() -> Paint {
        Paint(io::stdout().is_terminal() && colour_wanted())
    }

    pub(crate) fn stderr() -> Paint {
        Paint(io::stderr().is_terminal() && colour_wanted())
    }

    #[cfg(test)]
    pub(crate) fn never() -> Paint {
        Paint(false)
    }

    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Good => "32",
            Style::Bad => "31",
            Style::Notable => "33",
            Style::Faint => "2",
            Style::Strong => "1",
        };
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub(crate) fn colour_wanted() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_color && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints data. The exit status says whether it arrived.
pub(crate) fn print(text: &str) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        // The reader has what it wanted: `cofferdam schema policy | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => fail(&format!("cannot write to stdout: {error}"), 1),
    }
}

/// Prints data as JSON, which a terminal shows as it is.
pub(crate) fn print_json(value: &serde_json::Value) -> u8 {
    print(&format!("{}\n", escaped_json(&format!("{value:#}"))))
}

/// Says something that is not data.
pub(crate) fn say(text: &str) {
    let mut line = String::new();
    let _ = writeln!(line, "cofferdam: {}", escaped(text));
    to_stderr(&line);
}

/// Says something that is not data while a program runs, whose output may be in the middle of a line on a terminal.
///
/// Whoever watches over the program must not wait for a reader of ours: what finds no room is not said.
pub(crate) fn say_now(text: &str, screen: Screen) {
    let line = format!("cofferdam: {}", escaped(text));
    let mut room = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::OUT)];
    let has_room = rustix::event::poll(&mut room, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    if !has_room.is_ok_and(|ready| ready > 0) {
        return;
    }
    match screen {
        Screen::Ours => to_stderr(&format!("{line}\n")),
        Screen::Programs => to_stderr(&format!("\r\n{line}\r\n")),
    }
}

/// Whose a terminal is, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Screen {
    Ours,
    /// The program's, and raw: a line feed alone does not lead to the beginning of a line.
    Programs,
}

/// Says what went wrong, in one paragraph, and gives the exit status back.
pub(crate) fn fail(text: &str, status: u8) -> u8 {
    let label = Paint::stderr().paint(Style::Bad, "error");
    to_stderr(&format!("cofferdam: {label}: {}\n", escaped(text)));
    status
}

/// An error with everything behind it, in one line; a cause that its effect already tells is not repeated.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Writes to stderr. There is nowhere to say that stderr is gone.
pub(crate) fn to_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// A message about a place in a text, with the place marked:
///
/// ```text
/// --net-rule: unknown action `alow`
///   │ alow@example.org
///   │ ^^^^
///   = help: write `allow`
/// ```
pub(crate) fn pointed(origin: &str, source: &str, span: &Range<usize>, message: &str, help: Option<&str>) -> String {
    let paint = Paint::stderr();
    // Byte positions may lie anywhere: what is before and inside is counted in characters, and nothing is sliced blindly.
    let start = source.char_indices().filter(|(at, _)| *at < span.start).count();
    let length = source.char_indices().filter(|(at, _)| span.contains(at)).count().max(1);
    let line_start = source.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let line = source.get(line_start..).unwrap_or(source).lines().next().unwrap_or("");
    let column = start.saturating_sub(source.char_indices().filter(|(at, _)| *at < line_start).count());
    // One character is shown as one column: what a terminal would act on becomes a replacement character.
    let shown: String =
        line.chars().map(|c| if escaped(&c.to_string()).chars().count() == 1 { c } else { '\u{fffd}' }).collect();
    let length = length.min(shown.chars().count().saturating_sub(column).max(1));
    let bar = paint.paint(Style::Faint, "│");
    let marks = paint.paint(Style::Bad, &"^".repeat(length));
    let mut text =
        format!("{}: {}\n  {bar} {shown}\n  {bar} {:column$}{marks}\n", escaped(origin), escaped(message), "");
    if let Some(help) = help {
        let _ = writeln!(text, "  {} help: {}", paint.paint(Style::Faint, "="), escaped(help));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_the_place() {
        let text = pointed("--net-rule", "deny@any,alow@x.y", &(9..13), "unknown action", Some("allow"));
        assert_eq!(text, "--net-rule: unknown action\n  │ deny@any,alow@x.y\n  │          ^^^^\n  = help: allow\n");
    }

    #[test]
    fn marks_the_line_of_a_text_with_several() {
        let text = pointed("rules.txt", "deny@any,\nälow@x.y", &(10..15), "unknown action", None);
        assert_eq!(text, "rules.txt: unknown action\n  │ älow@x.y\n  │ ^^^^\n");
    }

    #[test]
    fn survives_any_span_and_any_text() {
        for (source, span) in
            [("", 0..0), ("ä", 1..2), ("abc", 3..3), ("abc", 7..9), ("a\u{1b}[2Jb", 1..2), ("\n\n", 1..2)]
        {
            let text = pointed("x", source, &span, "m", None);
            assert!(!text.contains('\u{1b}'), "{text:?}");
            assert!(text.contains('^'));
        }
    }

    #[test]
    fn json_shows_what_a_terminal_would_act_on_and_stays_the_same_json() {
        let value = serde_json::json!({ "name": "a\u{1b}[2J\u{202e}b\u{9b}\u{7f}\n\"\\", "more": ["ä", "𝄞"] });
        let text = escaped_json(&format!("{value:#}"));
        assert!(text.contains("\\u202eb\\u009b\\u007f") && text.contains("ä"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        assert!(text.chars().all(|c| c == '\n' || escaped(&c.to_string()).chars().count() == 1), "{text:?}");
    }

    #[test]
    fn a_chain_does_not_repeat_itself() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x: {0}")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("disk gone"));
        assert_eq!(chain(&error), "cannot open x: disk gone");
    }
}
