//! Pins: how long a name is bound to an address, and what happens at the bounds.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cofferdam_model::{Classifier, DomainName, PolicyConfig, Protocol, Time};
use cofferdam_policy::{Pins, PinsFull, Policy};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_pin_lives_for_its_ttl_and_at_least_a_minute() {
    let mut pins = Pins::new(Pins::FLOOR);
    pins.insert(at(0), &name("short.example"), false, address(1), SECOND).unwrap();
    pins.insert(at(0), &name("long.example"), true, address(1), 300 * SECOND).unwrap();
    assert_eq!(names(&pins, at(59), 1), ["long.example (alias)", "short.example"]);
    assert_eq!(names(&pins, at(60), 1), ["long.example (alias)"]);
    assert_eq!(names(&pins, at(299), 1), ["long.example (alias)"]);
    assert_eq!(names(&pins, at(300), 1), [] as [&str; 0]);
    pins.expire(at(300));
    assert!(pins.is_empty());
    assert_eq!(names(&pins, at(300), 2), [] as [&str; 0]);
}

#[test]
fn answers_accumulate_and_a_repeated_one_prolongs() {
    let mut pins = Pins::new(Pins::FLOOR);
    for second in [0, 30, 60] {
        pins.insert(at(second), &name("a.example"), false, address(1), SECOND).unwrap();
    }
    pins.insert(at(60), &name("a.example"), false, address(2), SECOND).unwrap();
    assert_eq!(pins.len(), 2);
    assert_eq!(names(&pins, at(119), 1), ["a.example"]);
    assert_eq!(names(&pins, at(119), 2), ["a.example"]);
    // A shorter answer later does not shorten what an earlier one promised.
    pins.insert(at(0), &name("b.example"), false, address(3), 500 * SECOND).unwrap();
    pins.insert(at(1), &name("b.example"), false, address(3), SECOND).unwrap();
    assert_eq!(names(&pins, at(499), 3), ["b.example"]);
}

#[test]
fn a_mapped_address_is_the_ipv4_address() {
    let mut pins = Pins::new(Pins::FLOOR);
    pins.insert(at(0), &name("a.example"), false, "::ffff:10.0.0.1".parse().unwrap(), SECOND).unwrap();
    assert_eq!(names(&pins, at(1), 1), ["a.example"]);
}

#[test]
fn names_of_demoted_addresses_count_as_aliases_until_they_are_asked_for_again() {
    let mut pins = Pins::new(Pins::FLOOR);
    for (text, alias) in [("a.example", false), ("b.example", false), ("b.example", true)] {
        pins.insert(at(0), &name(text), alias, address(1), 100 * SECOND).unwrap();
    }
    pins.insert(at(0), &name("a.example"), false, address(2), 100 * SECOND).unwrap();
    pins.demote(at(1), |other| other == address(1));
    assert_eq!(names(&pins, at(1), 1), ["a.example (alias)", "b.example (alias)"]);
    assert_eq!(names(&pins, at(1), 2), ["a.example"]);
    assert_eq!(pins.len(), 3);
    pins.insert(at(2), &name("a.example"), false, address(1), SECOND).unwrap();
    assert_eq!(names(&pins, at(99), 1), ["a.example (alias)", "b.example (alias)"]);
    assert_eq!(names(&pins, at(100), 1), [] as [&str; 0], "they live no longer than before");
}

#[test]
fn the_floor_can_be_another_one() {
    for (floor, ttl, life) in [(1, 0, 1), (1, 5, 5), (600, 0, 600)] {
        let mut pins = Pins::new(floor * SECOND);
        pins.insert(at(0), &name("a.example"), false, address(1), ttl * SECOND).unwrap();
        assert_eq!(names(&pins, at(life - 1), 1), ["a.example"]);
        assert_eq!(names(&pins, at(life), 1), [] as [&str; 0]);
    }
    let mut pins = Pins::new(Pins::FLOOR);
    pins.set_floor(2 * SECOND);
    pins.insert(at(0), &name("a.example"), false, address(1), SECOND).unwrap();
    assert_eq!(names(&pins, at(2), 1), [] as [&str; 0]);
}

