//! `cofferdam learn`: runs a program with little in its way, and writes down what it needed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam_control::store::RunKind;
use cofferdam_control::summary::{Detail, escaped};
use cofferdam_control::{
    EXIT_DENIED, EXIT_SETUP, EventLog, Finished, Host, RunOptions, Sandbox, Terminal, create_report,
};
use cofferdam_evidence::{Learn, Learned, Learner, Remark, file as written};
use cofferdam_model::{Event, NameserverHost, NameserverOver, NetworkConfig, Rule};
use cofferdam_policy::compare;
use cofferdam_policy::file::{self, FlagItem};

use crate::args::{EvidenceArgs, LearnArgs, LearnGroup};
use crate::output::{self, Screen};
use crate::refusal::Refusal;
use crate::{policy, run, state};

/// Remarks of one kind that are printed.
const MAX_REMARKS: usize = 10;

pub(crate) fn learn(args: LearnArgs) -> u8 {
    match learned(args) {
        Ok(status) => status,
        Err(refusal) => refusal.tell(false),
    }
}

fn learned(args: LearnArgs) -> Result<u8, Refusal> {
    let base = args.merge.as_deref().map(Base::read).transpose()?;
    let network = network(&args, base.as_ref())?;
    let own: Vec<Rule> = own_rules(&args)?;
    let mut options = run::options(args.command.clone(), network, args.place, args.limits)?;
    options.tell_flights = true;
    options.fail_on_deny = args.evidence.fail_on_deny;
    let roots = run::suspect_roots(&options);
    let target = args.output.as_deref().map(|path| Output::prepare(path, &roots)).transpose()?;
    let report = args.evidence.json_summary.as_deref().map(|path| run::open_report(path, &roots)).transpose()?;
    let (finished, learner) = watch(&options, &args.evidence, &roots, base.as_ref())?;
    run::write_summary(&finished, report);
    let learned = learner.learn();
    let quiet = args.evidence.quiet;
    if !quiet {
        tell(&finished, &learned, args.evidence.verbose);
    }
    let text = text(&args.command, &options, &own, base.as_ref(), &learned)?;
    let after = file::parse("learned.toml", &text).map_err(Refusal::network)?;
    if args.diff {
        return diff(base.as_ref(), &after).map(|()| finished.exit_status);
    }
    match &target {
        Some(target) => target.write(&text)?,
        None => {
            let printed = output::print(&text);
            if printed != 0 {
                return Ok(EXIT_SETUP);
            }
        }
    }
    if !args.verify {
        return Ok(finished.exit_status);
    }
    verify(options, after, &learned, &args.evidence)
}

/// The file that is added to.
struct Base {
    name: String,
    text: String,
    network: NetworkConfig,
}

impl Base {
    fn read(path: &Path) -> Result<Base, Refusal> {
        let name = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|error| Refusal::setup(format!("cannot read --merge {name}: {error}")))?;
        let network = file::parse(&name, &text).map_err(Refusal::network)?;
        if !network.enabled {
            let text = format!("--merge {name} has no network at all, and nothing to add to");
            return Err(Refusal::setup(text));
        }
        // That it has a place for rules is seen before anything runs: an addition that says nothing stays what it is.
        written::merge(&name, &text, &network, &nothing())
            .map_err(|error| Refusal::setup(format!("--merge {name} cannot be used: {error}")))?;
        Ok(Base { name, text, network })
    }
}

fn nothing() -> Learned {
    Learned { rules: Vec::new(), because: Vec::new(), remarks: Vec::new(), missed: Vec::new(), flows: 0 }
}

/// What the program may reach while it is watched.
fn network(args: &LearnArgs, base: Option<&Base>) -> Result<NetworkConfig, Refusal> {
    let mut profiles = vec!["public"];
    profiles.extend(args.net.iter().filter_map(|group| match group {
        LearnGroup::Public => None,
        LearnGroup::Private => Some("private"),
        LearnGroup::Host => Some("host"),
    }));
    let mut items = vec![FlagItem::Net(profiles.join(","))];
    items.extend(args.deny.iter().cloned().map(FlagItem::Deny));
    items.extend(args.dns_nameserver.iter().cloned().map(FlagItem::Nameserver));
    items.extend(args.no_ipv6.then_some(FlagItem::NoIpv6));
    let mut network = file::from_flags(&items).map_err(Refusal::network)?;
    if let Some(base) = base.filter(|_| args.dns_nameserver.is_empty()) {
        network.dns.nameservers.clone_from(&base.network.dns.nameservers);
    }
    Ok(network)
}

