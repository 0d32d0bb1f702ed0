//! `cofferdam run`: from flags to a sandbox and its exit status.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use cofferdam_control::named::Registry;
use cofferdam_control::store::RunKind;
use cofferdam_control::summary::{Detail, Summary};
use cofferdam_control::{
    Backend, Capability, Engine, EventLog, Finished, Mount, ResolveError, ResourceLimits, RunError, RunOptions,
    Sandbox, Terminal, VmOptions, check_project, connect_report, create_report, environment, resolve, writable_roots,
};
use cofferdam_model::{Action, DenyWith, NetworkConfig, NetworkMode};
use cofferdam_policy::file::{self, FlagItem, RateFlag};

use crate::args::{
    ActionWord, BackendWord, DenyWord, EvidenceArgs, LimitArgs, NetworkArgs, NetworkLimitArgs, PlaceArgs, PostureWord,
    RunArgs, SharingWord,
};
use crate::output::{self, Screen};
use crate::policy;
use crate::refusal::Refusal;
use crate::slirp;
use crate::state;
use crate::units::Budget;

/// Runs a program and returns the exit status. `matches` knows the order of the flags.
pub(crate) fn run(args: RunArgs, matches: &ArgMatches) -> u8 {
    let PlaceArgs { backend, mount_via, .. } = args.place;
    let chosen = slirp::Chosen { engine: args.engine, mode: args.mode, backend, mount_via };
    if args.detach {
        if let Err(refusal) = chosen.no_other() {
            return refusal.tell(false);
        }
        return crate::named::detach(args, matches);
    }
    let RunArgs { network, limits, network_limits, place, evidence, command, .. } = args;
    let configured = flag_items(&network, &network_limits, matches).and_then(|items| {
        let engine = chosen.engine(&items)?;
        if engine != Engine::Gateway && (evidence.fail_on_deny || network.ipv6) {
            let text = "--fail-on-deny and --ipv6 cannot be used with --engine slirp: nobody denies anything there, and \
                        what the guest reaches is QEMU's to say";
            return Err(Refusal::setup(text.to_owned()));
        }
        let items = if engine == Engine::Gateway { items } else { vec![FlagItem::NoNet] };
        Ok((network_config(&items, &network)?, engine))
    });
    let started = configured.and_then(|(config, engine)| {
        let mut options = options(command, config, place, limits)?;
        if let Backend::Vm(vm) = &mut options.backend {
            vm.engine = engine;
        }
        options.allow_changes_default = network.leaves_default();
        options.fail_on_deny = evidence.fail_on_deny;
        // What the run leaves behind is opened before it starts: a run whose evidence has no place does not happen.
        let roots = evidence.roots(&options);
        let log = exported(open_log(evidence.events.as_deref(), &roots)?, evidence.otlp.as_deref())?;
        let report = evidence.json_summary.as_deref().map(|path| open_report(path, &roots)).transpose()?;
        let capture = open_capture(evidence.pcap.as_deref(), &options.network, &roots)?;
        let screen = match options.terminal {
            Terminal::Inherit => Screen::Ours,
            Terminal::Pty => Screen::Programs,
        };
        let mut tell = |text: &str| {
            if !evidence.quiet {
                output::say_now(text, screen);
            }
        };
        let mut log = if evidence.no_record { log } else { state::recorded(log, RunKind::Run, None, &mut tell) };
        let finished = Sandbox::prepare(options)
            .and_then(|sandbox| sandbox.capturing(capture))
            .and_then(|sandbox| sandbox.run(&mut log, &mut tell))
            .map_err(|error| Refusal::from(&error))?;
        Ok((finished, report))
    });
    match started {
        Ok((finished, report)) => {
            say_failure(&finished, &evidence);
            conclude(&finished, report, &evidence)
        }
        Err(refusal) => refusal.tell(false),
    }
}

/// A run of `command` at `place`, with nothing that may not be shown in it.
pub(crate) fn options(
    command: Vec<std::ffi::OsString>,
    network: NetworkConfig,
    place: PlaceArgs,
    limits: LimitArgs,
) -> Result<RunOptions, Refusal> {
    let mut options = RunOptions::new(command, network);
    fill_place(&mut options, place)?;
    state::refuse_shown(&options)?;
    refuse_links(&options)?;
    let LimitArgs { memory, cpus, pids, timeout } = limits;
    options.limits = ResourceLimits { memory, cpus, pids, disk: options.limits.disk, timeout };
    Ok(options)
}

