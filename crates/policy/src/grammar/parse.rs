use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use cofferdam_model::{Action, Destination, Direction, Group, NameError, PortRange, Protocol, ProtocolSet, Rule};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::grammar::error::{RuleError, RuleErrorKind as Kind, RuleErrors};
use crate::grammar::piece::Piece;
use crate::grammar::{ALLOW_PRIVATE, DNS_PORT, OPAQUE, name};
use crate::nearest::{nearest, roughly};
use crate::{preset, rule_problem};

/// Errors reported for one text: more than anybody mends in one go, and few enough to print.
const MAX_ERRORS: usize = 100;

/// Parses `text` as tokens of the full grammar.
pub(crate) fn rules(text: &str) -> Result<Vec<Rule>, RuleErrors> {
    tokens(text, long)
}

/// Parses `text` as tokens of the short form.
pub(crate) fn short(action: Action, text: &str) -> Result<Vec<Rule>, RuleErrors> {
    tokens(text, |token, out| short_token(action, token, out))
}

/// Completes `rule` with a destination written as a target of the grammar.
pub(crate) fn with_target(rule: Rule, text: &str) -> Result<Vec<Rule>, RuleErrors> {
    let token = Piece::whole(text);
    let mut rules = Vec::new();
    let parsed = right(token, Style::Long).and_then(|(target, rest)| match rest {
        None => push(&mut rules, rule, target, &Places { token, direction: token, protocols: None, ports: None }),
        Some(rest) => Err(Problem::new(rest, Kind::Trailing { text: rest.text.to_owned() })),
    });
    match parsed {
        Ok(()) => Ok(rules),
        Err(problem) => Err(RuleErrors(vec![problem.into_error(&Arc::from(text), token)])),
    }
}

fn tokens(
    text: &str,
    mut parse: impl for<'a> FnMut(Piece<'a>, &mut Vec<Rule>) -> Result<(), Problem>,
) -> Result<Vec<Rule>, RuleErrors> {
    let mut rules = Vec::new();
    let mut errors = Vec::new();
    let mut source: Option<Arc<str>> = None;
    for token in Piece::whole(text).split(',').map(Piece::trim).filter(|token| !token.text.is_empty()) {
        if let Err(problem) = parse(token, &mut rules) {
            let source = source.get_or_insert_with(|| Arc::from(text));
            errors.push(problem.into_error(source, token));
            if errors.len() == MAX_ERRORS {
                break;
            }
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(RuleErrors(errors)) }
}

/// A [`RuleError`] before the text around it is known.
#[derive(Debug)]
pub(crate) struct Problem {
    span: Range<usize>,
    kind: Kind,
    help: Option<String>,
}

impl Problem {
    pub(crate) fn new(at: Piece<'_>, kind: Kind) -> Problem {
        Problem { span: at.span(), kind, help: None }
    }

    pub(crate) fn help(self, help: impl Into<Option<String>>) -> Problem {
        Problem { help: help.into(), ..self }
    }

    fn into_error(self, source: &Arc<str>, token: Piece<'_>) -> RuleError {
        let Problem { span, kind, help } = self;
        RuleError { source: Arc::clone(source), token: token.span(), span, kind, help }
    }
}

/// Which grammar the text is in: it changes what an error suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Long,
    Short,
}

/// What a target stands for.
enum Target {
    /// The gateway's resolver: group host, and tcp and udp port 53 only.
    Dns,
    These(Vec<Destination>),
}

