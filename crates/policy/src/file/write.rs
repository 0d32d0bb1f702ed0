//! A configuration as text, to be read again by another process: every value is written, so that defaults which change
//! later do not change what was meant.

use std::time::Duration;

use cofferdam_model::{
    BucketConfig, BudgetConfig, DnsConfig, HostSocket, InterfaceConfig, LimitsConfig, Nameserver, NameserverHost,
    NameserverOver, NetworkConfig, PolicyConfig, PolicyLayer, RateLimiter, RateLimits,
};
use serde_json::{Map, Value, json};

use crate::grammar::{format_destination, format_rule};

/// The wire form of `config`. Reading it gives the same configuration.
pub(super) fn network(config: &NetworkConfig) -> Value {
    // Taken apart by name: a field that is new has to be written as well.
    let NetworkConfig { enabled, ceilings, policy, deny_with, dns, interface, limits, ports, host_sockets } = config;
    let LimitsConfig { max_connections, max_inbound_connections, max_udp_connections, connect_timeout, rates, budgets } =
        limits;
    json!({
        "enabled": enabled,
        "ceilings": ceilings.iter().map(ceiling).collect::<Vec<_>>(),
        "policy": policy_value(policy),
        "strict": policy.strict,
        "deny_with": deny_with,
        "dns": dns_value(dns),
        "interface": interface_value(interface),
        "ports": ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "host_sockets": host_sockets.iter().map(host_socket).collect::<Vec<_>>(),
        "max_connections": max_connections,
        "max_inbound_connections": max_inbound_connections,
        "max_udp_connections": max_udp_connections,
        "connect_timeout_ms": milliseconds(*connect_timeout),
        "rate_limiter": rates_value(rates),
        "budgets": budgets.iter().map(budget).collect::<Vec<_>>(),
    })
}

/// As an object: a path may have a colon in it.
fn host_socket(socket: &HostSocket) -> Value {
    let HostSocket { host, guest } = socket;
    json!({ "host": host, "guest": guest })
}

fn rates_value(rates: &RateLimits) -> Value {
    let RateLimits { egress, ingress } = rates;
    json!({ "egress": limiter(egress), "ingress": limiter(ingress) })
}

fn limiter(limiter: &RateLimiter) -> Value {
    let RateLimiter { bandwidth, ops } = limiter;
    let mut value = Map::new();
    value.extend(bandwidth.map(|config| ("bandwidth".to_owned(), bucket(config))));
    value.extend(ops.map(|config| ("ops".to_owned(), bucket(config))));
    Value::Object(value)
}

fn bucket(BucketConfig { size, refill_time, one_time_burst }: BucketConfig) -> Value {
    json!({ "size": size, "refill_time_ms": milliseconds(refill_time), "one_time_burst": one_time_burst })
}

fn budget(budget: &BudgetConfig) -> Value {
    let BudgetConfig { bytes, direction, destinations } = budget;
    json!({
        "bytes": bytes,
        "direction": direction,
        "destinations": destinations.iter().map(format_destination).collect::<Vec<_>>(),
    })
}

fn ceiling(ceiling: &PolicyLayer) -> Value {
    let PolicyLayer { layer, policy, deny_doh, rebind_protection } = ceiling;
    let mut value = Map::new();
    value.insert("layer".to_owned(), json!(layer));
    value.insert("policy".to_owned(), policy_value(policy));
    value.insert("strict".to_owned(), policy.strict.into());
    value.extend(deny_doh.map(|deny| ("deny_doh".to_owned(), deny.into())));
    value.insert("rebind_protection".to_owned(), (*rebind_protection).into());
    Value::Object(value)
}

/// A policy but for its strictness, which is written beside it.
fn policy_value(policy: &PolicyConfig) -> Value {
    let PolicyConfig { default_egress, default_ingress, rules, strict: _ } = policy;
    json!({
        "default_egress": default_egress,
        "default_ingress": default_ingress,
        "rules": rules.iter().map(format_rule).collect::<Vec<_>>(),
    })
}

fn dns_value(dns: &DnsConfig) -> Value {
    let DnsConfig { nameservers, query_timeout, pin_floor, rebind_protection, deny_doh } = dns;
    let mut value = Map::new();
    value.insert("nameservers".to_owned(), nameservers.iter().map(nameserver).collect::<Vec<_>>().into());
    value.insert("query_timeout_ms".to_owned(), milliseconds(*query_timeout).into());
    value.insert("pin_floor_ms".to_owned(), milliseconds(*pin_floor).into());
    value.insert("rebind_protection".to_owned(), (*rebind_protection).into());
    value.extend(deny_doh.map(|deny| ("deny_doh".to_owned(), deny.into())));
    Value::Object(value)
}

fn interface_value(interface: &InterfaceConfig) -> Value {
    let InterfaceConfig { mtu, ipv4_pool, ipv6_pool, ipv6, ipv4_address, ipv6_address } = interface;
    let mut value = Map::new();
    value.insert("mtu".to_owned(), (*mtu).into());
    value.insert("ipv4_pool".to_owned(), ipv4_pool.to_string().into());
    value.insert("ipv6_pool".to_owned(), ipv6_pool.to_string().into());
    value.extend(ipv6.map(|on| ("ipv6".to_owned(), on.into())));
    value.extend(ipv4_address.map(|address| ("ipv4_address".to_owned(), address.to_string().into())));
    value.extend(ipv6_address.map(|address| ("ipv6_address".to_owned(), address.to_string().into())));
    Value::Object(value)
}

pub(super) fn nameserver(server: &Nameserver) -> String {
    let Nameserver { host, port, over } = server;
    let authority = match host {
        NameserverHost::Address(address) => std::net::SocketAddr::new(*address, *port).to_string(),
        NameserverHost::Name(name) => format!("{name}:{port}"),
    };
    let certified = |name: &Option<_>| name.as_ref().map(|name| format!("#{name}")).unwrap_or_default();
    match over {
        NameserverOver::Plain => authority,
        NameserverOver::Tls { name } => format!("tls://{authority}{}", certified(name)),
        NameserverOver::Https { name, path } => format!("https://{authority}{path}{}", certified(name)),
    }
}

/// Timeouts are read in whole milliseconds, so that none is cut off here.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
