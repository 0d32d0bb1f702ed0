//! Lists of destinations that something other than a rule is about: which flows count against a budget.

use std::net::IpAddr;

use cofferdam_model::{Classifier, Destination, DomainName};

/// Whether a flow to `address`, by any of `names`, is one to any of `destinations`. An empty list stands for every flow.
///
/// A network holds every address in it, the host's too: nothing is opened by this.
#[must_use]
pub fn is_among(destinations: &[Destination], classifier: &Classifier, address: IpAddr, names: &[DomainName]) -> bool {
    let address = address.to_canonical();
    let is_in = |destination: &Destination| match destination {
        Destination::Any => true,
        Destination::Group(group) => classifier.classify(address) == *group,
        Destination::Cidr(net) => net.contains(&address),
        Destination::Domain(name) => names.contains(name),
        Destination::Suffix { name, apex } => {
            names.iter().any(|other| if other == name { *apex } else { is_below(other, name) })
        }
    };
    destinations.is_empty() || destinations.iter().any(is_in)
}

fn is_below(name: &DomainName, suffix: &DomainName) -> bool {
    name.as_str().strip_suffix(suffix.as_str()).is_some_and(|front| front.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_among_destinations_by_address_group_and_name() {
        let rules = |text: &str| -> Vec<Destination> {
            let parsed = crate::grammar::parse_short(cofferdam_model::Action::Allow, text).unwrap();
            parsed.into_iter().map(|rule| rule.destination).collect()
        };
        for (list, address, name, expected) in [
            ("", "1.1.1.1", "", true),
            ("any", "2606:4700::1111", "", true),
            ("public", "1.1.1.1", "", true),
            ("public", "2606:4700::1111", "", true),
            ("private", "1.1.1.1", "", false),
            ("10.0.0.0/8,[fd00::/8]", "fd00::1", "", true),
            ("10.0.0.0/8,[fd00::/8]", "10.1.2.3", "", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "", true),
            ("10.0.0.0/8", "11.1.2.3", "", false),
            ("example.org", "1.1.1.1", "example.org", true),
            ("example.org", "1.1.1.1", "a.example.org", false),
            ("*.example.org", "1.1.1.1", "a.example.org", true),
            ("*.example.org", "1.1.1.1", "example.org", true),
            (".example.org", "1.1.1.1", "example.org", false),
            ("*.example.org", "1.1.1.1", "anexample.org", false),
            ("@pypi", "1.1.1.1", "files.pythonhosted.org", true),
            ("@pypi", "1.1.1.1", "", false),
        ] {
            let names: Vec<DomainName> = name.parse().ok().into_iter().collect();
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                is_among(&rules(list), &Classifier::default(), address, &names),
                expected,
                "{list} {address} {name}"
            );
        }
    }
}