/// The rules of `--deny`.
fn own_rules(args: &LearnArgs) -> Result<Vec<Rule>, Refusal> {
    let items: Vec<FlagItem> = args.deny.iter().cloned().map(FlagItem::Deny).collect();
    let default = FlagItem::DefaultEgress(cofferdam_model::Action::Deny);
    let network = file::from_flags(&[items, vec![default]].concat()).map_err(Refusal::network)?;
    Ok(network.policy.rules)
}

/// Runs the program, and has what it does read.
fn watch(
    options: &RunOptions,
    evidence: &EvidenceArgs,
    roots: &[PathBuf],
    base: Option<&Base>,
) -> Result<(Finished, Learner), Refusal> {
    let resolvers = resolvers(&options.network);
    let base = base.map(|base| base.network.clone());
    let learner = Arc::new(Mutex::new(Learner::new(Learn { resolvers, base })));
    let file = match evidence.events.as_deref() {
        Some(path) if path == Path::new("-") => {
            let text = "learn: --events - and the policy would both be written to stdout; give a file".to_owned();
            return Err(Refusal::setup(text));
        }
        Some(path) if path.to_str().is_some_and(|path| path.starts_with("unix:")) => {
            let text = "learn: --events takes a file here, and no socket".to_owned();
            return Err(Refusal::setup(text));
        }
        Some(path) => Some(run::open_report(path, roots)?.1),
        None => None,
    };
    let capture = run::open_capture(evidence.pcap.as_deref(), &options.network, roots)?;
    let tap = Tap { learner: Arc::clone(&learner), begun: Vec::new(), file };
    let log = run::exported(EventLog::to(Box::new(tap)), evidence.otlp.as_deref())?;
    let finished = once(options.clone(), log, capture, evidence)?;
    let learner = std::mem::take(&mut *learner.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((finished, learner))
}

fn once(
    options: RunOptions,
    log: EventLog,
    capture: Option<(PathBuf, File)>,
    evidence: &EvidenceArgs,
) -> Result<Finished, Refusal> {
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
    run::say_failure(&finished, evidence);
    Ok(finished)
}

/// Who is asked for names by the gateway. Empty where that is not known beforehand.
fn resolvers(network: &NetworkConfig) -> Vec<std::net::SocketAddr> {
    let servers = &network.dns.nameservers;
    if servers.is_empty() {
        return Host::discover().map(|host| host.resolvers).unwrap_or_default();
    }
    let address = |server: &cofferdam_model::Nameserver| match (&server.host, &server.over) {
        (NameserverHost::Address(address), NameserverOver::Plain) => Some((*address, server.port).into()),
        (NameserverHost::Address(_) | NameserverHost::Name(_), _) => None,
    };
    servers.iter().map(address).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// Reads the event stream as it is written, and passes it on.
struct Tap {
    learner: Arc<Mutex<Learner>>,
    /// The beginning of a line.
    begun: Vec<u8>,
    file: Option<fs::File>,
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                continue;
            }
            match serde_json::from_slice::<Event>(&self.begun) {
                Ok(event) => learner.record(&event),
                Err(_) => learner.record_lost(1),
            }
            self.begun.clear();
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes).map(|()| bytes.len()),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a person is told about the run and what was made of it.
fn tell(finished: &Finished, learned: &Learned, verbose: bool) {
    let summary = &finished.summary;
    for notice in finished.notices.iter().map(String::as_str).chain(summary.notices().iter().map(String::as_str)) {
        output::say(notice);
    }
    if verbose {
        output::to_stderr(&summary.render(Detail::Always));
    }
    if finished.exit_status != 0 {
        let status = finished.exit_status;
        output::say(&format!("the command ended with {status}: what it would have done after that is not known"));
    }
    for missed in &learned.missed {
        let (target, count, rule) = (&missed.target, missed.count, &missed.rule);
        output::say(&format!("would not pass: {target} ×{count}, by `{rule}`"));
    }
    let (shown, rest) = learned.remarks.split_at(learned.remarks.len().min(MAX_REMARKS));
    for remark in shown {
        output::say(&remark.to_string());
    }
    if !rest.is_empty() {
        output::say(&format!("and {} more remarks", rest.len()));
    }
}

/// The file: a new one, or that of `--merge` with what was learned.
fn text(
    command: &[std::ffi::OsString],
    options: &RunOptions,
    own: &[Rule],
    base: Option<&Base>,
    learned: &Learned,
) -> Result<String, Refusal> {
    if let Some(base) = base {
        return written::merge(&base.name, &base.text, &base.network, learned)
            .map_err(|error| Refusal::setup(format!("cannot add to {}: {error}", base.name)));
    }
    // Not its arguments: there may be secrets among them, and the file is to be shown.
    let program = command.first().map(|word| escaped(&word.to_string_lossy())).unwrap_or_default();
    let flows = learned.flows;
    let head = [
        format!("Learned from a run of {program}."),
        format!("{flows} {}; whatever else leaves the sandbox is denied.", if flows == 1 { "flow" } else { "flows" }),
    ];
    let servers: Vec<String> = options.network.dns.nameservers.iter().map(file::format_nameserver).collect();
    Ok(written::write(learned, &head, own, &servers))
}

fn diff(base: Option<&Base>, after: &NetworkConfig) -> Result<(), Refusal> {
    let before = base.map_or_else(file::default_network, |base| base.network.clone());
    let layer = |network: &NetworkConfig| network.layers().pop();
    let (Some(before), Some(after)) = (layer(&before), layer(after)) else { return Ok(()) };
    let differences = compare::diff(&before, &after, &cofferdam_model::Classifier::default())
        .map_err(|error| Refusal::setup(error.to_string()))?;
    output::print(&policy::diff_text(&differences));
    Ok(())
}

/// Where the policy goes: beside its place first, so that a file which is there stays whole until there is another.
///
/// The place may be one that the program can write to. So nothing of ours lies there while it runs: that there can be a file is
/// tried before, and the file itself is made when the program is gone, in the place of whatever it has left.
struct Output {
    path: PathBuf,
    beside: PathBuf,
    roots: Vec<PathBuf>,
}

impl Output {
    fn prepare(path: &Path, roots: &[PathBuf]) -> Result<Output, Refusal> {
        let refuse = |why: &dyn std::fmt::Display| Refusal::setup(format!("cannot write {}: {why}", path.display()));
        if path.is_dir() {
            return Err(refuse(&"it is a directory"));
        }
        let Some(name) = path.file_name() else { return Err(refuse(&"it is no file")) };
        let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        // As of everything that a run leaves behind: no link of a sandbox's is followed.
        if let Ok(status) = fs::symlink_metadata(path)
            && !status.is_file()
        {
            return Err(refuse(&"it is there and is no regular file"));
        }
        create_report(&beside, roots).map_err(|error| refuse(&error))?;
        fs::remove_file(&beside).map_err(|error| refuse(&error))?;
        Ok(Output { path: path.to_owned(), beside, roots: roots.to_vec() })
    }

    fn write(&self, text: &str) -> Result<(), Refusal> {
        let refuse = |error: io::Error| Refusal::setup(format!("cannot write {}: {error}", self.path.display()));
        match fs::remove_file(&self.beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refuse(error)),
            Ok(()) | Err(_) => {}
        }
        let created = create_report(&self.beside, &self.roots);
        let mut file =
            created.map_err(|error| Refusal::setup(format!("cannot write {}: {error}", self.path.display())))?;
        let written = file.write_all(text.as_bytes());
        // A link in its place is replaced by a rename, and not followed.
        let placed = written.and_then(|()| fs::rename(&self.beside, &self.path));
        placed.map_err(|error| {
            // What is half written is of no use to anybody.
            let _ = fs::remove_file(&self.beside);
            refuse(error)
        })
    }
}

