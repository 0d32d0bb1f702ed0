//! Where whoever supervises a run is asked to change it.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | listening | connection | its peer is looked at, its first message answered |
//! | listening | `Show` | the network that is in force, and how often it was changed |
//! | listening | `Policy`, made from what was shown last | the gateway is told |
//! | changing | `Policy` | refused as busy |
//! | changing | the gateway has answered | so is whoever asked; what it holds is in force |
//! | changing | it has not in [`FOR_A_POLICY`] | whoever asked is told that; the next may be tried |
//!
//! The layers around the run's own rules stay what they were at the start, whatever is asked.
//!
//! Limits: [`MAX_CONNECTIONS`] at once, more wait; a policy has the protocol's.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cofferdam_backend_ns::{Order, Running};
use cofferdam_gateway::{CommandAnswer, Commands};
use cofferdam_model::NetworkConfig;
use rustix::net::SocketFlags;

use crate::named::protocol::{self, Reply, Request};
use crate::named::{FOR_A_POLICY, LATE, NamedSpec, chain, enforced};
use crate::sandbox::Companion;
use crate::{RunError, resolvers};

/// People who look at one run and change it.
const MAX_CONNECTIONS: usize = 16;

pub(crate) struct Door {
    /// What is in force: of a specification, the network alone. Or why that cannot be told.
    spec: Result<NamedSpec, String>,
    network: NetworkConfig,
    listener: Option<OwnedFd>,
    folder: Option<OwnedFd>,
    connections: BTreeMap<u64, OwnedFd>,
    next: u64,
    change: Option<Change>,
}

/// A change that the gateway has yet to take.
struct Change {
    number: u32,
    asked_by: u64,
    spec: NamedSpec,
    network: NetworkConfig,
    /// When the gateway is not waited for any more.
    due: Instant,
}

/// One thing that is waited for.
enum Source {
    Listener,
    Connection(u64),
}

impl Door {
    pub(crate) fn new(network: &NetworkConfig) -> Door {
        let spec = NamedSpec::default().with_network(network).map_err(|error| chain(&error));
        Door {
            spec,
            network: network.clone(),
            listener: None,
            folder: None,
            connections: BTreeMap::new(),
            next: 0,
            change: None,
        }
    }

    /// The number of the command that the gateway has yet to answer.
    #[cfg(test)]
    pub(super) fn awaited(&self) -> Option<u32> {
        self.change.as_ref().map(|change| change.number)
    }

    /// The gateway is not waited for any more.
    #[cfg(test)]
    pub(super) fn be_late(&mut self) {
        self.change.iter_mut().for_each(|change| change.due = Instant::now());
    }

    /// What is in force.
    #[cfg(test)]
    pub(super) fn network(&self) -> &NetworkConfig {
        &self.network
    }

    fn watched(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let listener = self.listener.iter().filter(|_| self.connections.len() < MAX_CONNECTIONS);
        let listener = listener.map(|listener| (Source::Listener, listener.as_fd()));
        listener.chain(self.connections.iter().map(|(id, one)| (Source::Connection(*id), one.as_fd()))).collect()
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = self.listener.as_ref().and_then(|listener| rustix::net::accept_with(listener, flags).ok());
        // Whoever may not ask gets no word.
        let Some(socket) = accepted.filter(|socket| protocol::trusted_peer(socket).is_some()) else { return };
        self.connections.insert(self.next, socket);
        self.next += 1;
    }