fn long(token: Piece<'_>, out: &mut Vec<Rule>) -> Result<(), Problem> {
    let Some((left, right_side)) = token.split_once('@') else {
        return Err(Problem::new(token, Kind::MissingAt).help(suggest_at(token.text)));
    };
    let (action, direction) = match left.split_once(':') {
        Some((action_word, direction_word)) => (action(action_word, token)?, direction(direction_word)?),
        None => (action(left, token)?, Direction::Egress),
    };
    let (right_side, Suffixes { opaque, allow_private }) = suffixes(right_side);
    let (target, rest) = right(right_side, Style::Long)?;
    let (protocol_words, port_words) = match rest.map(|rest| (rest, rest.split_once(':'))) {
        None => (None, None),
        Some((rest, None)) => (Some(rest), None),
        Some((_, Some((first, second)))) => (Some(first), Some(second)),
    };
    if let Some((_, extra)) = port_words.and_then(|ports| ports.split_once(':')) {
        return Err(Problem::new(extra, Kind::Trailing { text: extra.text.to_owned() }));
    }
    let protocols = match protocol_words {
        Some(words) => protocols(words, port_words, token)?,
        None => ProtocolSet::ANY,
    };
    let ports = match port_words {
        Some(words) => ports(words)?,
        None => Vec::new(),
    };
    let places = Places { token, direction: left, protocols: protocol_words, ports: port_words };
    let destination = Destination::Any;
    let rule = Rule { action, direction, destination, protocols, ports, opaque, allow_private };
    push(out, rule, target, &places)
}

fn short_token(action: Action, token: Piece<'_>, out: &mut Vec<Rule>) -> Result<(), Problem> {
    let word = super::action_word(action);
    if let Some((left, _)) = token.split_once('@')
        && !left.text.is_empty()
    {
        let kind = Kind::Name { text: token.text.to_owned(), source: NameError::Character { character: '@' } };
        let help =
            format!("a whole rule goes into `--net-rule`; here only the target, as in `--{word} example.org:443`");
        return Err(Problem::new(token, kind).help(help));
    }
    let (token, Suffixes { opaque, allow_private }) = suffixes(token);
    let (target, port_words) = right(token, Style::Short)?;
    let ports = match port_words {
        Some(words) => short_ports(words, word, token)?,
        None => Vec::new(),
    };
    let protocols = ProtocolSet::default().with(Protocol::Tcp).with(Protocol::Udp);
    let places = Places { token, direction: token, protocols: None, ports: port_words };
    let (direction, destination) = (Direction::Egress, Destination::Any);
    let rule = Rule { action, direction, destination, protocols, ports, opaque, allow_private };
    push(out, rule, target, &places)
}

/// The last words of a rule, which stand behind whatever else there is.
#[derive(Debug, Default)]
struct Suffixes {
    opaque: bool,
    allow_private: bool,
}

/// Takes the last words off, in whichever order; one that is repeated stays and is no protocol or port.
fn suffixes(mut piece: Piece<'_>) -> (Piece<'_>, Suffixes) {
    let mut found = Suffixes::default();
    loop {
        let (before, said) = match (piece.strip_suffix(OPAQUE), piece.strip_suffix(ALLOW_PRIVATE)) {
            (Some(before), _) => (before, &mut found.opaque),
            (None, Some(before)) => (before, &mut found.allow_private),
            (None, None) => return (piece, found),
        };
        if std::mem::replace(said, true) {
            return (piece, found);
        }
        piece = before;
    }
}

/// Where the parts of a rule stand, for errors about how they go together.
struct Places<'a> {
    token: Piece<'a>,
    direction: Piece<'a>,
    protocols: Option<Piece<'a>>,
    ports: Option<Piece<'a>>,
}

/// Completes `rule` with its destinations and checks the whole.
fn push(out: &mut Vec<Rule>, mut rule: Rule, target: Target, places: &Places<'_>) -> Result<(), Problem> {
    let destinations = match target {
        Target::These(destinations) => destinations,
        Target::Dns => {
            narrow_to_dns(&mut rule, places)?;
            vec![Destination::Group(Group::Host)]
        }
    };
    rule_problem::normalise(&mut rule);
    if let Err(problem) = rule_problem::check(&rule) {
        let at = match problem {
            rule_problem::RuleProblem::IcmpIngress => places.direction,
            rule_problem::RuleProblem::IcmpPorts
            | rule_problem::RuleProblem::PortZero
            | rule_problem::RuleProblem::Opaque
            | rule_problem::RuleProblem::AllowPrivate
            | rule_problem::RuleProblem::ReversedRange { .. } => places.ports.unwrap_or(places.token),
        };
        return Err(Problem::new(at, Kind::Rule(problem)));
    }
    for destination in destinations {
        let rule = Rule { destination, ..rule.clone() };
        rule_problem::check_suffixes(&rule).map_err(|problem| Problem::new(places.token, Kind::Rule(problem)))?;
        out.push(rule);
    }
    Ok(())
}

