//! One sandbox, from options to exit status.
//!
//! [`Sandbox::plan`] is a pure step: options, what the machine looks like and fresh randomness go in, and everything
//! that the backend needs comes out, or the reason why not. [`Sandbox::run`] carries the plan out, feeds the event
//! stream into the log and the summary, and says how it ended.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cofferdam_backend_ns::{
    Capability, CaptureFile, DiskFull, GatewayEnd, GatewayFate, LaunchError, Mount, NetworkSpec, Observer, Order,
    Outcome, Place, ResourceLimits, Running, SandboxSpec, ShareAnswer, Status, Terminal, writable_roots,
};
use cofferdam_backend_vm::{Cache, Choice, Engine, Kit, Progress, Sharing, Wish};
use cofferdam_gateway::{
    CommandAnswer, Commands, DnsUpstream, GatewayConfig, LinkAddresses, NetnsSpec, ReadAnchorsError, trust_anchors,
};
use cofferdam_model::{
    Action, Classifier, Event, EventBody, EventSource, HostNetwork, HostSocket, LimitKind, NameserverOver,
    NetworkConfig, PolicyConfig, PortId, PublishedPort, rfc3339,
};
use cofferdam_policy::grammar::format_rule;
use cofferdam_policy::{Policy, TooManyLayers};

use crate::attribution::{Attribution, Line};
use crate::change::Door;
use crate::environment;
use crate::events::{EventLog, MAX_LINES};
use crate::host::Host;
use crate::host_sockets::{self, ShareError};
use crate::named::{NarrowError, chain};
use crate::ports::{self, PublishError};
use crate::resolvers::{self, LookUpError};
use crate::slot::{self, SlotError};
use crate::store::{Ended, Subject};
use crate::summary::{Advice, HOST_ALIAS, Summary};

/// The user id of a program that asked for none: the first one of a distribution's people, so that nothing inside
/// takes it for a system account.
pub const DEFAULT_UID: u32 = 1000;

/// The names under which a sandbox knows the machine it runs on; the later ones are what other tools use.
pub const HOST_ALIASES: [&str; 3] = [HOST_ALIAS, "host.docker.internal", "host.microsandbox.internal"];

/// Everything a caller decides about one run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The program's whole environment; see [`environment::build`].
    pub env: Vec<(OsString, OsString)>,
    /// A directory that is writable inside, at the same path.
    pub project: Option<PathBuf>,
    /// Where the program starts; `None` is the project, or the program's own home without one.
    pub workdir: Option<PathBuf>,
    /// More files and directories of the host.
    pub mounts: Vec<Mount>,
    /// A directory that stands in for the host's file system.
    pub rootfs: Option<PathBuf>,
    /// User id inside; `None` is [`DEFAULT_UID`], and 0 with capabilities.
    pub uid: Option<u32>,
    /// What the program may do in its own namespaces.
    pub capabilities: Vec<Capability>,
    /// Lets the program make user namespaces.
    pub allow_userns: bool,
    pub terminal: Terminal,
    pub limits: ResourceLimits,
    pub network: NetworkConfig,
    /// Whether adding `--allow` to the command line would switch the default to deny; see [`Advice`].
    pub allow_changes_default: bool,
    /// Whether a denial makes the exit status [`EXIT_DENIED`].
    pub fail_on_deny: bool,
    /// Whether the events tell what allowed flows show.
    pub tell_flights: bool,
    pub backend: Backend,
}

/// What keeps the program in.
#[derive(Debug, Clone, Default)]
pub enum Backend {
    /// Namespaces of the kernel.
    #[default]
    Namespace,
    /// A kernel of its own.
    Vm(VmOptions),
}

/// What a virtual machine is made from.
#[derive(Debug, Clone)]
pub struct VmOptions {
    pub kit: Kit,
    pub wish: Wish,
    /// A directory of the caller's where it is noted whether KVM works.
    pub notes: Option<PathBuf>,
    /// How the guest has directories of the host; `None` is what fits.
    pub sharing: Option<Sharing>,
    pub progress: Progress,
    pub engine: Engine,
}

impl RunOptions {
    /// A program with nothing but a network: no environment, no file of the caller's.
    #[must_use]
    pub fn new(command: Vec<OsString>, network: NetworkConfig) -> RunOptions {
        RunOptions {
            command,
            env: Vec::new(),
            project: None,
            workdir: None,
            mounts: Vec::new(),
            rootfs: None,
            uid: None,
            capabilities: Vec::new(),
            allow_userns: false,
            terminal: Terminal::Inherit,
            limits: ResourceLimits::default(),
            network,
            allow_changes_default: false,
            fail_on_deny: false,
            tell_flights: false,
            backend: Backend::Namespace,
        }
    }
}

