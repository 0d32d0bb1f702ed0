//! The rule grammar from outside: what is accepted, what it comes to, and every error with its place and suggestion.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use cofferdam_model::Action;
use cofferdam_policy::grammar::{RuleErrorKind as Kind, format_rule, parse_rules, parse_short};

#[test]
fn rules_are_read_and_printed_normalised() {
    let cases = [
        ("allow@any", "allow@any"),
        ("deny:any@any", "deny:any@any"),
        ("allow:egress@public", "allow@public"),
        ("deny:ingress@private:tcp", "deny:ingress@private:tcp"),
        ("allow@meta", "allow@metadata"),
        ("allow@link_local", "allow@link-local"),
        ("allow@10.0.0.5:tcp:5432", "allow@10.0.0.5:tcp:5432"),
        ("allow@10.0.0.5/32", "allow@10.0.0.5"),
        ("deny@0.0.0.0/0", "deny@0.0.0.0/0"),
        ("deny@10.0.0.0/8", "deny@10.0.0.0/8"),
        ("allow@[2606:4700::1]:udp:53", "allow@[2606:4700::1]:udp:53"),
        ("allow@[2606:4700:0:0::]", "allow@[2606:4700::]"),
        ("allow@[fd00::/8]", "allow@[fd00::/8]"),
        ("deny@[::/0]", "deny@[::/0]"),
        ("allow@[::ffff:10.0.0.1]", "allow@10.0.0.1"),
        ("deny@[::ffff:10.0.0.0/104]", "deny@10.0.0.0/8"),
        ("allow@API.GitHub.com.", "allow@api.github.com"),
        ("allow@bücher.example", "allow@xn--bcher-kva.example"),
        ("allow@BÜCHER.example", "allow@xn--bcher-kva.example"),
        ("allow@_dmarc.example.org", "allow@_dmarc.example.org"),
        ("allow@*.example.org:tcp:443", "allow@*.example.org:tcp:443"),
        ("allow@suffix=example.org", "allow@*.example.org"),
        ("allow@.example.org", "allow@.example.org"),
        ("allow@suffix!=com", "allow@suffix!=com"),
        ("allow@suffix!=.com", "allow@suffix!=.com"),
        ("allow@suffix!=example.org", "allow@*.example.org"),
        ("allow@domain=router", "allow@domain=router"),
        ("allow@domain=example.org", "allow@example.org"),
        ("allow@dns", "allow@dns"),
        ("allow@dns:udp", "allow@host:udp:53"),
        ("allow@dns:tcp+udp:53", "allow@dns"),
        ("allow@host:tcp+udp:53", "allow@dns"),
        ("allow@any:any:any", "allow@any"),
        ("allow@any:any:443", "allow@any:any:443"),
        ("allow@any:udp+tcp:443+80", "allow@any:tcp+udp:80+443"),
        ("allow@any:tcp:80+81+82-90+85", "allow@any:tcp:80-90"),
        ("allow@any:tcp:1-65535", "allow@any:tcp:1-65535"),
        ("allow@any:icmp", "allow@any:icmp"),
        ("allow@any:icmpv6", "allow@any:icmpv6"),
        ("allow@any:icmpv4+icmpv6", "allow@any:icmp"),
        ("allow@any:tcp+icmp:443", "allow@any:tcp+icmp:443"),
    ];
    for (text, expected) in cases {
        let rules = parse_rules(text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(rules.len(), 1, "{text}");
        assert_eq!(format_rule(&rules[0]), expected, "{text}");
        assert_eq!(parse_rules(expected).unwrap(), rules, "{text}");
    }
}

#[test]
fn pieces_are_trimmed_and_empty_ones_skipped() {
    let rules = parse_rules(" , allow@any:tcp:80 ,,\tdeny@private , ").unwrap();
    let texts: Vec<String> = rules.iter().map(format_rule).collect();
    assert_eq!(texts, ["allow@any:tcp:80", "deny@private"]);
    assert_eq!(parse_rules("").unwrap(), []);
}

#[test]
fn a_list_stands_for_a_rule_per_entry() {
    let texts = |text: &str| parse_rules(text).unwrap().iter().map(format_rule).collect::<Vec<_>>();
    assert_eq!(
        texts("allow@@pypi:tcp:443"),
        ["allow@pypi.org:tcp:443", "allow@files.pythonhosted.org:tcp:443", "allow@*.pythonhosted.org:tcp:443"]
    );
    assert_eq!(texts("allow@@PYPI_HOSTS"), texts("allow@@pypi"));
    let metadata = texts("deny@@metadata");
    assert_eq!(metadata[..3], ["deny@metadata", "deny@169.254.0.0/16", "deny@metadata.google.internal"]);
    assert!(metadata.contains(&"deny@metadata.azure.internal".to_owned()));
    for list in ["npm", "crates", "go", "debian", "github"] {
        assert!(texts(&format!("allow@@{list}")).len() > 2, "{list}");
    }
}

#[test]
fn the_short_form_is_tcp_and_udp_egress() {
    let cases = [
        ("pypi.org", "allow@pypi.org:tcp+udp"),
        ("*.github.com:443", "allow@*.github.com:tcp+udp:443"),
        ("10.0.0.5:5432", "allow@10.0.0.5:tcp+udp:5432"),
        ("10.0.0.0/8:80+443", "allow@10.0.0.0/8:tcp+udp:80+443"),
        ("[2606:4700::1]:8000-8081", "allow@[2606:4700::1]:tcp+udp:8000-8081"),
        ("any", "allow@any:tcp+udp"),
        ("host:5432", "allow@host:tcp+udp:5432"),
        ("dns", "allow@dns"),
        (".example.org", "allow@.example.org:tcp+udp"),
        ("example.org:any", "allow@example.org:tcp+udp"),
    ];
    for (text, expected) in cases {
        let rules = parse_short(Action::Allow, text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(rules.iter().map(format_rule).collect::<Vec<_>>(), [expected], "{text}");
    }
    assert_eq!(parse_short(Action::Deny, "@pypi").unwrap().len(), 3);
    assert_eq!(parse_short(Action::Deny, "a.example, b.example:80").unwrap().len(), 2);
}

#[test]
fn every_error_names_its_place_and_what_to_write() {
    // Text; the characters that are wrong; the kind; a part of the help, empty when none is expected.
    type Case = (&'static str, &'static str, fn(&Kind) -> bool, &'static str);
    let cases: &[Case] = &[
        ("example.com", "example.com", |k| matches!(k, Kind::MissingAt), "`allow@example.com`"),
        ("allow example.com", "allow example.com", |k| matches!(k, Kind::MissingAt), "`allow@example.com`"),
        ("alow@any", "alow", |k| matches!(k, Kind::UnknownAction { .. }), "`allow`"),
        ("Allow@any", "Allow", |k| matches!(k, Kind::UnknownAction { .. }), "`allow`"),
        ("block@any", "block", |k| matches!(k, Kind::UnknownAction { .. }), "`deny`"),
        ("@pypi", "", |k| matches!(k, Kind::UnknownAction { .. }), "`allow@pypi`"),
        ("allow:egres@any", "egres", |k| matches!(k, Kind::UnknownDirection { .. }), "`egress`"),
        ("allow:in@any", "in", |k| matches!(k, Kind::UnknownDirection { .. }), "`ingress`"),
        ("allow:@any", "", |k| matches!(k, Kind::UnknownDirection { .. }), ""),
        ("allow@", "", |k| matches!(k, Kind::EmptyTarget), ""),
        ("allow@:tcp", "", |k| matches!(k, Kind::EmptyTarget), ""),
        ("allow@pubilc", "pubilc", |k| matches!(k, Kind::BareWord { .. }), "`public`"),
        ("allow@router", "router", |k| matches!(k, Kind::BareWord { .. }), "`domain=router`"),
        ("allow@pypi", "pypi", |k| matches!(k, Kind::BareWord { .. }), "`@pypi`"),
        ("allow@localhost", "localhost", |k| matches!(k, Kind::Localhost), "`host`"),
        ("allow@localhost:tcp:80", "localhost", |k| matches!(k, Kind::Localhost), "`host:tcp:"),
        ("allow@@pipy", "@pipy", |k| matches!(k, Kind::UnknownList { .. }), "`@pypi`"),
        ("allow@@pip", "@pip", |k| matches!(k, Kind::UnknownList { .. }), "`@pypi`"),
        ("allow@@cargo", "@cargo", |k| matches!(k, Kind::UnknownList { .. }), "`@crates`"),
        ("allow@@@npm", "@@npm", |k| matches!(k, Kind::UnknownList { .. }), "`@npm`"),
        ("allow@@banana", "@banana", |k| matches!(k, Kind::UnknownList { .. }), ""),
        ("allow@@pyip", "@pyip", |k| matches!(k, Kind::UnknownList { .. }), "`@pypi`"),
        ("allow@10.0.0.256", "10.0.0.256", |k| matches!(k, Kind::Ipv4 { .. }), ""),
        ("allow@10.0.0", "10.0.0", |k| matches!(k, Kind::Ipv4 { .. }), ""),
        ("allow@010.0.0.1", "010.0.0.1", |k| matches!(k, Kind::Ipv4 { .. }), ""),
        ("allow@0x7f.0x1", "0x7f.0x1", |k| matches!(k, Kind::Ipv4 { .. }), ""),
        ("allow@10.0.0.0/33", "33", |k| matches!(k, Kind::PrefixLength { max: 32, .. }), ""),
        ("allow@10.0.0.0/+8", "+8", |k| matches!(k, Kind::PrefixLength { .. }), ""),
        ("allow@10.0.0.0/", "", |k| matches!(k, Kind::PrefixLength { .. }), ""),
        ("allow@10.0.0.5/8", "10.0.0.5/8", |k| matches!(k, Kind::HostBits { .. }), "`10.0.0.0/8`"),
        ("allow@[fd00::1/8]", "fd00::1/8", |k| matches!(k, Kind::HostBits { .. }), "`[fd00::/8]`"),
        ("allow@[::1", "[::1", |k| matches!(k, Kind::MissingBracket), ""),
        ("allow@[fe80::1%eth0]", "fe80::1%eth0", |k| matches!(k, Kind::Ipv6 { .. }), ""),
        ("allow@[10.0.0.1]", "10.0.0.1", |k| matches!(k, Kind::Ipv6 { .. }), "`10.0.0.1`"),
        ("allow@[::1/129]", "129", |k| matches!(k, Kind::PrefixLength { max: 128, .. }), ""),
        ("allow@[::1]443", "443", |k| matches!(k, Kind::Trailing { .. }), ""),
        ("allow@2606:4700::1", "2606:4700::1", |k| matches!(k, Kind::Unbracketed), "`[2606:4700::1]`"),
        ("allow@fd00::/8:tcp:80", "fd00::/8:tcp:80", |k| matches!(k, Kind::Unbracketed), "`[fd00::/8]:tcp:80`"),
        ("allow@a..b", "a..b", |k| matches!(k, Kind::Name { .. }), ""),
        ("allow@exa mple.org", "exa mple.org", |k| matches!(k, Kind::Name { .. }), ""),
        ("allow@xn--a.example", "xn--a.example", |k| matches!(k, Kind::Punycode { .. }), ""),
        ("allow@раypal.com", "раypal.com", |k| matches!(k, Kind::MixedScripts { .. }), ""),
        ("allow@*", "*", |k| matches!(k, Kind::Wildcard), "`any`"),
        ("allow@a.*.com", "a.*.com", |k| matches!(k, Kind::Wildcard), ""),
        ("allow@**.example.org", "**.example.org", |k| matches!(k, Kind::Wildcard), "`*.example.org`"),
        ("allow@*example.org", "*example.org", |k| matches!(k, Kind::Wildcard), "`*.example.org`"),
        ("allow@*.com", "com", |k| matches!(k, Kind::PublicSuffix { .. }), "`suffix!=com`"),
        ("allow@*.github.io", "github.io", |k| matches!(k, Kind::PublicSuffix { .. }), "`suffix!=github.io`"),
        ("allow@suffix=co.uk", "co.uk", |k| matches!(k, Kind::PublicSuffix { .. }), "`suffix!=co.uk`"),
        ("allow@.s3.amazonaws.com", ".s3.amazonaws.com", |k| matches!(k, Kind::PublicSuffix { .. }), "suffix!=.s3"),
        ("allow@*.internal", "internal", |k| matches!(k, Kind::PublicSuffix { .. }), "suffix!="),
        ("allow@domain=10.0.0.1", "10.0.0.1", |k| matches!(k, Kind::NumericName { .. }), ""),
        ("allow@https://x.org/y", "https://x.org/y", |k| matches!(k, Kind::Url { .. }), "`x.org`"),
        ("allow@x.org/24", "x.org/24", |k| matches!(k, Kind::Url { .. }), "`x.org`"),
        ("allow@x.org:tpc", "tpc", |k| matches!(k, Kind::UnknownProtocol { .. }), "`tcp`"),
        ("allow@x.org:tcp+upd", "upd", |k| matches!(k, Kind::UnknownProtocol { .. }), "`udp`"),
        ("allow@x.org:", "", |k| matches!(k, Kind::UnknownProtocol { .. }), ""),
        ("allow@x.org:443", "443", |k| matches!(k, Kind::PortForProtocol { .. }), "`allow@x.org:tcp:443`"),
        ("allow@x.org:443:udp", "443", |k| matches!(k, Kind::PortForProtocol { .. }), "`allow@x.org:udp:443`"),
        ("allow@[::1]:80+443", "80+443", |k| matches!(k, Kind::PortForProtocol { .. }), "`allow@[::1]:tcp:80+443`"),
        ("allow@x.org:tcp:0", "0", |k| matches!(k, Kind::Port { .. }), ""),
        ("allow@x.org:tcp:65536", "65536", |k| matches!(k, Kind::Port { .. }), ""),
        ("allow@x.org:tcp:https", "https", |k| matches!(k, Kind::Port { .. }), "`443`"),
        ("allow@x.org:tcp:80-", "80-", |k| matches!(k, Kind::Port { .. }), ""),
        ("allow@x.org:tcp:+80", "", |k| matches!(k, Kind::Port { .. }), ""),
        ("allow@x.org:tcp: 80", " 80", |k| matches!(k, Kind::Port { .. }), ""),
        ("allow@x.org:tcp:", "", |k| matches!(k, Kind::Port { .. }), ""),
        ("allow@x.org:tcp:443-80", "443-80", |k| matches!(k, Kind::ReversedRange { .. }), "`80-443`"),
        ("allow@x.org:tcp:80:foo", "foo", |k| matches!(k, Kind::Trailing { .. }), ""),
        ("allow:ingress@dns", "allow:ingress", |k| matches!(k, Kind::DnsDirection), "`allow@dns`"),
        ("allow:any@dns", "allow:any", |k| matches!(k, Kind::DnsDirection), ""),
        ("allow@dns:udp:5353", "5353", |k| matches!(k, Kind::DnsPort), ""),
        ("allow@dns:icmp", "icmp", |k| matches!(k, Kind::DnsProtocol { .. }), ""),
        ("deny:ingress@any:icmp", "deny:ingress", |k| matches!(k, Kind::Rule(_)), ""),
        ("deny:any@any:tcp+icmpv6", "deny:any", |k| matches!(k, Kind::Rule(_)), ""),
        ("deny@any:icmp:80", "80", |k| matches!(k, Kind::Rule(_)), ""),
    ];
    for (text, wrong, kind, help) in cases {
        let errors = parse_rules(text).expect_err(text).0;
        assert_eq!(errors.len(), 1, "{text}");
        let error = &errors[0];
        assert!(kind(&error.kind), "{text}: {error:?}");
        assert_eq!(&error.source[error.span.clone()], *wrong, "{text}: {error:?}");
        assert!(error.help.as_deref().unwrap_or_default().contains(help), "{text}: {error:?}");
        assert!(error.to_string().contains(&format!("{:?}", error.token_text())), "{error}");
    }
}

#[test]
fn the_short_form_explains_itself() {
    let cases = [
        ("::1", "`[::1]`"),
        ("x.org:tcp:443", "`--net-rule deny@x.org:tcp:443`"),
        ("x.org:80,443", "`example.org:80+443`"),
        ("localhost:5432", "`host:5432`"),
        ("allow@x.org", "`--net-rule`"),
        ("router", "`domain=router`"),
    ];
    for (text, help) in cases {
        let errors = parse_short(Action::Deny, text).expect_err(text);
        assert!(errors.to_string().contains(help), "{text}: {errors}");
    }
}

#[test]
fn places_count_characters_and_every_wrong_token_is_reported() {
    let errors = parse_rules("allow@bücher.example, alow@any,deny@private, deny@10.0.0.1/8").unwrap_err().0;
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0].characters(), (23, 26));
    assert_eq!(errors[0].token_text(), "alow@any");
    assert_eq!(errors[1].characters(), (51, 60));
    assert_eq!(
        errors[1].to_string(),
        "rule \"deny@10.0.0.1/8\", characters 51-60: the network \"10.0.0.1/8\" has bits set behind its prefix"
    );
}

#[test]
fn a_text_full_of_mistakes_reports_the_first_hundred() {
    let errors = parse_rules(&"x,".repeat(100_000)).unwrap_err();
    assert_eq!(errors.0.len(), 100);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let errors = parse_rules("allow@\u{1b}]52;c;x.org").unwrap_err();
    assert!(!errors.to_string().contains('\u{1b}'), "{errors}");
}