fn narrow_to_dns(rule: &mut Rule, places: &Places<'_>) -> Result<(), Problem> {
    if rule.direction != Direction::Egress {
        return Err(Problem::new(places.direction, Kind::DnsDirection)
            .help(format!("write `{}@dns`", super::action_word(rule.action))));
    }
    let tcp_udp = ProtocolSet::default().with(Protocol::Tcp).with(Protocol::Udp);
    if rule.protocols.is_any() {
        rule.protocols = tcp_udp;
    }
    if rule.protocols.iter().any(|protocol| !tcp_udp.matches(protocol)) {
        let at = places.protocols.unwrap_or(places.token);
        return Err(Problem::new(at, Kind::DnsProtocol { word: at.text.to_owned() }));
    }
    if !rule.ports.is_empty() && rule.ports != [DNS_PORT] {
        let at = places.ports.unwrap_or(places.token);
        let help = format!("for another service on the host write `{}@host`", super::action_word(rule.action));
        return Err(Problem::new(at, Kind::DnsPort).help(help));
    }
    rule.ports = vec![DNS_PORT];
    Ok(())
}

fn action(piece: Piece<'_>, token: Piece<'_>) -> Result<Action, Problem> {
    match piece.text {
        "allow" => Ok(Action::Allow),
        "deny" => Ok(Action::Deny),
        "" => Err(Problem::new(piece, Kind::UnknownAction { word: String::new() })
            .help(format!("write `allow@{0}` or `deny@{0}`", token.text.strip_prefix('@').unwrap_or(token.text)))),
        word => {
            let meant = nearest(word, ["allow", "deny"]).or(match word {
                "accept" | "permit" | "pass" | "+" => Some("allow"),
                "block" | "reject" | "drop" | "refuse" | "-" => Some("deny"),
                _ => None,
            });
            Err(Problem::new(piece, Kind::UnknownAction { word: word.to_owned() }).help(did_you_mean(meant)))
        }
    }
}

fn direction(piece: Piece<'_>) -> Result<Direction, Problem> {
    match piece.text {
        "egress" => Ok(Direction::Egress),
        "ingress" => Ok(Direction::Ingress),
        "any" => Ok(Direction::Any),
        word => {
            let meant = match word {
                "out" | "outbound" | "output" => Some("egress"),
                "in" | "inbound" | "input" => Some("ingress"),
                "both" => Some("any"),
                word => nearest(word, ["egress", "ingress", "any"]),
            };
            Err(Problem::new(piece, Kind::UnknownDirection { word: word.to_owned() }).help(did_you_mean(meant)))
        }
    }
}

pub(super) fn did_you_mean(word: Option<&str>) -> Option<String> {
    word.map(|word| format!("did you mean `{word}`?"))
}

fn suggest_at(token: &str) -> String {
    for action in ["allow", "deny"] {
        if let Some(rest) = token.strip_prefix(action) {
            let rest = rest.trim_start_matches([':', ' ', '=', '\t']);
            return if rest.is_empty() { format!("write `{action}@any`") } else { format!("write `{action}@{rest}`") };
        }
    }
    format!("write `allow@{token}` or `deny@{token}`")
}

/// Splits the right side into its target and what follows the target's colon.
fn right<'a>(piece: Piece<'a>, style: Style) -> Result<(Target, Option<Piece<'a>>), Problem> {
    if piece.text.starts_with('[') {
        return bracketed(piece);
    }
    if let Some(suggestion) = unbracketed_ipv6(piece.text) {
        return Err(Problem::new(piece, Kind::Unbracketed).help(format!("write `{suggestion}`")));
    }
    let url = piece.text.contains("://");
    let (target, rest) = match piece.split_once(':') {
        Some((target, rest)) if !url => (target, Some(rest)),
        Some(_) | None => (piece, None),
    };
    Ok((self::target(target, style)?, rest))
}

