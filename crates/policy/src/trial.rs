//! Questions that people put to a policy: a target, and what it says to it; a table of targets, with what it should say.
//!
//! ```ebnf
//! target = [ "ingress" ] , host , [ ":" , port ] , [ "/" , ( "tcp" | "udp" | "icmp" ) ] ;       (* tcp without *)
//! host   = address | "[" ipv6 "]" | name , [ "@" , ( ipv4 | "[" ipv6 "]" ) ] ;  (* @: as if the name had this address *)
//! table  = { ( "allow" | "deny" ) , target , newline } ;                        (* `#` begins a comment *)
//! ```
//!
//! Behind `ingress` stands who connects, and the port of the sandbox that this leads to.
//!
//! A table in TOML has two lists, `allow` and `deny`. A row without a port is about every port: it holds when the answer is the
//! same for all of them. That is exact, since between the borders of the rules' ranges no port differs from its neighbour.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::str::FromStr;

use cofferdam_model::{Action, Destination, Direction, DomainName, Group, Protocol, Rule};
use serde::Deserialize;
use toml::Spanned;

use crate::grammar;
use crate::nearest::nearest;
use crate::{Explanation, Facts, PinnedName, Policy};

/// The port that is meant where one has to be and none was said.
const USUAL_PORT: u16 = 443;
/// Mistakes that are told of one table.
const MAX_ERRORS: usize = 100;

/// Where a flow would go, or come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Egress; or ingress, from an address to a port of the sandbox.
    pub direction: Direction,
    pub host: TargetHost,
    pub port: Option<u16>,
    pub carrier: Carrier,
}

/// Who is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetHost {
    Address(IpAddr),
    /// A name, as if it had been looked up and this were its address; a public one that no rule names where none is given.
    Name {
        name: DomainName,
        at: Option<IpAddr>,
    },
}

/// What carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Tcp,
    Udp,
    /// That of the address's family.
    Icmp,
}

/// What is wrong with a target, and where, in bytes of its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TargetError {
    pub span: Range<usize>,
    pub message: String,
    pub help: Option<String>,
}

/// What a policy says to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For a name that a program goes to: whether it may be looked up.
    pub look_up: Option<Explanation>,
    /// The flow that was asked about: of the target's ports, the first that shows the answer.
    pub protocol: Protocol,
    pub peer: IpAddr,
    /// The address stands for any public one.
    pub is_stand_in: bool,
    pub port: Option<u16>,
    pub flow: Explanation,
}

impl Answer {
    /// Whether a program gets there.
    #[must_use]
    pub fn action(&self) -> Action {
        match &self.look_up {
            Some(look_up) if look_up.action == Action::Deny => Action::Deny,
            Some(_) | None => self.flow.action,
        }
    }
}

/// A table of targets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    pub rows: Vec<Row>,
}

/// One target with what a policy should say to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Counted from 1.
    pub line: usize,
    pub expected: Action,
    /// As it was written.
    pub text: String,
    pub target: Target,
}

/// What is wrong with a table, at its place in bytes of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct TableError {
    pub line: usize,
    pub span: Range<usize>,
    pub message: String,
    pub help: Option<String>,
}

impl Policy {
    /// What a program that goes to `target` meets. Without a port: at port 443.
    #[must_use]
    pub fn ask(&self, target: &Target) -> Answer {
        let port = target.port.unwrap_or(USUAL_PORT);
        self.ask_at(target, port)
    }

    /// Whether `row` holds. The answer is that of the first port where it does not, if there is one.
    #[must_use]
    pub fn judge(&self, row: &Row) -> (bool, Answer) {
        let first = self.ask(&row.target);
        let holds = |answer: &Answer| answer.action() == row.expected;
        if row.target.port.is_some() || row.target.carrier == Carrier::Icmp || !holds(&first) {
            return (holds(&first), first);
        }
        let borders: BTreeSet<u16> = self.port_borders().collect();
        // What holds beside the rules is for other policies than this one to test.
        let usual = |answer: &Answer| !matches!(answer.flow.reason.rule, crate::RuleRef::BuiltIn(_));
        let asked = borders.into_iter().map(|port| self.ask_at(&row.target, port));
        let other = asked.into_iter().find(|answer| !holds(answer) && usual(answer));
        other.map_or((true, first), |other| (false, other))
    }

