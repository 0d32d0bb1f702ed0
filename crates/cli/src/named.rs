//! `cofferdam create`, `start`, `exec`, `stop`, `rm`, `ls`, `inspect` and `logs`: sandboxes that stay.

mod archive;
mod cp;
mod logs;
mod mounts;
mod ports;
mod report;
mod show;

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;
use cofferdam_control::change::{ChangeError, Changeable, Proposal};
use cofferdam_control::named::{
    self, BackendEntry, Entry, ExecOptions, LimitsEntry, Locked, Mode, MountEntry, NamedError, NamedSpec, Registry,
    RunSpec, SandboxName, SpecError,
};
use cofferdam_control::store::RunKind;
use cofferdam_control::{
    Backend, Progress, ResolveError, RunError, RunOptions, Terminal, VmOptions, check_project, environment,
};
use cofferdam_policy::file::{self, FlagItem};

use crate::args::{
    BackendWord, CreateArgs, ExecArgs, LimitArgs, ModeWord, NetworkArgs, NetworkLimitArgs, PlaceArgs, PolicySetArgs,
    PolicyShowArgs, RmArgs, RunArgs, SharingWord, StartArgs, StopArgs,
};
use crate::output::{self, Screen};
use crate::refusal::{EXIT_FAILED, Refusal, each};
use crate::run;
use crate::state::{self, registry};
use crate::vm;

pub(crate) use cp::cp;
pub(crate) use logs::logs;
pub(crate) use mounts::mount;
pub(crate) use ports::ports;
pub(crate) use show::{inspect, ls};

use report::Report;

pub(super) fn open(name: &str) -> Result<Entry, Refusal> {
    let name: SandboxName = name.parse().map_err(|error| Refusal::from(&error))?;
    registry()?.open(&name).map_err(|error| Refusal::from(&error))
}

pub(crate) fn create(args: CreateArgs, matches: &ArgMatches) -> u8 {
    let json = args.json;
    let name = args.name.clone();
    match create_one(args, matches) {
        Ok((state, notices)) if json => {
            output::print_json(&serde_json::json!({ "name": name, "state": state, "notices": notices }))
        }
        Ok((_, notices)) => say_all(&notices),
        Err(refusal) => refusal.tell(json),
    }
}

/// Says what a person should be told.
fn say_all(notices: &[String]) -> u8 {
    notices.iter().for_each(|notice| output::say(notice));
    0
}

fn create_one(args: CreateArgs, matches: &ArgMatches) -> Result<(&'static str, Vec<String>), Refusal> {
    let name: SandboxName = args.name.parse().map_err(|error| Refusal::from(&error))?;
    let registry = registry()?;
    let no_start = args.no_start;
    let spec = match &args.spec {
        Some(path) => read_spec(path, NamedSpec::parse)?,
        None => {
            let spec = spec_of(args.command, (args.network, args.network_limits), args.limits, args.place, matches)?;
            NamedSpec { no_record: args.no_record, ..spec }
        }
    };
    make(&registry, &name, &spec, no_start)
}

/// `cofferdam run --detach`: makes a sandbox with a main command, and prints its name.
pub(crate) fn detach(args: RunArgs, matches: &ArgMatches) -> u8 {
    let RunArgs { network, limits, network_limits, place, command, name, evidence, .. } = args;
    let made = || -> Result<String, Refusal> {
        let name = name.unwrap_or_else(|| format!("run-{}", std::process::id()));
        let parsed: SandboxName = name.parse().map_err(|error| Refusal::from(&error))?;
        let spec = spec_of(command, (network, network_limits), limits, place, matches)?;
        let spec = NamedSpec { no_record: evidence.no_record, ..spec };
        make(&registry()?, &parsed, &spec, false).map(|(_, notices)| say_all(&notices)).map(|_| name)
    };
    match made() {
        Ok(name) => output::print(&format!("{name}\n")),
        Err(refusal) => refusal.tell(false),
    }
}