/// Exit status of a run whose time was up, as of timeout(1), and of one with a denial under `--fail-on-deny`.
pub const EXIT_DENIED: u8 = 124;
/// Exit status of a sandbox that could not be set up or lost its network.
pub const EXIT_SETUP: u8 = 125;

/// Why there is no sandbox. Nothing was started when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "cannot read the addresses and routes of this machine, without which its own addresses cannot be kept out of reach"
    )]
    Host(#[source] io::Error),
    #[error("the system's random source gave nothing: {0}")]
    Random(String),
    #[error("a resolver's name has no address")]
    Nameserver(#[source] LookUpError),
    #[error("a resolver over TLS or HTTPS cannot be told from an impostor")]
    Anchors(#[from] ReadAnchorsError),
    #[error(transparent)]
    Layers(#[from] TooManyLayers),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(
        "there is no network whose packets could be captured: do without --pcap, or without what switches the network off"
    )]
    NothingToCapture,
    #[error(
        "this run would share the session's network, whose packets are not its own: give it a network of its own \
         (--allow, --net, …) for --pcap, or capture a run outside of a session"
    )]
    CapturesSession,
    #[error("{0}")]
    Spec(String),
    #[error(transparent)]
    Narrow(#[from] NarrowError),
    #[error("the sandbox cannot be kept")]
    Keeper(#[source] io::Error),
}

impl RunError {
    /// The exit status that tells a caller what kind of failure this was: 126 and 127 as in a shell when the program
    /// itself could not be executed, 125 for everything else.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            RunError::Launch(error) => u8::try_from(error.exit_status()).unwrap_or(EXIT_SETUP),
            RunError::Host(_)
            | RunError::Random(_)
            | RunError::Layers(_)
            | RunError::Nameserver(_)
            | RunError::Anchors(_)
            | RunError::Publish(_)
            | RunError::Share(_)
            | RunError::Slot(_)
            | RunError::NothingToCapture
            | RunError::CapturesSession
            | RunError::Spec(_)
            | RunError::Narrow(_)
            | RunError::Keeper(_) => EXIT_SETUP,
        }
    }
}

/// A sandbox that is ready to run.
#[derive(Debug)]
pub struct Sandbox {
    spec: SandboxSpec,
    /// What the run is about, for its first event.
    command: Vec<String>,
    policy: Vec<String>,
    summary: Summary,
    fail_on_deny: bool,
    /// What a person is told when it starts.
    said: Vec<String>,
    /// What it is allowed, for its record; and what it is to be advised.
    allowed: NetworkConfig,
    advice: Advice,
    /// Whether flows are looked at beyond what the rules ask for.
    watches: bool,
    backend: Backend,
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// What the caller's exit status should be.
    pub exit_status: u8,
    /// How the program ended, whatever the exit status makes of it.
    pub status: Status,
    /// Whether the gateway ended before the program did.
    pub lost_network: bool,
    /// What was tried.
    pub summary: Summary,
    /// What a person should be told besides, oldest first.
    pub notices: Vec<String>,
}

impl Finished {
    /// Whether the exit status is ours and says that the sandbox failed, not the program. The notices say why.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.exit_status == EXIT_SETUP && self.status != Status::Exited(i32::from(EXIT_SETUP))
    }
}

impl Sandbox {
    /// Reads the machine, draws randomness and plans.
    ///
    /// # Errors
    /// When the machine cannot be read or has no room for the sandbox's addresses.
    pub fn prepare(options: RunOptions) -> Result<Sandbox, RunError> {
        let (options, host, seed) = Sandbox::look_around(options)?;
        Sandbox::plan(options, &host, seed, std::process::id())?.with_host_sockets()?.with_ports()
    }

    /// What [`Sandbox::plan`] wants besides: the machine, and randomness. Looks up the names of resolvers.
    pub(crate) fn look_around(mut options: RunOptions) -> Result<(RunOptions, Host, [u8; 32]), RunError> {
        let mut host =
            if options.network.enabled { Host::discover().map_err(RunError::Host)? } else { Host::default() };
        let servers = &mut options.network.dns.nameservers;
        if options.network.enabled && !servers.is_empty() {
            *servers = resolvers::look_up(std::mem::take(servers)).map_err(RunError::Nameserver)?;
            if servers.iter().any(|server| server.over != NameserverOver::Plain) {
                host.anchors = trust_anchors()?;
            }
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| RunError::Random(error.to_string()))?;
        Ok((options, host, seed))
    }

    /// Lets its policy be changed while it runs.
    pub(crate) fn live(mut self) -> Sandbox {
        self.spec.network.iter_mut().for_each(|network| network.live = true);
        self
    }

    /// Lets ports be published while it runs.
    pub(crate) fn open_to_ports(mut self) -> Sandbox {
        self.spec.network.iter_mut().for_each(|network| network.broker = true);
        self
    }

