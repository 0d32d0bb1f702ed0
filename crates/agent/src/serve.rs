//! The agent's loop: what the host asks for, and what comes of it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use cofferdam_guest_protocol::{
    CallId, Decoder, Failure, FailureKind, MAX_CALLS, MountKind, Shortage, ToGuest, ToHost, VERSION,
};
use cofferdam_initramfs::Group;
use cofferdam_sys::process::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::system::RebootCommand;
use rustix::time::ClockId;

use crate::boot::Own;
use crate::call::Call;
use crate::child::Task;
use crate::disk::{self, Disk};
use crate::network::{self, Link};
use crate::port::Port;
use crate::words::{Doing, Trouble};

/// What is read from the host at a time.
const PIECE: usize = 64 << 10;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Greets the host, and does what it asks for until the machine is off.
pub(crate) fn serve(own: &Own, port: &mut Port, disk: Option<Disk>) -> Result<Infallible, Trouble> {
    let children = SignalFd::new(&[Signal::CHILD]).doing(|| "wait for processes to end".to_owned())?;
    let mut agent = Agent { own, decoder: Decoder::new(), is_greeted: false, calls: BTreeMap::new(), disk, link: None };
    port.send(&ToHost::Hello { version: VERSION, token: own.token.clone() });
    let mut buffer = vec![0; PIECE];
    loop {
        port.flush()?;
        agent.wait(port, &children)?;
        while let Some(read) = port.receive(&mut buffer)? {
            if read == 0 {
                return Err(Trouble::new("go on without the host", Errno::PIPE));
            }
            agent.handle_bytes(port, buffer.get(..read).unwrap_or_default())?;
        }
        while let Ok(Some(_)) = children.next() {}
        agent.reap();
        agent.proceed(port);
    }
}

struct Agent<'a> {
    own: &'a Own,
    decoder: Decoder<ToGuest>,
    is_greeted: bool,
    calls: BTreeMap<CallId, Call>,
    disk: Option<Disk>,
    /// Once there is a network.
    link: Option<Link>,
}