/// Makes one and starts it: its state, and what there is to say.
fn make(
    registry: &Registry,
    name: &SandboxName,
    spec: &NamedSpec,
    no_start: bool,
) -> Result<(&'static str, Vec<String>), Refusal> {
    let options = spec.run_options(Vec::new(), Vec::new()).map_err(|error| Refusal::setup(output::chain(&error)))?;
    // They may be shown again without anybody looking where they lead by then.
    let spec = &spec.without_links(&run::suspect_roots(&options)).map_err(refused_link)?;
    if let Some(project) = &options.project {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        check_project(project, home.as_deref()).map_err(|error| Refusal::setup(output::chain(&error)))?;
    }
    state::refuse_shown(&options)?;
    let locked = registry.create(name, spec).map_err(|error| Refusal::from(&error))?;
    if no_start {
        return Ok(("stopped", Vec::new()));
    }
    match start_kept(locked, spec) {
        Ok(notices) => Ok(("running", notices)),
        Err(refusal) => {
            // What never was there leaves nothing.
            if let Ok(locked) = registry.open(name).and_then(Entry::lock) {
                let _swept_later = locked.remove();
            }
            Err(refusal)
        }
    }
}

fn read_spec<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, SpecError>) -> Result<T, Refusal> {
    let unreadable = |error| Refusal::setup(format!("cannot read the specification {}: {error}", path.display()));
    let json = match path == Path::new("-") {
        true => {
            let mut json = Vec::new();
            io::stdin().lock().read_to_end(&mut json).map_err(unreadable)?;
            json
        }
        false => fs::read(path).map_err(unreadable)?,
    };
    parse(&json).map_err(|error| Refusal::setup(format!("the specification cannot be used: {}", output::chain(&error))))
}

/// What the flags ask for.
fn spec_of(
    command: Vec<OsString>,
    (network, network_limits): (NetworkArgs, NetworkLimitArgs),
    limits: LimitArgs,
    place: PlaceArgs,
    matches: &ArgMatches,
) -> Result<NamedSpec, Refusal> {
    if limits.timeout.is_some() {
        return Err(Refusal::setup("a sandbox that stays has no --timeout; exec has one for a run".to_owned()));
    }
    let backend = match place.backend {
        BackendWord::Namespace => BackendEntry::Namespace,
        BackendWord::Vm => BackendEntry::Vm,
    };
    if place.disk.is_some() || place.arch.is_some() {
        let text = "a sandbox that stays has no --disk and --arch; a run that ends has them, with --backend vm";
        return Err(Refusal::setup(text.to_owned()));
    }
    if place.tty {
        return Err(Refusal::setup("a sandbox that stays has no terminal of its own; exec --tty has one".to_owned()));
    }
    let network_flags = run::flag_items(&network, &network_limits, matches)?;
    let config = run::network_config(&network_flags, &network)?;
    let env = named_variables(&place)?;
    let capabilities = place.cap_add.clone();
    let mount_via = place.mount_via.map(SharingWord::entry);
    let mut options = RunOptions::new(Vec::new(), config);
    run::fill_place(&mut options, place)?;
    run::refuse_links(&options)?;
    let command = command.into_iter().map(|word| text("the main command", word)).collect::<Result<_, _>>()?;
    for path in options.project.iter().chain(options.mounts.iter().flat_map(|mount| [&mount.source, &mount.target])) {
        text("a path", path.clone().into_os_string())?;
    }
    Ok(NamedSpec {
        v: 1,
        command,
        env,
        project: options.project,
        workdir: options.workdir,
        mounts: options
            .mounts
            .into_iter()
            .map(|mount| MountEntry { source: mount.source, target: mount.target, read_only: mount.read_only })
            .collect(),
        rootfs: options.rootfs,
        user: options.uid,
        capabilities,
        allow_userns: options.allow_userns,
        limits: LimitsEntry { memory: limits.memory, cpus: limits.cpus, pids: limits.pids },
        network: None,
        network_flags,
        policy_changes: 0,
        ipv6: if network.ipv6 { Some(true) } else { None },
        no_record: false,
        backend,
        mount_via,
    })
}

fn text(what: &str, word: OsString) -> Result<String, Refusal> {
    word.into_string().map_err(|word| {
        Refusal::setup(format!("{what} of a sandbox that stays has to be UTF-8 text, which {word:?} is not"))
    })
}

/// The variables that were named, which every run gets.
fn named_variables(place: &PlaceArgs) -> Result<std::collections::BTreeMap<String, String>, Refusal> {
    let mut variables = std::collections::BTreeMap::new();
    for name in &place.env_pass {
        if let Some(value) = std::env::var_os(name) {
            variables.insert(text("a variable", name.clone())?, text("a variable", value)?);
        }
    }
    for given in &place.env {
        let (name, value) = environment::parse_assignment(given)
            .map_err(|error| Refusal::setup(format!("the environment cannot be made: {error}")))?;
        variables.insert(text("a variable", name)?, text("a variable", value)?);
    }
    Ok(variables)
}

