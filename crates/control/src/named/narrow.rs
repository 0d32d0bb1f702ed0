//! What a run may do on the network: what the session allows *and* what the run asks for.

use cofferdam_model::{
    Action, BucketConfig, Classifier, DnsConfig, Layer, LimitsConfig, NetworkConfig, PolicyConfig, PolicyLayer,
    RateLimiter, RateLimits,
};
use cofferdam_policy::compare::{self, Narrowing};

/// How many kinds of flows that a run does not get are told of.
const TOLD: usize = 5;

/// What happens when a run asks for more than its session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It does not start, and the reason names a flow.
    Check,
    /// It gets what both allow, and is told what it did not get.
    #[default]
    Clip,
}

/// Why a run does not start.
#[derive(Debug, thiserror::Error)]
pub enum NarrowError {
    #[error("the run asks for more than its session has: {0}; ask for less, or use --mode clip")]
    Wider(String),
}

/// What a run gets.
#[derive(Debug)]
pub(super) struct Narrowed {
    pub(super) network: NetworkConfig,
    /// What it asked for and did not get.
    pub(super) clipped: Vec<String>,
}

/// The network of a run that asks for `run` in a session that has `session`.
///
/// # Errors
/// In [`Mode::Check`], what the run asks for beyond the session.
pub(super) fn narrowed(session: &NetworkConfig, run: NetworkConfig, mode: Mode) -> Result<Narrowed, NarrowError> {
    let mut clipped = Vec::new();
    let network = intersection(session, run, &mut clipped);
    match (mode, clipped.is_empty()) {
        (Mode::Check, false) => Err(NarrowError::Wider(clipped.join("; "))),
        (Mode::Check, true) | (Mode::Clip, _) => Ok(Narrowed { network, clipped }),
    }
}

/// What the rules of a run allow beyond those of its session, in words; what is enforced is what both allow.
///
/// # Errors
/// In [`Mode::Check`], when there is anything, or when it cannot be told.
pub(super) fn wider(network: &NetworkConfig, mode: Mode, classifier: &Classifier) -> Result<Vec<String>, NarrowError> {
    let narrowing = match mode {
        Mode::Check => Narrowing::Check,
        Mode::Clip => Narrowing::Clip,
    };
    let mut words =
        compare::narrow(network, narrowing, classifier).map_err(|error| NarrowError::Wider(error.to_string()))?;
    let more = words.len().saturating_sub(TOLD);
    words.truncate(TOLD);
    words.extend((more > 0).then(|| format!("and {more} kinds of flows more")));
    Ok(words)
}

/// What a gateway that is there is told of a network: one without any is one on which everything is denied.
pub(crate) fn enforced(network: NetworkConfig) -> NetworkConfig {
    if network.enabled {
        return network;
    }
    NetworkConfig {
        enabled: true,
        policy: PolicyConfig { default_ingress: Action::Deny, ..PolicyConfig::default() },
        ..network
    }
}

/// Every field is named, so that a new one has to be thought of.
fn intersection(session: &NetworkConfig, run: NetworkConfig, clipped: &mut Vec<String>) -> NetworkConfig {
    let NetworkConfig { enabled, ceilings: _, policy, deny_with, dns, interface: _, limits, ports, host_sockets } = run;
    if enabled && !session.enabled {
        clipped.push("the session has no network".to_owned());
    }
    if !ports.is_empty() {
        clipped.push("ports are published for the session, with `ports add`, and not for one run".to_owned());
    }
    if !host_sockets.is_empty() {
        clipped.push(
            "host sockets are the session's, named when it is made, and no run with a network of its own has any"
                .to_owned(),
        );
    }
    let around = PolicyLayer {
        layer: Layer::Session,
        policy: session.policy.clone(),
        deny_doh: session.dns.deny_doh,
        rebind_protection: session.dns.rebind_protection,
    };
    NetworkConfig {
        enabled: enabled && session.enabled,
        ceilings: session.ceilings.iter().cloned().chain([around]).collect(),
        policy,
        deny_with,
        dns: resolvers(&session.dns, dns, clipped),
        // It has the session's addresses, which are in its /etc/hosts.
        interface: session.interface.clone(),
        limits: limited(&session.limits, &limits, clipped),
        ports: Vec::new(),
        host_sockets: Vec::new(),
    }
}

