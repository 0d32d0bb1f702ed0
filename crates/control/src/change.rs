//! Changing what a run may do while it goes on: one rule in front of its own, or another policy.
//!
//! ```text
//! Changeable::open(state, run) ──▶ .with_rule(text) ──▶ Proposal: the rule, what the policy says then, what is in the way
//!                                                          │ .apply()
//!                                                          ▼
//!                          the run's supervisor, or the keeper of the sandbox that stays ──▶ gateway
//! ```
//!
//! Both listen on a socket in a folder of the state directory, which no sandbox sees, and speak one protocol. What is around
//! the run's own rules (the operator's floor, the session) narrows as before: a rule that it makes useless is proposed all the
//! same, and [`Proposal::denied_still`] says so. A change counts from what was shown: whoever was faster makes it [`ChangeError::Busy`].

mod door;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, NetworkConfig, PortRange, Protocol, ProtocolSet, Rule,
};
use cofferdam_policy::file::FlagItem;
use cofferdam_policy::grammar::{format_rule, parse_rules};
use cofferdam_policy::trial::{Answer, Carrier, Target, TargetHost};
use cofferdam_policy::{Policy, TooManyLayers};
use ipnet::IpNet;

use crate::named::protocol::{self, Reply, Request};
use crate::named::{FOR_A_POLICY, NamedError, NamedSpec, PATIENCE, Registry, SpecError, chain};
use crate::store::{RunId, RunKind, RunState, StoredRun};

pub(crate) use door::Door;

/// Why a run was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("the run {0} has ended, so there is nothing to change")]
    Ended(RunId),
    #[error(
        "the run {0} takes no changes: it has no network, was started by `learn`, or by a version of this program that had none"
    )]
    Closed(RunId),
    #[error(
        "the run {id} has a network of its own in the sandbox {sandbox}, which is as it was started: change that of the sandbox"
    )]
    OwnNetwork { id: RunId, sandbox: String },
    #[error("somebody else is changing the policy, or has since it was shown; look again")]
    Busy,
    #[error("the rule cannot be used: {0}")]
    Rule(String),
    #[error("the policy was not changed: {0}")]
    Refused(String),
    #[error("the run {id} does not answer")]
    Silent { id: RunId, source: io::Error },
    #[error("the policy does not go together with what the run was started with, so nothing was changed")]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Layers(#[from] TooManyLayers),
    #[error(transparent)]
    Sandbox(#[from] NamedError),
}

/// A run, or a sandbox that stays, as what may be changed of it is in force.
#[derive(Debug)]
pub struct Changeable {
    run: RunId,
    /// Where whoever can change it listens.
    folder: OwnedFd,
    spec: NamedSpec,
    network: NetworkConfig,
    classifier: Classifier,
}

/// A change that was not made yet.
#[derive(Debug)]
pub struct Proposal {
    changeable: Changeable,
    spec: NamedSpec,
    rules: Vec<Rule>,
    after: Policy,
}

impl Changeable {
    /// Asks what is in force for a run that goes on. `state` is the state directory. A run in the network of a sandbox that stays
    /// stands for that.
    ///
    /// # Errors
    /// When it has ended, or takes no changes.
    pub fn open(state: &Path, run: &StoredRun) -> Result<Changeable, ChangeError> {
        let about = run.about();
        let id = about.id.clone();
        if run.state() != RunState::Running {
            return Err(ChangeError::Ended(id));
        }
        let silent = |source: io::Error| ChangeError::Silent { id: id.clone(), source };
        let folder = match (about.kind, &about.sandbox) {
            (RunKind::Exec, Some(sandbox)) if about.classes.is_some() => {
                return Err(ChangeError::OwnNetwork { id, sandbox: sandbox.clone() });
            }
            (RunKind::Exec | RunKind::Session, Some(sandbox)) => {
                Registry::at(state).open(&sandbox.parse()?)?.directory().try_clone().map_err(silent)?
            }
            (RunKind::Run, _) | (RunKind::Exec | RunKind::Session, None) => {
                run.directory().try_clone().map_err(silent)?
            }
        };
        let socket = connect(&folder, run)?;
        let (reply, fds) = protocol::ask(&socket, &Request::Show, None, PATIENCE).map_err(silent)?;
        let (Reply::Shown, Some(file)) = (&reply, fds.into_iter().next()) else { return Err(not_done(reply)) };
        let spec = NamedSpec::parse(&protocol::read_memory_file(file).map_err(silent)?)?;
        let network = spec.network()?;
        Ok(Changeable { run: id, folder, spec, network, classifier: about.classifier() })
    }

