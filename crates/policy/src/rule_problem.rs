use cofferdam_model::{Action, Destination, Direction, Protocol, Rule};

/// Why a rule that is well formed makes no sense. Every door asks: flags, files, the wire and the builder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleProblem {
    #[error("ICMP has no way in: a rule that names it goes out only, with direction `egress`")]
    IcmpIngress,
    #[error("ICMP carries no port: a rule with only ICMP and ports never matches")]
    IcmpPorts,
    #[error("port 0 is not a port; expected 1 to 65535")]
    PortZero,
    #[error("the port range {start}-{end} runs backwards")]
    ReversedRange { start: u16, end: u16 },
    #[error("`opaque` belongs to a rule that lets a name out: `allow` for a name or suffix, `egress`")]
    Opaque,
    #[error("`allow_private` belongs to a rule that lets a name out: `allow` for a name or suffix, `egress`")]
    AllowPrivate,
}

/// Checks what the types do not say.
///
/// # Errors
///
/// The first problem found.
pub(crate) fn check(rule: &Rule) -> Result<(), RuleProblem> {
    for range in &rule.ports {
        if range.start == 0 {
            return Err(RuleProblem::PortZero);
        }
        if range.start > range.end {
            return Err(RuleProblem::ReversedRange { start: range.start, end: range.end });
        }
    }
    let is_icmp = |protocol: Protocol| matches!(protocol, Protocol::IcmpV4 | Protocol::IcmpV6);
    let mut named = rule.protocols.iter().peekable();
    if named.peek().is_none() {
        return Ok(());
    }
    let named: Vec<Protocol> = named.collect();
    if rule.direction != Direction::Egress && named.iter().copied().any(is_icmp) {
        return Err(RuleProblem::IcmpIngress);
    }
    if !rule.ports.is_empty() && named.into_iter().all(is_icmp) {
        return Err(RuleProblem::IcmpPorts);
    }
    Ok(())
}

/// Checks that a rule that is `opaque` or says `allow_private` may; asked when its destination is known.
pub(crate) fn check_suffixes(rule: &Rule) -> Result<(), RuleProblem> {
    let named = matches!(rule.destination, Destination::Domain(_) | Destination::Suffix { .. });
    let good = rule.action == Action::Allow && rule.direction == Direction::Egress && named;
    match (good, rule.opaque, rule.allow_private) {
        (true, _, _) | (false, false, false) => Ok(()),
        (false, true, _) => Err(RuleProblem::Opaque),
        (false, false, true) => Err(RuleProblem::AllowPrivate),
    }
}

/// Sorts the port ranges and unites those that touch or overlap.
pub(crate) fn normalise(rule: &mut Rule) {
    rule.ports.sort_unstable();
    rule.ports.dedup_by(|next, kept| {
        let touches = u32::from(next.start) <= u32::from(kept.end) + 1;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
}