/// `[ipv6]`, `[ipv6/len]` and what follows.
fn bracketed(piece: Piece<'_>) -> Result<(Target, Option<Piece<'_>>), Problem> {
    let Some((inside, after)) = piece.skip(1).split_once(']') else {
        return Err(Problem::new(piece, Kind::MissingBracket));
    };
    let rest = match after.text.strip_prefix(':') {
        Some(_) => Some(after.skip(1)),
        None if after.text.is_empty() => None,
        None => return Err(Problem::new(after, Kind::Trailing { text: after.text.to_owned() })),
    };
    let (address, length) = match inside.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (inside, None),
    };
    let Ok(v6) = address.text.parse::<Ipv6Addr>() else {
        let ipv4 = address.text.parse::<Ipv4Addr>().is_ok();
        let help = ipv4.then(|| format!("an IPv4 address stands without brackets: `{}`", inside.text));
        return Err(Problem::new(address, Kind::Ipv6 { text: address.text.to_owned() }).help(help));
    };
    let length = length.map_or(Ok(128), |piece| prefix_length(piece, 128))?;
    let net = unwrap_mapped(v6, length);
    let trunc = net.trunc();
    if trunc != net {
        let network = format!("[{trunc}]");
        return Err(host_bits(inside, if matches!(trunc, IpNet::V4(_)) { trunc.to_string() } else { network }));
    }
    Ok((Target::These(vec![Destination::Cidr(net)]), rest))
}

/// An IPv4-mapped prefix is the IPv4 prefix inside it.
fn unwrap_mapped(address: Ipv6Addr, length: u8) -> IpNet {
    if let (Some(v4), Some(length)) = (address.to_ipv4_mapped(), length.checked_sub(96))
        && let Ok(net) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(net);
    }
    match Ipv6Net::new(address, length) {
        Ok(net) => IpNet::V6(net),
        // `length` was checked against 128; the single address is the narrowest reading all the same.
        Err(_) => IpNet::V6(Ipv6Net::from(address)),
    }
}

fn target(piece: Piece<'_>, style: Style) -> Result<Target, Problem> {
    let one = |destination| Ok(Target::These(vec![destination]));
    let text = piece.text;
    if text.is_empty() {
        return Err(Problem::new(piece, Kind::EmptyTarget));
    }
    if text == "any" {
        return one(Destination::Any);
    }
    if text == "dns" {
        return Ok(Target::Dns);
    }
    if let Some(group) = Group::from_word(text) {
        return one(Destination::Group(group));
    }
    if let Some(word) = text.strip_prefix('@') {
        return list(piece, word);
    }
    if let Some(name) = piece.strip_prefix("suffix!=") {
        return one(name::suffix(name, name::PublicSuffix::Accept)?);
    }
    if let Some(name) = piece.strip_prefix("suffix=").or_else(|| piece.strip_prefix("*.")) {
        return one(name::suffix(name, name::PublicSuffix::Refuse)?);
    }
    if text.starts_with('.') {
        return one(name::suffix(piece, name::PublicSuffix::Refuse)?);
    }
    if let Some(name) = piece.strip_prefix("domain=") {
        return one(Destination::Domain(name::exact(name)?));
    }
    if looks_like_ipv4(text) {
        return one(Destination::Cidr(ipv4(piece)?));
    }
    if text.contains('/') {
        return Err(Problem::new(piece, Kind::Url { text: text.to_owned() }).help(host_of_url(text)));
    }
    if text.strip_suffix('.').unwrap_or(text).contains('.') || text.contains('*') {
        return one(Destination::Domain(name::exact(piece)?));
    }
    Err(bare_word(piece, style))
}

fn list(piece: Piece<'_>, word: &str) -> Result<Target, Problem> {
    if let Some(group) = Group::from_word(word)
        && preset::list(word).is_none()
    {
        return Ok(Target::These(vec![Destination::Group(group)]));
    }
    preset::list(word).map(Target::These).ok_or_else(|| {
        // The rule's own `@` is there already: `allow@@pypi`, `--allow @pypi`.
        let bare = word.trim_start_matches('@');
        let meant = list_for(bare).or_else(|| {
            let constants = preset::LISTS.iter().map(|list| list.constant);
            roughly(bare, preset::LISTS.iter().map(|list| list.word)).or_else(|| nearest(bare, constants))
        });
        let help = meant.map(|word| format!("did you mean `@{word}`?"));
        Problem::new(piece, Kind::UnknownList { word: word.to_owned() }).help(help)
    })
}