/// Refuses sockets of the host that are named by a link which a program may have left.
pub(crate) fn refuse_links(options: &RunOptions) -> Result<(), Refusal> {
    if options.network.host_sockets.is_empty() {
        return Ok(());
    }
    let roots = suspect_roots(options);
    for socket in &options.network.host_sockets {
        if let Err(error @ ResolveError::Link { .. }) = resolve(Path::new(&socket.host), &roots) {
            return Err(Refusal::setup(format!("--host-socket cannot be used: {error}")));
        }
    }
    Ok(())
}

/// No limit, for verbs without such flags.
pub(crate) fn no_limits() -> NetworkLimitArgs {
    NetworkLimitArgs::default()
}

/// Says why the exit status is that of a failure of ours, which --quiet does not hide: without it, everything is said anyway.
pub(crate) fn say_failure(finished: &Finished, evidence: &EvidenceArgs) {
    if evidence.quiet && finished.is_failure() {
        finished.notices.iter().for_each(|notice| output::say(notice));
    }
}

/// Prints and writes what the run has shown.
pub(crate) fn conclude(finished: &Finished, report: Option<(PathBuf, File)>, evidence: &EvidenceArgs) -> u8 {
    if !evidence.quiet {
        for notice in
            finished.notices.iter().map(String::as_str).chain(finished.summary.notices().iter().map(String::as_str))
        {
            output::say(notice);
        }
        let detail = if evidence.verbose { Detail::Always } else { Detail::Denials };
        output::to_stderr(&finished.summary.render(detail));
    }
    write_summary(finished, report);
    finished.exit_status
}

/// Writes the summary as JSON, where that was asked for.
pub(crate) fn write_summary(finished: &Finished, report: Option<(PathBuf, File)>) {
    let Some((path, mut file)) = report else { return };
    let text = json_summary(&finished.summary, finished.exit_status);
    if let Err(error) = file.write_all(text.as_bytes()) {
        output::say(&format!("cannot write the summary to {}: {error}", path.display()));
    }
}

fn json_summary(summary: &Summary, exit_status: u8) -> String {
    let mut value = summary.to_json();
    if let Some(object) = value.as_object_mut() {
        object.insert("exit_status".to_owned(), exit_status.into());
    }
    format!("{value:#}\n")
}

/// The network that the flags ask for, or everything that is wrong with them.
pub(crate) fn network_config(items: &[FlagItem], args: &NetworkArgs) -> Result<NetworkConfig, Refusal> {
    let mut network = file::from_flags(items).map_err(Refusal::network)?;
    if args.ipv6 {
        network.interface.ipv6 = Some(true);
    }
    Ok(network)
}