/// The environment of a run: the usual, the sandbox's, and what this one names.
fn environment_of(spec: &NamedSpec, own: &[(OsString, OsString)]) -> Result<Vec<(OsString, OsString)>, Refusal> {
    let sandboxes = spec.env.iter().map(|(name, value)| (name.into(), value.into()));
    let all: Vec<(OsString, OsString)> = sandboxes.chain(own.iter().cloned()).collect();
    environment::build(|name| std::env::var_os(name), &[], &all)
        .map_err(|error| Refusal::setup(format!("the environment cannot be made: {error}")))
}

fn refused_link(error: ResolveError) -> Refusal {
    Refusal::setup(format!("what the sandbox is to be shown cannot be used: {error}"))
}

/// Starts one; what there is to say.
fn start_kept(locked: Locked, spec: &NamedSpec) -> Result<Vec<String>, Refusal> {
    let env = environment_of(spec, &[])?;
    let backend = match spec.backend {
        BackendEntry::Namespace if spec.mount_via.is_some() => return Err(run::no_sharing()),
        BackendEntry::Namespace => Backend::Namespace,
        BackendEntry::Vm => {
            let options = vm::options()?;
            let sharing = spec.mount_via.map(|entry| SharingWord::from(entry).sharing()).transpose()?;
            // What the keeper has to say comes when there is nothing to wait for any more.
            if options.progress == Progress::Tell {
                output::say("the guest is starting…");
            }
            Backend::Vm(VmOptions { progress: Progress::Silent, sharing, ..options })
        }
    };
    match named::start(locked, spec, env, backend) {
        Ok(kept) => Ok(kept.notices),
        Err((text, status)) => Err(Refusal::start(text, status)),
    }
}

pub(crate) fn start(args: &StartArgs) -> u8 {
    let started = open(&args.name).and_then(|entry| {
        match entry.lock() {
            Ok(locked) => {
                // Read under the lock: nobody changes it any more.
                let spec = locked.entry().spec().map_err(|error| Refusal::from(&error))?;
                let options =
                    spec.run_options(Vec::new(), Vec::new()).map_err(|error| Refusal::setup(output::chain(&error)))?;
                state::refuse_shown(&options)?;
                // They were without links when they were written down: since then any sandbox may have put one there.
                spec.without_links(&[PathBuf::from("/")]).map_err(refused_link)?;
                start_kept(locked, &spec)
            }
            Err(NamedError::Running(name)) => Ok(vec![format!("the sandbox {name} is running already")]),
            Err(error) => Err(Refusal::from(&error)),
        }
    });
    match started {
        Ok(notices) if args.json => {
            output::print_json(&serde_json::json!({ "name": args.name, "state": "running", "notices": notices }))
        }
        Ok(notices) => say_all(&notices),
        Err(refusal) => refusal.tell(args.json),
    }
}

pub(crate) fn exec(args: ExecArgs, matches: &ArgMatches) -> u8 {
    let json = args.json;
    let mut report = match args.report_fd.map(Report::open).transpose() {
        Ok(report) => report,
        Err(refusal) => return refusal.tell(false),
    };
    match (exec_one(args, matches, report.as_mut()), report) {
        (Ok(status), _) => status,
        (Err(refusal), None) => refusal.tell(json),
        (Err(refusal), Some(mut report)) => {
            report.failed(&refusal);
            refusal.status
        }
    }
}

