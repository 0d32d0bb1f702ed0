//! What a verdict costs. Held: 200 ns with 10 rules, 1 µs with 10,000 rules and names, 300 ms to compile 100,000 domain rules;
//! 1 µs with 10,000 names on one address, and 2 µs to pin a name, at the bound too.

#![expect(clippy::unwrap_used, reason = "a bench whose input is wrong should stop")]

use std::net::{IpAddr, Ipv4Addr};

use cofferdam_model::{Classifier, Direction, DomainName, HostNetwork, PolicyConfig, Protocol, Time};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::{Facts, PinnedName, Pins, Policy};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Ten rules of every kind; the last one decides.
#[divan::bench(sample_size = 2000)]
fn check_10_rules(bencher: Bencher<'_, '_>) {
    let text = "deny@10.77.0.66,allow@10.77.0.0/24:tcp:5000+8000-8081,deny@10.77.0.0/16,allow@10.0.0.0/8:tcp:7,\
                deny@metadata,deny@any:tcp:25,allow@dns,allow@api.example.org:tcp:443,allow@*.cdn.example,allow@public";
    let policy = compile(text);
    let names = [pin("www.example.org")];
    bench_check(bencher, &policy, &names);
}

/// 5,000 networks, 4,000 names and suffixes, 1,000 ports.
#[divan::bench(sample_size = 2000)]
fn check_10_000_rules_by_address(bencher: Bencher<'_, '_>) {
    bench_check(bencher, &compile(&many_rules()), &[]);
}

/// The same, with the names of a CDN's address.
#[divan::bench(sample_size = 2000)]
fn check_10_000_rules_by_name(bencher: Bencher<'_, '_>) {
    let names = [pin("www.site2042.example.org"), pin("x.site77.example.net")];
    bench_check(bencher, &compile(&many_rules()), &names);
}

/// Ten rules of every kind within ten others.
#[divan::bench(sample_size = 2000)]
fn check_10_rules_narrowed_by_10(bencher: Bencher<'_, '_>) {
    let session = "deny@any:tcp:25,deny@10.77.0.0/24,allow@10.0.0.0/8,deny@metadata,deny@host,allow@*.example.org:tcp:443,\
                   deny@bad.example,allow@dns,allow@192.168.0.0/16:tcp:5432,allow@public";
    let run = "deny@10.77.0.66,allow@10.77.0.0/24:tcp:5000+8000-8081,deny@10.77.0.0/16,allow@10.0.0.0/8:tcp:7,\
               deny@metadata,deny@any:tcp:25,allow@dns,allow@api.example.org:tcp:443,allow@*.cdn.example,allow@public";
    let policy = compile(session).narrowed_by(&compile(run)).unwrap();
    let names = [pin("www.example.org")];
    bench_check(bencher, &policy, &names);
}

/// 10,000 rules within 10,000 others, with the names of a CDN's address.
#[divan::bench(sample_size = 2000)]
fn check_10_000_rules_narrowed_by_10_000(bencher: Bencher<'_, '_>) {
    // Last in the ceiling, so that the run is asked as well.
    let session = compile(&format!("{},allow@any", many_rules()));
    let policy = session.narrowed_by(&compile(&many_rules())).unwrap();
    let names = [pin("www.site2042.example.org"), pin("x.site77.example.net")];
    bench_check(bencher, &policy, &names);
}

/// Two compiled policies of 10,000 rules become one.
#[divan::bench]
fn narrow_10_000_rules(bencher: Bencher<'_, '_>) {
    let (session, run) = (compile(&many_rules()), compile(&many_rules()));
    bencher.bench_local(|| black_box(&session).narrowed_by(black_box(&run)));
}

/// 10,000 names on one address, a rule for each, another port each time.
#[divan::bench(sample_size = 2000)]
fn check_10_000_names_on_one_address(bencher: Bencher<'_, '_>) {
    let policy = compile(&domain_rules(10_000));
    let peer = IpAddr::V4(Ipv4Addr::new(11, 0, 0, 1));
    let mut pins = Pins::new(Pins::FLOOR);
    for name in names(10_000) {
        pins.insert(Time::ZERO, &name, false, peer, Pins::FLOOR).unwrap();
    }
    let mut port = 0_u16;
    bencher.bench_local(|| {
        port = port.wrapping_add(1);
        let names = pins.deciding(Time::ZERO, black_box(&policy), Protocol::Tcp, peer, Some(port));
        let facts = Facts { direction: Direction::Egress, protocol: Protocol::Tcp, peer, port: Some(port), names };
        policy.check(&facts)
    });
}