    /// What its virtual machine is made from, if it is to be one, drawn for one boot.
    pub(crate) fn take_machine(&mut self) -> Result<Option<cofferdam_backend_vm::Options>, RunError> {
        match std::mem::take(&mut self.backend) {
            Backend::Namespace => Ok(None),
            Backend::Vm(options) => options.drawn().map(Some),
        }
    }

    /// What of the host it is shown, in the order of its shares where it is a virtual machine.
    pub(crate) fn shown(&self) -> Vec<cofferdam_backend_ns::Mount> {
        cofferdam_backend_vm::shown(&self.spec.place)
    }

    /// Says what it is for, where the program is started by somebody else.
    pub(crate) fn about(mut self, command: &[String]) -> Sandbox {
        self.command = command.to_vec();
        self
    }

    /// Opens the way to its sockets of the host.
    fn with_host_sockets(mut self) -> Result<Sandbox, RunError> {
        let Some(network) = &mut self.spec.network else { return Ok(self) };
        let Place { project, mounts, .. } = &self.spec.place;
        let roots = writable_roots(project.as_deref(), mounts);
        network.sockets = host_sockets::open(&network.gateway.network.host_sockets, &roots)?;
        Ok(self)
    }

    /// Says where the session's sockets of the host are, for a run in it.
    pub(crate) fn in_session(mut self, sockets: &[HostSocket]) -> Sandbox {
        self.spec.sockets = places(sockets);
        self
    }

    /// Binds its ports.
    fn with_ports(mut self) -> Result<Sandbox, RunError> {
        let Some(network) = &mut self.spec.network else { return Ok(self) };
        let wanted = &network.gateway.network.ports;
        network.ports = ports::bind(wanted)?;
        for (port, wanted) in network.ports.iter().zip(wanted) {
            if wanted.host_port == 0 {
                let PublishedPort { guest_port, protocol, .. } = port.port;
                let (host, protocol) = (port.port.host(), protocol.word());
                self.said.push(format!("{host} on this machine is {protocol} port {guest_port} of the sandbox"));
            }
        }
        if !network.ports.is_empty() {
            self.said.extend(ports::backlog_remark());
        }
        for port in Policy::unreachable_ports(&network.gateway.network) {
            self.said.push(format!("{port} is published, but the rules for ingress let nobody reach it"));
        }
        Ok(self)
    }

    /// The ports that are bound, as they are.
    pub(crate) fn published(&self) -> Vec<(PortId, PublishedPort)> {
        let network = self.spec.network.iter();
        network.flat_map(|network| &network.ports).map(|port| (port.id, port.port)).collect()
    }

    /// Has the packets of its link written to a file, where one is given.
    ///
    /// # Errors
    /// When it has no network.
    pub fn capturing(mut self, file: Option<(PathBuf, File)>) -> Result<Sandbox, RunError> {
        let Some((path, file)) = file else { return Ok(self) };
        let network = self.spec.network.as_mut().ok_or(RunError::NothingToCapture)?;
        network.capture = Some(Arc::new(CaptureFile { path, file }));
        Ok(self)
    }

    /// The addresses of its link, if it has a network.
    pub(crate) fn link(&self) -> Option<&LinkAddresses> {
        self.spec.network.as_ref().map(|network| &network.gateway.link)
    }

    /// Plans a sandbox on a machine. `preferred_slot` is a number that differs between sandboxes.
    ///
    /// # Errors
    /// When the machine has no room for the sandbox's addresses, or too many policies hold at once.
    pub fn plan(options: RunOptions, host: &Host, seed: [u8; 32], preferred_slot: u32) -> Result<Sandbox, RunError> {
        let network = &options.network;
        let link = match network.enabled {
            true => {
                let ipv6 = network.interface.ipv6.unwrap_or(host.ipv6_route);
                Some(slot::choose(&network.interface, &host.used_networks(), ipv6, preferred_slot)?)
            }
            false => None,
        };
        Sandbox::plan_at(options, host, seed, link)
    }