    fn ask_at(&self, target: &Target, port: u16) -> Answer {
        let (peer, name, is_stand_in) = match &target.host {
            TargetHost::Address(address) => (*address, None, false),
            TargetHost::Name { name, at: Some(address) } => (*address, Some(name), false),
            TargetHost::Name { name, at: None } => (self.stand_in(), Some(name), true),
        };
        let (protocol, port) = match (target.carrier, peer.to_canonical()) {
            (Carrier::Tcp, _) => (Protocol::Tcp, Some(port)),
            (Carrier::Udp, _) => (Protocol::Udp, Some(port)),
            (Carrier::Icmp, IpAddr::V4(_)) => (Protocol::IcmpV4, None),
            (Carrier::Icmp, IpAddr::V6(_)) => (Protocol::IcmpV6, None),
        };
        let names: Vec<PinnedName> =
            name.map(|name| PinnedName { name: name.clone(), alias: false }).into_iter().collect();
        let facts = Facts { direction: target.direction, protocol, peer, port, names: &names };
        let query =
            Facts { direction: Direction::Egress, protocol: Protocol::Udp, port: Some(53), names: &[], ..facts };
        // Nobody looks up who comes in; that a name led there before is a matter of the pins.
        let asked = name.filter(|_| target.direction == Direction::Egress);
        let look_up = asked.map(|name| self.explain_name(name, &query));
        Answer { look_up, protocol, peer, is_stand_in, port, flow: self.explain(&facts) }
    }

    /// A public address that no rule for addresses holds, if there is one among a few.
    fn stand_in(&self) -> IpAddr {
        // Root servers of the DNS (IANA, root hints of 2026): public, and no resolver for programs.
        const CANDIDATES: [Ipv4Addr; 4] = [
            Ipv4Addr::new(198, 41, 0, 4),
            Ipv4Addr::new(193, 0, 14, 129),
            Ipv4Addr::new(202, 12, 27, 33),
            Ipv4Addr::new(192, 36, 148, 17),
        ];
        let rules = || self.rule_sets().iter().flat_map(|rules| rules.rules.iter());
        let is_free = |address: &IpAddr| {
            let holds = |rule: &Rule| matches!(&rule.destination, Destination::Cidr(net) if net.contains(address));
            self.classifier().classify(*address) == Group::Public && !rules().any(holds)
        };
        let [first, ..] = CANDIDATES;
        CANDIDATES.map(IpAddr::V4).into_iter().find(is_free).unwrap_or(IpAddr::V4(first))
    }