    /// The network that is in force.
    #[must_use]
    pub fn network(&self) -> &NetworkConfig {
        &self.network
    }

    /// The same with a rule, in the grammar of rules, before its own. It is one rule: the text may have a name of the guest's in it.
    ///
    /// # Errors
    /// When it is none.
    pub fn with_rule(self, text: &str) -> Result<Proposal, ChangeError> {
        let rules = parse_rules(text).map_err(|error| ChangeError::Rule(chain(&error)))?;
        if rules.len() != 1 {
            return Err(ChangeError::Rule("one rule at a time".to_owned()));
        }
        let mut network = self.network.clone();
        // What stands in front already and says the same is not said twice.
        network.policy.rules.retain(|rule| !rules.contains(rule));
        network.policy.rules.splice(0..0, rules.iter().cloned());
        let spec = self.spec.with_network(&network)?;
        self.propose(spec, network, rules)
    }

    /// Another policy in its place: that of `items`; see [`NamedSpec::with_policy`].
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn with_policy(self, items: &[FlagItem], ipv6: Option<bool>) -> Result<Proposal, ChangeError> {
        let spec = self.spec.with_policy(items, ipv6)?;
        let network = spec.network()?;
        self.propose(spec, network, Vec::new())
    }

    fn propose(self, spec: NamedSpec, network: NetworkConfig, rules: Vec<Rule>) -> Result<Proposal, ChangeError> {
        let after = Policy::of_network(&network, self.classifier.clone())?;
        Ok(Proposal { changeable: self, spec, rules, after })
    }
}

impl Proposal {
    /// The rule that is new, as it will be in force; nothing for another policy.
    #[must_use]
    pub fn rule(&self) -> String {
        self.rules.iter().map(format_rule).collect::<Vec<_>>().join(", ")
    }

    /// What would be denied all the same although a rule allows it, with whoever denies it: for the first such of the new rules.
    #[must_use]
    pub fn denied_still(&self) -> Option<Answer> {
        let allows = self.rules.iter().filter(|rule| rule.action == Action::Allow);
        let asked = allows.filter_map(example).map(|target| self.after.ask(&target));
        asked.into_iter().find(|answer| answer.action() == Action::Deny)
    }

    /// The same in words, for a person.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        let answer = self.denied_still()?;
        let denial = match &answer.look_up {
            Some(look_up) if look_up.action == Action::Deny => look_up,
            Some(_) | None => &answer.flow,
        };
        Some(format!("it will be denied all the same, by {}", self.after.rule_text(&denial.reason)))
    }

    /// The policy as it would be.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.after
    }

    /// Puts it in force, and comes back when it is.
    ///
    /// # Errors
    /// When the run has ended meanwhile, was changed by somebody else, or its gateway does not take it.
    pub fn apply(self) -> Result<(), ChangeError> {
        let Changeable { run, folder, .. } = self.changeable;
        let silent = |source: io::Error| ChangeError::Silent { id: run.clone(), source };
        let socket = protocol::connect(&folder).map_err(|error| unreached(run.clone(), error))?;
        let json = self.spec.to_json();
        let (reply, _) = protocol::ask(&socket, &Request::Policy, Some(&json), FOR_A_POLICY).map_err(silent)?;
        if reply == Reply::Done { Ok(()) } else { Err(not_done(reply)) }
    }
}

/// The rule about one destination: a name or an address, with the port and protocol if it is about one.
///
/// # Errors
/// When the host is neither.
pub fn rule_about(
    action: Action,
    host: &str,
    protocol: Option<Protocol>,
    port: Option<u16>,
) -> Result<String, ChangeError> {
    // From types and not from text: a name is the guest's, and must not become a second rule.
    let destination = match host.parse::<IpAddr>() {
        Ok(address) => Destination::Cidr(IpNet::from(address)),
        Err(_) => {
            let name = host.trim_end_matches('.').parse::<DomainName>();
            Destination::Domain(name.map_err(|error| ChangeError::Rule(error.to_string()))?)
        }
    };
    let none = ProtocolSet::default();
    let protocols = match protocol {
        None => none.with(Protocol::Tcp).with(Protocol::Udp),
        Some(protocol @ (Protocol::Tcp | Protocol::Udp)) => none.with(protocol),
        Some(Protocol::IcmpV4 | Protocol::IcmpV6) => none.with(Protocol::IcmpV4).with(Protocol::IcmpV6),
    };
    let ports = port.map(|port| PortRange { start: port, end: port }).into_iter().collect();
    Ok(format_rule(&Rule { protocols, ports, ..Rule::egress(action, destination) }))
}