/// The list that people mean who name a tool, a language or another word for the list.
fn list_for(word: &str) -> Option<&'static str> {
    if let Some(list) = preset::LISTS.iter().find(|list| list.word == word || list.constant == word) {
        return Some(list.word);
    }
    match word {
        "pip" | "python" | "uv" | "poetry" => Some("pypi"),
        "node" | "nodejs" | "yarn" | "pnpm" => Some("npm"),
        "cargo" | "rust" => Some("crates"),
        "golang" => Some("go"),
        "apt" | "deb" => Some("debian"),
        "git" | "gh" => Some("github"),
        _ => None,
    }
}

/// Nothing with these letters can be a name: a name whose last label is a number is an address to most programs.
fn looks_like_ipv4(text: &str) -> bool {
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    let last = address.strip_suffix('.').unwrap_or(address).rsplit('.').next().unwrap_or_default();
    let numeric = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit());
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    address.contains('.') && (numeric(last) || hex)
}

fn ipv4(piece: Piece<'_>) -> Result<IpNet, Problem> {
    let (address, length) = match piece.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (piece, None),
    };
    let Ok(v4) = address.text.parse::<Ipv4Addr>() else {
        return Err(Problem::new(address, Kind::Ipv4 { text: address.text.to_owned() }));
    };
    let length = length.map_or(Ok(32), |piece| prefix_length(piece, 32))?;
    let net = Ipv4Net::new(v4, length)
        .map_err(|_| Problem::new(piece, Kind::PrefixLength { text: length.to_string(), max: 32 }))?;
    if net.trunc() != net {
        return Err(host_bits(piece, net.trunc().to_string()));
    }
    Ok(IpNet::V4(net))
}

fn host_bits(piece: Piece<'_>, network: String) -> Problem {
    let help = format!("did you mean the network `{network}`?");
    Problem::new(piece, Kind::HostBits { text: piece.text.to_owned(), network }).help(help)
}

fn prefix_length(piece: Piece<'_>, max: u8) -> Result<u8, Problem> {
    decimal(piece.text)
        .and_then(|number| u8::try_from(number).ok())
        .filter(|length| *length <= max)
        .ok_or_else(|| Problem::new(piece, Kind::PrefixLength { text: piece.text.to_owned(), max }))
}

/// A number of digits alone: no sign, no space, no leading zero, which some programs read as octal.
fn decimal(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The text with the address in brackets, when it begins with an IPv6 address or network that is not.
fn unbracketed_ipv6(text: &str) -> Option<String> {
    if text.bytes().filter(|byte| *byte == b':').count() < 2 {
        return None;
    }
    let ends = text.match_indices(':').map(|(at, _)| at).chain([text.len()]);
    ends.rev().find_map(|end| {
        let (address, rest) = text.split_at_checked(end)?;
        let (plain, length) = address.split_once('/').unwrap_or((address, "0"));
        let is_address = plain.parse::<Ipv6Addr>().is_ok() && decimal(length).is_some();
        is_address.then(|| format!("[{address}]{rest}"))
    })
}

fn host_of_url(text: &str) -> Option<String> {
    let after = text.split_once("://").map_or(text, |(_, after)| after);
    let host = after.split(['/', '?', '#', ':']).next().filter(|host| !host.is_empty())?;
    Some(format!("write the host alone: `{host}`"))
}

fn bare_word(piece: Piece<'_>, style: Style) -> Problem {
    let word = piece.text.strip_suffix('.').unwrap_or(piece.text);
    if word.eq_ignore_ascii_case("localhost") {
        let help = "for services on the host machine write `host`, as in `host:tcp:5432`";
        let help = if style == Style::Short {
            "for services on the host machine write `host`, as in `host:5432`"
        } else {
            help
        };
        return Problem::new(piece, Kind::Localhost).help(help.to_owned());
    }
    let groups = Group::ALL.map(Group::word);
    let help = if word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        "ports are joined with `+`, as in `example.org:80+443`; a comma begins the next rule".to_owned()
    } else if preset::list(word).is_some() {
        format!("for the list write `@{word}`")
    } else if let Some(meant) = nearest(word, groups.into_iter().chain(["meta", "any", "dns"])) {
        format!("did you mean `{meant}`? For a host with that name write `domain={word}`")
    } else {
        format!("for a host with that name write `domain={word}`; the groups are {}", groups.join(", "))
    };
    Problem::new(piece, Kind::BareWord { word: word.to_owned() }).help(help)
}