    /// A port of every stretch between whose ends no rule tells two ports apart.
    fn port_borders(&self) -> impl Iterator<Item = u16> {
        // Those at which a flow's first bytes count, and what holds beside the rules begins or has ended.
        const SPECIAL: [u16; 7] = [1, 80, 81, 443, 444, 853, 854];
        let ranges = self.rule_sets().iter().flat_map(|rules| rules.rules.iter()).flat_map(|rule| &rule.ports);
        let borders = ranges.flat_map(|range| [Some(range.start), range.end.checked_add(1)]).flatten();
        borders.chain(SPECIAL)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let wrong = |part: &str, message: String, help: Option<String>| {
            // What stands last is looked at first: a port's digits may be the address's as well.
            let start = text.rfind(part).unwrap_or(0);
            TargetError { span: start..start + part.len(), message, help }
        };
        if text.is_empty() {
            let message = "empty target; expected a name or an address, as in `example.org:443`".to_owned();
            return Err(wrong("", message, None));
        }
        let words = text.split_once(char::is_whitespace).or((text == "ingress").then_some((text, "")));
        if let Some((word, from)) = words {
            let from = from.trim_start();
            return match word {
                "ingress" => ingress(from).map_err(|error| error.within(text, from)),
                word => {
                    let help = nearest(word, ["ingress"]).map(|word| format!("did you mean `{word} {from}`?"));
                    let message = format!(
                        "{text:?} is not one target; expected a name or an address, or `ingress` and an address"
                    );
                    Err(wrong(text, message, help))
                }
            };
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let host = rest.split('/').next().unwrap_or(rest);
            let port = if scheme == "http" { ":80" } else { ":443" };
            let help = format!("write `{host}{}`", if host.contains(':') { "" } else { port });
            return Err(wrong(text, "a URL; expected a name or an address".to_owned(), Some(help)));
        }
        let (rest, carrier) = match text.rsplit_once('/') {
            None => (text, Carrier::Tcp),
            Some((rest, "tcp")) => (rest, Carrier::Tcp),
            Some((rest, "udp")) => (rest, Carrier::Udp),
            Some((rest, "icmp" | "ping")) => (rest, Carrier::Icmp),
            Some((_, word)) if word.bytes().all(|byte| byte.is_ascii_digit()) && !word.is_empty() => {
                let help = "name one address of it".to_owned();
                return Err(wrong(text, "a network; expected one address".to_owned(), Some(help)));
            }
            Some((_, word)) => {
                let help = nearest(word, ["tcp", "udp", "icmp"]).map(|word| format!("did you mean `/{word}`?"));
                return Err(wrong(word, format!("unknown protocol {word:?}; expected `tcp`, `udp` or `icmp`"), help));
            }
        };
        let (host, port) = split_port(rest);
        let port = match port {
            None => None,
            Some(word) => match word.parse::<u16>().ok().filter(|port| *port > 0 && !word.starts_with('+')) {
                Some(port) => Some(port),
                None => {
                    let message = format!("{word:?} is not a port; expected a number from 1 to 65535");
                    return Err(wrong(word, message, None));
                }
            },
        };
        if carrier == Carrier::Icmp && port.is_some() {
            return Err(wrong(text, "ICMP has no ports".to_owned(), Some("leave the port out".to_owned())));
        }
        let host = match (address(host), host.split_once('@')) {
            (Some(address), _) => TargetHost::Address(address),
            (None, Some((name, at))) => match address(at) {
                Some(address) => TargetHost::Name {
                    name: self::name(name).map_err(|error| error.within(text, name))?,
                    at: Some(address),
                },
                None => return Err(wrong(at, format!("{at:?} is not an address"), None)),
            },
            (None, None) => {
                TargetHost::Name { name: self::name(host).map_err(|error| error.within(text, host))?, at: None }
            }
        };
        Ok(Target { direction: Direction::Egress, host, port, carrier })
    }
}

/// Who connects, and where to.
fn ingress(text: &str) -> Result<Target, TargetError> {
    let whole = |message: &str, help: &str| TargetError {
        span: 0..text.len(),
        message: message.to_owned(),
        help: Some(help.to_owned()),
    };
    let example = "write the address that connects and the port of the sandbox, as in `ingress 203.0.113.7:8080`";
    if text.is_empty() {
        return Err(whole("`ingress` stands alone; expected an address", example));
    }
    let target = text.parse::<Target>()?;
    match target.carrier {
        _ if target.direction == Direction::Ingress => Err(whole("`ingress` stands twice", example)),
        Carrier::Icmp => Err(whole("no ping comes in: published ports take TCP and UDP", "leave `/icmp` out")),
        Carrier::Tcp | Carrier::Udp => Ok(Target { direction: Direction::Ingress, ..target }),
    }
}

impl TargetError {
    /// The same error, where `part` of `text` was looked at.
    fn within(self, text: &str, part: &str) -> TargetError {
        let start = text.find(part).unwrap_or(0);
        TargetError { span: self.span.start + start..self.span.end + start, ..self }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |address: &IpAddr| match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        if self.direction == Direction::Ingress {
            f.write_str("ingress ")?;
        }
        match &self.host {
            TargetHost::Address(address) => f.write_str(&bracketed(address))?,
            TargetHost::Name { name, at: None } => write!(f, "{name}")?,
            TargetHost::Name { name, at: Some(address) } => write!(f, "{name}@{}", bracketed(address))?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.carrier {
            Carrier::Tcp => Ok(()),
            Carrier::Udp => f.write_str("/udp"),
            Carrier::Icmp => f.write_str("/icmp"),
        }
    }
}

/// The host and what stands behind its colon; an IPv6 address without brackets has no port.
fn split_port(text: &str) -> (&str, Option<&str>) {
    let is_open = text.starts_with('[') && !text.contains(']');
    if is_open || text.parse::<Ipv6Addr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        // A colon inside brackets is the address's.
        Some((_, port)) if port.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match inside {
        Some(inside) => inside.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())),
    }
    .map(|address: IpAddr| address.to_canonical())
}