    /// As [`Sandbox::plan`], with a link that has been chosen.
    pub(crate) fn plan_at(
        options: RunOptions,
        host: &Host,
        seed: [u8; 32],
        link: Option<LinkAddresses>,
    ) -> Result<Sandbox, RunError> {
        let network = &options.network;
        let gateway = link.as_ref().map(gateway_addresses).unwrap_or_default();
        let advice = Advice { allow_changes_default: options.allow_changes_default };
        let mut summary = Summary::new(advice);
        let resolvers = resolvers(network, host);
        if link.is_some() && resolvers.is_empty() {
            summary.note("this machine names no resolver in /etc/resolv.conf: names will not resolve; --dns-nameserver gives one");
        }
        let command = options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let policy = match &options.backend {
            Backend::Vm(VmOptions { engine: Engine::Slirp(slirp), .. }) => {
                vec![format!("engine slirp, mode {}: decided by nobody, and not recorded", slirp.mode())]
            }
            Backend::Vm(_) | Backend::Namespace => policy_text(network),
        };
        let hosts = link.as_ref().map(hosts_lines).unwrap_or_else(|| vec![(LOCAL_NAME, vec![NAME.to_owned()])]);
        let fail_on_deny = options.fail_on_deny;
        let sockets = places(&network.host_sockets);
        let allowed = network.clone();
        let network = link.map(|link| network_spec(options.network, link, host, resolvers, seed)).transpose()?;
        let watches = options.tell_flights;
        let network = if watches { network.map(watching) } else { network };
        let workdir = options.workdir.or_else(|| options.project.clone()).unwrap_or_else(|| environment::HOME.into());
        let root = !options.capabilities.is_empty();
        let spec = SandboxSpec {
            name: NAME.to_owned(),
            command: options.command,
            env: options.env,
            workdir,
            place: Place {
                project: options.project,
                mounts: options.mounts,
                rootfs: options.rootfs,
                ..Place::default()
            },
            inside_uid: options.uid.unwrap_or(if root { 0 } else { DEFAULT_UID }),
            capabilities: options.capabilities,
            allow_userns: options.allow_userns,
            terminal: options.terminal,
            limits: options.limits,
            hosts,
            resolv: gateway,
            sockets,
            network,
        };
        let backend = options.backend;
        if let Backend::Vm(vm) = &backend {
            cofferdam_backend_vm::check(&spec, vm.sharing.as_ref())?;
            cofferdam_backend_vm::check_engine(&spec, &vm.engine)?;
        }
        Ok(Sandbox {
            spec,
            command,
            policy,
            summary,
            fail_on_deny,
            said: Vec::new(),
            allowed,
            advice,
            watches,
            backend,
        })
    }

    /// Runs the program to its end. Call it while the process has one thread: it forks. What it may do on the network can be
    /// changed meanwhile ([`crate::change`]) where it is recorded, and does not learn.
    ///
    /// `tell` gets, while the program runs, what cannot wait for its end: one paragraph at a time.
    ///
    /// # Errors
    /// When the sandbox or the program could not be started.
    pub fn run(mut self, log: &mut EventLog, tell: &mut dyn FnMut(&str)) -> Result<Finished, RunError> {
        match std::mem::take(&mut self.backend) {
            Backend::Namespace => self.run_live(|spec, _| cofferdam_backend_ns::launch(spec), log, tell),
            Backend::Vm(options) => {
                let options = options.drawn()?;
                self.run_live(|spec, tell| cofferdam_backend_vm::launch(spec, &options, tell), log, tell)
            }
        }
    }

    /// Run so that its policy can be changed, where that is possible.
    fn run_live(
        self,
        launch: impl FnOnce(SandboxSpec, &mut dyn FnMut(&str)) -> Result<Running, LaunchError>,
        log: &mut EventLog,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Finished, RunError> {
        // What watches has a policy that no configuration makes, and that no other may take the place of.
        if self.spec.network.is_none() || self.watches || !log.keeps_record() {
            return self.run_by(launch, log, tell, &mut Alone);
        }
        let mut door = Door::new(&self.allowed);
        self.live().run_by(launch, log, tell, &mut door)
    }

    /// As [`Sandbox::run`], started by `launch` and accompanied by somebody who waits for other things besides.
    pub(crate) fn run_by(
        self,
        launch: impl FnOnce(SandboxSpec, &mut dyn FnMut(&str)) -> Result<Running, LaunchError>,
        log: &mut EventLog,
        tell: &mut dyn FnMut(&str),
        companion: &mut dyn Companion,
    ) -> Result<Finished, RunError> {
        let Sandbox { spec, command, policy, summary, fail_on_deny, said, allowed, advice, watches: _, backend: _ } =
            self;
        let gateways = spec.network.as_ref().map(|network| Arc::clone(&network.gateway.policy));
        let guest = spec.network.as_ref().map(|network| guest_addresses(&network.gateway.link)).unwrap_or_default();
        for text in &said {
            tell(text);
        }
        let mut running = launch(spec, tell)?;
        let attribution = Attribution::new(running.take_inspector());
        companion.started(&running)?;
        // The gateway's clock starts when it is ready, which is a moment ago: both count from the same event.
        let started = Instant::now();
        let classifier = gateways.as_ref().map(|policy| policy.classifier());
        let subject = Subject { command: &command, network: &allowed, classifier, advice };
        if let Err(error) = log.begin(subject) {
            tell(&format!("this run is not recorded: {}", chain(&error)));
        }
        if let Some(Err(error)) = log.folder().map(|folder| companion.recorded(folder)) {
            tell(&format!("what this run may do cannot be changed while it goes on: {error}"));
        }
        log.write(&own_event(started, EventBody::SandboxStarted { command, policy, guest }));
        let mut record = Record { log, summary, tell, started, attribution, companion };
        let outcome = running.run_to_end(&mut record);
        record.hear_the_last();
        let Record { log, summary, .. } = record;
        // What nobody has heard of may have been a denial.
        let may_have = !summary.denied_anything() && summary.events_lost() > 0;
        let exit_status = exit_status(&outcome, fail_on_deny && (summary.denied_anything() || may_have));
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        log.tell_lost(true, |count| lost(started, count));
        let stopped =
            own_event(started, EventBody::SandboxStopped { exit_status: i32::from(exit_status), duration_ms });
        log.write(&stopped);
        let mut notices = outcome_notices(&outcome);
        if fail_on_deny && may_have {
            notices.push(
                "events were lost, and a denial may have been among them: --fail-on-deny counts that as one".to_owned(),
            );
        }
        let (status, lost_network) = (outcome.status, lost_network(&outcome));
        notices.extend(outcome.notices);
        let totals = summary.totals();
        notices.extend(log.finish(Ended { time: stopped.time, exit_status, duration_ms, totals }));
        Ok(Finished { exit_status, status, lost_network, summary, notices })
    }
}

impl VmOptions {
    /// With what has to be drawn and asked for each boot.
    fn drawn(self) -> Result<cofferdam_backend_vm::Options, RunError> {
        let mut token = [0; 32];
        getrandom::fill(&mut token).map_err(|error| RunError::Random(error.to_string()))?;
        let mut password = [0; 16];
        getrandom::fill(&mut password).map_err(|error| RunError::Random(error.to_string()))?;
        let cache = self.notes.as_deref().and_then(Cache::new);
        let VmOptions { kit, wish, notes: _, sharing, progress, engine } = self;
        Ok(cofferdam_backend_vm::Options { kit, wish, cache, token, password, sharing, progress, engine })
    }

