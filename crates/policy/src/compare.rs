//! What one policy allows and another does not.
//!
//! Two policies are asked the same questions, and the answers compared: whether a flow may be opened ([`Policy::check`]), with
//! every set of names that could be pinned to its peer, and whether a name may be looked up ([`Policy::check_name`], over
//! port 53). There are too many questions to ask them all, so they are put into classes of which no rule tells two apart
//! (`search.rs`). Within that the answer is exact: a policy is a subset of another when and only when every question that
//! it answers with yes is answered so by the other as well.
//!
//! Not compared: what a flow shows after it is opened (`strict`, `opaque`) and where a name may lead (`allow_private`,
//! rebinding protection). Each layer is held to its own there.
//!
//! Differences are told by the two rules behind them, each pair once per protocol, with one question for an example.

mod search;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use cofferdam_model::{Classifier, Direction, DomainName, NetworkConfig, PolicyLayer, Protocol, RuleText};

use crate::{Facts, PinnedName, Policy, RuleRef};

/// Differences that are told; what comes after them is only said to be there.
pub const TOLD: usize = 64;

/// Something that a policy is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Whether a flow may be opened.
    Flow {
        direction: Direction,
        protocol: Protocol,
        peer: IpAddr,
        /// `None` for ICMP.
        port: Option<u16>,
        /// What is pinned to the peer.
        names: Vec<PinnedName>,
    },
    /// Whether a name may be looked up.
    Name { name: DomainName, protocol: Protocol },
}

/// A class of questions that two policies answer differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// One of them.
    pub example: Question,
    pub first: Answer,
    pub second: Answer,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub allows: bool,
    /// The rule or default behind it.
    pub rule: RuleText,
}

/// Where two policies differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// At most [`TOLD`].
    pub told: Vec<Difference>,
    /// There are others.
    pub more: bool,
}

/// Comparing these two policies would take too long: they have too many rules of too many kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these policies have too many rules to be compared")]
pub struct TooLarge;

/// What to do with a policy that allows what its ceiling does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Narrowing {
    /// Refuse it.
    Check,
    /// Enforce what both allow, and say what is clipped by that.
    #[default]
    Clip,
}

/// Why a configuration is refused in [`Narrowing::Check`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarrowError {
    /// In words, such as ``udp 10.0.0.1:53 is allowed by the run but not by the session``.
    #[error("{words}")]
    Wider { words: String, difference: Box<Difference> },
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// A question that `child` answers with yes and `parent` with no, if there is one. `None`: `child` is a subset.
///
/// # Errors
///
/// The policies are too large.
pub fn excess(
    child: &PolicyLayer,
    parent: &PolicyLayer,
    classifier: &Classifier,
) -> Result<Option<Difference>, TooLarge> {
    let (child, parent) = (policy(child, classifier), policy(parent, classifier));
    let mut found = None;
    search::excess(&child, &parent, |question| {
        let difference = difference(&child, &parent, question);
        if difference.first.allows && !difference.second.allows {
            found = Some(difference);
            return ControlFlow::Break(());
        }
        debug_assert!(false, "{difference:?}");
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Whether `parent` allows whatever `child` allows.
///
/// # Errors
///
/// The policies are too large.
pub fn is_subset(child: &PolicyLayer, parent: &PolicyLayer, classifier: &Classifier) -> Result<bool, TooLarge> {
    excess(child, parent, classifier).map(|excess| excess.is_none())
}

/// Everything that `child` allows and `parent` does not.
///
/// # Errors
///
/// The policies are too large.
pub fn clipped(child: &PolicyLayer, parent: &PolicyLayer, classifier: &Classifier) -> Result<Differences, TooLarge> {
    let (child, parent) = (policy(child, classifier), policy(parent, classifier));
    let mut collected = Collected::default();
    collected.excess(&child, &parent, Order::AsAsked)?;
    Ok(collected.differences)
}

/// Everything that only one of two policies allows; `first` of each difference is what `old` says.
///
/// # Errors
///
/// The policies are too large.
pub fn diff(old: &PolicyLayer, new: &PolicyLayer, classifier: &Classifier) -> Result<Differences, TooLarge> {
    let (old, new) = (policy(old, classifier), policy(new, classifier));
    let mut collected = Collected::default();
    collected.excess(&old, &new, Order::AsAsked)?;
    collected.excess(&new, &old, Order::Turned)?;
    Ok(collected.differences)
}

/// What the run's own policy in `network` asks for beyond each of the policies around it, in words. What is enforced is the
/// same either way: what all allow.
///
/// # Errors
///
/// With [`Narrowing::Check`], when it asks for anything beyond, or when that cannot be told.
pub fn narrow(network: &NetworkConfig, mode: Narrowing, classifier: &Classifier) -> Result<Vec<String>, NarrowError> {
    let mut words = Vec::new();
    let layers = network.layers();
    let Some((run, ceilings)) = layers.split_last() else { return Ok(words) };
    for ceiling in ceilings {
        let [run_word, ceiling_word] = [run.layer.word(), ceiling.layer.word()];
        match mode {
            Narrowing::Check => {
                if let Some(difference) = excess(run, ceiling, classifier)? {
                    let words = difference.as_excess(run_word, ceiling_word);
                    return Err(NarrowError::Wider { words, difference: Box::new(difference) });
                }
            }
            Narrowing::Clip => match clipped(run, ceiling, classifier) {
                Ok(Differences { told, more }) => {
                    words.extend(told.iter().map(|difference| difference.as_excess(run_word, ceiling_word)));
                    words.extend(more.then(|| format!("and more that is not allowed by the {ceiling_word}")));
                }
                Err(TooLarge) => words.push(format!("{TooLarge}: what the {ceiling_word} clips is not listed")),
            },
        }
    }
    Ok(words)
}

impl Difference {
    /// In words, for something that `child` allows and `parent` does not.
    #[must_use]
    pub fn as_excess(&self, child: &str, parent: &str) -> String {
        let Difference { example, first, second } = self;
        format!(
            "{example} is allowed by the {child} but not by the {parent} (`{}`, `{}`)",
            first.rule.text, second.rule.text
        )
    }
}

impl fmt::Display for Difference {
    /// As a change from the first policy to the second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |answer: &Answer| if answer.allows { "allowed" } else { "denied" };
        let Difference { example, first, second } = self;
        write!(f, "{example} was {} by `{}`, ", word(first), first.rule.text)?;
        write!(f, "is {} by `{}`", word(second), second.rule.text)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Flow { direction, protocol, peer, port, names } => {
                let protocol = protocol_word(*protocol);
                match (direction, port) {
                    (Direction::Ingress, Some(port)) => write!(f, "{protocol} from {peer} to port {port}")?,
                    (Direction::Ingress, None) => write!(f, "{protocol} from {peer}")?,
                    (Direction::Egress | Direction::Any, Some(port)) => {
                        write!(f, "{protocol} {}", SocketAddr::new(*peer, *port))?;
                    }
                    (Direction::Egress | Direction::Any, None) => write!(f, "{protocol} {peer}")?,
                }
                for (at, pinned) in names.iter().enumerate() {
                    let alias = if pinned.alias { "alias " } else { "" };
                    write!(f, "{}{alias}{}", if at == 0 { " as " } else { " and " }, pinned.name)?;
                }
                Ok(())
            }
            Question::Name { name, .. } => write!(f, "the name {name}"),
        }
    }
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::IcmpV4 => "icmpv4",
        Protocol::IcmpV6 => "icmpv6",
    }
}