/// A name as the rules have it, with the same mistakes.
fn name(text: &str) -> Result<DomainName, TargetError> {
    let whole = |message: String, help: Option<String>| TargetError { span: 0..text.len(), message, help };
    let is_single = |name: &DomainName| {
        let text = name.as_str();
        !text.contains('.') && !text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let Some(single) = text.parse::<DomainName>().ok().filter(is_single) else {
        let rule = format!("allow@{text}");
        return match grammar::parse_rules(&rule).map(|rules| rules.into_iter().next().map(|rule| rule.destination)) {
            Ok(Some(Destination::Domain(name))) => Ok(name),
            Ok(_) => Err(whole(format!("{text:?} is not one name or address"), None)),
            Err(errors) => {
                let error = errors.0.into_iter().next().map(|error| error.without_prefix("allow@".len()));
                let (message, help) = error.map(|error| (error.kind.to_string(), error.help)).unwrap_or_default();
                // What a rule would take in its place is no answer here.
                Err(whole(message, help.filter(|help| !help.contains("domain="))))
            }
        };
    };
    Ok(single)
}

impl Table {
    /// Parses a table: TOML when `name` ends so, one row a line otherwise.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, up to a hundred mistakes; an empty table is one.
    pub fn parse(name: &str, text: &str) -> Result<Table, Vec<TableError>> {
        let is_toml = name.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("toml"));
        let parsed = if is_toml { from_toml(text)? } else { from_lines(text) };
        let mut rows = Vec::new();
        let mut errors = Vec::new();
        for row in parsed {
            match row {
                Ok(row) => rows.push(row),
                Err(error) if errors.len() < MAX_ERRORS => errors.push(error),
                Err(_) => break,
            }
        }
        if rows.is_empty() && errors.is_empty() {
            let message = "the table is empty; expected rows such as `allow example.org:443`".to_owned();
            errors.push(TableError { line: 1, span: 0..0, message, help: None });
        }
        if errors.is_empty() { Ok(Table { rows }) } else { Err(errors) }
    }
}

fn from_lines(text: &str) -> Vec<Result<Row, TableError>> {
    let mut start = 0;
    let mut rows = Vec::new();
    for (number, whole) in text.split('\n').enumerate() {
        let line = whole.split('#').next().unwrap_or_default();
        let trimmed = line.trim();
        if !trimmed.is_empty() {
            let at = start + (line.len() - line.trim_start().len());
            rows.push(from_line(number + 1, at, trimmed));
        }
        start += whole.len() + 1;
    }
    rows
}

/// One row, which stands at byte `at` of the table.
fn from_line(line: usize, at: usize, text: &str) -> Result<Row, TableError> {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let expected = match word {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        word => {
            let help = match nearest(word, ["allow", "deny"]) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("write `allow {word}` or `deny {word}`"),
            };
            let message = format!("unknown answer {word:?}; expected `allow` or `deny`, and a target");
            return Err(TableError { line, span: at..at + word.len(), message, help: Some(help) });
        }
    };
    let target = rest.trim_start();
    row(line, at + (text.len() - target.len()), expected, target)
}

fn row(line: usize, at: usize, expected: Action, text: &str) -> Result<Row, TableError> {
    match text.parse::<Target>() {
        Ok(target) => Ok(Row { line, expected, text: text.to_owned(), target }),
        Err(TargetError { span, message, help }) => {
            Err(TableError { line, span: at + span.start..at + span.end, message, help })
        }
    }
}

/// A table in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
}

fn from_toml(text: &str) -> Result<Vec<Result<Row, TableError>>, Vec<TableError>> {
    let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let raw: RawTable = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let help = "a table has two lists of targets, `allow` and `deny`".to_owned();
        vec![TableError { line: line(span.start), message: error.message().to_owned(), span, help: Some(help) }]
    })?;
    let lists = [(Action::Allow, raw.allow), (Action::Deny, raw.deny)];
    let mut found: Vec<(Range<usize>, Result<Row, TableError>)> = Vec::new();
    for (expected, list) in lists {
        for target in list {
            let span = target.span();
            let written = target.into_inner();
            // Behind the quotation mark, where nothing in the string is escaped.
            let inside = span.start + 1;
            let plain = text.get(inside..inside + written.len()) == Some(written.as_str());
            let row = row(line(span.start), inside, expected, &written).map_err(|error| match plain {
                true => error,
                false => TableError { span: span.clone(), ..error },
            });
            found.push((span, row));
        }
    }
    found.sort_by_key(|(span, _)| span.start);
    Ok(found.into_iter().map(|(_, row)| row).collect())
}