/// A flow that a rule is about, when it is about one destination.
fn example(rule: &Rule) -> Option<Target> {
    let host = match &rule.destination {
        Destination::Domain(name) => TargetHost::Name { name: name.clone(), at: None },
        Destination::Cidr(net) if net.prefix_len() == net.max_prefix_len() => TargetHost::Address(net.addr()),
        Destination::Any | Destination::Group(_) | Destination::Cidr(_) | Destination::Suffix { .. } => return None,
    };
    let carrier = match (rule.protocols.matches(Protocol::Tcp), rule.protocols.matches(Protocol::Udp)) {
        (true, _) => Carrier::Tcp,
        (false, true) => Carrier::Udp,
        (false, false) => Carrier::Icmp,
    };
    let direction = match rule.direction {
        Direction::Egress | Direction::Any => Direction::Egress,
        Direction::Ingress => Direction::Ingress,
    };
    Some(Target { direction, host, port: rule.ports.first().map(|range| range.start), carrier })
}

fn connect(folder: &OwnedFd, run: &StoredRun) -> Result<OwnedFd, ChangeError> {
    protocol::connect(folder).map_err(|error| match run.state() {
        RunState::Running => unreached(run.about().id.clone(), error),
        RunState::Ended | RunState::Died | RunState::Removed => ChangeError::Ended(run.about().id.clone()),
    })
}

fn unreached(id: RunId, error: io::Error) -> ChangeError {
    if error.kind() == io::ErrorKind::NotFound {
        ChangeError::Closed(id)
    } else if error.kind() == io::ErrorKind::ConnectionRefused {
        ChangeError::Ended(id)
    } else {
        ChangeError::Silent { id, source: error }
    }
}