/// Runs the program again under what was learned.
fn verify(
    mut options: RunOptions,
    network: NetworkConfig,
    learned: &Learned,
    evidence: &EvidenceArgs,
) -> Result<u8, Refusal> {
    if !evidence.quiet {
        output::say("running it again under what was learned");
    }
    options.network = NetworkConfig { interface: options.network.interface.clone(), ..network };
    options.tell_flights = false;
    let finished = once(options, EventLog::none(), None, evidence)?;
    let expected = |target: &str| {
        learned.remarks.iter().any(|remark| match remark {
            Remark::LookedUp { names } => names.iter().any(|name| name.as_str() == target),
            Remark::Denied { target: denied, .. } => denied.split(':').next() == Some(target),
            Remark::Withheld { name, .. } => name.as_str() == target,
            Remark::Failed { target: failed, .. } => failed.split(':').next() == Some(target),
            Remark::Lost { .. } | Remark::Beyond { .. } => false,
        })
    };
    let denied: Vec<_> = finished.summary.denied().into_iter().filter(|row| !expected(&row.target)).collect();
    if !evidence.quiet {
        finished.notices.iter().for_each(|notice| output::say(notice));
        for row in &denied {
            let port = row.port.map(|port| format!(":{port}")).unwrap_or_default();
            output::say(&format!(
                "denied under what was learned: {}{port} ×{}, by `{}`",
                row.target, row.count, row.rule
            ));
        }
        if denied.is_empty() && finished.exit_status == 0 {
            output::say("it passes");
        }
    }
    Ok(if denied.is_empty() { finished.exit_status } else { EXIT_DENIED })
}
