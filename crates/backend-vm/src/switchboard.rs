//! Pure: between the callers of a machine that stays and the agent in its guest.
//!
//! A *caller* is the process of one run, with a line of its own to the monitor. On it both speak the agent's protocol: towards a
//! caller the monitor is the agent, and towards the agent it is the host of all callers. Calls get other ids on the way; windows are
//! those of the two ends, since credit is passed on and never made here. So a caller that does not read holds up its own streams.
//!
//! | State of a caller | Says | Then |
//! |---|---|---|
//! | new | `Hello` | it may call |
//! | greeted | `Exec`, `Put`, `Get` | the agent is asked; one at a time |
//! | in a call | `Data`, `End`, `Credit`, `Resize`, `Signal`, `Kill` of that | passed on |
//! | any | anything else, or it is gone | its call is killed, and it is forgotten |
//!
//! What the machine is set up with (`Mount`, `Network`, `Shutdown` …) is the monitor's own, and no caller's. Limit: [`MOST_CALLERS`].

use std::collections::BTreeMap;

use cofferdam_guest_protocol::{
    CallError, CallId, Decoder, Event, Failure, FailureKind, Host, Stream, ToGuest, ToHost, Token, VERSION,
};

/// Callers at once. More than calls, so that who is one too many is told so.
pub(crate) const MOST_CALLERS: usize = 256;

/// The most bytes that may wait for a caller that says something itself: more than two windows of output in messages of a byte each, which
/// are all that it may be sent without having said that it took some.
const MOST_UNREAD: usize = 8 << 20;

/// A caller, by a number that is never given again.
pub(crate) type CallerId = u32;

/// What callers and monitor greet each other with. A line is a pair of sockets that nobody else has: it needs no secret.
pub(crate) fn no_token() -> Token {
    Token::new([0; Token::LENGTH])
}

/// It said what it may not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfit;

/// The callers, and what they have called.
#[derive(Debug, Default)]
pub(crate) struct Switchboard {
    callers: BTreeMap<CallerId, Caller>,
    /// Whose the agent's calls are; `None` when the caller is gone.
    calls: BTreeMap<CallId, Option<CallerId>>,
    next: CallerId,
}

#[derive(Debug)]
struct Caller {
    decoder: Decoder<ToGuest>,
    output: Vec<u8>,
    is_greeted: bool,
    call: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    /// As the caller knows it, and as the agent does.
    theirs: CallId,
    ours: CallId,
    /// What the caller has been sent and has not said to have taken, of each stream.
    unread: [usize; 2],
}

impl Open {
    fn unread(&mut self, stream: Stream) -> &mut usize {
        let [output, error] = &mut self.unread;
        match stream {
            Stream::Output => output,
            Stream::Error => error,
        }
    }
}

impl Switchboard {
    /// Somebody has come. `None`: there are too many.
    pub(crate) fn add(&mut self) -> Option<CallerId> {
        if self.callers.len() >= MOST_CALLERS {
            return None;
        }
        let output = ToHost::Hello { version: VERSION, token: no_token() }.emit();
        let id = self.next;
        self.next = self.next.checked_add(1)?;
        self.callers.insert(id, Caller { decoder: Decoder::new(), output, is_greeted: false, call: None });
        Some(id)
    }

    /// What is to be sent to a caller.
    pub(crate) fn output(&self, id: CallerId) -> &[u8] {
        self.callers.get(&id).map(|caller| caller.output.as_slice()).unwrap_or_default()
    }

    /// So many bytes of it have been sent.
    pub(crate) fn sent(&mut self, id: CallerId, bytes: usize) {
        if let Some(caller) = self.callers.get_mut(&id) {
            caller.output.drain(..bytes.min(caller.output.len()));
        }
    }

    /// A caller is gone, or is to be: what it had called ends.
    pub(crate) fn remove(&mut self, host: &mut Host, id: CallerId) {
        if let Some(Caller { call: Some(open), .. }) = self.callers.remove(&id) {
            host.kill(open.ours);
            self.calls.insert(open.ours, None);
        }
    }

