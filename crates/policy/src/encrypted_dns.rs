//! Resolvers that answer over TLS, HTTPS or QUIC, as data, and the ports on which names are looked up around a resolver.
//!
//! Source: what each operator publishes about its service, as of 2026-11. An address is here only when DNS is all that it
//! serves, so that refusing it takes nothing else away. Names stand for themselves and for all below them: operators give
//! customers and filter levels names of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_model::{DomainName, Protocol};

use crate::Facts;

/// A flow that the gateway refuses whatever the rules say, or a resolver that it refuses while `deny_doh` is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuiltIn {
    /// DNS over TLS, over QUIC, and over HTTP/3 at a known resolver: clients fall back to what can be seen.
    EncryptedDns,
    /// Multicast DNS, LLMNR, NetBIOS names: lookups that ask the neighbourhood.
    LocalDiscovery,
    /// DNS over HTTPS at a known resolver, by `deny_doh`.
    KnownResolver,
}

impl BuiltIn {
    /// What stands in the place of a rule's text.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            BuiltIn::EncryptedDns => "built-in: encrypted DNS",
            BuiltIn::LocalDiscovery => "built-in: local discovery",
            BuiltIn::KnownResolver => "deny_doh",
        }
    }

    /// Whether it holds because a policy says so, and not whatever policies say.
    pub(crate) const fn is_configured(self) -> bool {
        match self {
            BuiltIn::EncryptedDns | BuiltIn::LocalDiscovery => false,
            BuiltIn::KnownResolver => true,
        }
    }

    /// Whether a text is that of a refusal that no rule opens.
    #[must_use]
    pub fn is_final(text: &str) -> bool {
        [BuiltIn::EncryptedDns, BuiltIn::LocalDiscovery].iter().any(|built_in| built_in.text() == text)
    }
}

/// DNS over TLS (RFC 7858 §3.1) and over QUIC (RFC 9250 §4.1.1).
const ENCRYPTED_DNS_PORT: u16 = 853;
/// NetBIOS name service (RFC 1002 §4.2), multicast DNS (RFC 6762 §3), LLMNR (RFC 4795 §2).
const DISCOVERY_PORTS: [u16; 3] = [137, 5353, 5355];
const HTTPS_PORT: u16 = 443;

/// The resolvers below, laid out to be asked.
#[derive(Debug)]
pub(crate) struct KnownResolvers {
    addresses: Box<[IpAddr]>,
    names: Box<[&'static str]>,
}

impl KnownResolvers {
    pub(crate) fn new() -> KnownResolvers {
        let v4 = RESOLVERS.iter().flat_map(|resolver| resolver.v4).map(|octets| IpAddr::V4(Ipv4Addr::from(*octets)));
        let v6 = RESOLVERS.iter().flat_map(|resolver| resolver.v6).map(|groups| IpAddr::V6(Ipv6Addr::from(*groups)));
        let mut addresses: Vec<IpAddr> = v4.chain(v6).collect();
        addresses.sort_unstable();
        let mut names: Vec<&str> = RESOLVERS.iter().flat_map(|resolver| resolver.names).copied().collect();
        names.sort_unstable();
        KnownResolvers { addresses: addresses.into(), names: names.into() }
    }

    /// The refusal that comes before every rule, for an egress flow.
    pub(crate) fn refusal(&self, facts: &Facts<'_>) -> Option<BuiltIn> {
        match (facts.protocol, facts.port?) {
            (Protocol::Tcp | Protocol::Udp, ENCRYPTED_DNS_PORT) => Some(BuiltIn::EncryptedDns),
            (Protocol::Udp, HTTPS_PORT) => self.has_address(facts.peer).then_some(BuiltIn::EncryptedDns),
            (Protocol::Udp, port) if DISCOVERY_PORTS.contains(&port) => Some(BuiltIn::LocalDiscovery),
            (Protocol::Tcp | Protocol::Udp | Protocol::IcmpV4 | Protocol::IcmpV6, _) => None,
        }
    }

