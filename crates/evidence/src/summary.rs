//! What a run tried and was not allowed to do, in ten lines.
//!
//! The tally reads the event stream, never log text. Denials are grouped by name and port, most frequent first, and
//! each group says which flag would have allowed it. Every word in it that a guest or a remote chose (names) is
//! printed with control characters escaped.
//!
//! Limits: [`MAX_GROUPS`] groups; denials beyond that are counted together and said aloud.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use cofferdam_model::{
    Action, Direction, DropReason, Event, EventBody, FirstFlight, FlightProtocol, Group, Layer, LimitKind, Process,
    Protocol, RuleText, Withheld, share_a_slot,
};
use cofferdam_policy::BuiltIn;

/// What the machine is called inside a sandbox, first of all: whatever the gateway's address.
pub const HOST_ALIAS: &str = "host.cofferdam.internal";

/// Different targets that are kept apart. A guest that denies itself a million names costs us one counter.
pub const MAX_GROUPS: usize = 1024;

/// Programs that are named for one target. A guest may call itself what it likes, as often as it likes.
const MAX_PROGRAMS: usize = 8;

/// The end of a rule for a name that may lead to addresses which are not public.
const INSIDE: &str = ":allow-private";

/// Query types that are told apart for one name.
const MAX_QTYPES: usize = 16;

/// How the reason of a denial begins that no rule changes: a budget of bytes is used up.
const BUDGET: &str = "budget of ";

/// Lines of the printed summary that name a target (`docs/cli.md`).
pub const MAX_LINES: usize = 10;

/// What the summary has to know about the flags of the run to give advice that works when it is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Advice {
    /// Whether `--allow` alone would switch the default to deny: true when neither `--net` nor `--allow` was given.
    pub allow_changes_default: bool,
}

/// Counts the events of one run.
#[derive(Debug, Default)]
pub struct Summary {
    advice: Advice,
    groups: BTreeMap<Key, Denied>,
    /// Denials that found no room in `groups`.
    beyond: u64,
    totals: Totals,
    dropped: BTreeMap<DropReason, u64>,
    limits: BTreeMap<LimitKind, u64>,
    /// Sockets of the host that were not reached, and why: the program has seen an end of the stream and no reason.
    unreached: BTreeMap<(String, String), u64>,
    notices: Vec<String>,
}

/// Plain counters of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Flows that were allowed and opened.
    pub flows_opened: u64,
    /// Flows that were denied.
    pub flows_denied: u64,
    /// Flows that were allowed and could not be opened.
    pub flows_failed: u64,
    /// Payload bytes of closed flows, guest to remote.
    pub bytes_out: u64,
    /// Payload bytes of closed flows, remote to guest.
    pub bytes_in: u64,
    /// Connections to sockets of the host.
    pub sockets_opened: u64,
    /// Those that did not get as far as the host's server.
    pub sockets_failed: u64,
    /// Bytes of closed ones, guest to host.
    pub socket_bytes_out: u64,
    /// Bytes of closed ones, host to guest.
    pub socket_bytes_in: u64,
    /// DNS queries of the guest.
    pub dns_queries: u64,
    /// DNS queries that were denied by name.
    pub dns_denied: u64,
}

/// What a line of the summary is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    target: Target,
    service: Service,
    /// The same target denied by two rules is two lines: the remedies differ.
    rule: String,
    ingress: bool,
    /// The client held on to an address for longer than the name was bound to it, which is another remedy as well.
    stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// The sandbox's own gateway, which stands for the machine itself.
    Gateway,
    Name(String),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Service {
    /// A TCP or UDP port.
    Port(u16),
    /// An echo request.
    Ping,
    /// The name itself was not resolved.
    Lookup,
}

#[derive(Debug, Clone)]
struct Denied {
    tcp: u64,
    udp: u64,
    ping: u64,
    /// Look-ups by query type: a client asks for A and AAAA at once, and people count that as one attempt.
    lookups: BTreeMap<u16, u64>,
    rule: RuleText,
    group: Option<Group>,
    /// An address that stood behind the name, for targets that only a rule by address opens.
    address: Option<IpAddr>,
    first_decision: Option<String>,
    last_decision: Option<String>,
    /// Names of the processes that tried, where they were found.
    programs: BTreeSet<String>,
    /// What the first of them showed, when it was denied for that and showed no name.
    nameless: Option<FlightProtocol>,
}

/// What a group of denials is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetId(Key);

/// One group of denials, as data: the form of `--json-summary`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeniedTarget {
    /// The name, or the address when no name led to it.
    pub target: String,
    /// Absent for pings and name look-ups.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `dns`.
    pub protocols: Vec<&'static str>,
    /// How often it was tried.
    pub count: u64,
    /// Group of the address, when an address was denied.
    pub group: Option<Group>,
    /// The rule or default that said no.
    pub rule: RuleText,
    /// Id of the first of these decisions.
    pub decision: Option<String>,
    /// Names of the processes that tried: of those that were found, and eight at most.
    pub programs: Vec<String>,
    /// Which group it is, for who looks on: the same whatever else of it changes.
    #[serde(skip)]
    pub id: TargetId,
    /// Id of the last of these decisions, for who looks on while they come.
    #[serde(skip)]
    pub last_decision: Option<String>,
    /// The flag that would allow it; absent when no flag does.
    pub allow_with: Option<String>,
    /// The rule that would allow it, before all others of the run; absent when no rule does.
    #[serde(skip)]
    pub allow_rule: Option<String>,
    /// The program kept an address of the name for longer than it may: what it has to do is look the name up again.
    pub look_up_again: bool,
}

