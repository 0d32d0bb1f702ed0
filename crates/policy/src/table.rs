//! The lookup tables a policy compiles to.
//!
//! A rule's position is its *rank*; the lowest rank that matches decides. Rules with the same destination share one
//! [`ports::Table`], which answers protocol and port with the lowest rank among them; [`prefixes::Prefixes`] and
//! [`names::NameTree`] find the tables of every destination that holds an address or a name. So the cost of a verdict grows
//! with the depth of nesting and the logarithm of the number of rules, never with the number of rules.

pub(crate) mod names;
pub(crate) mod ports;
pub(crate) mod prefixes;

/// A rule's position in the policy; the lowest matching one decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(u32);

impl Rank {
    /// No rule: higher than every rule's rank.
    pub(crate) const NONE: Rank = Rank(u32::MAX);

    /// The rank of the rule at `position`. Positions past `u32` do not occur: such a policy would take hundreds of
    /// gigabytes. They become [`Rank::NONE`], as if the rule were not there.
    pub(crate) fn of(position: usize) -> Rank {
        u32::try_from(position).map_or(Rank::NONE, Rank)
    }

    /// The rank of a rule that decided before.
    pub(crate) fn at(position: u32) -> Rank {
        Rank(position)
    }

    /// The position, when this is the rank of a rule.
    pub(crate) fn position(self) -> Option<u32> {
        (self != Rank::NONE).then_some(self.0)
    }
}