    /// Whether a flow may carry DNS over HTTPS to one of them.
    pub(crate) fn is_https(&self, facts: &Facts<'_>) -> bool {
        facts.protocol == Protocol::Tcp && facts.port == Some(HTTPS_PORT) && self.has_address(facts.peer)
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub(crate) fn names(&self) -> &[&'static str] {
        &self.names
    }

    pub(crate) fn has_name(&self, name: &DomainName) -> bool {
        let mut rest = Some(name.as_str());
        while let Some(suffix) = rest {
            if self.names.binary_search(&suffix).is_ok() {
                return true;
            }
            rest = suffix.split_once('.').map(|(_, parent)| parent);
        }
        false
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.binary_search(&address.to_canonical()).is_ok()
    }
}

struct Resolver {
    names: &'static [&'static str],
    v4: &'static [[u8; 4]],
    v6: &'static [[u16; 8]],
}

const RESOLVERS: &[Resolver] = &[
    // Google
    Resolver {
        names: &["dns.google", "dns.google.com"],
        v4: &[[8, 8, 8, 8], [8, 8, 4, 4]],
        v6: &[
            [0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888],
            [0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844],
            [0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x64],
            [0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x6464],
        ],
    },
    // Cloudflare, with the names that browsers have there
    Resolver {
        names: &["cloudflare-dns.com", "one.one.one.one", "cloudflare-gateway.com"],
        v4: &[[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 2], [1, 0, 0, 2], [1, 1, 1, 3], [1, 0, 0, 3]],
        v6: &[
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1001],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1112],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1002],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1113],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1003],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x64],
            [0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x6400],
        ],
    },
    // Quad9
    Resolver {
        names: &["dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net", "dns12.quad9.net"],
        v4: &[
            [9, 9, 9, 9],
            [149, 112, 112, 112],
            [9, 9, 9, 10],
            [149, 112, 112, 10],
            [9, 9, 9, 11],
            [149, 112, 112, 11],
            [9, 9, 9, 12],
            [149, 112, 112, 12],
        ],
        v6: &[
            [0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe],
            [0x2620, 0xfe, 0, 0, 0, 0, 0, 0x9],
            [0x2620, 0xfe, 0, 0, 0, 0, 0, 0x10],
            [0x2620, 0xfe, 0, 0, 0, 0, 0xfe, 0x10],
            [0x2620, 0xfe, 0, 0, 0, 0, 0, 0x11],
            [0x2620, 0xfe, 0, 0, 0, 0, 0xfe, 0x11],
        ],
    },
    // AdGuard
    Resolver {
        names: &["adguard-dns.com", "dns.adguard.com", "dns-family.adguard.com", "dns-unfiltered.adguard.com"],
        v4: &[
            [94, 140, 14, 14],
            [94, 140, 15, 15],
            [94, 140, 14, 15],
            [94, 140, 15, 16],
            [94, 140, 14, 140],
            [94, 140, 14, 141],
        ],
        v6: &[
            [0x2a10, 0x50c0, 0, 0, 0, 0, 0xad1, 0xff],
            [0x2a10, 0x50c0, 0, 0, 0, 0, 0xad2, 0xff],
            [0x2a10, 0x50c0, 0, 0, 0, 0, 0xbad1, 0xff],
            [0x2a10, 0x50c0, 0, 0, 0, 0, 0xbad2, 0xff],
            [0x2a10, 0x50c0, 0, 0, 0, 0, 0x1, 0xff],
            [0x2a10, 0x50c0, 0, 0, 0, 0, 0x2, 0xff],
        ],
    },
    // Cisco
    Resolver {
        names: &[
            "doh.opendns.com",
            "doh.familyshield.opendns.com",
            "doh.sandbox.opendns.com",
            "dns.opendns.com",
            "doh.umbrella.com",
            "dns.umbrella.com",
        ],
        v4: &[[208, 67, 222, 222], [208, 67, 220, 220], [208, 67, 222, 123], [208, 67, 220, 123]],
        v6: &[
            [0x2620, 0x119, 0x35, 0, 0, 0, 0, 0x35],
            [0x2620, 0x119, 0x53, 0, 0, 0, 0, 0x53],
            [0x2620, 0x119, 0x35, 0, 0, 0, 0, 0x123],
            [0x2620, 0x119, 0x53, 0, 0, 0, 0, 0x123],
        ],
    },
    // NextDNS
    Resolver {
        names: &[
            "dns.nextdns.io",
            "dns1.nextdns.io",
            "dns2.nextdns.io",
            "anycast.dns.nextdns.io",
            "chromium.dns.nextdns.io",
        ],
        v4: &[[45, 90, 28, 0], [45, 90, 30, 0]],
        v6: &[[0x2a07, 0xa8c0, 0, 0, 0, 0, 0, 0], [0x2a07, 0xa8c1, 0, 0, 0, 0, 0, 0]],
    },
    // CleanBrowsing
    Resolver {
        names: &["doh.cleanbrowsing.org", "dns.cleanbrowsing.org"],
        v4: &[
            [185, 228, 168, 9],
            [185, 228, 169, 9],
            [185, 228, 168, 10],
            [185, 228, 169, 11],
            [185, 228, 168, 168],
            [185, 228, 169, 168],
        ],
        v6: &[[0x2a0d, 0x2a00, 1, 0, 0, 0, 0, 2], [0x2a0d, 0x2a00, 2, 0, 0, 0, 0, 2]],
    },
    // Mullvad
    Resolver {
        names: &["dns.mullvad.net"],
        v4: &[
            [194, 242, 2, 2],
            [194, 242, 2, 3],
            [194, 242, 2, 4],
            [194, 242, 2, 5],
            [194, 242, 2, 6],
            [194, 242, 2, 9],
        ],
        v6: &[
            [0x2a07, 0xe340, 0, 0, 0, 0, 0, 2],
            [0x2a07, 0xe340, 0, 0, 0, 0, 0, 3],
            [0x2a07, 0xe340, 0, 0, 0, 0, 0, 4],
            [0x2a07, 0xe340, 0, 0, 0, 0, 0, 5],
            [0x2a07, 0xe340, 0, 0, 0, 0, 0, 6],
            [0x2a07, 0xe340, 0, 0, 0, 0, 0, 9],
        ],
    },
    // Control D
    Resolver {
        names: &["dns.controld.com", "freedns.controld.com", "doh.controld.com"],
        v4: &[
            [76, 76, 2, 0],
            [76, 76, 10, 0],
            [76, 76, 2, 1],
            [76, 76, 2, 2],
            [76, 76, 2, 3],
            [76, 76, 2, 4],
            [76, 76, 2, 5],
        ],
        v6: &[[0x2606, 0x1a40, 0, 0, 0, 0, 0, 0], [0x2606, 0x1a40, 1, 0, 0, 0, 0, 0]],
    },
    // DNS.SB
    Resolver {
        names: &["doh.dns.sb", "doh.sb", "dot.sb"],
        v4: &[[185, 222, 222, 222], [45, 11, 45, 11]],
        v6: &[[0x2a09, 0, 0, 0, 0, 0, 0, 0], [0x2a11, 0, 0, 0, 0, 0, 0, 0]],
    },
    // Alibaba
    Resolver {
        names: &["dns.alidns.com"],
        v4: &[[223, 5, 5, 5], [223, 6, 6, 6]],
        v6: &[[0x2400, 0x3200, 0, 0, 0, 0, 0, 1], [0x2400, 0x3200, 0xbaba, 0, 0, 0, 0, 1]],
    },
    // DNSPod
    Resolver {
        names: &["doh.pub", "dot.pub", "dns.pub", "sm2.doh.pub"],
        v4: &[[1, 12, 12, 12], [120, 53, 53, 53], [119, 29, 29, 29]],
        v6: &[],
    },
    // Smaller and national ones
    Resolver { names: &["doh.360.cn", "dot.360.cn"], v4: &[], v6: &[] },
    Resolver { names: &["dns.twnic.tw"], v4: &[[101, 101, 101, 101], [101, 102, 103, 104]], v6: &[] },
    Resolver { names: &["public.dns.iij.jp"], v4: &[[103, 2, 57, 5], [103, 2, 57, 6]], v6: &[] },
    Resolver { names: &["dns.switch.ch"], v4: &[[130, 59, 31, 248], [130, 59, 31, 251]], v6: &[] },
    Resolver { names: &["doh.libredns.gr", "dot.libredns.gr"], v4: &[], v6: &[] },
    Resolver {
        names: &["anycast.uncensoreddns.org", "unicast.uncensoreddns.org"],
        v4: &[[91, 239, 100, 100], [89, 233, 43, 71]],
        v6: &[],
    },
    Resolver {
        names: &["joindns4.eu", "dns0.eu"],
        v4: &[
            [86, 54, 11, 1],
            [86, 54, 11, 13],
            [86, 54, 11, 12],
            [86, 54, 11, 11],
            [86, 54, 11, 100],
            [193, 110, 81, 0],
            [185, 253, 5, 0],
        ],
        v6: &[],
    },
    Resolver { names: &["dot.dns.yandex.net"], v4: &[[77, 88, 8, 8], [77, 88, 8, 1]], v6: &[] },
    Resolver { names: &["doh.xfinity.com", "dot.xfinity.com", "doh.dns.apple.com"], v4: &[], v6: &[] },
];

#[cfg(test)]
mod tests {
    use cofferdam_model::{Classifier, Group};

    use super::*;

    #[test]
    fn every_row_is_what_it_says() {
        let known = KnownResolvers::new();
        for address in &known.addresses {
            assert_eq!(Classifier::default().classify(*address), Group::Public, "{address}");
        }
        assert!(known.names.windows(2).all(|pair| pair[0] < pair[1]), "a name stands twice");
        let is_plain = |name: &&str| name.parse::<DomainName>().is_ok_and(|parsed| parsed.as_str() == *name);
        assert!(known.names.iter().all(is_plain));
        assert!(known.addresses.windows(2).all(|pair| pair[0] < pair[1]), "an address stands twice");
    }

    #[test]
    fn names_match_at_label_borders() {
        let known = KnownResolvers::new();
        let has = |name: &str| known.has_name(&name.parse().unwrap());
        assert!(has("dns.google") && has("mozilla.cloudflare-dns.com") && has("abc123.dns.nextdns.io"));
        assert!(!has("google") && !has("www.google.com") && !has("notcloudflare-dns.com") && !has("nextdns.io"));
    }
}
