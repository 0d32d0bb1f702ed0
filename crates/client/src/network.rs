use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cofferdam_model::{NetworkConfig, NetworkMode, PolicyConfig, PortProtocol};
use cofferdam_policy::file::{self, ConfigError, ConfigErrors};
use cofferdam_policy::posture::Posture;

use crate::Error;

/// The network of a sandbox or of a run, as a closure fills it.
///
/// What may be reached is said in one way: by a [policy](Network::policy), by a [mode](Network::mode) with lists, or by a whole
/// [configuration](Network::config); two of them contradict, which is an error. Without any, a sandbox has the public internet,
/// a session nothing, and a run everything that its sandbox has.
///
/// ```
/// use cofferdam_client::policy::Policy;
/// use cofferdam_client::Sandbox;
///
/// let policy = Policy::builder().egress(|e| e.tcp().port(443).allow_domain("api.example.org")).build()?;
/// let sandbox = Sandbox::builder("work").network(|n| n.policy(policy).port(8080, 80).port_udp(5353, 53));
/// # Ok::<(), cofferdam_client::Error>(())
/// ```
#[derive(Default)]
#[must_use = "return it from the closure"]
pub struct Network {
    config: Option<Box<NetworkConfig>>,
    policy: Option<PolicyConfig>,
    mode: Option<NetworkMode>,
    lists: Posture,
    ports: Vec<String>,
    adjustments: Vec<Adjustment>,
}

type Adjustment = Box<dyn FnOnce(&mut NetworkConfig) + Send>;

impl Network {
    /// What may be reached, and from where, as rules.
    pub fn policy(mut self, policy: PolicyConfig) -> Network {
        self.policy = Some(policy);
        self
    }

    /// The network in a word.
    pub fn mode(mut self, mode: NetworkMode) -> Network {
        self.mode = Some(mode);
        self
    }

    /// With mode `Allowlist`: networks, addresses, names, patterns, groups and named lists (`@pypi`) that may be reached.
    pub fn allowlist(mut self, entries: impl IntoIterator<Item = impl Into<String>>) -> Network {
        self.lists.allowlist.extend(entries.into_iter().map(Into::into));
        self
    }

    /// With modes `Open` and `Allowlist`: what may not be reached, tried first.
    pub fn denylist(mut self, entries: impl IntoIterator<Item = impl Into<String>>) -> Network {
        self.lists.denylist.extend(entries.into_iter().map(Into::into));
        self
    }

    /// Everything at once, as [`policy::file`](crate::policy::file) reads it.
    pub fn config(mut self, config: NetworkConfig) -> Network {
        self.config = Some(Box::new(config));
        self
    }

    /// Publishes a TCP port: `host` of 127.0.0.1 leads to `guest` in the sandbox. 0 is one that the system picks;
    /// [`Sandbox::ports`](crate::Sandbox::ports) knows which.
    pub fn port(self, host: u16, guest: u16) -> Network {
        self.port_on(Ipv4Addr::LOCALHOST, host, guest)
    }

    /// As [`Network::port`], for UDP.
    pub fn port_udp(self, host: u16, guest: u16) -> Network {
        self.port_udp_on(Ipv4Addr::LOCALHOST, host, guest)
    }

    /// As [`Network::port`], on another address of this machine; `0.0.0.0` and `::` let everybody in who reaches it.
    pub fn port_on(self, address: impl Into<IpAddr>, host: u16, guest: u16) -> Network {
        self.publish(address.into(), host, guest, PortProtocol::Tcp)
    }

    /// As [`Network::port_on`], for UDP.
    pub fn port_udp_on(self, address: impl Into<IpAddr>, host: u16, guest: u16) -> Network {
        self.publish(address.into(), host, guest, PortProtocol::Udp)
    }

    /// Changes anything else, when all the rest is known: limits, rates, budgets, resolvers, addresses.
    ///
    /// ```
    /// # use cofferdam_client::Sandbox;
    /// Sandbox::builder("work").network(|n| n.adjust(|network| network.limits.max_connections = 10));
    /// ```
    pub fn adjust(mut self, change: impl FnOnce(&mut NetworkConfig) + Send + 'static) -> Network {
        self.adjustments.push(Box::new(change));
        self
    }

    fn publish(mut self, address: IpAddr, host: u16, guest: u16, protocol: PortProtocol) -> Network {
        self.ports.push(format!("{}:{guest}/{}", SocketAddr::new(address, host), protocol.word()));
        self
    }

    /// Whether nothing was said.
    pub(crate) fn is_empty(&self) -> bool {
        let Network { config, policy, mode, lists, ports, adjustments } = self;
        let says_what = config.is_some() || policy.is_some() || mode.is_some() || *lists != Posture::default();
        !says_what && ports.is_empty() && adjustments.is_empty()
    }