    /// Bytes of a caller have come.
    ///
    /// # Errors
    /// When they do not fit: it has to be removed.
    pub(crate) fn handle_bytes(&mut self, host: &mut Host, id: CallerId, mut bytes: &[u8]) -> Result<(), Unfit> {
        let Some(caller) = self.callers.get_mut(&id) else { return Err(Unfit) };
        while let Some(message) = caller.decoder.decode(&mut bytes).map_err(|_| Unfit)? {
            if caller.output.len() > MOST_UNREAD {
                return Err(Unfit);
            }
            if let Some(ours) = caller.handle(host, message)? {
                self.calls.insert(ours, Some(id));
            }
        }
        Ok(())
    }

    /// The agent has said something.
    pub(crate) fn handle_event(&mut self, host: &mut Host, event: Event) {
        let Some(call) = about(&event) else { return };
        let owner = self.calls.get(&call).copied().flatten();
        if is_end(&event) {
            self.calls.remove(&call);
        }
        match owner.and_then(|id| self.callers.get_mut(&id)) {
            Some(caller) => caller.tell(event),
            None => {
                // Nobody wants it any more, and it has to be out of the way for the call to end.
                if let Event::Data { call, stream, bytes } = event {
                    host.taken(call, stream, bytes.len());
                }
            }
        }
    }

    /// There is no guest any more: everybody hears why.
    pub(crate) fn end(&mut self, why: &str) {
        for caller in self.callers.values_mut() {
            caller.output.extend(ToHost::Dying { text: why.to_owned() }.emit());
        }
    }
}

impl Caller {
    /// The agent's call that has come of it, if it was one.
    fn handle(&mut self, host: &mut Host, message: ToGuest) -> Result<Option<CallId>, Unfit> {
        if !self.is_greeted {
            let fits = matches!(&message, ToGuest::Hello { version: VERSION, token } if *token == no_token());
            self.is_greeted = fits;
            return if fits { Ok(None) } else { Err(Unfit) };
        }
        let called = match message {
            ToGuest::Exec { call, exec } => return self.begin(call, || host.exec(exec)),
            ToGuest::Put { call, put } => return self.begin(call, || host.put(put)),
            ToGuest::Get { call, path } => return self.begin(call, || host.get(path)),
            ToGuest::Hello { .. }
            | ToGuest::Mount { .. }
            | ToGuest::Unmount { .. }
            | ToGuest::Network { .. }
            | ToGuest::SetTime { .. }
            | ToGuest::Shutdown { .. } => return Err(Unfit),
            ToGuest::Data { call, bytes } => self.of(call, |open| host.write(open.ours, &bytes) == bytes.len()),
            ToGuest::End { call } => self.of(call, |open| {
                host.end(open.ours);
                true
            }),
            ToGuest::Credit { call, stream, bytes } => self.of(call, |open| {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                let Some(left) = open.unread(stream).checked_sub(bytes) else { return false };
                *open.unread(stream) = left;
                host.taken(open.ours, stream, bytes);
                true
            }),
            ToGuest::Resize { call, size } => self.of(call, |open| {
                host.resize(open.ours, size);
                true
            }),
            ToGuest::Signal { call, signal } => self.of(call, |open| {
                host.signal(open.ours, signal);
                true
            }),
            ToGuest::Kill { call } => self.of(call, |open| {
                host.kill(open.ours);
                true
            }),
        };
        if called { Ok(None) } else { Err(Unfit) }
    }

    fn begin(
        &mut self,
        theirs: CallId,
        call: impl FnOnce() -> Result<CallId, CallError>,
    ) -> Result<Option<CallId>, Unfit> {
        if self.call.is_some() {
            return Err(Unfit);
        }
        match call() {
            Ok(ours) => {
                self.call = Some(Open { theirs, ours, unread: [0; 2] });
                Ok(Some(ours))
            }
            Err(error) => {
                let failure = Failure::new(FailureKind::Refused, &error.to_string());
                self.output.extend(ToHost::Failed { call: theirs, failure }.emit());
                Ok(None)
            }
        }
    }