#[test]
fn a_short_floor_does_not_let_a_flood_take_pins_that_were_just_made() {
    let mut pins = Pins::new(SECOND);
    for number in 1..=u32::try_from(Pins::MAX_PINS).unwrap() {
        pins.insert(at(0), &name(&format!("n{number}.example")), false, address(number), 900 * SECOND).unwrap();
    }
    assert_eq!(pins.insert(at(59), &name("another.example"), false, address(0), SECOND), Err(PinsFull));
    pins.insert(at(60), &name("another.example"), false, address(0), SECOND).unwrap();
}

#[test]
fn names_whose_pins_are_gone_are_kept_in_mind_and_are_no_pins() {
    for peer in [address(1), "2001:db8::1".parse().unwrap()] {
        let mut pins = Pins::new(Pins::FLOOR);
        pins.insert(at(0), &name("a.example"), false, peer, SECOND).unwrap();
        pins.insert(at(0), &name("b.example"), false, peer, 90 * SECOND).unwrap();
        pins.insert(at(0), &name("alias.example"), true, peer, SECOND).unwrap();
        let former = |pins: &Pins, second| -> Vec<String> {
            pins.former_names_of(at(second), peer).map(DomainName::to_string).collect()
        };
        assert_eq!(former(&pins, 59), [] as [&str; 0]);
        pins.expire(at(60));
        assert_eq!(former(&pins, 60), ["a.example"]);
        pins.expire(at(90));
        assert_eq!(former(&pins, 90), ["b.example", "a.example"]);
        assert!(pins.is_empty());
        assert_eq!(pins.names_of(at(90), peer).count(), 0);
        assert!(!pins.is_pinned(at(90), &name("a.example"), peer));
        // Asked for again it is a pin, and nothing else.
        pins.insert(at(91), &name("a.example"), false, peer, SECOND).unwrap();
        assert_eq!(former(&pins, 91), ["b.example"]);
        let a_day = 86_400;
        assert_eq!(former(&pins, 90 + a_day), [] as [&str; 0]);
    }
}

#[test]
fn names_whose_pins_are_gone_are_kept_in_bounds() {
    let mut pins = Pins::new(SECOND);
    for number in 0..10_000_u32 {
        pins.insert(at(0), &name(&format!("n{number}.example")), false, address(number), SECOND).unwrap();
    }
    pins.expire(at(1));
    let kept = (0..10_000).filter(|number| pins.former_names_of(at(1), address(*number)).next().is_some());
    assert_eq!(kept.collect::<Vec<u32>>(), (10_000 - 4_096..10_000).collect::<Vec<u32>>(), "those that went last");
    for number in 0..100 {
        pins.insert(at(2), &name(&format!("m{number}.example")), false, address(1), SECOND).unwrap();
    }
    pins.expire(at(3));
    let at_one: Vec<String> = pins.former_names_of(at(3), address(1)).map(DomainName::to_string).collect();
    assert_eq!((at_one.len(), at_one[0].as_str(), at_one[15].as_str()), (16, "m99.example", "m84.example"));
}

#[test]
fn a_name_and_an_alias_of_the_same_text_are_two_pins() {
    let mut pins = Pins::new(Pins::FLOOR);
    pins.insert(at(0), &name("a.example"), false, address(1), SECOND).unwrap();
    pins.insert(at(0), &name("a.example"), true, address(1), 100 * SECOND).unwrap();
    assert_eq!(names(&pins, at(1), 1), ["a.example (alias)", "a.example"]);
    pins.expire(at(99));
    assert_eq!(names(&pins, at(99), 1), ["a.example (alias)"]);
}

#[test]
fn a_full_table_refuses_while_every_pin_is_fresh_and_then_lets_the_idlest_go() {
    let mut pins = full();
    let another = name("another.example");
    assert_eq!(pins.insert(at(59), &another, false, address(0), SECOND), Err(PinsFull));
    assert_eq!(pins.len(), Pins::MAX_PINS);
    // The first pin is in use, so the second goes.
    assert_eq!(look_up(&mut pins, at(59), 1), 0, "no rule is about names");
    pins.insert(at(61), &another, false, address(0), SECOND).unwrap();
    assert_eq!(pins.len(), Pins::MAX_PINS);
    assert_eq!(names(&pins, at(61), 1), ["n1.example"]);
    assert_eq!(names(&pins, at(61), 2), [] as [&str; 0]);
    assert_eq!(names(&pins, at(61), 0), ["another.example"]);
}