impl Agent<'_> {
    fn wait(&self, port: &Port, children: &SignalFd) -> Result<(), Trouble> {
        let mut interests = vec![PollFd::new(port, port.interest()), PollFd::new(children, PollFlags::IN)];
        for call in self.calls.values() {
            call.add_interests(port.has_room(), &mut interests);
        }
        let is_urgent = port.has_room() && self.calls.values().any(Call::is_urgent);
        let looks = self.disk.is_some() && self.calls.values().any(Call::wants_room);
        let timeout = if is_urgent { Some(&AT_ONCE) } else { looks.then_some(&disk::PAUSE) };
        match rustix::event::poll(&mut interests, timeout) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Trouble::new("wait for events", error)),
        }
    }

    fn handle_bytes(&mut self, port: &mut Port, mut bytes: &[u8]) -> Result<(), Trouble> {
        loop {
            match self.decoder.decode(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => self.handle_message(port, message)?,
                // The host is of another version, or the channel is not the one it should be.
                Err(_) => return Err(Trouble::new("understand the host", Errno::PROTO)),
            }
        }
    }

    fn handle_message(&mut self, port: &mut Port, message: ToGuest) -> Result<(), Trouble> {
        if !self.is_greeted {
            if let ToGuest::Hello { version: VERSION, token } = message
                && token == self.own.token
            {
                self.is_greeted = true;
                // Here, while the host thinks about what to ask for.
                return self.own.load(Group::Rest);
            }
            let what = "believe that this is the host: it does not know the token of this boot";
            return Err(Trouble::new(what, Errno::ACCESS));
        }
        match message {
            ToGuest::Hello { .. } => {}
            ToGuest::Exec { call, exec } => self.begin(port, call, Task::Exec(exec)),
            ToGuest::Put { call, put } => self.begin(port, call, Task::Put(put)),
            ToGuest::Get { call, path } => self.begin(port, call, Task::Get(path)),
            ToGuest::Mount { call, mount } => {
                let group = match mount.kind {
                    MountKind::Cifs => Some(Group::Cifs),
                    MountKind::Plan9 => Some(Group::Plan9),
                    MountKind::Virtiofs => Some(Group::Virtiofs),
                    MountKind::Ext4 => Some(Group::Disk),
                    MountKind::Tmpfs => None,
                };
                match group.map_or(Ok(()), |group| self.own.load(group)) {
                    Ok(()) => {
                        if let Some(link) = &self.link {
                            network::widen(link, &mount);
                        }
                        self.begin(port, call, Task::Mount(mount));
                    }
                    Err(trouble) => answer(port, call, Err(trouble)),
                }
            }
            ToGuest::Unmount { call, target } => self.begin(port, call, Task::Unmount(target)),
            ToGuest::Network { call, network } => {
                let link = network::apply(self.own, &network).map(|link| self.link = Some(link));
                answer(port, call, link);
            }
            ToGuest::SetTime { call, time } => {
                let nanoseconds = i64::from(time.subsec_nanos());
                let set = || {
                    let tv_sec = i64::try_from(time.as_secs()).map_err(|_| Errno::INVAL)?;
                    rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: nanoseconds })
                };
                answer(port, call, set().doing(|| "set the clock".to_owned()));
            }
            ToGuest::Shutdown { call } => {
                let off = shut_down();
                answer(port, call, off.doing(|| "switch the machine off".to_owned()));
            }
            // What comes for a call that has ended was on its way, and means nothing any more.
            ToGuest::Data { call, bytes } => self.of(call, |call| call.handle_data(bytes)),
            ToGuest::End { call } => self.of(call, Call::handle_end),
            ToGuest::Credit { call, stream, bytes } => self.of(call, |call| call.handle_credit(stream, bytes)),
            ToGuest::Resize { call, size } => self.of(call, |call| call.handle_resize(size)),
            ToGuest::Signal { call, signal } => self.of(call, |call| call.handle_signal(signal)),
            ToGuest::Kill { call } => self.of(call, Call::handle_kill),
        }
        Ok(())
    }

    fn of(&mut self, call: CallId, act: impl FnOnce(&mut Call)) {
        if let Some(call) = self.calls.get_mut(&call) {
            act(call);
        }
    }

    fn begin(&mut self, port: &mut Port, call: CallId, task: Task) {
        if self.calls.len() >= MAX_CALLS {
            return answer(port, call, Err(Trouble::new("begin anything more", Errno::AGAIN)));
        }
        match Call::begin(call, task) {
            Ok(begun) => drop(self.calls.insert(call, begun)),
            Err(trouble) => answer(port, call, Err(trouble)),
        }
    }

    /// Takes the exit status of everybody who has ended: forks of ours, and those whose parents are gone.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(call) = self.by_pid(pid) {
                call.handle_exit(status);
            }
        }
    }

    fn by_pid(&mut self, pid: Pid) -> Option<&mut Call> {
        self.calls.values_mut().find(|call| call.is_done_by(pid))
    }

    /// What the disk is short of, if somebody is to hear of it.
    fn shortage(&mut self) -> Option<Shortage> {
        let mut wanting = self.calls.values().filter(|call| call.wants_room()).peekable();
        wanting.peek()?;
        let has_one_ended = wanting.any(Call::has_ended);
        self.disk.as_mut()?.shortage(has_one_ended)
    }

    fn proceed(&mut self, port: &mut Port) {
        for call in self.calls.values_mut() {
            let has_room = port.has_room();
            call.proceed(has_room, &mut |message| port.send(message));
        }
        let shortage = self.shortage();
        self.calls.retain(|_, call| {
            if let Some(shortage) = shortage.filter(|_| call.wants_room()) {
                port.send(&call.full(shortage));
            }
            let Some(end) = call.end() else { return true };
            port.send(&end);
            false
        });
    }
}

fn answer(port: &mut Port, call: CallId, done: Result<(), Trouble>) {
    port.send(&match done {
        Ok(()) => ToHost::Done { call },
        Err(trouble) => ToHost::Failed { call, failure: Failure::new(FailureKind::Refused, &trouble.to_string()) },
    });
}

/// Ends every process, writes what is to be written, and switches the machine off.
fn shut_down() -> rustix::io::Result<()> {
    // Everybody but pid 1 itself, kill(2); nobody may be there.
    let _nobody = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::PowerOff)
}