/// Which policy a difference names first.
#[derive(Debug, Clone, Copy)]
enum Order {
    AsAsked,
    Turned,
}

/// Differences by the rules behind them.
#[derive(Debug, Default)]
struct Collected {
    differences: Differences,
}

impl Collected {
    fn excess(&mut self, one: &Policy, other: &Policy, order: Order) -> Result<(), TooLarge> {
        let mut seen = BTreeSet::new();
        let told = &mut self.differences.told;
        let mut more = false;
        search::excess(one, other, |question| {
            let (allows, [first, second]) = answers(one, other, &question);
            debug_assert_eq!(allows, [true, false], "{question}");
            let (is_name, direction, protocol) = match &question {
                Question::Flow { direction, protocol, .. } => (false, *direction, *protocol),
                Question::Name { .. } => (true, Direction::Egress, Protocol::Udp),
            };
            if allows != [true, false] || !seen.insert((is_name, direction, protocol, first, second)) {
                return ControlFlow::Continue(());
            }
            if told.len() >= TOLD {
                more = true;
                return ControlFlow::Break(());
            }
            let found = difference(one, other, question);
            told.push(match order {
                Order::AsAsked => found,
                Order::Turned => Difference { example: found.example, first: found.second, second: found.first },
            });
            ControlFlow::Continue(())
        })?;
        self.differences.more |= more;
        Ok(())
    }
}

fn policy(layer: &PolicyLayer, classifier: &Classifier) -> Policy {
    Policy::of_layer(layer, classifier.clone())
}

fn difference(one: &Policy, other: &Policy, example: Question) -> Difference {
    let [first, second] = [one, other].map(|policy| ask(policy, &example));
    let answer =
        |policy: &Policy, (allows, reason): (bool, crate::Reason)| Answer { allows, rule: policy.rule_text(&reason) };
    Difference { first: answer(one, first), second: answer(other, second), example }
}

fn answers(one: &Policy, other: &Policy, question: &Question) -> ([bool; 2], [RuleRef; 2]) {
    let [first, second] = [one, other].map(|policy| ask(policy, question));
    ([first.0, second.0], [first.1.rule, second.1.rule])
}

fn ask(policy: &Policy, question: &Question) -> (bool, crate::Reason) {
    match question {
        Question::Flow { direction, protocol, peer, port, names } => {
            let facts = Facts { direction: *direction, protocol: *protocol, peer: *peer, port: *port, names };
            let verdict = policy.check(&facts);
            (verdict.is_allow(), verdict.reason().clone())
        }
        Question::Name { name, protocol } => {
            let verdict = policy.check_name(name, &search::dns_query(*protocol));
            (verdict.is_allow(), verdict.reason().clone())
        }
    }
}