    /// Which accelerator a machine would have on this host. Tries KVM where that is not known. Call it while the process has one
    /// thread.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn accelerator(self, tell: &mut dyn FnMut(&str)) -> Result<Choice, RunError> {
        Ok(cofferdam_backend_vm::probe(&self.drawn()?, tell))
    }
}

/// What is kept of a run while it goes on.
struct Record<'a> {
    log: &'a mut EventLog,
    summary: Summary,
    tell: &'a mut dyn FnMut(&str),
    started: Instant,
    attribution: Attribution,
    companion: &'a mut dyn Companion,
}

/// Who else has a part in a sandbox while it runs; see [`Observer`] for what is like there.
pub(crate) trait Companion {
    /// The program runs, or the sandbox is there.
    fn started(&mut self, running: &Running) -> Result<(), RunError>;
    /// It has a record, in this folder.
    fn recorded(&mut self, _folder: &OwnedFd) -> io::Result<()> {
        Ok(())
    }
    fn sources(&self) -> Vec<BorrowedFd<'_>>;
    fn deadline(&self) -> Option<Instant>;
    fn handle(&mut self, ready: &[bool], commands: Option<&mut Commands>) -> Vec<Order>;
    /// The gateway has reported something.
    fn event(&mut self, _event: &Event, _line: &[u8]) {}
    /// What others have reported that the run has to hear: lines of its event stream.
    fn heard(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }
    /// The program has ended: the last of what others have to report, and how many lines of theirs are missing.
    fn ended(&mut self) -> (Vec<Vec<u8>>, u64) {
        (Vec::new(), 0)
    }
    fn answered(&mut self, answer: CommandAnswer) -> Vec<Order>;
    /// Something has come of what is to be shown to a virtual machine.
    fn shared(&mut self, _answer: ShareAnswer) -> Vec<Order> {
        Vec::new()
    }
    /// The gateway has ended.
    fn gateway_died(&mut self);
    fn signal(&mut self) -> Vec<Order>;
    fn held_up(&mut self) {}
}

/// Nobody.
struct Alone;

impl Companion for Alone {
    fn started(&mut self, _running: &Running) -> Result<(), RunError> {
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn handle(&mut self, _ready: &[bool], _commands: Option<&mut Commands>) -> Vec<Order> {
        Vec::new()
    }

    fn answered(&mut self, _answer: CommandAnswer) -> Vec<Order> {
        Vec::new()
    }

    fn gateway_died(&mut self) {}

    fn signal(&mut self) -> Vec<Order> {
        vec![Order::End]
    }
}

impl Record<'_> {
    fn hear_the_last(&mut self) {
        let (lines, lost) = self.companion.ended();
        for line in &lines {
            self.keep(line);
        }
        if lost > 0 {
            let event =
                own_event(self.started, EventBody::LimitReached { limit: LimitKind::Events, bound: 0, count: lost });
            self.log.write(&event);
            self.summary.record(&event);
        }
    }