/// Which resolvers are asked is the session's to say: they see every name, and what they answer is what names mean.
fn resolvers(session: &DnsConfig, run: DnsConfig, clipped: &mut Vec<String>) -> DnsConfig {
    let DnsConfig { nameservers, query_timeout, rebind_protection, deny_doh, pin_floor } = run;
    if !nameservers.is_empty() && nameservers != session.nameservers {
        clipped.push("the session's resolvers are asked, and no others".to_owned());
    }
    DnsConfig {
        nameservers: session.nameservers.clone(),
        query_timeout: query_timeout.min(session.query_timeout),
        rebind_protection,
        deny_doh,
        pin_floor: pin_floor.min(session.pin_floor),
    }
}

fn limited(session: &LimitsConfig, run: &LimitsConfig, clipped: &mut Vec<String>) -> LimitsConfig {
    let LimitsConfig { max_connections, max_inbound_connections, max_udp_connections, connect_timeout, rates, budgets } =
        run;
    let usual = cofferdam_policy::file::default_network().limits;
    let mut least = |what: &str, session: u32, run: u32, usual: u32| {
        // 0 stands for unlimited.
        let is_wider = session != 0 && (run == 0 || run > session);
        // What nobody asked for is not missed by anybody.
        if is_wider && run != usual {
            clipped.push(format!("the session has at most {session} {what}"));
        }
        if is_wider { session } else { run }
    };
    LimitsConfig {
        max_connections: least("connections", session.max_connections, *max_connections, usual.max_connections),
        max_inbound_connections: least(
            "connections to published ports",
            session.max_inbound_connections,
            *max_inbound_connections,
            usual.max_inbound_connections,
        ),
        max_udp_connections: least(
            "UDP mappings",
            session.max_udp_connections,
            *max_udp_connections,
            usual.max_udp_connections,
        ),
        connect_timeout: session.connect_timeout.min(*connect_timeout),
        rates: RateLimits {
            egress: slower(&session.rates.egress, &rates.egress),
            ingress: slower(&session.rates.ingress, &rates.ingress),
        },
        // The session's first: where there are too many, those count.
        budgets: session.budgets.iter().chain(budgets).cloned().collect(),
    }
}

/// The lower rate of each kind. It holds for the run's network by itself, as the session's does for its own.
fn slower(session: &RateLimiter, run: &RateLimiter) -> RateLimiter {
    let lower = |session: Option<BucketConfig>, run: Option<BucketConfig>| match (session, run) {
        (Some(session), Some(run)) => {
            let rate = |of: BucketConfig, over: BucketConfig| u128::from(of.size) * over.refill_time.as_nanos();
            Some(if rate(run, session) < rate(session, run) { run } else { session })
        }
        (session, run) => session.or(run),
    };
    RateLimiter { bandwidth: lower(session.bandwidth, run.bandwidth), ops: lower(session.ops, run.ops) }
}

#[cfg(test)]
mod tests {
    use cofferdam_policy::file::{FlagItem, from_flags};

    use super::*;

    fn network(flags: &[FlagItem]) -> NetworkConfig {
        from_flags(flags).unwrap()
    }

    #[test]
    fn a_blocked_session_has_no_open_run() {
        let session = network(&[FlagItem::NoNet]);
        let open = || network(&[FlagItem::Net("all".to_owned())]);
        let narrowed_run = narrowed(&session, open(), Mode::Clip).unwrap();
        assert!(!narrowed_run.network.enabled);
        assert_eq!(narrowed_run.clipped.len(), 1);
        assert!(narrowed(&session, open(), Mode::Check).unwrap_err().to_string().contains("no network"));
        assert!(narrowed(&session, session.clone(), Mode::Check).is_ok());
    }