#[cfg(test)]
mod tests {
    use cofferdam_model::{Classifier, PolicyConfig};

    use super::*;

    fn policy(rules: &str) -> Policy {
        let config = PolicyConfig { rules: grammar::parse_rules(rules).unwrap(), ..PolicyConfig::default() };
        Policy::compile(&config, Classifier::default())
    }

    #[test]
    fn a_target_is_read_and_printed() {
        for (text, printed) in [
            ("example.org", "example.org"),
            ("Example.ORG.:443", "example.org:443"),
            ("example.org:53/udp", "example.org:53/udp"),
            ("intranet:80/tcp", "intranet:80"),
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("::1", "[::1]"),
            ("[2606:4700::1]:443", "[2606:4700::1]:443"),
            ("2606:4700::1/icmp", "[2606:4700::1]/icmp"),
            ("[::ffff:1.2.3.4]:80", "1.2.3.4:80"),
            ("db.corp@10.0.0.5:5432", "db.corp@10.0.0.5:5432"),
            ("db.corp@[fd00::5]:5432", "db.corp@[fd00::5]:5432"),
            ("ingress 203.0.113.7", "ingress 203.0.113.7"),
            ("ingress\t 203.0.113.7:8080/udp", "ingress 203.0.113.7:8080/udp"),
            ("ingress [2001:db8::7]:8080", "ingress [2001:db8::7]:8080"),
            ("ingress 2001:db8::7", "ingress [2001:db8::7]"),
            ("ingress partner.example@203.0.113.7:80", "ingress partner.example@203.0.113.7:80"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(target), "{text}");
        }
    }