    /// A line of the event stream, completed.
    fn keep(&mut self, line: &[u8]) -> Line {
        let line = self.attribution.complete(line);
        let started = self.started;
        self.log.tell_lost(false, |count| lost(started, count));
        self.log.write_line(&line.text);
        match &line.event {
            Some(event) => self.summary.record(event),
            None => self.summary.note("the gateway sent an event that this version does not understand"),
        }
        line
    }
}

impl Observer for Record<'_> {
    fn event(&mut self, line: &[u8]) {
        let line = self.keep(line);
        if let Some(event) = &line.event {
            self.companion.event(event, &line.text);
        }
    }

    fn gateway_died(&mut self, end: GatewayEnd, why: &str) {
        self.companion.gateway_died();
        let because = if why.is_empty() { String::new() } else { format!(": {why}") };
        let message = format!(
            "the gateway has ended ({}){because}; the sandbox has no network from here on, and the program goes on without",
            how(end)
        );
        (self.tell)(&message);
        self.log.write(&own_event(self.started, EventBody::GatewayNotice { message }));
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.companion.sources()
    }

    fn deadline(&self) -> Option<Instant> {
        self.companion.deadline()
    }

    fn handle(&mut self, ready: &[bool], commands: Option<&mut Commands>) -> Vec<Order> {
        let orders = self.companion.handle(ready, commands);
        for line in self.companion.heard() {
            self.keep(&line);
        }
        orders
    }

    fn answered(&mut self, answer: CommandAnswer) -> Vec<Order> {
        self.companion.answered(answer)
    }

    fn shared(&mut self, answer: ShareAnswer) -> Vec<Order> {
        self.companion.shared(answer)
    }

    fn signal(&mut self) -> Vec<Order> {
        self.companion.signal()
    }

    fn held_up(&mut self) {
        self.companion.held_up();
    }
}

/// The host name inside.
const NAME: &str = "sandbox";
/// The address that Debian gives a machine's own name when it has no network.
const LOCAL_NAME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 1, 1));

/// The exit status of a run, as `docs/cli.md` has it. `denied` says that a denial is to be a failure.
fn exit_status(outcome: &Outcome, denied: bool) -> u8 {
    match outcome.status {
        Status::TimedOut => EXIT_DENIED,
        Status::Exited(_) | Status::Signaled(_) if denied => EXIT_DENIED,
        Status::Exited(0) if lost_network(outcome) => EXIT_SETUP,
        Status::Exited(code) => u8::try_from(code).unwrap_or(EXIT_SETUP),
        Status::Signaled(signal) => u8::try_from(128 + signal.clamp(0, 127)).unwrap_or(EXIT_SETUP),
        Status::Lost | Status::GuestLost => EXIT_SETUP,
    }
}

fn lost_network(outcome: &Outcome) -> bool {
    matches!(outcome.gateway, GatewayFate::Died(_))
}

fn how(end: GatewayEnd) -> String {
    match end {
        GatewayEnd::Exited(code) => format!("exit status {code}"),
        GatewayEnd::Signaled(signal) => format!("signal {signal}"),
    }
}

fn outcome_notices(outcome: &Outcome) -> Vec<String> {
    let mut notices = Vec::new();
    match outcome.gateway {
        GatewayFate::Fine => {}
        GatewayFate::Died(end) => {
            notices.push(format!(
                "the gateway ended before the program did ({}); from then on the sandbox had no network",
                how(end)
            ));
        }
    }
    match outcome.status {
        Status::TimedOut => notices.push("the program's time was up, and it was ended".to_owned()),
        Status::Lost => notices.push("the sandbox was killed from outside, and the program with it".to_owned()),
        // The backend's notice says why.
        Status::GuestLost => {}
        Status::Exited(_) | Status::Signaled(_) => {}
    }
    notices.extend(outcome.disk_full.map(full));
    notices
}

/// A program that found no room may have kept it to itself.
fn full(what: DiskFull) -> String {
    match what {
        DiskFull::Space { bytes } => format!(
            "the guest's disk was full: {} KiB are all that it may write over its root; --disk makes it larger, and where there is no \
             such flag --memory does, of which it is half",
            bytes >> 10
        ),
        DiskFull::Files { count } => {
            format!(
                "the guest's disk was full: {count} files are all that it may make over its root; --memory allows more"
            )
        }
    }
}

fn network_spec(
    network: NetworkConfig,
    link: LinkAddresses,
    host: &Host,
    resolvers: Vec<DnsUpstream>,
    seed: [u8; 32],
) -> Result<NetworkSpec, TooManyLayers> {
    let policy = Arc::new(Policy::of_network(&network, classifier(host, &link))?);
    let [guest_mac, gateway_mac] = link_addresses(&seed);
    let netns = NetnsSpec { link: link.clone(), mtu: network.interface.mtu, guest_mac, gateway_mac, files: None };
    let anchors = host.anchors.clone();
    // Resolvers that were configured stay who they are.
    let file = network.dns.nameservers.is_empty().then(resolvers::file);
    let gateway = GatewayConfig { network, policy, link, resolvers, anchors, seed };
    Ok(NetworkSpec {
        gateway,
        link: netns,
        live: false,
        broker: false,
        ports: Vec::new(),
        sockets: Vec::new(),
        capture: None,
        resolvers: file,
    })
}