    #[test]
    fn the_lower_rate_holds_and_every_budget_does() {
        let rate = |size, refill_ms| {
            let text = format!(
                r#"{{"rate_limiter": {{"egress": {{"bandwidth": {{"size": {size}, "refill_time_ms": {refill_ms}}}}}}}, "budgets": [{{"bytes": {size}}}]}}"#
            );
            cofferdam_policy::file::parse("x.json", &text).unwrap()
        };
        // 100 bytes in 10 ms are more than 5,000 in a second.
        for (session, run) in [(rate(100, 10), rate(5_000, 1_000)), (rate(5_000, 1_000), rate(100, 10))] {
            let got = narrowed(&session, run, Mode::Clip).unwrap().network.limits;
            assert_eq!(got.rates.egress.bandwidth.unwrap().size, 5_000);
            assert_eq!((got.rates.ingress.bandwidth, got.budgets.len()), (None, 2));
        }
        let usual = cofferdam_policy::file::default_network();
        let got = narrowed(&rate(7, 1_000), usual, Mode::Clip).unwrap().network.limits;
        assert_eq!(got.rates.egress.bandwidth.unwrap().size, 7);
    }

    #[test]
    fn no_network_becomes_one_on_which_nothing_is_allowed() {
        let blocked = enforced(network(&[FlagItem::NoNet]));
        assert!(blocked.enabled && blocked.policy.rules.is_empty());
        assert_eq!((blocked.policy.default_egress, blocked.policy.default_ingress), (Action::Deny, Action::Deny));
    }

    #[test]
    fn the_sessions_policy_is_a_layer_around_the_runs() {
        let mut session = network(&[FlagItem::Allow("a.example".to_owned()), FlagItem::NoRebindProtection]);
        session.dns.deny_doh = Some(true);
        let run = network(&[FlagItem::Net("all".to_owned())]);
        let narrowed = narrowed(&session, run.clone(), Mode::Clip).unwrap().network;
        let [ceiling] = narrowed.ceilings.as_slice() else { panic!("{narrowed:?}") };
        assert_eq!((ceiling.layer, &ceiling.policy), (Layer::Session, &session.policy));
        assert_eq!((ceiling.deny_doh, ceiling.rebind_protection), (Some(true), false));
        assert_eq!(narrowed.policy, run.policy);
        assert!(narrowed.dns.rebind_protection);
    }

    #[test]
    fn limits_resolvers_and_addresses_are_the_sessions_or_less() {
        let session = network(&[
            FlagItem::MaxConnections(10),
            FlagItem::MaxUdpConnections(0),
            FlagItem::Nameserver("9.9.9.9".to_owned()),
            FlagItem::Mtu(9000),
        ]);
        let run = network(&[
            FlagItem::MaxConnections(0),
            FlagItem::MaxUdpConnections(7),
            FlagItem::Nameserver("1.1.1.1".to_owned()),
            FlagItem::QueryTimeoutMs(60_000),
        ]);
        let Narrowed { network: got, clipped } = narrowed(&session, run, Mode::Clip).unwrap();
        assert_eq!((got.limits.max_connections, got.limits.max_udp_connections), (10, 7));
        assert_eq!(got.dns.nameservers, session.dns.nameservers);
        assert_eq!(got.dns.query_timeout, session.dns.query_timeout);
        assert_eq!(got.interface, session.interface);
        assert_eq!(clipped.len(), 2, "{clipped:?}");
        // Nobody asked for the default of 4,096.
        let run = network(&[FlagItem::Net("public".to_owned())]);
        let Narrowed { network: got, clipped } = narrowed(&session, run, Mode::Check).unwrap();
        assert_eq!((got.limits.max_connections, clipped.len()), (10, 0));
    }
}
