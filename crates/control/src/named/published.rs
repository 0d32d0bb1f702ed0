//! The published ports of a running sandbox, and how they change.
//!
//! The keeper binds, as the supervisor of any run does, and has the gateway serve; a port counts once the gateway has answered.
//! Several are added at once or not at all: when one is refused, the others are withdrawn again.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use cofferdam_gateway::Commands;
use cofferdam_model::{PortId, PublishedPort};
use cofferdam_policy::file::{self, MAX_PORTS};

use super::keeper::chain;
use super::protocol::Reply;
use crate::ports;

/// How long the gateway may take. Who asked waits no longer (`client::PATIENCE`), and it answers within its next turn.
const ANSWER: Duration = Duration::from_secs(10);

/// The ports, by number.
#[derive(Debug, Default)]
pub(super) struct Published {
    ports: BTreeMap<PortId, PublishedPort>,
    next: u32,
    change: Option<Change>,
    /// What the gateway serves although others beside it were refused.
    unwanted: Vec<PortId>,
}

/// A change that is under way; there is one at a time.
#[derive(Debug)]
struct Change {
    asked_by: u64,
    /// What the gateway has been told, by the number of the command.
    waits: BTreeMap<u32, Step>,
    done: Vec<(PortId, PublishedPort)>,
    refused: Option<String>,
    due: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Add(PortId, PublishedPort),
    Withdraw(PortId, PublishedPort),
}

impl Published {
    /// The ports that a sandbox was started with.
    pub(super) fn new(ports: impl IntoIterator<Item = (PortId, PublishedPort)>) -> Published {
        let ports: BTreeMap<PortId, PublishedPort> = ports.into_iter().collect();
        let next = ports.keys().next_back().map_or(0, |last| last.0 + 1);
        Published { ports, next, ..Published::default() }
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<PublishedPort> {
        self.ports.values().copied().collect()
    }

    /// Adds ports, as they are written.
    pub(super) fn add(&mut self, asked_by: u64, texts: &[String], commands: &mut Commands) -> Result<(), String> {
        self.is_free()?;
        let mut wanted = Vec::new();
        for text in texts {
            wanted.extend(file::parse_port(text).map_err(|error| chain(&error))?);
        }
        if self.ports.len() + wanted.len() > MAX_PORTS {
            return Err(format!("a sandbox has at most {MAX_PORTS} published ports"));
        }
        // All are bound before the gateway hears of one.
        let numbered = wanted.iter().zip(self.next..);
        let bound: Result<Vec<_>, _> = numbered.map(|(port, id)| ports::bind_one(*port, PortId(id))).collect();
        let bound = bound.map_err(|error| chain(&error))?;
        self.next = self.next.saturating_add(u32::try_from(bound.len()).unwrap_or(u32::MAX));
        let mut change = Change::new(asked_by);
        for port in &bound {
            match commands.publish(port) {
                Ok(number) => drop(change.waits.insert(number, Step::Add(port.id, port.port))),
                Err(error) => change.refused = Some(deaf(&error)),
            }
        }
        self.begin(change)
    }

    /// Withdraws the ports of the host that are named: as `8080`, `8080/udp` or `127.0.0.1:8080/udp`.
    pub(super) fn remove(&mut self, asked_by: u64, texts: &[String], commands: &mut Commands) -> Result<(), String> {
        self.is_free()?;
        let mut wanted = BTreeMap::new();
        for text in texts {
            let named = self.ports.iter().filter(|(_, port)| is_named(port, text)).map(|(id, port)| (*id, *port));
            let before = wanted.len();
            wanted.extend(named);
            if wanted.len() == before {
                return Err(format!("no port {text} is published"));
            }
        }
        let mut change = Change::new(asked_by);
        for (id, port) in wanted {
            match commands.withdraw(id) {
                Ok(number) => drop(change.waits.insert(number, Step::Withdraw(id, port))),
                Err(error) => change.refused = Some(deaf(&error)),
            }
        }
        self.begin(change)
    }

    /// The gateway has answered a command. Who asked for it and what they are told, when all is done by that.
    pub(super) fn answered(&mut self, number: u32, result: &Result<(), String>) -> Option<(u64, Reply)> {
        let change = self.change.as_mut()?;
        match (change.waits.remove(&number)?, result) {
            (Step::Add(id, port), Ok(())) => {
                self.ports.insert(id, port);
                change.done.push((id, port));
            }
            (Step::Withdraw(id, port), Ok(())) => {
                self.ports.remove(&id);
                change.done.push((id, port));
            }
            (Step::Add(..) | Step::Withdraw(..), Err(why)) => change.refused = Some(why.clone()),
        }
        if !change.waits.is_empty() {
            return None;
        }
        let Change { asked_by, done, refused, .. } = self.change.take()?;
        let reply = match refused {
            None => Reply::Ports { ports: done.into_iter().map(|(_, port)| port).collect() },
            Some(why) => {
                // What was added goes again; one that was withdrawn stays so.
                let added = done.iter().map(|(id, _)| *id).filter(|id| self.ports.remove(id).is_some());
                self.unwanted.extend(added);
                Reply::Refused { why }
            }
        };
        Some((asked_by, reply))
    }

    /// When [`Published::give_up`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.change.as_ref().map(|change| change.due)
    }