/// The same network, and what flows show is looked at whatever the rules are about.
fn watching(mut network: NetworkSpec) -> NetworkSpec {
    let policy = &network.gateway.policy;
    network.gateway.policy = Arc::new(policy.with_classifier(policy.classifier().clone()).watching());
    network
}

/// Where programs find these sockets.
fn places(sockets: &[HostSocket]) -> Vec<PathBuf> {
    sockets.iter().map(|socket| PathBuf::from(&socket.guest)).collect()
}

/// What an address is to a sandbox with this link on this machine.
pub(crate) fn classifier(host: &Host, link: &LinkAddresses) -> Classifier {
    let mut addresses = gateway_addresses(link);
    addresses.extend(&host.addresses);
    Classifier::new(HostNetwork { addresses, on_link: host.on_link.clone(), nat64: Vec::new() })
}

/// Two unlike unicast MAC addresses from the locally administered range, out of the seed.
fn link_addresses(seed: &[u8; 32]) -> [[u8; 6]; 2] {
    let [a, b, c, d, e, ..] = *seed;
    // The last byte keeps the two apart whatever the seed says.
    [[0x02, a, b, c, d, e & 0xfe], [0x02, a, b, c, d, e | 1]]
}

fn resolvers(network: &NetworkConfig, host: &Host) -> Vec<DnsUpstream> {
    match network.dns.nameservers.as_slice() {
        [] => host.resolvers.iter().copied().map(DnsUpstream::from).collect(),
        servers => servers.iter().filter_map(resolvers::to_upstream).collect(),
    }
}

fn gateway_addresses(link: &LinkAddresses) -> Vec<IpAddr> {
    std::iter::once(IpAddr::V4(link.gateway4)).chain(link.v6.iter().map(|v6| IpAddr::V6(v6.gateway))).collect()
}

fn guest_addresses(link: &LinkAddresses) -> Vec<IpAddr> {
    std::iter::once(IpAddr::V4(link.guest4)).chain(link.v6.iter().map(|v6| IpAddr::V6(v6.guest))).collect()
}

fn hosts_lines(link: &LinkAddresses) -> Vec<(IpAddr, Vec<String>)> {
    let own = guest_addresses(link).into_iter().map(|address| (address, vec![NAME.to_owned()]));
    let aliases = HOST_ALIASES.map(str::to_owned).to_vec();
    own.chain(gateway_addresses(link).into_iter().map(|address| (address, aliases.clone()))).collect()
}

/// The policy as people write it: rules in order, then the defaults. Those of policies around the run's own come first, with
/// whose they are before each.
#[must_use]
pub fn policy_text(network: &NetworkConfig) -> Vec<String> {
    if !network.enabled {
        return vec!["none".to_owned()];
    }
    let ceilings = network.ceilings.iter().flat_map(|ceiling| {
        let whose = ceiling.layer.word();
        layer_text(&ceiling.policy).into_iter().map(move |line| format!("{whose}: {line}"))
    });
    ceilings.chain(layer_text(&network.policy)).collect()
}

fn layer_text(policy: &PolicyConfig) -> Vec<String> {
    let PolicyConfig { default_egress, default_ingress, rules, strict } = policy;
    let word = |action: &Action| match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    let defaults = [("egress", default_egress), ("ingress", default_ingress)];
    let defaults = defaults.map(|(direction, action)| format!("default {direction} {}", word(action)));
    // Strict is what nobody has to say.
    let lax = (!strict).then(|| "strict false".to_owned());
    rules.iter().map(format_rule).chain(defaults).chain(lax).collect()
}

/// What whoever has lost lines is told: how many.
fn lost(started: Instant, count: u64) -> Event {
    let bound = u64::try_from(MAX_LINES).unwrap_or(u64::MAX);
    own_event(started, EventBody::LimitReached { limit: LimitKind::Events, bound, count })
}

