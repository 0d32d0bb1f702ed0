use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{Action, Classifier, NetworkConfig, PolicyConfig};
use cofferdam_policy::{Policy, counts_for_rebinding};

/// What a [`Resolver`](crate::Resolver) is made from.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// The configured resolvers, in the order in which they are asked. Empty: everything that would have to be asked is
    /// answered with SERVFAIL.
    pub upstreams: Vec<Upstream>,
    /// The gateway's own addresses in this sandbox. A query to one of them is ours to resolve; a query to any other
    /// address is forwarded to exactly that resolver.
    pub gateway: Vec<IpAddr>,
    /// The address families that work in this sandbox; for the others answers carry no addresses.
    pub families: Families,
    /// Everything that is done for one query ends within this time.
    pub query_timeout: Duration,
    /// What happens to answers that carry addresses which are not public.
    pub rebinding: Rebinding,
    /// How long an answer that denies waits after the event about it, for somebody to see who asked; zero for not at all.
    pub witness: Duration,
    /// Seeds message ids and decision ids. Fresh from the system's generator for every sandbox: who knows it can forge
    /// answers.
    pub seed: [u8; 32],
}

/// A resolver that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    pub server: SocketAddr,
    pub reach: Reach,
}

/// How a resolver is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A datagram for each question, and TCP where that does not do.
    Datagrams,
    /// Over a lasting connection of the caller's, which loses and truncates nothing.
    Session,
}

impl From<SocketAddr> for Upstream {
    fn from(server: SocketAddr) -> Upstream {
        Upstream { server, reach: Reach::Datagrams }
    }
}

/// The address families that a sandbox can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

/// Whether answers with addresses that are not public are delivered.
#[derive(Debug, Clone)]
pub enum Rebinding {
    /// Every address is delivered and pinned.
    Allow,
    /// Only public addresses are, and those for which every one of these makes an exception. Not empty.
    Guard { layers: Vec<Exceptions> },
}

/// What one layer of a policy excepts from the protection: addresses that an explicit rule allows, and those of a name that a
/// rule with `allow_private` allows.
#[derive(Debug, Clone)]
pub struct Exceptions {
    /// The place of the layer among those of the policy.
    pub(crate) place: usize,
    /// A policy made of the explicit rules alone.
    pub(crate) explicit: Arc<Policy>,
}

impl Rebinding {
    /// Protection that makes an exception for addresses which `policy` allows by an explicit rule: one that names an
    /// address, a network or a group and no port. Denies before it count; defaults and `any` do not allow.
    ///
    /// The exception is itself a policy made of those rules, so that the order of rules, the groups and the guard around
    /// `host` and `metadata` mean here what they mean everywhere.
    #[must_use]
    pub fn guarded_by(policy: &PolicyConfig, classifier: Classifier) -> Rebinding {
        Rebinding::Guard { layers: vec![Exceptions::new(0, policy, classifier)] }
    }

    /// Protection as the layers of a configuration ask for it: each that does has to make the exception.
    #[must_use]
    pub fn of_network(network: &NetworkConfig, classifier: &Classifier) -> Rebinding {
        let layers = network.layers();
        let guarding = layers.iter().enumerate().filter(|(_, layer)| layer.rebind_protection);
        let layers: Vec<Exceptions> =
            guarding.map(|(place, layer)| Exceptions::new(place, &layer.policy, classifier.clone())).collect();
        if layers.is_empty() { Rebinding::Allow } else { Rebinding::Guard { layers } }
    }

    /// The same, under another classifier.
    pub(crate) fn with_classifier(&self, classifier: &Classifier) -> Rebinding {
        match self {
            Rebinding::Allow => Rebinding::Allow,
            Rebinding::Guard { layers } => {
                Rebinding::Guard { layers: layers.iter().map(|layer| layer.with_classifier(classifier)).collect() }
            }
        }
    }
}

impl Exceptions {
    fn new(place: usize, policy: &PolicyConfig, classifier: Classifier) -> Exceptions {
        let rules = policy.rules.iter().filter(|rule| counts_for_rebinding(rule)).cloned().collect();
        let explicit =
            PolicyConfig { default_egress: Action::Deny, default_ingress: Action::Deny, rules, strict: true };
        Exceptions { place, explicit: Arc::new(Policy::compile(&explicit, classifier)) }
    }

    fn with_classifier(&self, classifier: &Classifier) -> Exceptions {
        Exceptions { place: self.place, explicit: Arc::new(self.explicit.with_classifier(classifier.clone())) }
    }
}