    /// What is about a call that has ended was on its way, and means nothing any more.
    fn of(&mut self, call: CallId, act: impl FnOnce(&mut Open) -> bool) -> bool {
        self.call.as_mut().filter(|open| open.theirs == call).is_none_or(act)
    }

    fn tell(&mut self, event: Event) {
        let Some(open) = &mut self.call else { return };
        let call = open.theirs;
        let is_end = is_end(&event);
        let message = match event {
            Event::Ready => return,
            Event::Started { .. } => ToHost::Started { call },
            Event::Opened { mode, size, .. } => ToHost::Opened { call, mode, size },
            Event::Data { stream, bytes, .. } => {
                *open.unread(stream) = open.unread(stream).saturating_add(bytes.len());
                ToHost::Data { call, stream, bytes }
            }
            Event::End { stream, .. } => ToHost::End { call, stream },
            Event::Room { bytes, .. } => ToHost::Credit { call, bytes },
            Event::Full { shortage, .. } => ToHost::Full { call, shortage },
            Event::Exited { status, .. } => ToHost::Exited { call, status },
            Event::Done { .. } => ToHost::Done { call },
            Event::Failed { failure, .. } => ToHost::Failed { call, failure },
        };
        self.output.extend(message.emit());
        if is_end {
            self.call = None;
        }
    }
}

fn about(event: &Event) -> Option<CallId> {
    match event {
        Event::Ready => None,
        Event::Started { call }
        | Event::Opened { call, .. }
        | Event::Data { call, .. }
        | Event::End { call, .. }
        | Event::Room { call, .. }
        | Event::Full { call, .. }
        | Event::Exited { call, .. }
        | Event::Done { call }
        | Event::Failed { call, .. } => Some(*call),
    }
}

