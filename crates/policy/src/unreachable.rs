//! Published ports that the rules keep everybody from.

use cofferdam_model::{Action, Destination, Direction, NetworkConfig, PolicyConfig, Protocol, PublishedPort, Rule};

/// Every published port for which no peer at all is allowed.
pub(crate) fn find(network: &NetworkConfig) -> Vec<PublishedPort> {
    let layers = network.layers();
    let is_closed = |port: &PublishedPort| layers.iter().any(|layer| !lets_anybody_in(&layer.policy, port));
    network.ports.iter().copied().filter(is_closed).collect()
}

/// An allow rule may let somebody in, if no rule for everybody has denied before. Rules that together deny everybody are not
/// found: this is for a remark, never for a verdict.
fn lets_anybody_in(policy: &PolicyConfig, port: &PublishedPort) -> bool {
    let mut about_port = policy.rules.iter().filter(|rule| is_about(rule, port));
    let decides = |rule: &&Rule| rule.action == Action::Allow || rule.destination == Destination::Any;
    about_port.find(decides).map_or(policy.default_ingress, |rule| rule.action) == Action::Allow
}

fn is_about(rule: &Rule, port: &PublishedPort) -> bool {
    let inward = matches!(rule.direction, Direction::Ingress | Direction::Any);
    let guest_port = port.guest_port.get();
    let covers =
        rule.ports.is_empty() || rule.ports.iter().any(|range| (range.start..=range.end).contains(&guest_port));
    inward && covers && rule.protocols.matches(Protocol::from(port.protocol))
}