    /// Waits no longer for a gateway that is late. It carries commands out in their order, and ends where it cannot.
    pub(super) fn give_up(&mut self, now: Instant) -> Option<(u64, Reply)> {
        let change = self.change.take_if(|change| change.due <= now)?;
        for step in change.waits.into_values() {
            match step {
                // It may come to serve it yet, and is told to withdraw it behind that.
                Step::Add(id, _) => self.unwanted.push(id),
                Step::Withdraw(id, _) => drop(self.ports.remove(&id)),
            }
        }
        let added = change.done.iter().map(|(id, _)| *id).filter(|id| self.ports.remove(id).is_some());
        self.unwanted.extend(added);
        Some((change.asked_by, Reply::Refused { why: "its gateway does not answer".to_owned() }))
    }

    /// Withdraws what is left over.
    pub(super) fn tidy(&mut self, commands: &mut Commands) {
        // A gateway that does not listen is on its way out, and its ports with it.
        self.unwanted.drain(..).for_each(|id| drop(commands.withdraw(id)));
    }

    /// There is no gateway any more.
    pub(super) fn gateway_died(&mut self) -> Option<(u64, Reply)> {
        self.ports.clear();
        let asked_by = self.change.take()?.asked_by;
        Some((asked_by, Reply::Refused { why: "its gateway has ended".to_owned() }))
    }

    fn is_free(&self) -> Result<(), String> {
        if self.change.is_some() { Err("another change is under way; try again".to_owned()) } else { Ok(()) }
    }

    fn begin(&mut self, change: Change) -> Result<(), String> {
        if change.waits.is_empty() {
            return Err(change.refused.unwrap_or_else(|| "no port was named".to_owned()));
        }
        self.change = Some(change);
        Ok(())
    }
}

impl Change {
    fn new(asked_by: u64) -> Change {
        let due = Instant::now() + ANSWER;
        Change { asked_by, waits: BTreeMap::new(), done: Vec::new(), refused: None, due }
    }
}

fn deaf(error: &io::Error) -> String {
    format!("its gateway does not listen: {error}")
}