/// Whether it is the last that is said about a call.
fn is_end(event: &Event) -> bool {
    match event {
        Event::Exited { .. } | Event::Done { .. } | Event::Failed { .. } => true,
        Event::Ready
        | Event::Started { .. }
        | Event::Opened { .. }
        | Event::Data { .. }
        | Event::End { .. }
        | Event::Room { .. }
        | Event::Full { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_guest_protocol::{Exec, Leftover, Shortage, Status, WINDOW};

    use super::*;

    /// Callers at one end, an agent that is told what to say at the other.
    struct Exchange {
        board: Switchboard,
        host: Host,
        agent: Decoder<ToGuest>,
    }

    impl Exchange {
        fn new() -> Exchange {
            let mut host = Host::new(no_token());
            host.handle_bytes(&ToHost::Hello { version: VERSION, token: no_token() }.emit()).unwrap();
            let mut exchange = Exchange { board: Switchboard::default(), host, agent: Decoder::new() };
            assert_eq!(exchange.host.poll_event(), Some(Event::Ready));
            exchange.heard_by_agent();
            exchange
        }

        fn caller(&mut self) -> (CallerId, Host) {
            let (id, mut caller) = (self.board.add().unwrap(), Host::new(no_token()));
            self.deliver(id, &mut caller);
            assert_eq!(caller.poll_event(), Some(Event::Ready));
            self.say(id, &mut caller).unwrap();
            (id, caller)
        }

        /// From a caller to the board.
        fn say(&mut self, id: CallerId, caller: &mut Host) -> Result<(), Unfit> {
            let bytes = caller.output().to_vec();
            caller.sent(bytes.len());
            self.board.handle_bytes(&mut self.host, id, &bytes)
        }

        /// From the board to a caller.
        fn deliver(&mut self, id: CallerId, caller: &mut Host) {
            let bytes = self.board.output(id).to_vec();
            self.board.sent(id, bytes.len());
            caller.handle_bytes(&bytes).unwrap();
        }

        fn heard_by_agent(&mut self) -> Vec<ToGuest> {
            let bytes = self.host.output().to_vec();
            self.host.sent(bytes.len());
            let mut rest = bytes.as_slice();
            std::iter::from_fn(|| self.agent.decode(&mut rest).unwrap()).collect()
        }

        fn agent_says(&mut self, message: &ToHost) {
            self.host.handle_bytes(&message.emit()).unwrap();
            while let Some(event) = self.host.poll_event() {
                self.board.handle_event(&mut self.host, event);
            }
        }

        /// A caller whose program runs, with the ids on both sides.
        fn running(&mut self) -> (CallerId, Host, CallId, CallId) {
            let (id, mut caller) = self.caller();
            let theirs = caller.exec(program()).unwrap();
            self.say(id, &mut caller).unwrap();
            let heard = self.heard_by_agent();
            let [ToGuest::Exec { call: ours, exec }] = heard.as_slice() else { panic!("{heard:?}") };
            assert_eq!(*exec, program());
            self.agent_says(&ToHost::Started { call: *ours });
            self.deliver(id, &mut caller);
            assert_eq!(caller.poll_event(), Some(Event::Started { call: theirs }));
            (id, caller, theirs, *ours)
        }
    }

    fn program() -> Exec {
        Exec {
            argv: vec![b"true".to_vec()],
            env: Vec::new(),
            cwd: b"/".to_vec(),
            uid: 1,
            gid: 1,
            terminal: None,
            leftover: Leftover::Kill,
        }
    }

    #[test]
    fn two_callers_have_the_same_id_for_different_calls() {
        let mut exchange = Exchange::new();
        let (first, mut one, theirs, ours) = exchange.running();
        let (second, mut other, theirs_too, ours_too) = exchange.running();
        assert_eq!(theirs, theirs_too);
        assert_ne!(ours, ours_too);
        for (call, text) in [(ours_too, b"b"), (ours, b"a")] {
            exchange.agent_says(&ToHost::Data { call, stream: Stream::Output, bytes: text.to_vec() });
        }
        for (id, caller, text) in [(first, &mut one, b"a"), (second, &mut other, b"b")] {
            exchange.deliver(id, caller);
            let data = Event::Data { call: theirs, stream: Stream::Output, bytes: text.to_vec() };
            assert_eq!(caller.poll_event(), Some(data));
        }
        for stream in [Stream::Output, Stream::Error] {
            exchange.agent_says(&ToHost::End { call: ours, stream });
        }
        exchange.agent_says(&ToHost::Exited { call: ours, status: Status::Code(3) });
        exchange.deliver(first, &mut one);
        assert_eq!(
            std::iter::from_fn(|| one.poll_event()).last(),
            Some(Event::Exited { call: theirs, status: Status::Code(3) })
        );
        assert!(exchange.board.output(second).is_empty());
        assert_eq!(exchange.board.calls.len(), 1);
    }

    #[test]
    fn a_full_disk_is_told_to_those_whom_the_agent_tells_of_it() {
        let mut exchange = Exchange::new();
        let (id, mut caller, theirs, ours) = exchange.running();
        let (other, ..) = exchange.running();
        let shortage = Shortage::Files { count: 7 };
        exchange.agent_says(&ToHost::Full { call: ours, shortage });
        exchange.deliver(id, &mut caller);
        assert_eq!(caller.poll_event(), Some(Event::Full { call: theirs, shortage }));
        assert!(exchange.board.output(other).is_empty());
    }

    #[test]
    fn what_a_caller_does_not_take_the_agent_may_not_send() {
        let mut exchange = Exchange::new();
        let (id, mut caller, theirs, ours) = exchange.running();
        let piece = vec![0; 1 << 15];
        for _ in 0..WINDOW >> 15 {
            exchange.agent_says(&ToHost::Data { call: ours, stream: Stream::Error, bytes: piece.clone() });
        }
        assert!(exchange.heard_by_agent().is_empty());
        exchange.deliver(id, &mut caller);
        while let Some(Event::Data { stream, bytes, .. }) = caller.poll_event() {
            caller.taken(theirs, stream, bytes.len());
        }
        exchange.say(id, &mut caller).unwrap();
        let heard = exchange.heard_by_agent();
        let credit: u32 =
            heard.iter().map(|said| if let ToGuest::Credit { bytes, .. } = said { *bytes } else { 0 }).sum();
        assert_eq!(credit, WINDOW);
    }

    #[test]
    fn input_goes_as_far_as_the_agent_has_room() {
        let mut exchange = Exchange::new();
        let (id, mut caller, theirs, ours) = exchange.running();
        let window = usize::try_from(WINDOW).unwrap();
        assert_eq!(caller.write(theirs, &vec![1; window + 5]), window);
        exchange.say(id, &mut caller).unwrap();
        assert_eq!(exchange.host.room(ours), 0);
        exchange.agent_says(&ToHost::Credit { call: ours, bytes: 7 });
        exchange.deliver(id, &mut caller);
        assert_eq!(caller.room(theirs), 7);
    }

    #[test]
    fn who_is_gone_leaves_nothing_running() {
        let mut exchange = Exchange::new();
        let (id, _caller, _, ours) = exchange.running();
        exchange.board.remove(&mut exchange.host, id);
        assert_eq!(exchange.heard_by_agent(), [ToGuest::Kill { call: ours }]);
        // A program that fills its pipe meanwhile does not keep it from ending.
        let piece = vec![0; 1 << 15];
        for _ in 0..WINDOW >> 15 {
            exchange.agent_says(&ToHost::Data { call: ours, stream: Stream::Output, bytes: piece.clone() });
        }
        assert!(exchange.heard_by_agent().iter().all(|said| matches!(said, ToGuest::Credit { .. })));
        for stream in [Stream::Output, Stream::Error] {
            exchange.agent_says(&ToHost::End { call: ours, stream });
        }
        exchange.agent_says(&ToHost::Exited { call: ours, status: Status::Signal(9) });
        assert!(exchange.board.calls.is_empty());
    }

    #[test]
    fn what_is_not_a_callers_to_say_is_refused() {
        let (call, stream) = (CallId(1), Stream::Output);
        for message in [
            ToGuest::Shutdown { call },
            ToGuest::Unmount { call, target: b"/".to_vec() },
            ToGuest::Hello { version: VERSION, token: no_token() },
            ToGuest::Credit { call, stream, bytes: 1 },
            ToGuest::Exec { call: CallId(2), exec: program() },
        ] {
            let mut exchange = Exchange::new();
            let (id, ..) = exchange.running();
            let said = exchange.board.handle_bytes(&mut exchange.host, id, &message.emit());
            assert_eq!(said, Err(Unfit), "{message:?}");
        }
        let mut exchange = Exchange::new();
        let stranger = exchange.board.add().unwrap();
        let early = ToGuest::Exec { call, exec: program() }.emit();
        assert_eq!(exchange.board.handle_bytes(&mut exchange.host, stranger, &early), Err(Unfit));
        assert_eq!(exchange.board.handle_bytes(&mut exchange.host, stranger, &[0xff; 16]), Err(Unfit));
    }

    #[test]
    fn a_caller_that_takes_what_it_does_not_read_is_sent_away() {
        let mut exchange = Exchange::new();
        let (id, _, theirs, ours) = exchange.running();
        let stream = Stream::Output;
        let data = ToHost::Data { call: ours, stream, bytes: vec![0; 1 << 15] };
        let credit = ToGuest::Credit { call: theirs, stream, bytes: 1 << 15 }.emit();
        for _ in 1..MOST_UNREAD >> 15 {
            exchange.agent_says(&data);
            assert_eq!(exchange.board.handle_bytes(&mut exchange.host, id, &credit), Ok(()));
            exchange.heard_by_agent();
        }
        exchange.agent_says(&data);
        assert_eq!(exchange.board.handle_bytes(&mut exchange.host, id, &credit), Err(Unfit));
    }

    #[test]
    fn everybody_hears_why_it_ends() {
        let mut exchange = Exchange::new();
        let (id, mut caller, ..) = exchange.running();
        exchange.board.end("QEMU has ended");
        let bytes = exchange.board.output(id).to_vec();
        assert!(caller.handle_bytes(&bytes).unwrap_err().to_string().contains("QEMU has ended"));
    }
}
