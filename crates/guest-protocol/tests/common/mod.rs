//! Messages of every kind.
#![allow(dead_code, reason = "each test program uses a part")]

use std::net::IpAddr;
use std::time::Duration;

use cofferdam_guest_protocol::{
    CallId, Exec, Failure, FailureKind, Leftover, Mount, MountKind, Neighbour, Network, Put, Route, Shortage, Size,
    Status, Stream, ToGuest, ToHost, Token, VERSION,
};
use proptest::prelude::*;

pub(crate) const TOKEN: [u8; Token::LENGTH] = [7; Token::LENGTH];

pub(crate) fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: b"/".to_vec(),
        uid: 0,
        gid: 0,
        terminal: None,
        leftover: Leftover::Kill,
    }
}

pub(crate) fn to_guest() -> impl Strategy<Value = ToGuest> {
    let put = (string(), any::<(u32, u32, u32)>()).prop_map(|(path, (mode, uid, gid))| Put { path, mode, uid, gid });
    prop_oneof![
        any::<[u8; Token::LENGTH]>().prop_map(|token| ToGuest::Hello { version: VERSION, token: Token::new(token) }),
        (call(), any_exec()).prop_map(|(call, exec)| ToGuest::Exec { call, exec }),
        (call(), put).prop_map(|(call, put)| ToGuest::Put { call, put }),
        (call(), string()).prop_map(|(call, path)| ToGuest::Get { call, path }),
        (call(), any_mount()).prop_map(|(call, mount)| ToGuest::Mount { call, mount }),
        (call(), string()).prop_map(|(call, target)| ToGuest::Unmount { call, target }),
        (call(), network()).prop_map(|(call, network)| ToGuest::Network { call, network }),
        (call(), any::<u64>(), 0..1_000_000_000u32)
            .prop_map(|(call, s, n)| ToGuest::SetTime { call, time: Duration::new(s, n) }),
        call().prop_map(|call| ToGuest::Shutdown { call }),
        (call(), bytes()).prop_map(|(call, bytes)| ToGuest::Data { call, bytes }),
        call().prop_map(|call| ToGuest::End { call }),
        (call(), stream(), any::<u32>()).prop_map(|(call, stream, bytes)| ToGuest::Credit { call, stream, bytes }),
        (call(), size()).prop_map(|(call, size)| ToGuest::Resize { call, size }),
        (call(), any::<u8>()).prop_map(|(call, signal)| ToGuest::Signal { call, signal }),
        call().prop_map(|call| ToGuest::Kill { call }),
    ]
}

pub(crate) fn to_host() -> impl Strategy<Value = ToHost> {
    prop_oneof![
        any::<[u8; Token::LENGTH]>().prop_map(|token| ToHost::Hello { version: VERSION, token: Token::new(token) }),
        call().prop_map(|call| ToHost::Started { call }),
        (call(), any::<u32>(), any::<u64>()).prop_map(|(call, mode, size)| ToHost::Opened { call, mode, size }),
        (call(), status()).prop_map(|(call, status)| ToHost::Exited { call, status }),
        call().prop_map(|call| ToHost::Done { call }),
        (call(), failure()).prop_map(|(call, failure)| ToHost::Failed { call, failure }),
        (call(), stream(), bytes()).prop_map(|(call, stream, bytes)| ToHost::Data { call, stream, bytes }),
        (call(), stream()).prop_map(|(call, stream)| ToHost::End { call, stream }),
        (call(), any::<u32>()).prop_map(|(call, bytes)| ToHost::Credit { call, bytes }),
        (call(), shortage()).prop_map(|(call, shortage)| ToHost::Full { call, shortage }),
        "[a-zäß ]{0,200}".prop_map(|text| ToHost::Dying { text }),
    ]
}

fn call() -> impl Strategy<Value = CallId> + Clone {
    (0..4u32).prop_map(CallId)
}

fn string() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1..=255u8, 0..40)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..200)
}

fn size() -> impl Strategy<Value = Size> {
    any::<(u16, u16)>().prop_map(|(rows, columns)| Size { rows, columns })
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Output), Just(Stream::Error)]
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![any::<u8>().prop_map(Status::Code), any::<u8>().prop_map(Status::Signal)]
}

fn shortage() -> impl Strategy<Value = Shortage> {
    prop_oneof![
        any::<u64>().prop_map(|bytes| Shortage::Space { bytes }),
        any::<u64>().prop_map(|count| Shortage::Files { count })
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    let kind = prop_oneof![
        Just(FailureKind::NotFound),
        Just(FailureKind::NotExecutable),
        Just(FailureKind::Killed),
        Just(FailureKind::Refused)
    ];
    (kind, "[a-zäß ]{0,200}").prop_map(|(kind, text)| Failure::new(kind, &text))
}

fn any_exec() -> impl Strategy<Value = Exec> {
    let strings = || prop::collection::vec(string(), 0..5);
    let leftover = prop_oneof![Just(Leftover::Kill), Just(Leftover::Keep)];
    (strings(), strings(), string(), any::<(u32, u32)>(), prop::option::of(size()), leftover).prop_map(
        |(argv, env, cwd, (uid, gid), terminal, leftover)| Exec { argv, env, cwd, uid, gid, terminal, leftover },
    )
}

fn any_mount() -> impl Strategy<Value = Mount> {
    (prop::sample::select(MountKind::ALL.to_vec()), string(), string(), string(), any::<bool>())
        .prop_map(|(kind, source, target, options, read_only)| Mount { kind, source, target, options, read_only })
}

fn network() -> impl Strategy<Value = Network> {
    let prefixed =
        any::<IpAddr>().prop_flat_map(|address| (Just(address), 0..=if address.is_ipv4() { 32u8 } else { 128 }));
    let neighbour = any::<(IpAddr, [u8; 6])>().prop_map(|(address, mac)| Neighbour { address, mac });
    let route = any::<IpAddr>().prop_map(|gateway| Route { gateway });
    (
        any::<([u8; 6], u32)>(),
        prop::collection::vec(prefixed, 0..3),
        prop::collection::vec(route, 0..3),
        prop::collection::vec(neighbour, 0..3),
        prop::option::of(bytes()),
        prop::option::of(bytes()),
        prop::option::of(string()),
    )
        .prop_map(|((mac, mtu), addresses, routes, neighbours, resolv_conf, hosts, host_name)| Network {
            mac,
            mtu,
            addresses,
            routes,
            neighbours,
            resolv_conf,
            hosts,
            host_name,
        })
}