impl Summary {
    /// An empty tally.
    #[must_use]
    pub fn new(advice: Advice) -> Summary {
        Summary { advice, ..Summary::default() }
    }

    /// Counts one event.
    pub fn record(&mut self, event: &Event) {
        match &event.body {
            EventBody::FlowDenied {
                decision,
                direction,
                protocol,
                guest,
                remote,
                group,
                names,
                rule,
                shown,
                look_up_again,
                process,
            } => {
                self.totals.flows_denied += 1;
                let (shown, again) = (shown.as_ref(), look_up_again.as_deref());
                let (direction, protocol, guest) = (*direction, *protocol, *guest);
                let process = process.as_ref();
                let flow = DeniedFlow { decision, direction, protocol, guest, shown, again, process };
                // What was shown is what was denied, and not the name that the address was pinned for.
                let names = shown.map(|shown| &shown.names).filter(|shown| !shown.is_empty()).unwrap_or(names);
                self.deny_flow(&flow, *remote, *group, names, rule);
            }
            EventBody::DnsQuery { name, qtype, verdict, rule, decision, withheld, count, process, .. } => {
                self.count_lookups(*verdict, *count);
                if *verdict == Action::Deny {
                    let cause = Cause { decision: decision.as_ref(), process: process.as_ref() };
                    self.deny_lookup((name, *qtype, *count), rule, cause, *withheld);
                }
            }
            EventBody::DnsMore { verdict, count } => {
                self.count_lookups(*verdict, *count);
                if *verdict == Action::Deny {
                    self.beyond = self.beyond.saturating_add(*count);
                }
            }
            EventBody::FlowOpened { .. } => self.totals.flows_opened += 1,
            EventBody::FlowClosed { counters, .. } => {
                self.totals.bytes_out = self.totals.bytes_out.saturating_add(counters.bytes_out);
                self.totals.bytes_in = self.totals.bytes_in.saturating_add(counters.bytes_in);
            }
            EventBody::FlowFailed { .. } => self.totals.flows_failed += 1,
            EventBody::SocketOpened { .. } => self.totals.sockets_opened += 1,
            EventBody::SocketClosed { counters, .. } => {
                let Totals { socket_bytes_out, socket_bytes_in, .. } = &mut self.totals;
                *socket_bytes_out = socket_bytes_out.saturating_add(counters.bytes_out);
                *socket_bytes_in = socket_bytes_in.saturating_add(counters.bytes_in);
            }
            EventBody::SocketFailed { host, error, .. } => {
                self.totals.sockets_failed += 1;
                // Few: the sockets were named, and there is a handful of errors.
                let key = (host.clone(), error.clone());
                if self.unreached.len() < MAX_GROUPS || self.unreached.contains_key(&key) {
                    *self.unreached.entry(key).or_default() += 1;
                }
            }
            EventBody::LimitReached { limit, count, .. } => {
                let entry = self.limits.entry(*limit).or_default();
                *entry = entry.saturating_add(*count);
            }
            EventBody::GatewayDropped { reason, count } => {
                let entry = self.dropped.entry(*reason).or_default();
                *entry = entry.saturating_add(*count);
            }
            EventBody::GatewayNotice { message } => self.note(message),
            EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. } => {}
        }
    }

    /// Keeps a remark for the end of the run; repeated and surplus ones are left out.
    pub fn note(&mut self, message: &str) {
        if self.notices.len() < MAX_LINES && !self.notices.iter().any(|known| known == message) {
            self.notices.push(message.to_owned());
        }
    }

    /// Whether anything was denied.
    #[must_use]
    pub fn denied_anything(&self) -> bool {
        self.beyond > 0 || !self.groups.is_empty()
    }

    /// Events that nobody has heard of: there may be denials among them.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.limits.get(&LimitKind::Events).copied().unwrap_or(0)
    }

    /// The plain counters.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Remarks of the gateway, oldest first.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The denied targets, most frequent first; equally frequent ones by name.
    #[must_use]
    pub fn denied(&self) -> Vec<DeniedTarget> {
        let mut rows: Vec<(&Key, &Denied)> = self.groups.iter().collect();
        // The map is sorted by key and the sort is stable, so equal counts stay in the order of the keys.
        rows.sort_by_key(|(_, denied)| std::cmp::Reverse(denied.count()));
        rows.into_iter().map(|(key, denied)| self.row(key, denied)).collect()
    }

    /// The text for the end of a run, empty when there is nothing to say.
    ///
    /// With [`Detail::Always`] it also says that nothing was denied and how much went through.
    #[must_use]
    pub fn render(&self, detail: Detail) -> String {
        let mut text = String::new();
        let rows = self.denied();
        let lines: Vec<[String; 4]> = rows.iter().take(MAX_LINES).map(columns).collect();
        let target_width = width(lines.iter().map(|[target, ..]| target), 48);
        let count_width = width(lines.iter().map(|[_, count, ..]| count), 8);
        // As wide as the usual answer, "default egress deny": a longer rule pushes its own line only.
        let rule_width = width(lines.iter().map(|[_, _, rule, _]| rule), 19);
        for ([target, count, rule, remedy], row) in lines.iter().zip(&rows) {
            let line = format!("blocked  {target:target_width$}  {count:count_width$}  {rule:rule_width$}   {remedy}");
            let _ = writeln!(text, "{}", line.trim_end());
            if detail == Detail::Always && !row.programs.is_empty() {
                let programs: Vec<String> = row.programs.iter().map(|program| escaped(program)).collect();
                let _ = writeln!(text, "         by {}", programs.join(", "));
            }
        }
        let hidden: u64 = rows.iter().skip(MAX_LINES).map(|row| row.count).sum::<u64>().saturating_add(self.beyond);
        if hidden > 0 {
            let targets = rows.len().saturating_sub(MAX_LINES);
            let plus = if self.beyond > 0 { "+" } else { "" };
            let _ = writeln!(
                text,
                "blocked  {hidden} more on {targets}{plus} other targets (--json-summary FILE or --events FILE has them)"
            );
        }
        let lost = self.events_lost();
        if lost > 0 {
            let _ = writeln!(
                text,
                "note     {lost} events were lost because they came too fast; the counts above are too low"
            );
        }
        for ((host, error), count) in &self.unreached {
            let _ = writeln!(text, "socket   ×{count}  {host} was not reached: {error}");
        }
        if detail == Detail::Always {
            self.render_totals(&mut text);
        }
        text
    }

    /// The whole tally as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "v": 1,
            "denied": self.denied(),
            "denied_beyond": self.beyond,
            "totals": self.totals,
            "dropped": self.dropped,
            "limits": self.limits,
            "notices": self.notices,
        })
    }

    fn render_totals(&self, text: &mut String) {
        let Totals {
            flows_opened,
            flows_denied,
            flows_failed,
            bytes_out,
            bytes_in,
            sockets_opened,
            sockets_failed,
            socket_bytes_out,
            socket_bytes_in,
            dns_queries,
            dns_denied,
        } = self.totals;
        if !self.denied_anything() {
            let _ = writeln!(text, "blocked  nothing");
        }
        let _ = writeln!(
            text,
            "network  {flows_opened} flows opened, {flows_failed} failed, {flows_denied} denied; {bytes_out} bytes out, {bytes_in} in; \
             {dns_queries} look-ups, {dns_denied} denied"
        );
        if sockets_opened + sockets_failed > 0 {
            let _ = writeln!(
                text,
                "sockets  {sockets_opened} connections to the host's, {sockets_failed} failed; {socket_bytes_out} bytes out, {socket_bytes_in} in"
            );
        }
        for (reason, count) in &self.dropped {
            let _ = writeln!(text, "dropped  ×{count}  {}", word(reason));
        }
        for (limit, count) in &self.limits {
            let _ = writeln!(text, "limit    ×{count}  {}", word(limit));
        }
    }

    fn deny_flow(
        &mut self,
        flow: &DeniedFlow<'_>,
        remote: SocketAddr,
        group: Group,
        names: &[String],
        rule: &RuleText,
    ) {
        let ingress = flow.direction == Direction::Ingress;
        let address = remote.ip().to_canonical();
        // Of several names the one is meant that a look-up would have opened.
        let target = match flow.again.or(names.first().map(String::as_str)) {
            // The gateway's addresses differ from run to run, its name does not.
            _ if group == Group::Host && share_a_slot(flow.guest.ip(), address) => Target::Gateway,
            Some(name) => Target::Name(name.to_owned()),
            None => Target::Address(address),
        };
        let service = match flow.protocol {
            // Ingress is about the service's port, which is the guest's.
            Protocol::Tcp | Protocol::Udp if ingress => Service::Port(flow.guest.port()),
            Protocol::Tcp | Protocol::Udp => Service::Port(remote.port()),
            Protocol::IcmpV4 | Protocol::IcmpV6 => Service::Ping,
        };
        let key = Key { target, service, rule: rule.to_string(), ingress, stale: flow.again.is_some() };
        let Some(denied) = self.group_for(key, rule, 1) else { return };
        denied.group.get_or_insert(group);
        denied.address.get_or_insert(address);
        denied.add(Cause { decision: Some(flow.decision), process: flow.process });
        if let Some(shown) = flow.shown.filter(|shown| shown.names.is_empty()) {
            denied.nameless.get_or_insert(shown.protocol);
        }
        match flow.protocol {
            Protocol::Tcp => denied.tcp += 1,
            Protocol::Udp => denied.udp += 1,
            Protocol::IcmpV4 | Protocol::IcmpV6 => denied.ping += 1,
        }
    }

    fn count_lookups(&mut self, verdict: Action, count: u64) {
        self.totals.dns_queries = self.totals.dns_queries.saturating_add(count);
        if verdict == Action::Deny {
            self.totals.dns_denied = self.totals.dns_denied.saturating_add(count);
        }
    }

    fn deny_lookup(
        &mut self,
        (name, qtype, count): (&str, u16, u64),
        rule: &RuleText,
        cause: Cause<'_>,
        withheld: Option<Withheld>,
    ) {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let key = Key {
            target: Target::Name(name),
            service: Service::Lookup,
            rule: rule.to_string(),
            ingress: false,
            stale: false,
        };
        let Some(denied) = self.group_for(key, rule, count) else { return };
        // Two types or three are what clients ask for; one that goes through all of them is counted all the same.
        let is_known = denied.lookups.len() < MAX_QTYPES || denied.lookups.contains_key(&qtype);
        let lookups = denied.lookups.entry(if is_known { qtype } else { u16::MAX }).or_default();
        *lookups = lookups.saturating_add(count);
        if let Some(Withheld { address, group }) = withheld {
            denied.group.get_or_insert(group);
            denied.address.get_or_insert(address);
        }
        denied.add(cause);
    }

    /// The group of `count` denials; `None` when there is no room, and they are counted beyond.
    fn group_for(&mut self, key: Key, rule: &RuleText, count: u64) -> Option<&mut Denied> {
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key) {
            self.beyond = self.beyond.saturating_add(count);
            return None;
        }
        Some(self.groups.entry(key).or_insert_with(|| Denied::new(rule.clone())))
    }

    fn row(&self, key: &Key, denied: &Denied) -> DeniedTarget {
        let target = match &key.target {
            Target::Gateway => HOST_ALIAS.to_owned(),
            Target::Name(name) => name.clone(),
            Target::Address(address) => address.to_string(),
        };
        let port = match key.service {
            Service::Port(port) => Some(port),
            Service::Ping | Service::Lookup => None,
        };
        DeniedTarget {
            id: TargetId(key.clone()),
            target,
            port,
            protocols: denied.protocols(),
            count: denied.count(),
            group: denied.group,
            rule: denied.rule.clone(),
            decision: denied.first_decision.clone(),
            programs: denied.programs.iter().cloned().collect(),
            last_decision: denied.last_decision.clone(),
            allow_with: self.remedy(key, denied),
            allow_rule: self.opening_rule(key, denied),
            look_up_again: key.stale,
        }
    }

    /// The flag that, added to the same command line, lets this target through.
    fn remedy(&self, key: &Key, denied: &Denied) -> Option<String> {
        let rule = self.opening_rule(key, denied)?;
        let by_rule = || format!("--net-rule {}", quoted(&rule));
        if key.service == Service::Lookup && denied.address.is_some() {
            // Only a name has words behind its rule.
            let Some(inside) = rule.strip_prefix("allow@").filter(|rule| rule.ends_with(INSIDE)) else {
                return Some(by_rule());
            };
            let flag =
                if self.advice.allow_changes_default { by_rule() } else { format!("--allow {}", quoted(inside)) };
            return Some(format!("{flag}, before other rules for it"));
        }
        let destination = self.destination(key, denied);
        // A later rule never overrides an earlier one, so the flag has to come first.
        let place = if denied.rule.index.is_some() { ", before that rule" } else { "" };
        let flag = match key.service {
            _ if key.ingress => by_rule(),
            Service::Port(53) if key.target == Target::Gateway => by_rule(),
            Service::Ping => by_rule(),
            Service::Port(_) | Service::Lookup if self.advice.allow_changes_default => by_rule(),
            Service::Port(port) => format!("--allow {}", quoted(&format!("{destination}:{port}{}", denied.opaque()))),
            Service::Lookup => format!("--allow {}", quoted(&destination)),
        };
        Some(format!("{flag}{place}"))
    }

    /// The rule that, before all others of the run, lets this target through.
    fn opening_rule(&self, key: &Key, denied: &Denied) -> Option<String> {
        // The program has to look the name up again; no rule changes that.
        if key.stale {
            return None;
        }
        // What the run's own rules say opens nothing that another policy denies.
        if denied.rule.layer.is_some_and(|layer| layer != Layer::Run) {
            return None;
        }
        // Nothing opens the host's loopback; 127.0.0.1 in a sandbox is the sandbox's own.
        if denied.group == Some(Group::Loopback)
            || denied.rule.text.starts_with(BUDGET)
            || BuiltIn::is_final(&denied.rule.text)
        {
            return None;
        }
        if let (Service::Lookup, Some(address)) = (key.service, denied.address) {
            return withheld_rule(key, address, denied.group);
        }
        if let Target::Name(name) = &key.target
            && key.service == Service::Lookup
            && leads_nowhere(name)
        {
            return None;
        }
        let destination = self.destination(key, denied);
        Some(match key.service {
            _ if key.ingress => rule(":ingress", &destination, denied, key.service),
            Service::Port(53) if key.target == Target::Gateway => "allow@dns".to_owned(),
            Service::Port(_) | Service::Ping | Service::Lookup => rule("", &destination, denied, key.service),
        })
    }

    /// The destination as the rule grammar writes it.
    fn destination(&self, key: &Key, denied: &Denied) -> String {
        match (&key.target, denied.group, denied.address) {
            (Target::Gateway, _, _) => "host".to_owned(),
            // What should have shown a name and showed none is opened by its address alone.
            (Target::Name(_), _, Some(address)) if denied.nameless.is_some() && denied.opaque().is_empty() => {
                bracketed(address)
            }
            // A rule by name opens public addresses alone; anything else needs its address.
            (Target::Name(_), Some(group), Some(address)) if group != Group::Public => bracketed(address),
            (Target::Name(name), _, _) => destination_name(name),
            (Target::Address(address), _, _) => bracketed(*address),
        }
    }
}

