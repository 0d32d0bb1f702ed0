use cofferdam_model::{Destination, DomainName};
use unicode_security::MixedScript;

use crate::grammar::error::RuleErrorKind as Kind;
use crate::grammar::parse::Problem;
use crate::grammar::piece::Piece;

/// Whether a suffix rule may be for a public suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublicSuffix {
    /// `suffix!=`: the writer insists.
    Accept,
    Refuse,
}

/// A name that a rule matches as a whole.
pub(crate) fn exact(piece: Piece<'_>) -> Result<DomainName, Problem> {
    if piece.text.contains('*') {
        let help = match piece.text {
            "*" => Some("write `any`".to_owned()),
            text => {
                let rest = text.rsplit_once('*').map_or(text, |(_, rest)| rest).trim_start_matches('.');
                rest.contains('.').then(|| format!("did you mean `*.{rest}`?"))
            }
        };
        return Err(Problem::new(piece, Kind::Wildcard).help(help));
    }
    let name: DomainName =
        piece.text.parse().map_err(|source| Problem::new(piece, Kind::Name { text: piece.text.to_owned(), source }))?;
    // A name whose last label is a number is an address to most programs (WHATWG URL, "ends in a number"), so a rule for it
    // would never match, or not what was meant.
    if name.labels().next_back().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(Problem::new(piece, Kind::NumericName { text: piece.text.to_owned() }));
    }
    check_labels(piece, &name)?;
    Ok(name)
}

/// `x` for the name and all below, `.x` for all below only.
pub(crate) fn suffix(piece: Piece<'_>, public: PublicSuffix) -> Result<Destination, Problem> {
    let (name, apex) = match piece.strip_prefix(".") {
        Some(name) => (name, false),
        None => (piece, true),
    };
    let name = exact(name)?;
    if public == PublicSuffix::Refuse && is_public_suffix(&name) {
        let dot = if apex { "" } else { "." };
        let help = format!("name the sites in it one by one, or insist with `suffix!={dot}{name}`");
        return Err(Problem::new(piece, Kind::PublicSuffix { suffix: name.to_string() }).help(help));
    }
    Ok(Destination::Suffix { name, apex })
}

/// Whether anybody can register names right below `name`, going by the public suffix list, private section included. A
/// single label always counts: nobody owns a whole top-level domain whose policies we know.
pub(crate) fn is_public_suffix(name: &DomainName) -> bool {
    cofferdam_suffix::is_public_suffix(name.as_str())
}

/// Looks through punycode: a label has to be the encoding of something, and that in one script (UTS 39 §5.1), since a name
/// such as `раypal.com` with two Cyrillic letters is there to deceive a reader of the policy.
fn check_labels(piece: Piece<'_>, name: &DomainName) -> Result<(), Problem> {
    for label in name.labels().filter(|label| label.starts_with("xn--")) {
        let (unicode, result) = idna::domain_to_unicode(label);
        let encodes_back = idna::domain_to_ascii(&unicode).is_ok_and(|ascii| ascii == label);
        if result.is_err() || !encodes_back {
            let (text, label) = (piece.text.to_owned(), label.to_owned());
            return Err(Problem::new(piece, Kind::Punycode { text, label }));
        }
        if !unicode.as_str().is_single_script() {
            return Err(Problem::new(piece, Kind::MixedScripts { text: piece.text.to_owned(), label: unicode }));
        }
    }
    Ok(())
}