fn not_done(reply: Reply) -> ChangeError {
    match reply {
        Reply::Busy => ChangeError::Busy,
        Reply::Refused { why } => ChangeError::Refused(why),
        other @ (Reply::Entered(_)
        | Reply::Inspected(_)
        | Reply::Shown
        | Reply::Done
        | Reply::Ports { .. }
        | Reply::Mountable { .. }) => ChangeError::Refused(format!("something else was answered: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use cofferdam_gateway::{CommandAnswer, Commands};
    use cofferdam_model::{Layer, PolicyLayer};
    use cofferdam_policy::file::from_flags;
    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::sandbox::Companion;
    use crate::store::{Ended, RecordAs, Recording, RunStore, Subject};
    use crate::summary::Advice;

    /// A run that goes on, with whoever supervises it and a gateway that says what it is told to.
    struct World {
        state: tempfile::TempDir,
        recording: Recording,
        door: Door,
        commands: Commands,
        _gateway: OwnedFd,
    }

    fn only(target: &str) -> NetworkConfig {
        from_flags(&[FlagItem::Allow(target.to_owned())]).unwrap()
    }

    impl World {
        fn new(network: &NetworkConfig) -> World {
            let state = tempfile::tempdir().unwrap();
            let store = RunStore::at(state.path());
            let record = RecordAs { store, kind: RunKind::Run, sandbox: None, directory: None };
            let subject = Subject { command: &[], network, classifier: None, advice: Advice::default() };
            let (recording, _) = Recording::begin(record, subject).unwrap();
            let mut door = Door::new(network);
            door.recorded(recording.directory()).unwrap();
            let (commands, gateway) = Commands::pair().unwrap();
            World { state, recording, door, commands, _gateway: gateway }
        }

        fn run(&self) -> StoredRun {
            RunStore::at(self.state.path()).find("last").unwrap()
        }

        /// What somebody does meanwhile, in another thread; the gateway answers every command so, or none in time.
        fn meanwhile<T: Send>(
            &mut self,
            answer: impl Into<Option<Result<(), &'static str>>>,
            act: impl FnOnce(&Path, &StoredRun) -> T + Send,
        ) -> T {
            let answer = answer.into();
            let (over, end) = rustix::pipe::pipe().unwrap();
            let (run, state) = (self.run(), self.state.path().to_owned());
            let (door, commands) = (&mut self.door, &mut self.commands);
            std::thread::scope(|scope| {
                let acting = scope.spawn(move || {
                    let result = act(&state, &run);
                    drop(end);
                    result
                });
                // The other end of the commands is read by nobody: what it would say is said here, for numbers as they come.
                let mut number = 0;
                loop {
                    let sources = door.sources();
                    let mut fds: Vec<_> = sources.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                    fds.push(PollFd::new(&over, PollFlags::IN));
                    rustix::event::poll(&mut fds, None).unwrap();
                    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
                    drop(fds);
                    drop(sources);
                    if ready.last() == Some(&true) {
                        return acting.join().unwrap();
                    }
                    door.handle(&ready[..ready.len() - 1], Some(commands));
                    while let Some(waiting) = door.awaited() {
                        let Some(answer) = answer else {
                            door.be_late();
                            door.handle(&[], Some(commands));
                            break;
                        };
                        number = number.max(waiting);
                        door.answered(CommandAnswer { number, result: answer.map_err(str::to_owned) });
                    }
                }
            })
        }
    }

    fn change(state: &Path, run: &StoredRun, rule: &str) -> Result<(), ChangeError> {
        Changeable::open(state, run)?.with_rule(rule)?.apply()
    }

    #[test]
    fn a_rule_is_put_before_those_of_the_run_and_is_in_force_for_who_asks_next() {
        let mut world = World::new(&only("a.example"));
        world.meanwhile(Ok(()), |state, run| {
            let proposal = Changeable::open(state, run).unwrap().with_rule("allow@b.example:tcp:443").unwrap();
            assert_eq!((proposal.rule().as_str(), proposal.remark()), ("allow@b.example:tcp:443", None));
            proposal.apply().unwrap();
            change(state, run, "deny@a.example").unwrap();
            assert!(matches!(change(state, run, "allow@c.example, allow@any"), Err(ChangeError::Rule(_))), "two rules");
            // The same again is not said twice.
            change(state, run, "allow@b.example:tcp:443").unwrap();
            let rules: Vec<String> =
                Changeable::open(state, run).unwrap().network().policy.rules.iter().map(format_rule).collect();
            assert_eq!(rules, ["allow@b.example:tcp:443", "deny@a.example", "allow@a.example:tcp+udp"]);
        });
    }

    #[test]
    fn what_is_around_the_run_narrows_as_before_and_is_told() {
        let floor = PolicyLayer {
            layer: Layer::Floor,
            policy: only("a.example").policy,
            deny_doh: None,
            rebind_protection: true,
        };
        let mut world = World::new(&NetworkConfig { ceilings: vec![floor.clone()], ..only("a.example") });
        world.meanwhile(Ok(()), |state, run| {
            let changeable = Changeable::open(state, run).unwrap();
            let proposal = changeable.with_rule("allow@b.example:tcp:443").unwrap();
            let remark = proposal.remark().unwrap();
            assert!(remark.contains("default egress deny") && remark.contains("floor"), "{remark}");
            proposal.apply().unwrap();
            // Whoever leaves it out is not heard.
            let mut without = Changeable::open(state, run).unwrap();
            without.network.ceilings.clear();
            let refused = without.with_rule("allow@c.example").unwrap().apply().unwrap_err();
            assert!(refused.to_string().contains("ceilings"), "{refused}");
            // Another policy of flags is within it too.
            let items = [FlagItem::Allow("c.example".to_owned())];
            let proposal = Changeable::open(state, run).unwrap().with_policy(&items, None).unwrap();
            proposal.apply().unwrap();
            assert_eq!(Changeable::open(state, run).unwrap().network().ceilings.len(), 1);
        });
        assert_eq!(world.door.network().ceilings, [floor]);
    }

    #[test]
    fn another_policy_takes_the_place_of_the_runs_own() {
        let mut world = World::new(&only("a.example"));
        world.meanwhile(Ok(()), |state, run| {
            let items = [FlagItem::Allow("b.example:443".to_owned())];
            Changeable::open(state, run).unwrap().with_policy(&items, None).unwrap().apply().unwrap();
            let rules = Changeable::open(state, run).unwrap().network.policy.rules;
            assert_eq!(rules.iter().map(format_rule).collect::<Vec<_>>(), ["allow@b.example:tcp+udp:443"]);
        });
    }

    #[test]
    fn who_comes_second_looks_again() {
        let mut world = World::new(&only("a.example"));
        world.meanwhile(Ok(()), |state, run| {
            let late = Changeable::open(state, run).unwrap().with_rule("allow@c.example").unwrap();
            change(state, run, "allow@b.example").unwrap();
            assert!(matches!(late.apply(), Err(ChangeError::Busy)));
        });
    }

    #[test]
    fn what_the_gateway_does_not_take_is_not_in_force() {
        let mut world = World::new(&only("a.example"));
        world.meanwhile(Err("too many"), |state, run| {
            let error = change(state, run, "allow@b.example").unwrap_err();
            assert!(matches!(&error, ChangeError::Refused(why) if why == "too many"), "{error}");
            assert_eq!(Changeable::open(state, run).unwrap().network().policy.rules.len(), 1);
        });
    }

    #[test]
    fn a_gateway_that_does_not_answer_holds_up_nobody_for_ever() {
        let mut world = World::new(&only("a.example"));
        assert_eq!(world.door.deadline(), None);
        for _ in 0..2 {
            world.meanwhile(None, |state, run| {
                let error = change(state, run, "allow@b.example").unwrap_err();
                assert!(matches!(&error, ChangeError::Refused(why) if why.contains("does not answer")), "{error}");
            });
        }
        world.meanwhile(Ok(()), |state, run| change(state, run, "allow@b.example").unwrap());
        assert_eq!(world.door.network().policy.rules.len(), 2);
    }

    #[test]
    fn a_run_that_has_ended_or_has_no_door_says_so() {
        let World { state, recording, door, .. } = World::new(&only("a.example"));
        let run = || RunStore::at(state.path()).find("last").unwrap();
        drop(door);
        assert!(matches!(Changeable::open(state.path(), &run()), Err(ChangeError::Closed(_))));
        let ended = Ended { time: String::new(), exit_status: 0, duration_ms: 1, totals: Default::default() };
        recording.end(ended, 0).unwrap();
        assert!(matches!(Changeable::open(state.path(), &run()), Err(ChangeError::Ended(_))));
    }

    #[test]
    fn nothing_but_its_policy_is_to_be_had_and_nonsense_is_refused() {
        let mut world = World::new(&only("a.example"));
        world.meanwhile(Ok(()), |_, run| {
            let ask = |request: &Request, content: Option<&str>| {
                let socket = protocol::connect(run.directory()).unwrap();
                protocol::ask(&socket, request, content, PATIENCE).unwrap().0
            };
            for (request, content) in [
                (Request::Enter, None),
                (Request::Inspect, None),
                (Request::Policy, None),
                (Request::Policy, Some("{}x")),
            ] {
                assert!(matches!(ask(&request, content), Reply::Refused { .. }), "{request:?}");
            }
            let socket = protocol::connect(run.directory()).unwrap();
            cofferdam_sys::fdpass::send_fds(socket.as_fd(), b"nonsense", &[]).unwrap();
            assert!(matches!(protocol::receive::<Reply>(&socket), Ok(Some((Reply::Refused { .. }, _)))));
        });
    }

    #[test]
    fn a_destination_becomes_a_rule() {
        for (action, host, protocol, port, expected) in [
            (Action::Allow, "a.example.", Some(Protocol::Tcp), Some(443), "allow@a.example:tcp:443"),
            (Action::Deny, "2001:db8::1", Some(Protocol::Udp), Some(53), "deny@[2001:db8::1]:udp:53"),
            (Action::Deny, "192.0.2.1", Some(Protocol::Udp), Some(53), "deny@192.0.2.1:udp:53"),
            (Action::Allow, "192.0.2.1", None, None, "allow@192.0.2.1:tcp+udp"),
            (Action::Deny, "private", Some(Protocol::Tcp), Some(80), "deny@domain=private:tcp:80"),
        ] {
            assert_eq!(rule_about(action, host, protocol, port).unwrap(), expected);
        }
        for nonsense in ["", "a b", "a,deny@any", "\u{1b}[2J"] {
            assert!(matches!(rule_about(Action::Allow, nonsense, None, None), Err(ChangeError::Rule(_))), "{nonsense}");
        }
    }
}