fn protocols(piece: Piece<'_>, ports: Option<Piece<'_>>, token: Piece<'_>) -> Result<ProtocolSet, Problem> {
    let mut set = ProtocolSet::default();
    let mut any = false;
    for word in piece.split('+') {
        match word.text {
            "any" => any = true,
            "tcp" => set = set.with(Protocol::Tcp),
            "udp" => set = set.with(Protocol::Udp),
            "icmpv4" => set = set.with(Protocol::IcmpV4),
            "icmpv6" => set = set.with(Protocol::IcmpV6),
            "icmp" => set = set.with(Protocol::IcmpV4).with(Protocol::IcmpV6),
            other => return Err(unknown_protocol(word, other, piece, ports, token)),
        }
    }
    Ok(if any { ProtocolSet::ANY } else { set })
}

fn unknown_protocol(
    word: Piece<'_>,
    text: &str,
    all: Piece<'_>,
    ports: Option<Piece<'_>>,
    token: Piece<'_>,
) -> Problem {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        let before = token.text.get(..all.at.saturating_sub(token.at)).unwrap_or_default();
        // `x:443:tcp` has both, in the wrong order.
        let protocol = ports.map(|ports| ports.text).filter(|text| matches!(*text, "tcp" | "udp")).unwrap_or("tcp");
        let help = format!("write `{before}{protocol}:{}`", all.text);
        return Problem::new(all, Kind::PortForProtocol { text: all.text.to_owned() }).help(help);
    }
    let meant = match text {
        "ping" | "icmp4" | "icmp6" => Some("icmp"),
        "http" | "https" | "ssh" => Some("tcp"),
        "quic" => Some("udp"),
        text => nearest(text, ["tcp", "udp", "icmpv4", "icmpv6", "icmp", "any"]),
    };
    Problem::new(word, Kind::UnknownProtocol { word: text.to_owned() }).help(did_you_mean(meant))
}

fn short_ports(piece: Piece<'_>, action: &str, token: Piece<'_>) -> Result<Vec<PortRange>, Problem> {
    let (first, rest) = match piece.split_once(':') {
        Some((first, rest)) => (first, Some(rest)),
        None => (piece, None),
    };
    if matches!(first.text, "tcp" | "udp" | "icmp" | "icmpv4" | "icmpv6") {
        let help = format!("write `--net-rule {action}@{}`", token.text);
        return Err(Problem::new(first, Kind::ProtocolForPort { word: first.text.to_owned() }).help(help));
    }
    let parsed = ports(first)?;
    match rest {
        Some(rest) => Err(Problem::new(rest, Kind::Trailing { text: rest.text.to_owned() })),
        None => Ok(parsed),
    }
}

fn ports(piece: Piece<'_>) -> Result<Vec<PortRange>, Problem> {
    let mut ranges = Vec::new();
    let mut any = false;
    for range in piece.split('+') {
        if range.text == "any" {
            any = true;
            continue;
        }
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        let (start, end) = (port(start, range)?, port(end, range)?);
        if start > end {
            let help = format!("did you mean `{end}-{start}`?");
            return Err(Problem::new(range, Kind::ReversedRange { text: range.text.to_owned() }).help(help));
        }
        ranges.push(PortRange { start, end });
    }
    Ok(if any { Vec::new() } else { ranges })
}

fn port(piece: Piece<'_>, range: Piece<'_>) -> Result<u16, Problem> {
    decimal(piece.text).filter(|port| *port > 0).ok_or_else(|| {
        let help = match piece.text {
            "http" => Some("did you mean `80`?"),
            "https" => Some("did you mean `443`?"),
            "ssh" => Some("did you mean `22`?"),
            "dns" | "domain" => Some("did you mean `53`?"),
            _ => None,
        };
        Problem::new(range, Kind::Port { text: range.text.to_owned() }).help(help.map(str::to_owned))
    })
}