    /// Answers what was asked on a connection, which ends with that unless a change is under way for it.
    fn hear(&mut self, id: u64, commands: Option<&mut Commands>) {
        let Some(socket) = self.connections.get(&id) else { return };
        let reply = match protocol::receive::<Request>(socket) {
            Ok(Some((Request::Show, _))) => self.show(socket).err(),
            Ok(Some((Request::Policy, fds))) => match self.begin(id, fds, commands) {
                Ok(()) => return,
                Err(reply) => Some(reply),
            },
            Ok(Some((
                Request::Enter
                | Request::Inspect
                | Request::Stop { .. }
                | Request::Ports
                | Request::Publish { .. }
                | Request::Withdraw { .. }
                | Request::Mountable { .. }
                | Request::Mount { .. }
                | Request::Unmount { .. },
                _,
            ))) => Some(refused("of a run that stays nowhere the policy alone can be changed".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) => None,
            Err(error) => Some(refused(error.to_string())),
        };
        self.end(id, reply.as_ref());
    }

    fn show(&self, socket: &OwnedFd) -> Result<(), Reply> {
        let spec = self.spec.as_ref().map_err(|why| refused(why.clone()))?;
        protocol::memory_file(spec.to_json().as_bytes())
            .and_then(|file| protocol::send(socket, &Reply::Shown, &[file.as_fd()]))
            .map_err(|error| refused(error.to_string()))
    }

    /// Gives the gateway another network. Whoever asked is answered when it has it.
    fn begin(&mut self, id: u64, mut fds: Vec<OwnedFd>, commands: Option<&mut Commands>) -> Result<(), Reply> {
        let json = fds.pop().ok_or(io::ErrorKind::InvalidData.into()).and_then(protocol::read_memory_file);
        let json = json.map_err(|error| refused(error.to_string()))?;
        let asked = NamedSpec::parse(&json).map_err(|error| refused(chain(&error)))?;
        let before = self.spec.as_ref().map_err(|why| refused(why.clone()))?;
        // What it leaves as it was is that of the policy before.
        if self.change.is_some() || asked.policy_changes != before.policy_changes.saturating_add(1) {
            return Err(Reply::Busy);
        }
        let network = asked.network().map_err(|error| refused(chain(&error)))?;
        if network.host_sockets != self.network.host_sockets {
            return Err(refused("a run has the host sockets that it was started with".to_owned()));
        }
        if network.ceilings != self.network.ceilings {
            return Err(refused(
                "a run has the ceilings that it was started with; leave them out, or as they are".to_owned(),
            ));
        }
        resolvers::check_change(&self.network.dns.nameservers, &network.dns.nameservers).map_err(refused)?;
        let spec = before.with_network(&network).map_err(|error| refused(chain(&error)))?;
        let Some(commands) = commands else { return Err(refused("its gateway has ended".to_owned())) };
        let number = commands
            .replace(&enforced(network.clone()))
            .map_err(|error| refused(format!("its gateway does not listen: {error}")))?;
        self.change = Some(Change { number, asked_by: id, spec, network, due: Instant::now() + FOR_A_POLICY });
        Ok(())
    }

    fn end(&mut self, id: u64, reply: Option<&Reply>) {
        if let (Some(socket), Some(reply)) = (self.connections.remove(&id), reply) {
            let _gone = protocol::send(&socket, reply, &[]);
        }
    }
}

impl Companion for Door {
    fn started(&mut self, _running: &Running) -> Result<(), RunError> {
        Ok(())
    }

    fn recorded(&mut self, folder: &OwnedFd) -> io::Result<()> {
        let folder = folder.try_clone()?;
        self.listener = Some(protocol::listen(&folder)?);
        self.folder = Some(folder);
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.watched().into_iter().map(|(_, fd)| fd).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        self.change.as_ref().map(|change| change.due)
    }

    fn handle(&mut self, ready: &[bool], mut commands: Option<&mut Commands>) -> Vec<Order> {
        let sources: Vec<Source> =
            self.watched().into_iter().zip(ready).filter_map(|((source, _), ready)| ready.then_some(source)).collect();
        for source in sources {
            match source {
                Source::Listener => self.accept(),
                Source::Connection(id) => self.hear(id, commands.as_deref_mut()),
            }
        }
        if let Some(late) = self.change.take_if(|change| change.due <= Instant::now()) {
            self.end(late.asked_by, Some(&refused(LATE.to_owned())));
        }
        Vec::new()
    }

    fn answered(&mut self, answer: CommandAnswer) -> Vec<Order> {
        let Some(change) = self.change.take_if(|change| change.number == answer.number) else { return Vec::new() };
        let reply = match answer.result {
            Ok(()) => {
                (self.spec, self.network) = (Ok(change.spec), change.network);
                Reply::Done
            }
            Err(why) => refused(why),
        };
        self.end(change.asked_by, Some(&reply));
        Vec::new()
    }

    fn gateway_died(&mut self) {
        if let Some(change) = self.change.take() {
            self.end(change.asked_by, Some(&refused("its gateway has ended".to_owned())));
        }
    }

    fn signal(&mut self) -> Vec<Order> {
        vec![Order::End]
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _gone = protocol::stop_listening(folder);
        }
    }
}

fn refused(why: String) -> Reply {
    Reply::Refused { why }
}