/// Whether `text` names this port of the host.
fn is_named(port: &PublishedPort, text: &str) -> bool {
    let (place, protocol) = match text.split_once('/') {
        Some((place, protocol)) => (place, Some(protocol)),
        None => (text, None),
    };
    let of_protocol = protocol.is_none_or(|word| word == port.protocol.word());
    of_protocol && (place == port.host_port.to_string() || place == port.host().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PublishedPort {
        file::parse_port(text).unwrap().remove(0)
    }

    /// A list with what the gateway's end of its commands is.
    fn published(ports: &[&str]) -> (Published, Commands, std::os::fd::OwnedFd) {
        let (commands, gateway) = Commands::pair().unwrap();
        let numbered = ports.iter().zip(0..).map(|(text, id)| (PortId(id), port(text)));
        (Published::new(numbered), commands, gateway)
    }

    #[test]
    fn ports_count_once_the_gateway_serves_them() {
        for bind in ["127.0.0.1", "[::1]"] {
            let (mut list, mut commands, _gateway) = published(&[]);
            list.add(7, &[format!("{bind}:0:80"), format!("{bind}:0:53/udp")], &mut commands).unwrap();
            assert!(list.list().is_empty());
            assert!(list.add(8, &["0:1".to_owned()], &mut commands).unwrap_err().contains("under way"));
            assert_eq!(list.answered(0, &Ok(())), None);
            let Some((7, Reply::Ports { ports })) = list.answered(1, &Ok(())) else { panic!() };
            assert_eq!(ports.len(), 2);
            assert!(ports.iter().all(|port| port.host_port != 0));
            assert_eq!(list.list(), ports);
        }
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_not_waited_for_longer_than_who_asked() {
        let (mut list, mut commands, _gateway) = published(&["127.0.0.1:1:80", "127.0.0.1:2:80"]);
        list.add(7, &["0:80".to_owned(), "[::1]:0:81".to_owned()], &mut commands).unwrap();
        list.answered(0, &Ok(()));
        let due = list.deadline().unwrap();
        assert_eq!(list.give_up(due - Duration::from_millis(1)), None);
        let Some((7, Reply::Refused { why })) = list.give_up(due) else { panic!() };
        assert!(why.contains("does not answer"), "{why}");
        assert_eq!((list.list().len(), list.unwanted.len(), list.deadline()), (2, 2, None));
        // What it says later is of no change.
        assert_eq!(list.answered(1, &Ok(())), None);
        assert_eq!(list.list().len(), 2);
        list.tidy(&mut commands);
        // The next one is not held up, and a withdrawal is one.
        list.remove(8, &["2".to_owned()], &mut commands).unwrap();
        let due = list.deadline().unwrap();
        assert!(matches!(list.give_up(due), Some((8, Reply::Refused { .. }))));
        assert_eq!(list.list(), [port("127.0.0.1:1:80")]);
    }

    #[test]
    fn all_are_added_or_none() {
        let (mut list, mut commands, _gateway) = published(&[]);
        list.add(7, &["0:80".to_owned(), "0:81".to_owned()], &mut commands).unwrap();
        list.answered(0, &Ok(()));
        let refused = Err("because".to_owned());
        let answer = list.answered(1, &refused);
        assert_eq!(answer, Some((7, Reply::Refused { why: "because".to_owned() })));
        assert!(list.list().is_empty());
        list.tidy(&mut commands);
        assert!(list.unwanted.is_empty());
        // One that cannot be bound keeps the others from being told of.
        let taken = ports::bind_one(port("0:80"), PortId(9)).unwrap();
        let specs = ["0:80".to_owned(), format!("{}:80", taken.port.host_port)];
        assert!(list.add(7, &specs, &mut commands).unwrap_err().contains("taken"));
        list.add(7, &["0:80".to_owned()], &mut commands).unwrap();
    }

    #[test]
    fn ports_are_withdrawn_by_what_the_host_calls_them() {
        let all = ["127.0.0.1:1:80", "127.0.0.1:1:80/udp", "[::1]:1:80", "127.0.0.1:2:80"];
        for (text, gone) in
            [("2", &[3][..]), ("1", &[0, 1, 2]), ("1/udp", &[1]), ("[::1]:1", &[2]), ("127.0.0.1:1/tcp", &[0])]
        {
            let (mut list, mut commands, _gateway) = published(&all);
            list.remove(7, &[text.to_owned()], &mut commands).unwrap();
            for number in 0..gone.len() {
                list.answered(u32::try_from(number).unwrap(), &Ok(()));
            }
            let left: Vec<_> = (0..4).filter(|at| !gone.contains(at)).map(|at| port(all[at])).collect();
            assert_eq!(list.list(), left, "{text}");
        }
        let (mut list, mut commands, _gateway) = published(&all);
        assert!(list.remove(7, &["3".to_owned()], &mut commands).unwrap_err().contains("no port 3"));
    }
}
