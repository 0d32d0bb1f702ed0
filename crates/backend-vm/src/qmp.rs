//! QMP, the protocol by which QEMU is controlled, as far as one virtual machine in one sandbox needs it.
//!
//! QEMU greets, is asked to leave the negotiation, and from then on says what happens to the machine; it is told to end.
//! Messages are JSON, one per line. Whoever has taken QEMU over writes them: they are bounded, and what cannot be understood ends
//! the conversation.
//!
//! | State | Message | Next | Output |
//! |---|---|---|---|
//! | greeting | `{"QMP": …}` | negotiating | `qmp_capabilities` |
//! | negotiating | `{"return": …}` | ready | [`Output::Ready`] |
//! | ready | `{"event": …}` | ready | [`Output::Event`] for those that matter |
//! | any | `{"error": …}`, anything else | – | an error |
//!
//! Not here: commands with results, of which none is needed. Reference: `docs/interop/qmp-spec.rst` of QEMU.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::Value;

/// The longest message that is taken. A greeting has some hundred bytes.
pub const LONGEST: usize = 64 * 1024;

/// The most outputs that wait to be polled: more than one message makes, so the input is bounded by what is polled.
const MOST_OUTPUTS: usize = 64;

/// What to do, or what has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write these bytes.
    Send(Vec<u8>),
    /// QEMU takes commands.
    Ready,
    Event(Event),
}

/// What has happened to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It has been switched off.
    Shutdown(Reason),
    /// The guest's kernel says that it cannot go on.
    Panicked,
}

/// Why a machine has been switched off: `ShutdownCause` of QEMU, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The guest has switched it off.
    GuestShutdown,
    /// The guest has started it anew, which a kernel does after a panic.
    GuestReset,
    GuestPanic,
    /// We asked, or QEMU got a signal.
    Host,
    Other,
}

/// Why a conversation cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    #[error("a message of QEMU is longer than {LONGEST} bytes")]
    TooLong,
    #[error("QEMU sent what is no message of QMP")]
    Garbled,
    #[error("QEMU sent a message out of turn")]
    OutOfTurn,
    #[error("QEMU refused a command: {0}")]
    Refused(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Negotiating,
    Ready,
}

/// One conversation.
#[derive(Debug)]
pub struct Qmp {
    state: State,
    /// The message that is not complete yet.
    partial: Vec<u8>,
    outputs: VecDeque<Output>,
}

impl Default for Qmp {
    fn default() -> Qmp {
        Qmp::new()
    }
}

impl Qmp {
    #[must_use]
    pub fn new() -> Qmp {
        Qmp { state: State::Greeting, partial: Vec::new(), outputs: VecDeque::new() }
    }

    /// QEMU has sent something. After an error the conversation is over.
    ///
    /// # Errors
    /// What was sent is too long, or no message that may come now.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len() + piece.len() > LONGEST {
                return Err(QmpError::TooLong);
            }
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let message = std::mem::take(&mut self.partial);
                self.handle_message(message.trim_ascii())?;
            }
        }
        Ok(())
    }

    /// What is to be done; drain to `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The command that ends QEMU, without asking the guest.
    #[must_use]
    pub fn quit() -> &'static [u8] {
        b"{\"execute\":\"quit\"}\n"
    }

    fn handle_message(&mut self, message: &[u8]) -> Result<(), QmpError> {
        if message.is_empty() {
            return Ok(());
        }
        let message: Message = serde_json::from_slice(message).map_err(|_| QmpError::Garbled)?;
        if let Some(error) = message.error {
            return Err(QmpError::Refused(plain(error.desc.as_deref().unwrap_or("for no reason given"))));
        }
        match (self.state, message.qmp, message.returned, message.event) {
            (State::Greeting, Some(_), None, None) => {
                self.state = State::Negotiating;
                self.push(Output::Send(b"{\"execute\":\"qmp_capabilities\"}\n".to_vec()))
            }
            (State::Negotiating, None, Some(_), None) => {
                self.state = State::Ready;
                self.push(Output::Ready)
            }
            (State::Negotiating | State::Ready, None, None, Some(name)) => match event(&name, message.data.as_ref()) {
                Some(event) => self.push(Output::Event(event)),
                None => Ok(()),
            },
            // The answer to `quit`.
            (State::Ready, None, Some(_), None) => Ok(()),
            (State::Greeting | State::Negotiating | State::Ready, ..) => Err(QmpError::OutOfTurn),
        }
    }

    fn push(&mut self, output: Output) -> Result<(), QmpError> {
        // Nobody polls: whoever sends this much has nothing to say.
        if self.outputs.len() >= MOST_OUTPUTS {
            return Err(QmpError::OutOfTurn);
        }
        self.outputs.push_back(output);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    qmp: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: Option<String>,
}

