//! `run.json`: what a run was, under which policy, and how it ended.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use cofferdam_model::{Classifier, DnsConfig, HostNetwork, Layer, NetworkConfig, PolicyLayer, rfc3339};
use cofferdam_policy::file::{self, ConfigErrors};
use cofferdam_policy::{Policy, TooManyLayers};
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::summary::{Advice, Totals};

/// Letters and digits of an id's end: Crockford's base 32, as decisions have it.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// How many of them tell the millisecond, so that ids are in the order of time.
const MILLIS: usize = 2;
/// How many are random: two runs of one millisecond are alike once in a million times, and one of them is not recorded then.
const RANDOM: usize = 4;
/// `20261126T074233Z-`.
const TIME: usize = 17;

/// The id of a run: the second of its start in UTC; its millisecond and something random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// The id of a run that starts so long after 1970.
    pub(crate) fn new(since_1970: Duration, random: [u8; RANDOM]) -> RunId {
        let time: String = rfc3339(since_1970).chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
        let digit = |number: u32| {
            let place = usize::try_from(number % 32).unwrap_or(0);
            char::from(DIGITS.get(place).copied().unwrap_or(b'0'))
        };
        let millis = since_1970.subsec_millis();
        let end: String = [millis / 32, millis].into_iter().chain(random.map(u32::from)).map(digit).collect();
        RunId(format!("{time}Z-{end}"))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is no id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no id of a run, such as 20261126T074233Z-k3f9xa")]
pub struct NoRunId(String);

impl FromStr for RunId {
    type Err = NoRunId;

    fn from_str(text: &str) -> Result<RunId, NoRunId> {
        let is_right = |(place, byte): (usize, u8)| match place {
            8 => byte == b'T',
            15 => byte == b'Z',
            16 => byte == b'-',
            0..TIME => byte.is_ascii_digit(),
            _ => DIGITS.contains(&byte),
        };
        let is_id = text.len() == TIME + MILLIS + RANDOM && text.bytes().enumerate().all(is_right);
        if is_id { Ok(RunId(text.to_owned())) } else { Err(NoRunId(text.to_owned())) }
    }
}

impl TryFrom<String> for RunId {
    type Error = NoRunId;

    fn try_from(text: String) -> Result<RunId, NoRunId> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> String {
        id.0
    }
}

/// What was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// A program in a sandbox for it alone.
    Run,
    /// A program in a sandbox that stays.
    Exec,
    /// A sandbox that stays, from a start to its stop.
    Session,
}

/// What is known of a run besides its events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Version of the form: [`About::VERSION`]. Fields that are added do not change it.
    pub v: u32,
    pub id: RunId,
    pub kind: RunKind,
    /// The sandbox that stays, if it is one or ran in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The program and its arguments; empty for a session without a main command.
    pub command: Vec<String>,
    /// Where on this machine it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// RFC 3339 in UTC, microseconds.
    pub started: String,
    /// Every policy that held at the start, from the outermost, the run's own last; empty without a network.
    pub network: Vec<LayerConfig>,
    /// What made addresses of this machine's those of groups; absent without a network of the run's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    pub advice: Advice,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Segments that went because there were too many.
    #[serde(default)]
    pub segments_gone: u64,
    /// Lines that found no room because they came too fast.
    #[serde(default)]
    pub lines_lost: u64,
}

/// One policy, as a configuration file has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerConfig {
    pub layer: Layer,
    /// The table `network` of such a file. The run's own has limits and the like as well, others their policy alone.
    pub network: serde_json::Value,
}

/// What a [`Classifier`] was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// The gateway's own addresses and every address of this machine.
    pub addresses: Vec<IpAddr>,
    /// Every prefix on-link on this machine's interfaces.
    pub on_link: Vec<IpNet>,
    /// NAT64 prefixes besides the well-known one.
    #[serde(default)]
    pub nat64: Vec<Ipv6Net>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// As [`About::started`].
    pub time: String,
    pub exit_status: u8,
    pub duration_ms: u64,
    pub totals: Totals,
}

/// What a run is about, before it has an id.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) command: &'a [String],
    pub(crate) network: &'a NetworkConfig,
    pub(crate) classifier: Option<&'a Classifier>,
    pub(crate) advice: Advice,
}

impl About {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;

    /// The network that held at the start.
    ///
    /// # Errors
    /// What cannot be understood any more.
    pub fn network(&self) -> Result<NetworkConfig, ConfigErrors> {
        let mut ceilings = Vec::new();
        let mut own = NetworkConfig { enabled: false, ..file::default_network() };
        for LayerConfig { layer, network } in &self.network {
            let text = serde_json::json!({ "network": network }).to_string();
            own = file::parse("run.json", &text)?;
            let DnsConfig { deny_doh, rebind_protection, .. } = own.dns;
            ceilings.push(PolicyLayer { layer: *layer, policy: own.policy.clone(), deny_doh, rebind_protection });
        }
        // The last one is the run's own.
        ceilings.pop();
        Ok(NetworkConfig { ceilings, ..own })
    }

    /// The policy that held at the start, on the machine as it was.
    ///
    /// # Errors
    /// What cannot be understood any more.
    pub fn policy(&self) -> Result<Policy, PolicyError> {
        Ok(Policy::of_network(&self.network()?, self.classifier())?)
    }

    /// What addresses were to the run.
    #[must_use]
    pub fn classifier(&self) -> Classifier {
        let Classes { addresses, on_link, nat64 } = self.classes.clone().unwrap_or_default();
        Classifier::new(HostNetwork { addresses, on_link, nat64 })
    }
}

/// Why a recorded policy cannot be asked any more.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Layers(#[from] TooManyLayers),
}

impl LayerConfig {
    /// Every policy of a network, from the outermost.
    pub(super) fn all_of(network: &NetworkConfig) -> Vec<LayerConfig> {
        if !network.enabled {
            return Vec::new();
        }
        let json = |config: &NetworkConfig| serde_json::from_str(&file::to_json(config)).unwrap_or_default();
        let around = network.ceilings.iter().map(|PolicyLayer { layer, policy, deny_doh, rebind_protection }| {
            let usual = file::default_network();
            let dns = DnsConfig { deny_doh: *deny_doh, rebind_protection: *rebind_protection, ..usual.dns };
            LayerConfig { layer: *layer, network: json(&NetworkConfig { policy: policy.clone(), dns, ..usual }) }
        });
        let own = NetworkConfig { ceilings: Vec::new(), ..network.clone() };
        around.chain([LayerConfig { layer: Layer::Run, network: json(&own) }]).collect()
    }
}

impl From<&Classifier> for Classes {
    fn from(classifier: &Classifier) -> Classes {
        let HostNetwork { addresses, on_link, nat64 } = classifier.host().clone();
        Classes { addresses, on_link, nat64 }
    }
}