/// The flags as the policy crate reads them, in the order of the command line. Reads what `--net-conf` names, which may be
/// standard input: once.
pub(crate) fn flag_items(
    args: &NetworkArgs,
    limits: &NetworkLimitArgs,
    matches: &ArgMatches,
) -> Result<Vec<FlagItem>, Refusal> {
    let mut ordered: Vec<(usize, FlagItem)> = Vec::new();
    let mut add = |id: &str, values: &[String], item: fn(String) -> FlagItem| {
        let places = matches.indices_of(id).into_iter().flatten();
        ordered.extend(places.zip(values.iter().map(|value| item(value.clone()))));
    };
    add("net", &args.net, FlagItem::Net);
    add("allow", &args.allow, FlagItem::Allow);
    add("deny", &args.deny, FlagItem::Deny);
    add("net_rule", &args.net_rule, FlagItem::NetRule);
    ordered.sort_by_key(|(place, _)| *place);

    let mut items = Vec::new();
    if let Some(path) = &args.net_conf {
        let (name, text) = policy::read_network(path)
            .map_err(|error| Refusal::setup(format!("cannot read --net-conf {}: {error}", path.display())))?;
        items.push(FlagItem::Conf { name, text });
    }
    items.extend(args.no_net.then_some(FlagItem::NoNet));
    items.extend(args.network_mode.map(|word| FlagItem::Mode(word.mode())));
    items.extend(ordered.into_iter().map(|(_, item)| item));
    let both = args.net_default.map(ActionWord::action);
    items.extend(args.net_default_egress.map(ActionWord::action).or(both).map(FlagItem::DefaultEgress));
    items.extend(args.net_default_ingress.map(ActionWord::action).or(both).map(FlagItem::DefaultIngress));
    items.extend(args.deny_with.map(|word| FlagItem::DenyWith(word.deny_with())));
    items.extend(args.dns_nameserver.iter().cloned().map(FlagItem::Nameserver));
    items.extend(args.dns_query_timeout_ms.map(FlagItem::QueryTimeoutMs));
    items.extend(args.no_dns_rebind_protection.then_some(FlagItem::NoRebindProtection));
    items.extend(args.net_strict.map(FlagItem::Strict));
    items.extend(limits.max_connections.map(FlagItem::MaxConnections));
    items.extend(limits.max_inbound_connections.map(FlagItem::MaxInboundConnections));
    items.extend(limits.max_udp_connections.map(FlagItem::MaxUdpConnections));
    items.extend(args.publish.iter().cloned().map(FlagItem::Publish));
    items.extend(args.host_socket.iter().map(|text| FlagItem::HostSocket(host_socket(text))));
    for (limit, rate, burst) in [
        (RateFlag::EgressBandwidth, limits.net_egress_bandwidth, limits.net_egress_bandwidth_burst),
        (RateFlag::EgressOps, limits.net_egress_ops, limits.net_egress_ops_burst),
        (RateFlag::IngressBandwidth, limits.net_ingress_bandwidth, limits.net_ingress_bandwidth_burst),
        (RateFlag::IngressOps, limits.net_ingress_ops, limits.net_ingress_ops_burst),
    ] {
        items.extend(rate.map(|rate| FlagItem::Rate { limit, size: rate.size, refill_time: rate.time }));
        items.extend(burst.map(|burst| FlagItem::RateBurst { limit, burst }));
    }
    for Budget { bytes, direction, targets } in &limits.net_budget {
        items.push(FlagItem::Budget { bytes: *bytes, direction: *direction, targets: targets.clone() });
    }
    items.extend(args.mtu.map(FlagItem::Mtu));
    items.extend(args.ipv4_pool.clone().map(FlagItem::Ipv4Pool));
    items.extend(args.ipv6_pool.clone().map(FlagItem::Ipv6Pool));
    items.extend(args.no_ipv6.then_some(FlagItem::NoIpv6));
    Ok(items)
}

/// A host socket as it was written, with both paths whole and straight where they can be. What is wrong with it is for the policy
/// crate to say.
fn host_socket(text: &str) -> String {
    let Some((host, guest)) = text.rfind(":/").and_then(|at| text.split_at_checked(at)) else { return text.to_owned() };
    let host = match std::env::current_dir() {
        Ok(current) if !host.is_empty() && !host.starts_with('@') => current.join(host),
        _ => PathBuf::from(host),
    };
    let straight = |path: &Path| path.components().collect::<PathBuf>().to_string_lossy().into_owned();
    let guest = guest.strip_prefix(':').unwrap_or(guest);
    // What ends in a slash is a directory, and no socket.
    let end = if guest.len() > 1 && guest.ends_with('/') { "/" } else { "" };
    format!("{}:{}{end}", straight(&host), straight(Path::new(guest)))
}

/// Of a sandbox that is no virtual machine.
pub(crate) fn no_sharing() -> Refusal {
    let text = "--mount-via is for --backend vm: a sandbox of namespaces sees the directories themselves";
    Refusal::setup(text.to_owned())
}

