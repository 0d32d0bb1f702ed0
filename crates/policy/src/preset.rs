//! Presets, profiles and named lists: words for sets of rules.

use cofferdam_model::{Action, Destination, DomainName, Group, PolicyConfig, PortRange, Protocol, ProtocolSet, Rule};
use ipnet::{IpNet, Ipv4Net};

use crate::nearest::nearest;

/// A named list of destinations.
#[derive(Debug)]
pub struct List {
    /// Its name on the command line and in files, behind `@`.
    pub word: &'static str,
    /// Its name as a constant, accepted as well.
    pub constant: &'static str,
    hosts: &'static [&'static str],
}

/// Every named list. The hosts are those that the tools' own documentation names for use behind a firewall.
pub const LISTS: &[List] = &[
    List { word: "pypi", constant: "PYPI_HOSTS", hosts: &["pypi.org", "files.pythonhosted.org", "*.pythonhosted.org"] },
    List { word: "npm", constant: "NPM_HOSTS", hosts: &["registry.npmjs.org", "registry.yarnpkg.com", "*.npmjs.org"] },
    List {
        word: "crates",
        constant: "CRATES_HOSTS",
        hosts: &["crates.io", "index.crates.io", "static.crates.io", "static.rust-lang.org"],
    },
    List {
        word: "go",
        constant: "GO_HOSTS",
        hosts: &["proxy.golang.org", "sum.golang.org", "index.golang.org", "go.dev", "dl.google.com", "golang.org"],
    },
    List {
        word: "debian",
        constant: "DEBIAN_HOSTS",
        hosts: &["deb.debian.org", "security.debian.org", "ftp.debian.org", "snapshot.debian.org"],
    },
    List {
        word: "github",
        constant: "GITHUB_HOSTS",
        hosts: &["github.com", "*.github.com", "*.githubusercontent.com", "*.githubassets.com", "ghcr.io"],
    },
    List {
        word: "metadata",
        constant: "CLOUD_METADATA_DENY",
        hosts: &["metadata.google.internal", "metadata.goog", "metadata.azure.internal", "instance-data.ec2.internal"],
    },
];

/// The destinations of a named list, by either of its names.
#[must_use]
pub fn list(word: &str) -> Option<Vec<Destination>> {
    let list = LISTS.iter().find(|list| list.word == word || list.constant == word)?;
    let mut destinations = Vec::new();
    if list.word == "metadata" {
        destinations.push(Destination::Group(Group::Metadata));
        let link_local = Ipv4Net::new(std::net::Ipv4Addr::new(169, 254, 0, 0), 16).ok()?;
        destinations.push(Destination::Cidr(IpNet::V4(link_local)));
    }
    destinations.extend(list.hosts.iter().filter_map(|host| destination(host)));
    Some(destinations)
}

fn destination(host: &str) -> Option<Destination> {
    match host.strip_prefix("*.") {
        Some(name) => Some(Destination::Suffix { name: name.parse::<DomainName>().ok()?, apex: true }),
        None => Some(Destination::Domain(host.parse().ok()?)),
    }
}

/// What `--net` or `preset` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preset {
    /// No interface at all.
    None,
    /// Nothing, both ways: a virtual machine has the directories that it is shown, which are no matter of policy.
    MountsOnly,
    /// Everything, both ways.
    AllowAll,
    /// Default deny, DNS, and these groups in order.
    Profiles(Vec<Group>),
}

/// Why a text names no preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PresetError {
    #[error("unknown profile {word:?}; expected `public`, `private`, `host`, `all` or `none`, or a preset (`public-only`, `non-local`, `allow-all`, `mounts-only`){}", suggest(.word))]
    Unknown { word: String },
    #[error("{word:?} stands alone; it does not combine with other profiles")]
    Alone { word: String },
    #[error("no profile is named; expected `public`, `private`, `host`, `all` or `none`")]
    Empty,
}

const PRESET_WORDS: [&str; 9] =
    ["public", "private", "host", "all", "none", "public-only", "non-local", "allow-all", "mounts-only"];

fn suggest(word: &str) -> String {
    nearest(word, PRESET_WORDS).map(|word| format!("; did you mean `{word}`?")).unwrap_or_default()
}

impl Preset {
    /// What a sandbox gets when nothing is said: `public-only`.
    #[must_use]
    pub fn standard() -> Preset {
        Preset::Profiles(vec![Group::Public])
    }

    /// Parses a preset's name or profiles separated by commas.
    ///
    /// # Errors
    ///
    /// An unknown word, or words that do not combine.
    pub fn parse(text: &str) -> Result<Preset, PresetError> {
        let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        let mut groups: Vec<Group> = Vec::new();
        for word in &words {
            let profiles: &[Group] = match *word {
                "none" | "all" | "allow-all" | "allow_all" | "open" | "mounts-only" | "mounts_only"
                    if words.len() > 1 =>
                {
                    // The same word twice is still that word; `none,all` and the like contradict.
                    if words.iter().all(|other| other == word) {
                        return Preset::parse(word);
                    }
                    return Err(PresetError::Alone { word: (*word).to_owned() });
                }
                "none" => return Ok(Preset::None),
                "all" | "allow-all" | "allow_all" | "open" => return Ok(Preset::AllowAll),
                "mounts-only" | "mounts_only" => return Ok(Preset::MountsOnly),
                "public" | "public-only" | "public_only" => &[Group::Public],
                "non-local" | "nonlocal" | "non_local" => &[Group::Public, Group::Private],
                "private" => &[Group::Private],
                "host" => &[Group::Host],
                _ => return Err(PresetError::Unknown { word: (*word).to_owned() }),
            };
            for group in profiles {
                if !groups.contains(group) {
                    groups.push(*group);
                }
            }
        }
        if groups.is_empty() { Err(PresetError::Empty) } else { Ok(Preset::Profiles(groups)) }
    }

    /// Whether the sandbox has a network interface.
    #[must_use]
    pub fn enabled(&self) -> bool {
        match self {
            Preset::None => false,
            Preset::MountsOnly | Preset::AllowAll | Preset::Profiles(_) => true,
        }
    }

    /// Defaults and rules of the preset.
    #[must_use]
    pub fn policy(&self) -> PolicyConfig {
        match self {
            Preset::None | Preset::MountsOnly => {
                PolicyConfig { default_ingress: Action::Deny, ..PolicyConfig::default() }
            }
            Preset::AllowAll => PolicyConfig { default_egress: Action::Allow, ..PolicyConfig::default() },
            Preset::Profiles(groups) => {
                let allow = groups.iter().map(|group| Rule::egress(Action::Allow, Destination::Group(*group)));
                let rules = std::iter::once(allow_dns()).chain(allow).collect();
                PolicyConfig { rules, ..PolicyConfig::default() }
            }
        }
    }
}

/// The rule that lets every name be asked for: group host, udp and tcp, port 53.
#[must_use]
pub fn allow_dns() -> Rule {
    Rule {
        protocols: ProtocolSet::default().with(Protocol::Tcp).with(Protocol::Udp),
        ports: vec![PortRange { start: 53, end: 53 }],
        ..Rule::egress(Action::Allow, Destination::Group(Group::Host))
    }
}