/// What makes an answer with this address deliverable. Where a name may lead, that is a rule which says so, and the first for
/// the name; elsewhere a rule for the address itself, without ports, since others do not count for rebinding protection. No
/// rule counts for metadata and unspecified addresses.
fn withheld_rule(key: &Key, address: IpAddr, group: Option<Group>) -> Option<String> {
    let address = address.to_canonical();
    if group == Some(Group::Metadata) || address.is_unspecified() {
        return None;
    }
    let leads_inside = matches!(group, Some(Group::LinkLocal | Group::Private | Group::Multicast | Group::Reserved));
    match &key.target {
        Target::Name(name) if leads_inside => Some(format!("allow@{}{INSIDE}", destination_name(name))),
        Target::Name(_) | Target::Gateway | Target::Address(_) => Some(format!("allow@{}", bracketed(address))),
    }
}

/// How much [`Summary::render`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What was denied.
    Denials,
    /// That, and the counters.
    Always,
}

/// The parts of a denied flow that identify it.
struct DeniedFlow<'a> {
    decision: &'a String,
    direction: Direction,
    protocol: Protocol,
    guest: SocketAddr,
    shown: Option<&'a FirstFlight>,
    again: Option<&'a str>,
    process: Option<&'a Process>,
}

/// Which decision it was, and whose doing, where that is known.
struct Cause<'a> {
    decision: Option<&'a String>,
    process: Option<&'a Process>,
}