pub(crate) fn fill_place(options: &mut RunOptions, place: PlaceArgs) -> Result<(), Refusal> {
    let (sharing, architecture) = (place.mount_via, place.arch);
    options.backend = match place.backend {
        BackendWord::Namespace if sharing.is_some() => return Err(no_sharing()),
        BackendWord::Namespace if architecture.is_some() => {
            let text =
                "--arch is the kind of processor of a virtual machine: use it with --backend vm, or leave it out";
            return Err(Refusal::setup(text.to_owned()));
        }
        BackendWord::Namespace => Backend::Namespace,
        BackendWord::Vm => {
            let sharing = sharing.map(SharingWord::sharing).transpose()?;
            Backend::Vm(VmOptions { sharing, ..crate::vm::options_for(architecture)? })
        }
    };
    let current =
        std::env::current_dir().map_err(|error| Refusal::setup(format!("the current directory is gone: {error}")));
    if !place.no_cwd {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let project = check_project(&current.as_ref().map_err(Refusal::clone)?.clone(), home.as_deref());
        options.project = Some(project.map_err(|error| Refusal::setup(output::chain(&error)))?);
    }
    let absolute = |path: &Path| match &current {
        Ok(current) => Ok(current.join(path)),
        Err(_) if path.is_absolute() => Ok(path.to_owned()),
        Err(refusal) => Err(refusal.clone()),
    };
    for mount in place.mount {
        let source = absolute(&mount.source)?;
        source
            .symlink_metadata()
            .map_err(|error| Refusal::setup(format!("cannot show {} in the sandbox: {error}", source.display())))?;
        options.mounts.push(Mount { source, target: mount.target, read_only: mount.read_only });
    }
    options.limits.disk = place.disk;
    options.rootfs = place.rootfs.as_deref().map(absolute).transpose()?;
    if !options.mounts.is_empty() || options.rootfs.is_some() {
        let roots = suspect_roots(options);
        for mount in &mut options.mounts {
            let resolved = resolve(&mount.source, &roots);
            mount.source = resolved.map_err(|error| Refusal::setup(format!("--mount cannot be used: {error}")))?;
        }
        if let Some(rootfs) = &mut options.rootfs {
            let resolved = resolve(rootfs, &roots);
            *rootfs = resolved.map_err(|error| Refusal::setup(format!("--rootfs cannot be used: {error}")))?;
        }
    }
    // A path inside: relative to where the program would start otherwise.
    let start = options.project.clone().unwrap_or_else(|| environment::HOME.into());
    options.workdir = place.workdir.map(|dir| start.join(dir));
    options.uid = place.user;
    options.allow_userns = place.allow_userns;
    for name in &place.cap_add {
        let capability: Capability = name.parse().map_err(|error| Refusal::setup(format!("--cap-add: {error}")))?;
        options.capabilities.push(capability);
    }
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    options.terminal = if place.tty || terminal { Terminal::Pty } else { Terminal::Inherit };
    options.env = environment(&place.env, &place.env_pass)?;
    Ok(())
}

impl EvidenceArgs {
    /// Where links are not followed on the way to the files that it names.
    pub(crate) fn roots(&self, options: &RunOptions) -> Vec<PathBuf> {
        let names_files = self.events.is_some() || self.json_summary.is_some() || self.pcap.is_some();
        if names_files { suspect_roots(options) } else { Vec::new() }
    }
}

/// Where a program in a sandbox may have left symbolic links: beneath what this run lets it write to, beneath what the sandboxes
/// that stay let theirs write to, and beneath the current directory where that is what an earlier run may have let one write to.
pub(crate) fn suspect_roots(options: &RunOptions) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let current = std::env::current_dir().ok().and_then(|current| check_project(&current, home.as_deref()).ok());
    let mut roots = writable_roots(options.project.as_deref(), &options.mounts);
    roots.extend(current);
    roots.extend(state::registry().iter().flat_map(Registry::writable_roots));
    roots
}

fn environment(
    set: &[std::ffi::OsString],
    passed: &[std::ffi::OsString],
) -> Result<Vec<(std::ffi::OsString, std::ffi::OsString)>, Refusal> {
    let refuse =
        |error: environment::EnvironmentError| Refusal::setup(format!("the environment cannot be made: {error}"));
    let set =
        set.iter().map(|given| environment::parse_assignment(given)).collect::<Result<Vec<_>, _>>().map_err(refuse)?;
    environment::build(|name| std::env::var_os(name), passed, &set).map_err(refuse)
}

pub(crate) fn open_log(path: Option<&Path>, roots: &[PathBuf]) -> Result<EventLog, Refusal> {
    match path {
        None => Ok(EventLog::none()),
        // A descriptor of its own: the writer may be held up, and nobody else should wait for the lock of stdout.
        Some(path) if path == Path::new("-") => match io::stdout().as_fd().try_clone_to_owned() {
            Ok(stdout) => Ok(EventLog::to(Box::new(File::from(stdout)))),
            Err(error) => Err(Refusal::setup(format!("cannot write events to stdout: {error}"))),
        },
        Some(path) => match path.to_str().and_then(|text| text.strip_prefix("unix:")) {
            Some(socket) => match connect_report(Path::new(socket), roots) {
                Ok(stream) => Ok(EventLog::to(Box::new(stream))),
                Err(error) => Err(Refusal::setup(format!("cannot write to the socket {socket}: {error}"))),
            },
            None => Ok(EventLog::to(Box::new(open_report(path, roots)?.1))),
        },
    }
}