/// An event of the supervisor, whose clock started when the program did.
fn own_event(started: Instant, body: EventBody) -> Event {
    // A clock before 1970 is shown as 1970: events keep their order by `mono_ns`.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Event {
        v: 1,
        time: rfc3339(since_1970),
        mono_ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        source: EventSource::Supervisor,
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_knows_the_machine() {
        let host = Host {
            addresses: vec!["192.168.1.20".parse().unwrap()],
            on_link: vec!["192.168.1.0/24".parse().unwrap()],
            ipv6_route: true,
            resolvers: vec!["127.0.0.53:53".parse().unwrap()],
            anchors: Vec::new(),
        };
        let sandbox = Sandbox::plan(options(), &host, [7; 32], 0).unwrap();
        let network = sandbox.spec.network.unwrap();
        let known = network.gateway.policy.classifier().host();
        let gateway4: IpAddr = "172.16.0.1".parse().unwrap();
        let gateway6: IpAddr = "fd42:6d73:62::1".parse().unwrap();
        assert_eq!(known.addresses, [gateway4, gateway6, host.addresses[0]]);
        assert_eq!(known.on_link, host.on_link);
        assert_eq!(network.gateway.resolvers, [host.resolvers[0].into()]);
        assert_eq!(sandbox.spec.resolv, [gateway4, gateway6]);
        let aliases: Vec<_> =
            sandbox.spec.hosts.iter().filter(|(_, names)| names[0] == HOST_ALIASES[0]).map(|(a, _)| *a).collect();
        assert_eq!(aliases, [gateway4, gateway6]);
        assert_ne!(network.link.guest_mac, network.link.gateway_mac);
        assert_eq!(network.link.guest_mac[0] & 3, 2);
    }

    #[test]
    fn ipv6_follows_the_machine_unless_asked() {
        let mut options = options();
        let link = |options: &RunOptions, host: &Host| {
            Sandbox::plan(options.clone(), host, [0; 32], 0).unwrap().spec.network.unwrap().link.link.v6
        };
        assert!(link(&options, &Host::default()).is_none());
        options.network.interface.ipv6 = Some(true);
        assert!(link(&options, &Host::default()).is_some());
        options.network.interface.ipv6 = Some(false);
        assert!(link(&options, &Host { ipv6_route: true, ..Host::default() }).is_none());
    }

    #[test]
    fn no_network_means_no_interface() {
        let mut options = options();
        options.network.enabled = false;
        let sandbox = Sandbox::plan(options, &Host::default(), [0; 32], 0).unwrap();
        assert!(sandbox.spec.network.is_none() && sandbox.spec.resolv.is_empty());
        assert_eq!(sandbox.policy, ["none"]);
        assert!(sandbox.summary.notices().is_empty());
    }

    #[test]
    fn a_machine_without_resolvers_is_a_remark_and_not_an_error() {
        let sandbox = Sandbox::plan(options(), &Host::default(), [0; 32], 0).unwrap();
        assert!(sandbox.summary.notices()[0].contains("--dns-nameserver"));
        let mut options = options();
        options.network.dns.nameservers = vec!["9.9.9.9:53".parse::<std::net::SocketAddr>().unwrap().into()];
        let sandbox = Sandbox::plan(options, &Host::default(), [0; 32], 0).unwrap();
        assert!(sandbox.summary.notices().is_empty());
    }

    #[test]
    fn root_inside_comes_with_a_capability_only() {
        let uid = |options| Sandbox::plan(options, &Host::default(), [0; 32], 0).unwrap().spec.inside_uid;
        assert_eq!(uid(options()), 1000);
        assert_eq!(uid(RunOptions { capabilities: vec!["NET_RAW".parse().unwrap()], ..options() }), 0);
        assert_eq!(uid(RunOptions { uid: Some(7), ..options() }), 7);
    }

    #[test]
    fn exit_statuses() {
        let died = GatewayFate::Died(GatewayEnd::Signaled(9));
        for (status, gateway, denied, expected) in [
            (Status::Exited(0), GatewayFate::Fine, false, 0),
            (Status::Exited(3), GatewayFate::Fine, false, 3),
            (Status::Exited(3), GatewayFate::Fine, true, 124),
            (Status::Signaled(15), GatewayFate::Fine, false, 143),
            (Status::Signaled(9), GatewayFate::Fine, false, 137),
            (Status::TimedOut, GatewayFate::Fine, false, 124),
            (Status::Exited(0), died, false, 125),
            (Status::Exited(3), died, false, 3),
            (Status::Lost, GatewayFate::Fine, true, 125),
        ] {
            let outcome = Outcome { status, gateway, disk_full: None, notices: vec![] };
            assert_eq!(exit_status(&outcome, denied), expected, "{outcome:?}");
        }
    }

    #[test]
    fn a_failure_is_ours_and_not_the_programs() {
        for (status, exit_status, is_failure) in [
            (Status::GuestLost, 125, true),
            (Status::Lost, 125, true),
            (Status::Exited(0), 125, true),
            (Status::Exited(125), 125, false),
            (Status::Exited(3), 3, false),
            (Status::TimedOut, 124, false),
        ] {
            let sandbox = Sandbox::plan(options(), &Host::default(), [0; 32], 0).unwrap();
            let finished =
                Finished { exit_status, status, lost_network: false, summary: sandbox.summary, notices: vec![] };
            assert_eq!(finished.is_failure(), is_failure, "{status:?}");
        }
    }

    fn options() -> RunOptions {
        RunOptions::new(vec!["true".into()], cofferdam_policy::file::default_network())
    }
}