#[test]
fn an_expired_pin_makes_room() {
    let mut pins = full();
    pins.expire(at(1000));
    assert!(pins.is_empty());
    pins.insert(at(1000), &name("another.example"), false, address(0), SECOND).unwrap();
    assert_eq!(names(&pins, at(1000), 0), ["another.example"]);
}

#[test]
fn one_name_has_a_bound_of_its_own() {
    let mut pins = Pins::new(Pins::FLOOR);
    for number in 0..u32::try_from(Pins::MAX_PER_NAME).unwrap() {
        pins.insert(at(0), &name("many.example"), false, address(number), 900 * SECOND).unwrap();
    }
    let one_more = address(1_000_000);
    assert_eq!(pins.insert(at(1), &name("many.example"), false, one_more, SECOND), Err(PinsFull));
    pins.insert(at(1), &name("other.example"), false, one_more, SECOND).unwrap();
    pins.insert(at(60), &name("many.example"), false, one_more, SECOND).unwrap();
    assert_eq!(names(&pins, at(60), 1_000_000), ["many.example", "other.example"]);
}

#[test]
fn one_address_may_have_every_name() {
    let mut pins = Pins::new(Pins::FLOOR);
    let many = u32::try_from(Pins::MAX_PINS).unwrap();
    for number in 0..many {
        pins.insert(at(0), &name(&format!("n{number}.example")), false, address(1), 900 * SECOND).unwrap();
    }
    assert_eq!(names(&pins, at(1), 1).len(), Pins::MAX_PINS);
    assert_eq!(pins.insert(at(1), &name("more.example"), false, address(1), SECOND), Err(PinsFull));
    pins.insert(at(60), &name("more.example"), false, address(1), SECOND).unwrap();
    assert!(!pins.is_pinned(at(60), &name("n0.example"), address(1)));
    assert!(pins.is_pinned(at(60), &name("n1.example"), address(1)));
}

#[test]
fn a_name_is_pinned_while_it_lives_and_only_for_itself() {
    let mut pins = Pins::new(Pins::FLOOR);
    pins.insert(at(0), &name("a.example"), false, address(1), SECOND).unwrap();
    pins.insert(at(0), &name("b.example"), true, address(1), SECOND).unwrap();
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    pins.insert(at(0), &name("a.example"), false, v6, 70 * SECOND).unwrap();
    for (name_text, address, second, pinned) in [
        ("a.example", address(1), 59, true),
        ("a.example", "::ffff:10.0.0.1".parse().unwrap(), 59, true),
        ("a.example", address(1), 60, false),
        ("a.example", address(2), 0, false),
        ("b.example", address(1), 0, false),
        ("a.example", v6, 69, true),
        ("a.example", v6, 70, false),
        ("other.example", v6, 0, false),
    ] {
        assert_eq!(pins.is_pinned(at(second), &name(name_text), address), pinned, "{name_text} {address} {second}");
    }
}

#[test]
fn a_guest_that_asks_for_new_names_for_ever_stays_within_the_bounds() {
    let mut pins = Pins::new(Pins::FLOOR);
    let mut refused = 0;
    for number in 0..40_000_u32 {
        let now = Time::ZERO + Duration::from_millis(u64::from(number) * 5);
        let answer = pins.insert(now, &name(&format!("n{number}.example")), false, address(number % 5000), SECOND);
        refused += u32::from(answer.is_err());
        assert!(pins.len() <= Pins::MAX_PINS);
    }
    assert_eq!(refused, 0);
}

fn full() -> Pins {
    let mut pins = Pins::new(Pins::FLOOR);
    for number in 1..=u32::try_from(Pins::MAX_PINS).unwrap() {
        pins.insert(at(0), &name(&format!("n{number}.example")), false, address(number), 900 * SECOND).unwrap();
    }
    pins
}

fn names(pins: &Pins, now: Time, number: u32) -> Vec<String> {
    let alias = |alias: bool| if alias { " (alias)" } else { "" };
    pins.names_of(now, address(number)).map(|pin| format!("{}{}", pin.name, alias(pin.alias))).collect()
}

/// Decides about a flow, with a policy without rules.
fn look_up(pins: &mut Pins, now: Time, number: u32) -> usize {
    let policy = Policy::compile(&PolicyConfig::default(), Classifier::default());
    pins.deciding(now, &policy, Protocol::Tcp, address(number), Some(443)).len()
}

fn at(second: u32) -> Time {
    Time::ZERO + second * SECOND
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
}

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}