    /// What was asked for, validated by the same code that reads files. `usual` is the mode where none of the three ways was
    /// taken.
    pub(crate) fn resolve(self, usual: Option<NetworkMode>) -> Result<NetworkConfig, Error> {
        let Network { config, policy, mode, lists, ports, adjustments } = self;
        let is_posture = mode.is_some() || lists != Posture::default();
        if [config.is_some(), policy.is_some(), is_posture].into_iter().filter(|said| *said).count() > 1 {
            return Err(wrong(
                "network",
                "`config`, `policy` and a mode with its lists are three ways to say one thing",
                "say it in one way",
            ));
        }
        let usual = if config.is_some() || policy.is_some() { None } else { usual };
        let mut network = match (config, policy, mode.or(usual)) {
            (Some(config), _, _) => *config,
            (None, Some(policy), _) => NetworkConfig { policy, ..file::default_network() },
            (None, None, Some(mode)) => Posture { mode, ..lists }.network()?,
            (None, None, None) if is_posture => {
                let message = "`network_allowlist` and `network_denylist` go with `network_mode`, which is not there";
                return Err(wrong("network_mode", message, "give mode `Allowlist` or `Open` as well"));
            }
            (None, None, None) => file::default_network(),
        };
        for port in ports {
            network.ports.extend(file::parse_port(&port)?);
        }
        for change in adjustments {
            change(&mut network);
        }
        // The wire form is what a sandbox is made from. Reading it here finds whatever the program would refuse.
        file::parse(WIRE, &file::to_json(&network)).map_err(|ConfigErrors(errors)| {
            let own = |origin: &str| {
                origin.strip_prefix(WIRE).map_or(origin, |rest| rest.trim_start_matches(": ")).to_owned()
            };
            let errors = errors.into_iter().map(|error| ConfigError { origin: own(&error.origin), ..error });
            Error::Policy(ConfigErrors(errors.collect()))
        })
    }
}

/// What the wire form is called while it is read: the ending tells what it is.
const WIRE: &str = "network.json";

pub(crate) fn wrong(origin: &str, message: &str, help: &str) -> Error {
    let (origin, message, help) = (origin.to_owned(), message.to_owned(), Some(help.to_owned()));
    Error::Policy(ConfigErrors(vec![ConfigError { origin, message, help, rule: None }]))
}

/// Refuses ports where they would be lost.
pub(crate) fn without_ports(network: NetworkConfig) -> Result<NetworkConfig, Error> {
    if network.ports.is_empty() {
        return Ok(network);
    }
    Err(wrong("ports", "ports belong to the sandbox", "publish them when it is created, or with `Sandbox::publish`"))
}

/// The wire form of a network that takes the place of another: of limits, the link and resolvers it has those alone that are not
/// the usual ones, so that the others stay as they are.
pub(crate) fn wire_of_change(network: &NetworkConfig) -> serde_json::Value {
    const LIMITS: [&str; 7] = [
        "interface",
        "max_connections",
        "max_inbound_connections",
        "max_udp_connections",
        "connect_timeout_ms",
        "rate_limiter",
        "budgets",
    ];
    const RESOLVERS: [&str; 3] = ["nameservers", "query_timeout_ms", "pin_floor_ms"];
    let (mut change, usual) = (wire(network), wire(&file::default_network()));
    let drop_usual = |change: Option<&mut serde_json::Value>, usual: Option<&serde_json::Value>, keys: &[&str]| {
        if let Some(change) = change.and_then(serde_json::Value::as_object_mut) {
            change.retain(|key, value| {
                !keys.contains(&key.as_str()) || usual.and_then(|usual| usual.get(key)) != Some(value)
            });
        }
    };
    drop_usual(change.get_mut("dns"), usual.get("dns"), &RESOLVERS);
    drop_usual(Some(&mut change), Some(&usual), &LIMITS);
    change
}