/// A name after the other, each pinned to the same address and then looked up there.
#[divan::bench(sample_count = 10)]
fn check_each_of_10_000_names_once_pinned(bencher: Bencher<'_, '_>) {
    let policy = compile(&domain_rules(10_000));
    let peer = IpAddr::V4(Ipv4Addr::new(11, 0, 0, 1));
    let names = names(10_000);
    bencher.counter(divan::counter::ItemsCount::new(10_000_u32)).bench_local(|| {
        let mut pins = Pins::new(Pins::FLOOR);
        for name in &names {
            pins.insert(Time::ZERO, name, false, peer, Pins::FLOOR).unwrap();
            let names = pins.deciding(Time::ZERO, &policy, Protocol::Tcp, peer, Some(443));
            let facts = Facts { direction: Direction::Egress, protocol: Protocol::Tcp, peer, port: Some(443), names };
            black_box(policy.check(&facts));
        }
        pins
    });
}

/// A second of looking up new names all the time, at the bound: each pin goes when a new one comes.
#[divan::bench(sample_count = 10, args = ["one address", "an address each"])]
fn insert_16_384_pins_into_a_full_table(bencher: Bencher<'_, '_>, addresses: &str) {
    let count = u32::try_from(Pins::MAX_PINS).unwrap();
    let address = |number: u32| match addresses {
        "one address" => IpAddr::V4(Ipv4Addr::new(11, 0, 0, 1)),
        _ => IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + number)),
    };
    let names = names(2 * count);
    let mut pins = Pins::new(Pins::FLOOR);
    let mut now = Time::ZERO;
    let mut turn = 0;
    bencher.counter(divan::counter::ItemsCount::new(count)).bench_local(|| {
        now = now + 2 * Pins::FLOOR;
        turn = count - turn;
        for (number, name) in (0..).zip(&names).skip(usize::try_from(turn).unwrap()).take(Pins::MAX_PINS) {
            pins.insert(now, name, false, address(number), 10 * Pins::FLOOR).unwrap();
        }
    });
}

#[divan::bench(sample_size = 2000)]
fn check_name_among_100_000(bencher: Bencher<'_, '_>) {
    let policy = compile(&domain_rules(100_000));
    let name: DomainName = "www.site54321.example".parse().unwrap();
    let transport = Facts {
        direction: Direction::Egress,
        protocol: Protocol::Udp,
        peer: IpAddr::V4(Ipv4Addr::new(172, 16, 0, 1)),
        port: Some(53),
        names: &[],
    };
    bencher.bench_local(|| black_box(&policy).check_name(black_box(&name), &transport));
}

#[divan::bench(sample_count = 10)]
fn compile_100_000_domain_rules(bencher: Bencher<'_, '_>) {
    let config = PolicyConfig { rules: parse_rules(&domain_rules(100_000)).unwrap(), ..PolicyConfig::default() };
    bencher.bench_local(|| Policy::compile(black_box(&config), Classifier::default()));
}

#[divan::bench(sample_count = 10)]
fn parse_10_000_rules(bencher: Bencher<'_, '_>) {
    let text = many_rules();
    bencher.bench_local(|| parse_rules(black_box(&text)));
}

fn bench_check(bencher: Bencher<'_, '_>, policy: &Policy, names: &[PinnedName]) {
    // Another address each time, so that the lookup is not the same one over and over.
    let mut bits = 0x0b00_0001_u32;
    bencher.bench_local(|| {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let facts = Facts {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            peer: IpAddr::V4(Ipv4Addr::from_bits(bits)),
            port: Some(443),
            names: black_box(names),
        };
        black_box(policy).check(&facts)
    });
}

fn compile(text: &str) -> Policy {
    let config = PolicyConfig { rules: parse_rules(text).unwrap(), ..PolicyConfig::default() };
    let addresses = vec!["172.16.0.1".parse().unwrap(), "192.168.7.2".parse().unwrap()];
    Policy::compile(&config, Classifier::new(HostNetwork { addresses, ..HostNetwork::default() }))
}

fn many_rules() -> String {
    let mut rules = Vec::new();
    for n in 0..5_000_u32 {
        let length = 8 + n % 25;
        let bits = n.wrapping_mul(2_654_435_761) & (u32::MAX << (32 - length));
        rules.push(format!("deny@{}/{length}:tcp:{}", Ipv4Addr::from_bits(bits), 1 + n));
    }
    for n in 0..2_000 {
        rules.push(format!("deny@www.site{n}.example.org:tcp:8443"));
        rules.push(format!("allow@*.site{n}.example.net:tcp:80"));
    }
    for n in 0..1_000 {
        rules.push(format!("deny@any:udp:{}", 10_000 + n * 2));
    }
    rules.join(",")
}

fn domain_rules(count: u32) -> String {
    (0..count).map(|n| format!("allow@*.site{n}.example:tcp:443")).collect::<Vec<_>>().join(",")
}

fn names(count: u32) -> Vec<DomainName> {
    (0..count).map(|n| format!("www.site{n}.example").parse().unwrap()).collect()
}

fn pin(name: &str) -> PinnedName {
    PinnedName { name: name.parse().unwrap(), alias: false }
}