    #[test]
    fn a_bad_target_says_what_and_where() {
        for (text, part, message) in [
            ("", "", "empty target"),
            ("example.org:https", "https", "is not a port"),
            ("example.org:0", "0", "is not a port"),
            ("example.org:443/tpc", "tpc", "unknown protocol"),
            ("10.0.0.0/8", "10.0.0.0/8", "a network"),
            ("https://example.org/x", "https://example.org/x", "a URL"),
            ("example.org:1/icmp", "example.org:1/icmp", "ICMP has no ports"),
            ("*.example.org", "*.example.org", "not one name"),
            ("10.0.0.5.6", "10.0.0.5.6", "not an IPv4 address"),
            ("exa mple.org", "exa mple.org", "not one target"),
            ("ingres 10.0.0.5", "ingres 10.0.0.5", "not one target"),
            ("ingress ", "", "stands alone"),
            ("ingress", "", "stands alone"),
            ("ingress ingress 10.0.0.5", "ingress 10.0.0.5", "stands twice"),
            ("ingress 10.0.0.5/icmp", "10.0.0.5/icmp", "no ping comes in"),
            ("ingress 10.0.0.5:x", "x", "is not a port"),
            ("db.corp@nowhere:1", "nowhere", "not an address"),
            ("[::1", "[::1", ""),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.message.contains(message), "{text}: {error:?}");
            assert_eq!(text.get(error.span.clone()), Some(part), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_name_is_asked_about_as_if_it_had_been_looked_up() {
        let policy = policy("allow@example.org:tcp:443,deny@198.41.0.0/16");
        let ask = |text: &str| policy.ask(&text.parse().unwrap());
        let answer = ask("example.org");
        assert_eq!((answer.action(), answer.port, answer.flow.waits), (Action::Allow, Some(443), true));
        // The first stand-in is in a network that a rule names.
        assert_eq!(answer.peer, "193.0.14.129".parse::<IpAddr>().unwrap());
        assert_eq!(ask("example.org:80").action(), Action::Deny);
        let other = ask("example.net");
        assert_eq!(other.look_up.as_ref().map(|look_up| look_up.action), Some(Action::Deny));
        assert_eq!(other.action(), Action::Deny);
        assert_eq!(ask("example.org@[2606:4700::1]:443").action(), Action::Allow);
        assert_eq!(ask("[2606:4700::1]:443").action(), Action::Deny);
    }

    #[test]
    fn what_comes_in_is_asked_about_by_who_connects_and_where_to() {
        let config = PolicyConfig {
            rules: grammar::parse_rules(
                "allow:ingress@10.0.0.0/8:tcp:8080,allow:ingress@[fd00::/8]:udp:53,allow:ingress@partner.example,deny@10.0.0.5",
            )
            .unwrap(),
            default_ingress: Action::Deny,
            ..PolicyConfig::default()
        };
        let policy = Policy::compile(&config, Classifier::default());
        for (row, holds) in [
            ("allow ingress 10.0.0.5:8080", true),
            ("deny 10.0.0.5:8080", true),
            ("deny ingress 10.0.0.5:8081", true),
            ("deny ingress 10.0.0.5:8080/udp", true),
            ("deny ingress 93.184.215.14", true),
            ("deny ingress 10.0.0.5", false),
            ("allow ingress 10.0.0.5", false),
            ("allow ingress [fd00::5]:53/udp", true),
            ("deny ingress [fd00::5]:53", true),
            ("deny ingress [2001:db8::5]", true),
            ("allow ingress partner.example@203.0.113.7:80", true),
            ("allow ingress partner.example@[2001:db8::7]", true),
            ("deny partner.example@203.0.113.7:80", true),
        ] {
            let table = Table::parse("-", row).unwrap();
            let (held, answer) = policy.judge(&table.rows[0]);
            assert_eq!(held, holds, "{row}: {answer:?}");
            assert_eq!(answer.look_up.is_none(), !row.starts_with("deny partner"), "{row}");
        }
    }

    #[test]
    fn a_row_without_a_port_is_about_every_port() {
        let policy = policy("deny@any:tcp:25,allow@public,allow@10.0.0.5:tcp:5432");
        for (row, holds) in [
            ("deny 10.0.0.6", true),
            ("deny 10.0.0.5", false),
            ("allow 10.0.0.5:5432", true),
            ("allow 93.184.215.14", false),
            ("allow 93.184.215.14/udp", true),
            ("deny 93.184.215.14:25", true),
            ("allow [2606:4700::1]:443", true),
            ("deny [fd00::5]", true),
            ("allow 93.184.215.14/icmp", true),
        ] {
            let table = Table::parse("-", row).unwrap();
            let (held, answer) = policy.judge(&table.rows[0]);
            assert_eq!(held, holds, "{row}: {answer:?}");
        }
    }

    #[test]
    fn a_table_is_read_in_both_forms() {
        let lines =
            "# what must pass\nallow example.org:443   # the site\n\n  deny 10.0.0.5\ndeny ingress 10.0.0.5:25\n";
        let toml = "allow = ['example.org:443']\ndeny = [\n  \"10.0.0.5\",\n  'ingress 10.0.0.5:25',\n]\n";
        let [lines, toml] = [("t", lines), ("t.toml", toml)].map(|(name, text)| Table::parse(name, text).unwrap());
        let without_lines = |table: &Table| -> Vec<(Action, String)> {
            table.rows.iter().map(|row| (row.expected, row.target.to_string())).collect()
        };
        assert_eq!(without_lines(&lines), without_lines(&toml));
        assert_eq!(lines.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(toml.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn a_bad_table_says_every_mistake_at_its_place() {
        let text = "allow example.org:443\nalow example.org\ndeny example.org:x\ndeny\n";
        let errors = Table::parse("t", text).unwrap_err();
        let shown: Vec<(usize, &str)> =
            errors.iter().map(|error| (error.line, text.get(error.span.clone()).unwrap())).collect();
        assert_eq!(shown, [(2, "alow"), (3, "x"), (4, "")]);
        let text = "allow = ['example.org:x', \"a\\u002eb:443\", \"\\u0041:x\"]\n";
        let errors = Table::parse("t.toml", text).unwrap_err();
        let shown: Vec<&str> = errors.iter().map(|error| text.get(error.span.clone()).unwrap()).collect();
        assert_eq!(shown, ["x", "\"\\u0041:x\""]);
        for (name, text) in [("t", "# nothing\n"), ("t.toml", ""), ("t.toml", "alow = []"), ("t.toml", "allow = 1")] {
            assert_eq!(Table::parse(name, text).unwrap_err().len(), 1, "{text}");
        }
    }
}