impl Denied {
    fn add(&mut self, Cause { decision, process }: Cause<'_>) {
        if let Some(decision) = decision {
            self.first_decision.get_or_insert_with(|| decision.clone());
            self.last_decision = Some(decision.clone());
        }
        if let Some(process) = process.filter(|_| self.programs.len() < MAX_PROGRAMS) {
            self.programs.insert(process.comm.clone());
        }
    }

    fn new(rule: RuleText) -> Denied {
        Denied {
            tcp: 0,
            udp: 0,
            ping: 0,
            lookups: BTreeMap::new(),
            rule,
            group: None,
            address: None,
            first_decision: None,
            last_decision: None,
            programs: BTreeSet::new(),
            nameless: None,
        }
    }

    /// The end of a rule for a protocol without names.
    fn opaque(&self) -> &'static str {
        let other = self.nameless == Some(FlightProtocol::Other);
        if other && self.group == Some(Group::Public) { ":opaque" } else { "" }
    }

    fn count(&self) -> u64 {
        let lookups = self.lookups.values().copied().max().unwrap_or(0);
        self.tcp.saturating_add(self.udp).saturating_add(self.ping).saturating_add(lookups)
    }

    fn protocols(&self) -> Vec<&'static str> {
        let seen =
            [("tcp", self.tcp > 0), ("udp", self.udp > 0), ("icmp", self.ping > 0), ("dns", !self.lookups.is_empty())];
        seen.into_iter().filter(|(_, seen)| *seen).map(|(word, _)| word).collect()
    }
}