/// What was asked for, by flags or as a specification.
fn asked(args: &mut ExecArgs, matches: &ArgMatches) -> Result<ExecOptions, Refusal> {
    if let Some(path) = &args.spec {
        let spec = read_spec(path, RunSpec::parse)?;
        let network = spec.network().map_err(|error| Refusal::setup(output::chain(&error)))?;
        let timeout = spec.timeout();
        let RunSpec { v: _, command, env, workdir, timeout_ms: _, network: _, mode, fail_on_deny } = spec;
        let env = env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let command = command.into_iter().map(OsString::from).collect();
        return Ok(ExecOptions { env, workdir, timeout, network, mode, fail_on_deny, ..ExecOptions::new(command) });
    }
    let items = run::flag_items(&args.network, &run::no_limits(), matches)?;
    let has_own = !items.is_empty() || args.network.ipv6;
    let network = if has_own { Some(run::network_config(&items, &args.network)?) } else { None };
    // A variable of the caller's that was named for this run comes before those that are set.
    let passed = args.env_pass.iter().filter_map(|name| Some((name.clone(), std::env::var_os(name)?)));
    let mut env: Vec<(OsString, OsString)> = passed.collect();
    for given in &args.env {
        let refuse = |error| Refusal::setup(format!("the environment cannot be made: {error}"));
        env.push(environment::parse_assignment(given).map_err(refuse)?);
    }
    Ok(ExecOptions {
        env,
        workdir: args.workdir.take(),
        timeout: args.timeout,
        network,
        mode: match args.mode {
            ModeWord::Check => Mode::Check,
            ModeWord::Clip => Mode::Clip,
        },
        allow_changes_default: args.network.leaves_default(),
        fail_on_deny: args.evidence.fail_on_deny,
        ..ExecOptions::new(std::mem::take(&mut args.command))
    })
}

fn exec_one(mut args: ExecArgs, matches: &ArgMatches, mut to_caller: Option<&mut Report>) -> Result<u8, Refusal> {
    let asked = asked(&mut args, matches)?;
    let ExecArgs { name, tty, evidence, .. } = args;
    let entry = open(&name)?;
    let session = named::enter(&entry).map_err(|error| Refusal::from(&error))?;
    let spec = session.spec();
    let options = spec.run_options(Vec::new(), Vec::new()).map_err(|error| Refusal::setup(output::chain(&error)))?;
    let roots = evidence.roots(&options);
    let log = run::exported(run::open_log(evidence.events.as_deref(), &roots)?, evidence.otlp.as_deref())?;
    let report = evidence.json_summary.as_deref().map(|path| run::open_report(path, &roots)).transpose()?;
    let capture = match &asked.network {
        None if evidence.pcap.is_some() => return Err(Refusal::from(&RunError::CapturesSession)),
        None => None,
        Some(network) => run::open_capture(evidence.pcap.as_deref(), network, &roots)?,
    };
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal = if tty || is_terminal { Terminal::Pty } else { Terminal::Inherit };
    let start = options.workdir.or(options.project).unwrap_or_else(|| environment::HOME.into());
    let options = ExecOptions {
        env: environment_of(spec, &asked.env)?,
        // A path inside: relative to where the program would start otherwise.
        workdir: asked.workdir.as_ref().map(|dir| start.join(dir)),
        terminal,
        capture,
        ..asked
    };
    let screen = match terminal {
        Terminal::Inherit => Screen::Ours,
        Terminal::Pty => Screen::Programs,
    };
    let mut told = Vec::new();
    let mut tell = |text: &str| {
        told.push(text.to_owned());
        if !evidence.quiet {
            output::say_now(text, screen);
        }
    };
    let mut log = match evidence.no_record || spec.no_record {
        true => log,
        false => state::recorded(log, RunKind::Exec, Some(&name), &mut tell),
    };
    let mut started = || to_caller.iter_mut().for_each(|report| report.started());
    let finished = session.exec(options, &mut log, &mut tell, &mut started).map_err(|error| Refusal::from(&error))?;
    // A report has it; the streams are the program's alone then.
    if to_caller.is_none() {
        run::say_failure(&finished, &evidence);
    }
    let status = run::conclude(&finished, report, &evidence);
    to_caller.iter_mut().for_each(|report| report.ended(&finished, &told));
    Ok(status)
}

pub(crate) fn stop(args: &StopArgs) -> u8 {
    each("name", &args.names, args.json, |name| match named::stop(open(name)?, args.time) {
        Err(NamedError::Stopped(_)) | Ok(()) => Ok(()),
        Err(error) => Err(Refusal::from(&error)),
    })
}

pub(crate) fn rm(args: &RmArgs) -> u8 {
    each("name", &args.names, args.json, |name| {
        if args.force {
            match named::stop(open(name)?, Duration::ZERO) {
                Err(NamedError::Stopped(_)) | Ok(()) => {}
                Err(error) => return Err(Refusal::from(&error)),
            }
        }
        let locked = open(name)?.lock().map_err(|error| Refusal::from(&error))?;
        locked.remove().map_err(|error| Refusal::from(&error))
    })
}