/// The wire form of a network.
pub(crate) fn wire(network: &NetworkConfig) -> serde_json::Value {
    // It was written as JSON a moment ago.
    serde_json::from_str(&file::to_json(network)).unwrap_or_default()
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Network { config, policy, mode, lists, ports, adjustments } = self;
        f.debug_struct("Network")
            .field("config", config)
            .field("policy", policy)
            .field("mode", mode)
            .field("lists", lists)
            .field("ports", ports)
            .field("adjustments", &adjustments.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use cofferdam_model::{Action, Destination, Rule};

    use super::*;

    fn resolve(fill: impl FnOnce(Network) -> Network) -> Result<NetworkConfig, Error> {
        fill(Network::default()).resolve(None)
    }

    #[test]
    fn nothing_said_is_the_public_internet_or_what_is_usual() {
        assert!(Network::default().is_empty());
        assert_eq!(resolve(|n| n).unwrap(), file::default_network());
        assert!(!Network::default().resolve(Some(NetworkMode::Blocked)).unwrap().enabled);
        let said = Network::default().policy(PolicyConfig::default()).resolve(Some(NetworkMode::Blocked)).unwrap();
        assert!(said.enabled);
    }

    #[test]
    fn a_change_names_what_it_changes() {
        let change = |fill: fn(Network) -> Network| wire_of_change(&resolve(fill).unwrap());
        let policy = change(|n| n.mode(NetworkMode::Open));
        let mut keys: Vec<&String> = policy.as_object().unwrap().keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, ["ceilings", "deny_with", "dns", "enabled", "host_sockets", "policy", "ports", "strict"]);
        assert_eq!(policy["dns"].as_object().unwrap().keys().collect::<Vec<_>>(), ["rebind_protection"]);
        let limited = change(|n| n.adjust(|network| network.limits.max_connections = 7));
        assert_eq!(limited["max_connections"], 7);
        assert!(limited.get("max_udp_connections").is_none());
    }

    #[test]
    fn ports_of_both_families_and_protocols_come_through() {
        let config = resolve(|n| {
            n.port(8080, 80).port_udp(5353, 53).port_on(Ipv6Addr::LOCALHOST, 8080, 80).port_udp_on(
                Ipv6Addr::UNSPECIFIED,
                0,
                53,
            )
        });
        let ports: Vec<String> = config.unwrap().ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:8080:80/tcp", "127.0.0.1:5353:53/udp", "[::1]:8080:80/tcp", "[::]:0:53/udp"]);
        assert!(matches!(resolve(|n| n.port(8080, 0)), Err(Error::Port(_))));
        let twice = resolve(|n| n.port(8080, 80).port(8080, 81)).unwrap_err().to_string();
        assert!(twice.starts_with("ports: ") && twice.contains("the same port"), "{twice}");
        let nowhere = resolve(|n| n.mode(NetworkMode::Blocked).port(8080, 80)).unwrap_err().to_string();
        assert!(nowhere.contains("without a network"), "{nowhere}");
    }

    #[test]
    fn a_posture_is_the_policy_crates() {
        for entries in [["10.0.0.0/8", "@pypi"], ["fd00::/16", "CLOUD_METADATA_DENY"]] {
            let ours = resolve(|n| n.mode(NetworkMode::Allowlist).allowlist(entries).denylist(["10.0.0.6", "fd00::6"]));
            let [allowlist, denylist] = [entries, ["10.0.0.6", "fd00::6"]].map(|list| list.map(str::to_owned).to_vec());
            let posture = Posture { mode: NetworkMode::Allowlist, allowlist, denylist };
            assert_eq!(ours.unwrap(), posture.network().unwrap());
        }
        let error = resolve(|n| n.mode(NetworkMode::Allowlist).allowlist(["10.0.0.5/8"])).unwrap_err().to_string();
        assert!(error.starts_with("network_allowlist[0]: ") && error.contains("10.0.0.5/8"), "{error}");
        let error = resolve(|n| n.mode(NetworkMode::Blocked).denylist(["fd00::5"])).unwrap_err().to_string();
        assert!(error.contains("mode `blocked` goes without `network_denylist`"), "{error}");
    }

    #[test]
    fn what_contradicts_is_refused() {
        let policy = PolicyConfig::default;
        for error in [
            resolve(|n| n.policy(policy()).mode(NetworkMode::Open)),
            resolve(|n| n.policy(policy()).allowlist(["a.example"])),
            resolve(|n| n.policy(policy()).config(file::default_network())),
            resolve(|n| n.config(file::default_network()).mode(NetworkMode::Blocked)),
        ] {
            assert!(error.unwrap_err().to_string().contains("three ways"));
        }
        assert!(resolve(|n| n.allowlist(["a.example"])).unwrap_err().to_string().contains("go with `network_mode`"));
    }

    #[test]
    fn what_code_has_made_is_checked_as_well() {
        let bad = Rule {
            ports: vec![cofferdam_model::PortRange { start: 9, end: 8 }],
            ..Rule::egress(Action::Allow, Destination::Any)
        };
        let policy = PolicyConfig { rules: vec![bad], ..PolicyConfig::default() };
        assert!(matches!(resolve(|n| n.policy(policy)), Err(Error::Policy(_))));
        let config = resolve(|n| n.adjust(|network| network.limits.max_connections = 10)).unwrap();
        assert_eq!(config.limits.max_connections, 10);
        assert!(matches!(resolve(|n| n.adjust(|network| network.interface.mtu = 1)), Err(Error::Policy(_))));
    }
}