impl DeniedTarget {
    /// The target with its port and what is not TCP about it, as people read it.
    #[must_use]
    pub fn label(&self) -> String {
        let target = match self.target.parse::<IpAddr>() {
            Ok(address) if self.port.is_some() => bracketed(address),
            _ => escaped(&self.target),
        };
        let target = match self.port {
            Some(port) => format!("{target}:{port}"),
            None => target,
        };
        match self.protocols.as_slice() {
            ["udp"] => format!("{target}/udp"),
            ["icmp"] => format!("{target} (ping)"),
            ["dns"] => format!("{target} (look-up)"),
            _ => target,
        }
    }
}

/// The cells of one line: target, count, rule, remedy.
fn columns(row: &DeniedTarget) -> [String; 4] {
    let remedy = match &row.allow_with {
        Some(flag) => format!("→ {flag}"),
        None if row.look_up_again => format!("→ look {} up again", escaped(&row.target)),
        None => String::new(),
    };
    [row.label(), format!("×{}", row.count), escaped(&row.rule.to_string()), remedy]
}

fn rule(direction: &str, destination: &str, denied: &Denied, service: Service) -> String {
    let protocols = match (denied.tcp > 0, denied.udp > 0) {
        (true, false) => "tcp",
        (false, true) => "udp",
        (true, true) | (false, false) => "tcp+udp",
    };
    match service {
        Service::Port(port) => format!("allow{direction}@{destination}:{protocols}:{port}{}", denied.opaque()),
        Service::Ping => format!("allow{direction}@{destination}:icmp"),
        Service::Lookup => format!("allow{direction}@{destination}"),
    }
}

/// Names that the gateway answers itself, without any machine behind them (`docs/names.md`): a rule changes nothing about that.
fn leads_nowhere(name: &str) -> bool {
    const ZONES: [&str; 5] = ["localhost", "local", "onion", "use-application-dns.net", "resolver.arpa"];
    let is_within = |zone: &str| name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    ZONES.into_iter().any(is_within)
}

/// A bare single label needs a prefix in the grammar.
fn destination_name(name: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("domain={name}") }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// Shell words are quoted when a shell would read more into them: brackets are a pattern.
fn quoted(word: &str) -> String {
    let plain =
        word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '@' | '+' | '=' | '/'));
    if plain { word.to_owned() } else { format!("'{}'", escaped(&word.replace('\'', ""))) }
}

