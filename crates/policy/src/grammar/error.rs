use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cofferdam_model::NameError;
use miette::{Diagnostic, LabeledSpan, SourceCode};

use crate::problems;
use crate::rule_problem::RuleProblem;

/// What is wrong with one token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleErrorKind {
    #[error("missing `@`; expected `action[:direction]@target[:protocols[:ports]]`")]
    MissingAt,
    #[error("unknown action {word:?}; expected `allow` or `deny`")]
    UnknownAction { word: String },
    #[error("unknown direction {word:?}; expected `egress`, `ingress` or `any`")]
    UnknownDirection { word: String },
    #[error("empty target; expected an address, a network, a name, a group, `dns` or `any`")]
    EmptyTarget,
    #[error("{word:?} is neither a group nor a name with a dot")]
    BareWord { word: String },
    #[error("`localhost` is the guest's own loopback, which never leaves the sandbox")]
    Localhost,
    #[error(
        "unknown list {word:?}; expected `@pypi`, `@npm`, `@crates`, `@go`, `@debian`, `@github`, `@metadata` or a group"
    )]
    UnknownList { word: String },
    #[error("{text:?} is not an IPv4 address; expected four numbers from 0 to 255")]
    Ipv4 { text: String },
    #[error("{text:?} is not an IPv6 address")]
    Ipv6 { text: String },
    #[error("an IPv6 address stands in brackets")]
    Unbracketed,
    #[error("missing `]` after an IPv6 address")]
    MissingBracket,
    #[error("{text:?} is not a prefix length; expected a number from 0 to {max}")]
    PrefixLength { text: String, max: u8 },
    #[error("the network {text:?} has bits set behind its prefix")]
    HostBits { text: String, network: String },
    #[error("{text:?} is not a domain name: {source}")]
    Name { text: String, source: NameError },
    #[error("{text:?} is not a domain name: the label {label:?} mixes letters of several scripts")]
    MixedScripts { text: String, label: String },
    #[error("{text:?} is not a domain name: the label {label:?} is not valid punycode")]
    Punycode { text: String, label: String },
    #[error("{text:?} is not a domain name: a last label that is a number makes it an address")]
    NumericName { text: String },
    #[error("a wildcard stands only at the front, as in `*.example.org`")]
    Wildcard,
    #[error(
        "{suffix:?} is a public suffix: a rule for it would cover names of people who have nothing to do with each other"
    )]
    PublicSuffix { suffix: String },
    #[error("{text:?} is a path or URL; expected a host name")]
    Url { text: String },
    #[error("unknown protocol {word:?}; expected `tcp`, `udp`, `icmpv4`, `icmpv6`, `icmp` or `any`")]
    UnknownProtocol { word: String },
    #[error("{text:?} stands where the protocol belongs")]
    PortForProtocol { text: String },
    #[error("{word:?} is a protocol; the short form has only ports, for tcp and udp")]
    ProtocolForPort { word: String },
    #[error("{text:?} is not a port; expected a number from 1 to 65535, a range `lo-hi` or `any`")]
    Port { text: String },
    #[error("the range {text:?} runs backwards")]
    ReversedRange { text: String },
    #[error("`dns` is a service of the gateway for the guest: its direction is egress")]
    DnsDirection,
    #[error("`dns` is tcp and udp, not {word:?}")]
    DnsProtocol { word: String },
    #[error("`dns` is port 53")]
    DnsPort,
    #[error("unexpected {text:?} after the end of the rule")]
    Trailing { text: String },
    #[error(transparent)]
    Rule(RuleProblem),
}

/// What is wrong with one token, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    /// The whole text that was parsed, shared by all errors in it.
    pub source: Arc<str>,
    /// The token, in bytes of `source`.
    pub token: Range<usize>,
    /// The part of the token that is wrong, in bytes of `source`.
    pub span: Range<usize>,
    pub kind: RuleErrorKind,
    /// What to write in its place.
    pub help: Option<String>,
}

impl RuleError {
    /// The token that is wrong, as written.
    #[must_use]
    pub fn token_text(&self) -> &str {
        self.source.get(self.token.clone()).unwrap_or_default()
    }

    /// The same error in the text without its first `bytes`, which were put before what somebody wrote.
    #[must_use]
    pub(crate) fn without_prefix(self, bytes: usize) -> RuleError {
        let Some(source) = self.source.get(bytes..).map(Arc::from) else { return self };
        let shift = |range: Range<usize>| range.start.saturating_sub(bytes)..range.end.saturating_sub(bytes);
        RuleError { source, token: shift(self.token), span: shift(self.span), ..self }
    }

    /// The wrong part's first and last character in the text, counted from 1.
    #[must_use]
    pub fn characters(&self) -> (usize, usize) {
        let before = self.source.get(..self.span.start).map_or(0, |text| text.chars().count());
        let length = self.source.get(self.span.clone()).map_or(0, |text| text.chars().count());
        (before + 1, before + length.max(1))
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.characters();
        // The token comes from a file that may not be the user's own: `{:?}` keeps control characters from the terminal.
        write!(f, "rule {:?}, ", self.token_text())?;
        if first == last {
            write!(f, "character {first}: {}", self.kind)
        } else {
            write!(f, "characters {first}-{last}: {}", self.kind)
        }
    }
}

impl std::error::Error for RuleError {}

impl Diagnostic for RuleError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        problems::boxed_help(self.help.as_ref())
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_with_span(Some(self.kind.to_string()), self.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// What is wrong with a text: at most one error per token, and the first hundred. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleErrors(pub Vec<RuleError>);

impl fmt::Display for RuleErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        problems::format_lines(f, &self.0)
    }
}

impl std::error::Error for RuleErrors {}

impl Diagnostic for RuleErrors {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        problems::boxed_related(&self.0)
    }
}