fn event(name: &str, data: Option<&Value>) -> Option<Event> {
    let text = |key: &str| data.and_then(|data| data.get(key)).and_then(Value::as_str);
    match name {
        "SHUTDOWN" => Some(Event::Shutdown(match text("reason") {
            Some("guest-shutdown") => Reason::GuestShutdown,
            Some("guest-reset") => Reason::GuestReset,
            Some("guest-panic") => Reason::GuestPanic,
            Some("host-qmp-quit" | "host-signal" | "host-qmp-system-reset") => Reason::Host,
            Some(_) | None => Reason::Other,
        })),
        "GUEST_PANICKED" | "GUEST_CRASHLOADED" => Some(Event::Panicked),
        _ => None,
    }
}

/// On one line of bounded length, and without control characters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}"#;

    fn ready() -> Qmp {
        let mut qmp = Qmp::new();
        qmp.handle_input(format!("{GREETING}\r\n{{\"return\": {{}}}}\r\n").as_bytes()).unwrap();
        while qmp.poll_output().is_some() {}
        qmp
    }

    #[test]
    fn greets_and_is_ready_wherever_the_bytes_are_cut() {
        let stream = format!("{GREETING}\r\n{{\"return\": {{}}}}\r\n");
        for cut in 0..stream.len() {
            let mut qmp = Qmp::new();
            let (first, rest) = stream.as_bytes().split_at(cut);
            qmp.handle_input(first).unwrap();
            qmp.handle_input(rest).unwrap();
            let asked = Output::Send(b"{\"execute\":\"qmp_capabilities\"}\n".to_vec());
            assert_eq!(qmp.poll_output(), Some(asked));
            assert_eq!(qmp.poll_output(), Some(Output::Ready));
            assert_eq!(qmp.poll_output(), None);
        }
    }

    #[test]
    fn says_why_a_machine_was_switched_off() {
        for (reason, expected) in [
            ("guest-shutdown", Reason::GuestShutdown),
            ("guest-reset", Reason::GuestReset),
            ("guest-panic", Reason::GuestPanic),
            ("host-qmp-quit", Reason::Host),
            ("something-new", Reason::Other),
        ] {
            let mut qmp = ready();
            let event = format!(
                r#"{{"timestamp": {{}}, "event": "SHUTDOWN", "data": {{"guest": true, "reason": "{reason}"}}}}"#
            );
            qmp.handle_input(format!("{event}\r\n").as_bytes()).unwrap();
            assert_eq!(qmp.poll_output(), Some(Output::Event(Event::Shutdown(expected))));
        }
    }

    #[test]
    fn events_that_do_not_matter_are_passed_over() {
        let mut qmp = ready();
        qmp.handle_input(b"{\"event\": \"NIC_RX_FILTER_CHANGED\", \"data\": {\"name\": 7}}\n\n").unwrap();
        assert_eq!(qmp.poll_output(), None);
    }

    #[test]
    fn a_refusal_is_told_on_one_line() {
        let mut qmp = ready();
        let refused = qmp.handle_input(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\nway\"}}\n");
        assert_eq!(refused, Err(QmpError::Refused("no way".to_owned())));
    }

    #[test]
    fn what_is_no_message_and_what_comes_out_of_turn_ends_it() {
        for garbled in ["hello", "[]", "{\"QMP\": ", "\u{0}"] {
            assert_eq!(Qmp::new().handle_input(format!("{garbled}\n").as_bytes()), Err(QmpError::Garbled), "{garbled}");
        }
        for early in ["{}", "{\"return\": {}}", "{\"event\": \"STOP\"}"] {
            assert_eq!(Qmp::new().handle_input(format!("{early}\n").as_bytes()), Err(QmpError::OutOfTurn), "{early}");
        }
    }

    #[test]
    fn a_message_without_an_end_stays_within_bounds() {
        let mut qmp = Qmp::new();
        let piece = vec![b' '; LONGEST / 4];
        for _ in 0..4 {
            qmp.handle_input(&piece).unwrap();
        }
        assert_eq!(qmp.handle_input(b" "), Err(QmpError::TooLong));
        let mut qmp = ready();
        let panic = b"{\"event\": \"GUEST_PANICKED\"}\n".repeat(MOST_OUTPUTS + 1);
        assert_eq!(qmp.handle_input(&panic), Err(QmpError::OutOfTurn));
    }
}