/// `text` with everything that a terminal would act on made visible.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// JSON with the same made visible, and still the same JSON: what a terminal would act on stands in strings alone, but for the line
/// feeds between values.
#[must_use]
pub fn escaped_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && (c.is_control() || is_invisible(c)) {
            // All of these are in the first plane, so one unit of UTF-16 is the whole character (RFC 8259 section 7).
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that reorder or hide text: bidirectional controls, zero-width ones, line separators.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The word that serde writes for a fieldless variant.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// The width of a column: that of its widest cell, but not more than `most`.
fn width<'a>(cells: impl Iterator<Item = &'a String>, most: usize) -> usize {
    cells.map(|cell| cell.chars().count()).max().unwrap_or(0).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofferdam_model::{CloseReason, EventSource, FlowCounters, FlowId};

    #[test]
    fn prints_the_line_of_the_specification() {
        let mut summary = Summary::new(listed());
        for _ in 0..14 {
            summary.record(&flow("93.184.216.34:443", &["telemetry.example.com"], Group::Public, default_deny()));
        }
        assert_eq!(
            summary.render(Detail::Denials),
            "blocked  telemetry.example.com:443  ×14  default egress deny   → --allow telemetry.example.com:443\n"
        );
    }

    #[test]
    fn sorts_by_count_and_stops_after_ten_lines() {
        let mut summary = Summary::new(listed());
        for port in 1..=13_u16 {
            for _ in 0..port {
                summary.record(&flow(&format!("8.8.8.8:{port}"), &[], Group::Public, default_deny()));
            }
        }
        let text = summary.render(Detail::Denials);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 11);
        assert!(lines[0].starts_with("blocked  8.8.8.8:13  ×13"), "{}", lines[0]);
        assert!(lines[9].starts_with("blocked  8.8.8.8:4   ×4"), "{}", lines[9]);
        assert!(lines[10].starts_with("blocked  6 more on 3 other targets"), "{}", lines[10]);
    }

    #[test]
    fn counts_the_two_queries_of_one_lookup_once() {
        let mut summary = Summary::new(listed());
        summary.record(&lookup("Tracker.Example.", 1));
        summary.record(&lookup("tracker.example", 28));
        let text = summary.render(Detail::Denials);
        assert_eq!(text, "blocked  tracker.example (look-up)  ×1  default egress deny   → --allow tracker.example\n");
    }

    #[test]
    fn brackets_addresses_of_ipv6() {
        let mut summary = Summary::new(listed());
        summary.record(&flow("[2606:4700::1]:443", &[], Group::Public, default_deny()));
        let text = summary.render(Detail::Denials);
        assert_eq!(text, "blocked  [2606:4700::1]:443  ×1  default egress deny   → --allow '[2606:4700::1]:443'\n");
    }

    #[test]
    fn what_was_shown_is_what_has_to_be_allowed() {
        for (protocol, names, target, remedy) in [
            (FlightProtocol::Tls, vec!["b.example"], "b.example", "--allow b.example:443"),
            (FlightProtocol::Other, vec![], "a.example", "--allow a.example:443:opaque"),
            (FlightProtocol::Tls, vec![], "a.example", "--allow 8.8.8.8:443"),
        ] {
            let mut summary = Summary::new(listed());
            let mut denied = flow("8.8.8.8:443", &["a.example"], Group::Public, default_deny());
            if let EventBody::FlowDenied { shown, .. } = &mut denied.body {
                let names = names.iter().map(|name| (*name).to_owned()).collect();
                *shown = Some(FirstFlight { protocol, names, doubt: None });
            }
            summary.record(&denied);
            let row = summary.denied().remove(0);
            assert_eq!((row.target.as_str(), row.allow_with.as_deref()), (target, Some(remedy)));
        }
    }

    #[test]
    fn an_address_kept_for_too_long_is_no_matter_of_flags() {
        for (remote, shown_names) in [("8.8.8.8:443", None), ("[2606:4700::1]:443", Some(vec!["a.example".to_owned()]))]
        {
            let mut summary = Summary::new(listed());
            let mut stale = flow(remote, &["other.example"], Group::Public, default_deny());
            if let EventBody::FlowDenied { shown, look_up_again, .. } = &mut stale.body {
                *shown = shown_names.map(|names| FirstFlight { protocol: FlightProtocol::Tls, names, doubt: None });
                *look_up_again = Some("a.example".into());
            }
            summary.record(&stale);
            summary.record(&stale);
            // The same target without the excuse is another line.
            summary.record(&flow(remote, &["a.example"], Group::Public, default_deny()));
            let text = summary.render(Detail::Denials);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[0], "blocked  a.example:443  ×2  default egress deny   → look a.example up again");
            assert_eq!(lines[1], "blocked  a.example:443  ×1  default egress deny   → --allow a.example:443");
            let rows = summary.denied();
            assert_eq!((rows[0].look_up_again, rows[0].allow_with.as_deref()), (true, None));
            assert!(!rows[1].look_up_again);
        }
    }

    #[test]
    fn names_that_lead_inside_are_opened_by_address() {
        let mut summary = Summary::new(listed());
        summary.record(&flow("10.0.0.5:80", &["intranet.example"], Group::Private, default_deny()));
        assert_eq!(summary.denied()[0].allow_with.as_deref(), Some("--allow 10.0.0.5:80"));
    }

    #[test]
    fn an_answer_held_back_is_opened_by_a_name_that_may_lead_inside_or_by_its_address() {
        for (address, group, remedy) in [
            ("10.0.0.5", Group::Private, Some("inside")),
            ("fd00::5", Group::Private, Some("inside")),
            ("fe80::5", Group::LinkLocal, Some("inside")),
            ("192.168.1.9", Group::Host, Some("--net-rule allow@192.168.1.9")),
            ("fd00::9", Group::Host, Some("--net-rule 'allow@[fd00::9]'")),
            ("::ffff:192.168.1.9", Group::Host, Some("--net-rule allow@192.168.1.9")),
            ("127.0.0.1", Group::Loopback, None),
            ("169.254.169.254", Group::Metadata, None),
            ("0.0.0.0", Group::Reserved, None),
        ] {
            for advice in [listed(), Advice { allow_changes_default: true }] {
                let mut summary = Summary::new(advice);
                let mut held_back = lookup("intranet.example", 1);
                if let EventBody::DnsQuery { withheld, .. } = &mut held_back.body {
                    *withheld = Some(Withheld { address: address.parse().unwrap(), group });
                }
                summary.record(&held_back);
                let row = summary.denied().remove(0);
                let inside = match advice.allow_changes_default {
                    true => "--net-rule allow@intranet.example:allow-private, before other rules for it",
                    false => "--allow intranet.example:allow-private, before other rules for it",
                };
                let remedy = remedy.map(|remedy| if remedy == "inside" { inside } else { remedy });
                assert_eq!(row.allow_with.as_deref(), remedy, "{address}");
                assert_eq!((row.target.as_str(), row.group), ("intranet.example", Some(group)));
            }
        }
    }

    #[test]
    fn no_flag_is_told_for_names_that_lead_nowhere_whatever_the_rules() {
        for (name, remedy) in [
            ("localhost", None),
            ("a.localhost.", None),
            ("printer.local", None),
            ("use-application-dns.net", None),
            ("nolocalhost.example", Some("--allow nolocalhost.example")),
            ("local.example", Some("--allow local.example")),
            ("mylocalhost", Some("--allow domain=mylocalhost")),
        ] {
            let mut summary = Summary::new(listed());
            summary.record(&lookup(name, 1));
            assert_eq!(summary.denied()[0].allow_with.as_deref(), remedy, "{name}");
        }
    }

    #[test]
    fn the_gateway_is_called_host_and_its_resolver_dns() {
        let mut summary = Summary::new(listed());
        summary.record(&flow("172.16.0.1:8080", &["host.cofferdam.internal"], Group::Host, default_deny()));
        summary.record(&flow("172.16.0.1:53", &[], Group::Host, default_deny()));
        summary.record(&flow("192.168.1.9:22", &[], Group::Host, default_deny()));
        let remedies: Vec<_> = summary.denied().into_iter().filter_map(|row| row.allow_with).collect();
        assert!(remedies.contains(&"--allow host:8080".to_owned()), "{remedies:?}");
        assert!(remedies.contains(&"--net-rule allow@dns".to_owned()), "{remedies:?}");
        assert!(remedies.contains(&"--allow 192.168.1.9:22".to_owned()), "{remedies:?}");
        assert!(summary.denied().iter().any(|row| row.target == "host.cofferdam.internal" && row.port == Some(8080)));
    }

    #[test]
    fn advice_keeps_the_default_of_a_run_without_an_allow_list() {
        let mut summary = Summary::new(Advice { allow_changes_default: true });
        summary.record(&flow("10.0.0.5:80", &[], Group::Private, default_deny()));
        assert_eq!(summary.denied()[0].allow_with.as_deref(), Some("--net-rule allow@10.0.0.5:tcp:80"));
    }

    #[test]
    fn no_flag_opens_what_another_policy_denies() {
        for layer in [Layer::Floor, Layer::Session] {
            let mut summary = Summary::new(listed());
            let rule = RuleText { layer: Some(layer), ..default_deny() };
            summary.record(&flow("93.184.216.34:25", &[], Group::Public, rule));
            assert_eq!(summary.denied()[0].allow_with, None);
            let whose = format!("default egress deny ({})", layer.word());
            assert!(summary.render(Detail::Denials).contains(&whose));
        }
        let mut summary = Summary::new(listed());
        let rule = RuleText { layer: Some(Layer::Run), ..default_deny() };
        summary.record(&flow("93.184.216.34:25", &[], Group::Public, rule));
        assert_eq!(summary.denied()[0].allow_with.as_deref(), Some("--allow 93.184.216.34:25"));
    }

    #[test]
    fn a_rule_that_denied_has_to_be_preceded() {
        let mut summary = Summary::new(listed());
        let rule = RuleText { index: Some(0), text: "deny@any:tcp:25".into(), layer: None };
        summary.record(&flow("93.184.216.34:25", &[], Group::Public, rule));
        assert_eq!(summary.denied()[0].allow_with.as_deref(), Some("--allow 93.184.216.34:25, before that rule"));
    }

    #[test]
    fn pings_get_an_icmp_rule() {
        let mut summary = Summary::new(listed());
        let mut ping = flow("8.8.8.8:0", &[], Group::Public, default_deny());
        if let EventBody::FlowDenied { protocol, .. } = &mut ping.body {
            *protocol = Protocol::IcmpV4;
        }
        summary.record(&ping);
        let text = summary.render(Detail::Denials);
        assert_eq!(text, "blocked  8.8.8.8 (ping)  ×1  default egress deny   → --net-rule allow@8.8.8.8:icmp\n");
    }

    #[test]
    fn escapes_what_a_terminal_would_act_on() {
        let mut summary = Summary::new(listed());
        summary.record(&lookup("\u{1b}]52;c;aGk=\u{7}\u{202e}.example", 1));
        let text = summary.render(Detail::Denials);
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
        assert!(text.contains("\\u{1b}]52"), "{text:?}");
    }

    #[test]
    fn says_which_programs_were_blocked_when_asked() {
        let mut summary = Summary::new(listed());
        let by = |comm: &str| Some(Process { pid: 7, comm: comm.to_owned(), argv0: None });
        for comm in ["curl", "agent", "curl"] {
            let mut denied = flow("8.8.8.8:443", &[], Group::Public, default_deny());
            if let EventBody::FlowDenied { process, .. } = &mut denied.body {
                *process = by(comm);
            }
            summary.record(&denied);
        }
        let mut asked = lookup("b.example", 1);
        if let EventBody::DnsQuery { process, .. } = &mut asked.body {
            *process = by("\u{1b}[2J\nblocked  ");
        }
        summary.record(&asked);
        summary.record(&lookup("c.example", 1));
        assert!(!summary.render(Detail::Denials).contains("by "));
        let text = summary.render(Detail::Always);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "         by agent, curl");
        assert_eq!(lines[3], "         by \\u{1b}[2J\\nblocked  ");
        assert!(lines[4].starts_with("blocked  c.example") && lines[5].starts_with("network"), "{text}");
        assert_eq!(summary.to_json()["denied"][0]["programs"], serde_json::json!(["agent", "curl"]));
    }

    #[test]
    fn a_program_that_renames_itself_without_end_is_named_eight_times() {
        let mut summary = Summary::new(listed());
        for n in 0..100 {
            let mut denied = flow("8.8.8.8:443", &[], Group::Public, default_deny());
            if let EventBody::FlowDenied { process, .. } = &mut denied.body {
                *process = Some(Process { pid: 7, comm: format!("n{n}"), argv0: None });
            }
            summary.record(&denied);
        }
        assert_eq!(summary.denied()[0].programs.len(), MAX_PROGRAMS);
        assert_eq!(summary.denied()[0].count, 100);
    }

    #[test]
    fn a_flood_of_names_costs_one_counter() {
        let mut summary = Summary::new(listed());
        for n in 0..MAX_GROUPS + 500 {
            summary.record(&lookup(&format!("n{n}.example"), 1));
        }
        assert_eq!(summary.groups.len(), MAX_GROUPS);
        assert!(summary.render(Detail::Denials).contains(&format!(
            "{} more on {}+ other targets",
            MAX_GROUPS - 10 + 500,
            MAX_GROUPS - 10
        )));
    }

    #[test]
    fn look_ups_that_were_told_together_count_in_full() {
        let mut summary = Summary::new(listed());
        summary.record(&lookup("a.example", 1));
        let mut many = lookup("a.example", 1);
        if let EventBody::DnsQuery { count, .. } = &mut many.body {
            *count = 40;
        }
        summary.record(&many);
        summary.record(&event(EventBody::DnsMore { verdict: Action::Deny, count: 500 }));
        summary.record(&event(EventBody::DnsMore { verdict: Action::Allow, count: 7 }));
        let totals = summary.totals();
        assert_eq!((totals.dns_queries, totals.dns_denied), (548, 541));
        assert_eq!(summary.denied()[0].count, 41);
        assert_eq!(summary.to_json()["denied_beyond"], 500);
        let text = summary.render(Detail::Denials);
        assert!(text.contains("×41") && text.contains("500 more on 0+ other targets"), "{text}");
    }

    #[test]
    fn says_that_nothing_was_denied_only_when_asked() {
        let mut summary = Summary::new(listed());
        let counters = FlowCounters { bytes_out: 5, bytes_in: 7, ..FlowCounters::default() };
        summary.record(&event(EventBody::FlowClosed {
            flow: FlowId(1),
            by: CloseReason::Guest,
            counters,
            duration_ms: 1,
        }));
        assert_eq!(summary.render(Detail::Denials), "");
        let text = summary.render(Detail::Always);
        assert!(text.starts_with("blocked  nothing\n"), "{text}");
        assert!(text.contains("5 bytes out, 7 in"), "{text}");
    }

    #[test]
    fn lost_events_are_said_aloud() {
        let mut summary = Summary::new(listed());
        summary.record(&event(EventBody::LimitReached { limit: LimitKind::Events, bound: 10, count: 3 }));
        assert!(summary.render(Detail::Denials).contains("3 events were lost"));
    }

    fn listed() -> Advice {
        Advice { allow_changes_default: false }
    }

    fn default_deny() -> RuleText {
        RuleText { text: "default egress deny".into(), ..RuleText::default() }
    }

    fn flow(remote: &str, names: &[&str], group: Group, rule: RuleText) -> Event {
        event(EventBody::FlowDenied {
            decision: "7k".into(),
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            guest: "172.16.0.2:4000".parse().unwrap(),
            remote: remote.parse().unwrap(),
            group,
            names: names.iter().map(|&n| n.to_owned()).collect(),
            rule,
            shown: None,
            look_up_again: None,
            process: None,
        })
    }

    fn lookup(name: &str, qtype: u16) -> Event {
        event(EventBody::DnsQuery {
            name: name.into(),
            qtype,
            protocol: None,
            guest: None,
            server: None,
            verdict: Action::Deny,
            rule: default_deny(),
            decision: Some("7k".into()),
            answers: vec![],
            withheld: None,
            rcode: Some(3),
            resolver: None,
            ms: 0.1,
            count: 1,
            process: None,
        })
    }

    fn event(body: EventBody) -> Event {
        Event { v: 1, time: "2026-01-01T00:00:00Z".into(), mono_ns: 0, source: EventSource::Gateway, body }
    }
}