/// The same log, and the collector that was asked for.
#[cfg(feature = "otlp")]
pub(crate) fn exported(log: EventLog, endpoint: Option<&str>) -> Result<EventLog, Refusal> {
    use cofferdam_control::otlp::{Endpoint, Exporter};
    let Some(text) = endpoint else { return Ok(log) };
    match text.parse::<Endpoint>() {
        Ok(endpoint) => Ok(log.exported(Exporter::new(endpoint, env!("CARGO_PKG_VERSION")))),
        Err(error) => Err(Refusal::setup(format!("--otlp: {}", output::chain(&error)))),
    }
}

/// The same log.
#[cfg(not(feature = "otlp"))]
pub(crate) fn exported(log: EventLog, endpoint: Option<&str>) -> Result<EventLog, Refusal> {
    match endpoint {
        None => Ok(log),
        Some(_) => {
            let text = "--otlp: this program was built without it; build one that has it with `cargo build --release --features otlp`";
            Err(Refusal::setup(text.to_owned()))
        }
    }
}

/// Where packets go. Standard output is the program's, and a network there has to be.
pub(crate) fn open_capture(
    path: Option<&Path>,
    network: &NetworkConfig,
    roots: &[PathBuf],
) -> Result<Option<(PathBuf, File)>, Refusal> {
    let Some(path) = path else { return Ok(None) };
    if path == Path::new("-") {
        let text = "--pcap -: standard output is the program's; name a file, or a pipe: --pcap /dev/fd/3 3> >(wireshark -k -i -)";
        return Err(Refusal::setup(text.to_owned()));
    }
    if !network.enabled {
        return Err(Refusal::from(&RunError::NothingToCapture));
    }
    open_report(path, roots).map(Some)
}

pub(crate) fn open_report(path: &Path, roots: &[PathBuf]) -> Result<(PathBuf, File), Refusal> {
    match create_report(path, roots) {
        Ok(file) => Ok((path.to_owned(), file)),
        Err(error) => Err(Refusal::setup(format!("cannot write {}: {error}", path.display()))),
    }
}

impl PostureWord {
    fn mode(self) -> NetworkMode {
        match self {
            PostureWord::Blocked => NetworkMode::Blocked,
            PostureWord::Open => NetworkMode::Open,
            PostureWord::Allowlist => NetworkMode::Allowlist,
        }
    }
}

impl ActionWord {
    fn action(self) -> Action {
        match self {
            ActionWord::Allow => Action::Allow,
            ActionWord::Deny => Action::Deny,
        }
    }
}

impl DenyWord {
    fn deny_with(self) -> DenyWith {
        match self {
            DenyWord::Reset => DenyWith::Reset,
            DenyWord::Icmp => DenyWith::Icmp,
            DenyWord::Drop => DenyWith::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::args::{Cli, Verb};

    #[test]
    fn strict_is_on_until_a_flag_turns_it_off() {
        assert!(network(&["run", "true"]).policy.strict);
        assert!(network(&["run", "--net-strict", "true"]).policy.strict);
        assert!(!network(&["run", "--net-strict=false", "true"]).policy.strict);
    }

    #[test]
    fn rebinding_protection_is_on_until_a_flag_turns_it_off() {
        assert!(network(&["run", "true"]).dns.rebind_protection);
        assert!(!network(&["run", "--no-dns-rebind-protection", "true"]).dns.rebind_protection);
        // What follows the program is the program's.
        assert!(network(&["run", "true", "--no-dns-rebind-protection"]).dns.rebind_protection);
    }

    #[test]
    fn a_mode_stands_behind_the_rules_of_the_command_line() {
        for (mode, enabled, egress) in
            [("blocked", false, Action::Deny), ("open", true, Action::Allow), ("allowlist", true, Action::Deny)]
        {
            let network = network(&["run", "--network-mode", mode, "true"]);
            assert_eq!((network.enabled, network.policy.default_egress), (enabled, egress), "{mode}");
        }
        let args = ["run", "--allow", "10.0.0.5", "--network-mode", "allowlist", "--deny", "[fd00::5]", "true"];
        let rules = network(&args).policy.rules;
        assert_eq!(
            rules.iter().map(|rule| rule.action).collect::<Vec<_>>(),
            [Action::Allow, Action::Deny, Action::Allow]
        );
    }

    fn network(args: &[&str]) -> NetworkConfig {
        let matches = Cli::command().try_get_matches_from(["cofferdam"].iter().chain(args)).unwrap();
        let Verb::Run(run) = Cli::from_arg_matches(&matches).unwrap().verb else { panic!("{args:?}") };
        let items = flag_items(&run.network, &run.network_limits, matches.subcommand().unwrap().1).unwrap();
        network_config(&items, &run.network).unwrap()
    }
}