pub(crate) fn set_policy(mut args: PolicySetArgs, matches: &ArgMatches) -> u8 {
    args.network.net_conf = args.network.net_conf.or(args.file.take());
    let set = || -> Result<(), Refusal> {
        let items = run::flag_items(&args.network, &args.limits, matches)?;
        let network = run::network_config(&items, &args.network)?;
        if !network.ports.is_empty() {
            return Err(Refusal::setup(
                "ports are published with `cofferdam ports add`, and stay when a policy is set".to_owned(),
            ));
        }
        if !network.host_sockets.is_empty() {
            return Err(Refusal::setup(
                "host sockets are named when a sandbox is made, and stay when a policy is set".to_owned(),
            ));
        }
        let ipv6 = args.network.ipv6.then_some(true);
        let entry = match open(&args.name) {
            Ok(entry) => entry,
            Err(refusal) => return set_policy_of_run(&args.name, &items, ipv6).unwrap_or(Err(refusal)),
        };
        let unusable = |error: SpecError| match error {
            SpecError::Network(errors) => {
                let text =
                    "the policy does not go together with what the sandbox was made with, so nothing was changed";
                Refusal { errors: Some(errors), ..Refusal::setup(text.to_owned()) }
            }
            other @ (SpecError::Json(_)
            | SpecError::Command
            | SpecError::Version(_)
            | SpecError::Capability(_)
            | SpecError::Relative(_)
            | SpecError::Environment(_)) => Refusal::setup(output::chain(&other)),
        };
        let changed = |entry: &Entry| {
            let before = entry.spec().map_err(|error| Refusal::from(&error))?;
            before.with_policy(&items, ipv6).map_err(unusable)
        };
        match named::set_policy(&entry, &changed(&entry)?) {
            Err(NamedError::Stopped(_)) => {
                let locked = entry.lock().map_err(|error| Refusal::from(&error))?;
                // Read again, under the lock: somebody may have changed it meanwhile.
                let spec = changed(locked.entry())?;
                locked.replace_spec(&spec).map_err(|error| Refusal::from(&error))
            }
            other => other.map_err(|error| Refusal::from(&error)),
        }
    };
    match set() {
        Ok(()) if args.json => output::print_json(&serde_json::json!({ "name": args.name })),
        Ok(()) => 0,
        Err(refusal) => refusal.with_status(EXIT_FAILED).tell(args.json),
    }
}

/// The same for a run that is no sandbox. `None`: there is no such run.
fn set_policy_of_run(name: &str, items: &[FlagItem], ipv6: Option<bool>) -> Option<Result<(), Refusal>> {
    let run = state::run_store().ok()?.find(name).ok()?;
    let change = || -> Result<(), Refusal> {
        let refused = |error: ChangeError| Refusal::from(&error);
        let changeable = Changeable::open(&state::directory()?, &run).map_err(refused)?;
        changeable.with_policy(items, ipv6).and_then(Proposal::apply).map_err(refused)
    };
    Some(change())
}

/// `cofferdam policy show`.
pub(crate) fn show_policy(args: &PolicyShowArgs) -> u8 {
    let show = || -> Result<u8, Refusal> {
        let run = state::run_store()?.find(&args.run).map_err(|error| Refusal::from(&error))?;
        let changeable = Changeable::open(&state::directory()?, &run).map_err(|error| Refusal::from(&error))?;
        let network = changeable.network();
        if args.json {
            let json: serde_json::Value = serde_json::from_str(&file::to_json(network)).unwrap_or_default();
            return Ok(output::print_json(&serde_json::json!({ "network": json })));
        }
        let text = cofferdam_control::policy_text(network).join("\n");
        Ok(output::print(&format!("{text}\n")))
    };
    show().unwrap_or_else(|refusal| refusal.with_status(EXIT_FAILED).tell(args.json))
}

impl NetworkArgs {
    /// Whether nothing has moved the default away from the public internet, as one `--allow` would.
    pub(crate) fn leaves_default(&self) -> bool {
        let egress = self.net_default.or(self.net_default_egress);
        let nothing_named = self.net.is_empty() && self.allow.is_empty() && self.net_conf.is_none();
        nothing_named && self.network_mode.is_none() && egress.is_none()
    }
}
