use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use cofferdam_model::{
    Action, Classifier, Event, EventBody, EventSource, HostNetwork, Layer, NetworkConfig, PolicyLayer,
};
use cofferdam_policy::file;

use super::recording::Segments;
use super::*;
use crate::summary::{Advice, Totals};

#[test]
fn a_run_is_written_down_and_read_again() {
    let (_dir, store) = store();
    assert!(store.runs().unwrap().runs.is_empty());
    let network = file::default_network();
    let (recording, mut segments) = begin(&store, RunKind::Run, None, &network);
    let run = store.find("last").unwrap();
    assert_eq!((run.state(), run.about().command.as_slice()), (RunState::Running, &["true".to_owned()][..]));
    assert_eq!(fs::metadata(run.path()).unwrap().permissions().mode() & 0o777, 0o700);
    for name in [RUN_FILE, "events.000001.jsonl"] {
        assert_eq!(fs::metadata(run.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    write(&mut segments, &[notice("a"), notice("b")]);
    recording.end(ended(7), 3).unwrap();
    assert_eq!(run.state(), RunState::Ended, "also to whoever opened it before");
    let run = store.find(run.about().id.as_str()).unwrap();
    let about = run.about();
    assert_eq!((about.ended.as_ref().unwrap().exit_status, about.lines_lost, about.segments_gone), (7, 3, 0));
    assert_eq!(messages(&run), ["a", "b"]);
}

#[test]
fn the_policies_that_held_can_be_asked_again() {
    let (_dir, store) = store();
    let mut network = file::parse("x.toml", "[network]\nrules = [\"allow@a.example:tcp:443\"]\n").unwrap();
    network.ceilings = vec![PolicyLayer {
        layer: Layer::Session,
        policy: file::parse("x.toml", "[network]\npreset = \"public-only\"\nrules = [\"deny@any:tcp:25\"]\n")
            .unwrap()
            .policy,
        deny_doh: Some(true),
        rebind_protection: false,
    }];
    drop(begin(&store, RunKind::Exec, Some("work"), &network));
    let about = store.find("last").unwrap().about().clone();
    assert_eq!(about.network().unwrap(), network);
    assert_eq!(about.classifier().host().addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    about.policy().unwrap();
    // Nothing is nothing.
    drop(begin(&store, RunKind::Run, None, &NetworkConfig { enabled: false, ..file::default_network() }));
    let none = store.runs().unwrap().runs.into_iter().find(|run| run.about().network.is_empty()).unwrap();
    assert!(!none.about().network().unwrap().enabled);
}

#[test]
fn a_run_whose_supervisor_was_killed_has_died() {
    let (_dir, store) = store();
    drop(begin(&store, RunKind::Run, None, &file::default_network()));
    assert_eq!(store.find("last").unwrap().state(), RunState::Died);
}

#[test]
fn the_oldest_runs_go_and_those_that_go_on_stay() {
    let (_dir, store) = store();
    let held = begin(&store, RunKind::Run, None, &file::default_network());
    let mut all = Vec::new();
    for number in 0..9 {
        let (recording, mut segments) = begin(&store, RunKind::Run, None, &file::default_network());
        write(&mut segments, &[notice(&"x".repeat(1000))]);
        // In order of time, whatever the second.
        let id: RunId = format!("20000101T00000{number}Z-000000").parse().unwrap();
        rename(&store, &recording.id(), &id);
        all.push(id);
    }
    let held_id: RunId = "19990101T000000Z-000000".parse().unwrap();
    rename(&store, &held.0.id(), &held_id);
    store.prune(Bounds { runs: 10, bytes: None });
    assert_eq!(store.ids().unwrap().len(), 10);
    // One too many: half of the bound goes with it, for one that is held another one.
    store.prune(Bounds { runs: 8, bytes: None });
    let left = [std::slice::from_ref(&held_id), &all[6..]].concat();
    assert_eq!(store.ids().unwrap(), left);
    let one = store.size(&all[8]);
    assert!(one > 1000);
    store.prune(Bounds { runs: 10, bytes: Some(2 * one) });
    assert_eq!(store.ids().unwrap(), [std::slice::from_ref(&held_id), &all[7..]].concat());
    assert!(matches!(store.remove(&held_id), Err(StoreError::Running(_))));
    drop(held);
    store.remove(&held_id).unwrap();
    assert!(matches!(store.remove(&held_id), Err(StoreError::Absent(_))));
}

#[test]
fn a_run_is_found_by_what_people_call_it() {
    let (_dir, store) = store();
    assert!(matches!(store.find("last"), Err(StoreError::Empty)));
    let network = file::default_network();
    let make = |kind, sandbox, id: &str| {
        let (recording, _) = begin(&store, kind, sandbox, &network);
        rename(&store, &recording.id(), &id.parse().unwrap());
    };
    make(RunKind::Session, Some("work"), "20260101T000000Z-aaaaaa");
    make(RunKind::Session, Some("work"), "20260102T000000Z-bbbbbb");
    make(RunKind::Exec, Some("work"), "20260103T000000Z-cccccc");
    make(RunKind::Run, None, "20260103T000001Z-dddddd");
    for (text, end) in [
        ("20260101T000000Z-aaaaaa", "aaaaaa"),
        ("last", "dddddd"),
        ("work", "bbbbbb"),
        ("aaaaaa", "aaaaaa"),
        ("aaaa", "aaaaaa"),
        ("20260102", "bbbbbb"),
    ] {
        assert!(store.find(text).unwrap().about().id.as_str().ends_with(end), "{text}");
    }
    assert!(matches!(store.find("20260103"), Err(StoreError::Ambiguous { count: 2, .. })));
    for text in ["", "none", "aaa", "../x", "20260101T000000Z-aaaaab", "\u{1b}[2J"] {
        assert!(matches!(store.find(text), Err(StoreError::Absent(_))), "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_told_and_the_others_are_shown() {
    let (_dir, store) = store();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(begin(&store, RunKind::Run, None, &file::default_network()).0.id());
    }
    let about = |id: &RunId| store.root().join(id.as_str()).join(RUN_FILE);
    fs::write(about(&ids[0]), r#"{"v": 2, "later": true}"#).unwrap();
    fs::write(about(&ids[1]), "{").unwrap();
    // Of another run.
    fs::copy(about(&ids[3]), about(&ids[2])).unwrap();
    // What is no run is nobody's affair.
    fs::write(store.root().join("notes"), "").unwrap();
    std::os::unix::fs::symlink("/etc", store.root().join("20260103T000001Z-dddddd")).unwrap();
    let all = store.runs().unwrap();
    assert_eq!(all.runs.len(), 1);
    assert_eq!(all.unread.len(), 4);
    assert!(matches!(store.open(&ids[0]), Err(StoreError::Version { version: 2, .. })));
    assert!(matches!(store.open(&ids[1]), Err(StoreError::Broken { .. })));
    assert!(matches!(store.open(&ids[2]), Err(StoreError::Broken { .. })));
}

#[test]
fn a_store_that_others_can_write_to_is_not_used() {
    let (_dir, store) = store();
    drop(begin(&store, RunKind::Run, None, &file::default_network()));
    let id = store.ids().unwrap().remove(0);
    let open_up = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open_up(&store.root().join(id.as_str()), 0o777);
    assert!(matches!(store.open(&id), Err(StoreError::State(StateError::Owner { .. }))));
    open_up(store.root(), 0o770);
    let subject =
        Subject { command: &[], network: &file::default_network(), classifier: None, advice: Advice::default() };
    let refused = Recording::begin(record_as(&store, RunKind::Run, None), subject);
    assert!(matches!(refused, Err(StoreError::State(StateError::Owner { .. }))));
}

#[test]
fn what_was_cut_is_left_out_and_counted() {
    let (_dir, store) = store();
    let (recording, mut segments) = begin(&store, RunKind::Run, None, &file::default_network());
    write(&mut segments, &[notice("a"), b"{\"v\": 9}".to_vec(), notice("b")]);
    segments.write_all(b"{\"v\":1,\"ti").unwrap();
    recording.end(ended(0), 0).unwrap();
    let run = store.find("last").unwrap();
    let mut events = run.events().unwrap();
    assert_eq!(events.by_ref().map(Result::unwrap).map(|event| message(&event)).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(events.left_out(), 2);
}

#[test]
fn a_record_that_is_removed_is_shown_to_its_end() {
    let (_dir, store) = store();
    let (recording, mut segments) = begin(&store, RunKind::Run, None, &file::default_network());
    // More than is read at once.
    let lines: Vec<Vec<u8>> = (0..5000).map(|number| notice(&format!("{number:0200}"))).collect();
    write(&mut segments, &lines);
    recording.end(ended(0), 0).unwrap();
    let run = store.find("last").unwrap();
    let mut shown = run.lines(&Needles::all()).unwrap();
    assert_eq!(shown.next_line().unwrap().unwrap(), lines[0]);
    store.remove(&run.about().id).unwrap();
    for line in &lines[1..] {
        assert_eq!(shown.next_line().unwrap().unwrap(), line);
    }
    assert_eq!(shown.next_line().unwrap(), None);
    assert_eq!(shown.cut(), 0);
    assert_eq!(run.state(), RunState::Ended);
}

#[test]
fn a_search_finds_the_lines_that_hold_something_and_no_others() {
    let (_dir, store) = store();
    let (_recording, mut segments) = begin(&store, RunKind::Run, None, &file::default_network());
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut random: u32 = 7;
    for number in 0..20_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let kind = match random >> 28 {
            0 => r#""type":"flow.denied""#,
            1 => r#""verdict":"deny""#,
            2 => r#""type":"flow.denied","verdict":"deny""#,
            _ => r#""type":"flow.opened""#,
        };
        let fill = "x".repeat(usize::try_from(random >> 20 & 0xff).unwrap());
        lines.push(format!("{{\"n\":{number},{kind},\"fill\":\"{fill}\"}}").into_bytes());
    }
    write(&mut segments, &lines);
    let run = store.find("last").unwrap();
    let found = |needles: &Needles| {
        let mut found = Vec::new();
        let mut shown = run.lines(needles).unwrap();
        while let Some(line) = shown.next_line().unwrap() {
            found.push(line.to_vec());
        }
        found
    };
    assert_eq!(found(&Needles::all()), lines);
    let holds = |line: &&Vec<u8>, text: &str| String::from_utf8_lossy(line).contains(text);
    let denied: Vec<_> =
        lines.iter().filter(|line| holds(line, "flow.denied") || holds(line, "\"deny\"")).cloned().collect();
    assert_eq!(found(&Needles::denials()), denied);
    assert_eq!(found(&Needles::any_of(&["\"n\":19999,"])), lines[19_999..]);
    assert!(found(&Needles::any_of(&["absent"])).is_empty());
    assert!(found(&Needles::decision("7k")).is_empty());
}

#[test]
fn ids_are_what_they_look_like() {
    let id = RunId::new(std::time::Duration::from_millis(951_782_399_999), [0, 31, 32, 7]);
    assert_eq!(id.as_str(), "20000228T235959Z-z70z07");
    assert_eq!(id.as_str().parse::<RunId>().unwrap(), id);
    for bad in [
        "",
        "20000228T235959Z-0z0z0",
        "20000228T235959Z-z70z077",
        "20000228t235959Z-0z0z7",
        "20000228T235959Z-0z0z0/",
        "20000228T235959Z-0z0z0I",
    ] {
        assert!(bad.parse::<RunId>().is_err(), "{bad}");
    }
}

fn store() -> (tempfile::TempDir, RunStore) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let store = RunStore::at(&dir.path().join("cofferdam"));
    (dir, store)
}

fn record_as(store: &RunStore, kind: RunKind, sandbox: Option<&str>) -> RecordAs {
    RecordAs { store: store.clone(), kind, sandbox: sandbox.map(str::to_owned), directory: None }
}

fn begin(store: &RunStore, kind: RunKind, sandbox: Option<&str>, network: &NetworkConfig) -> (Recording, Segments) {
    let host = HostNetwork { addresses: vec!["192.0.2.1".parse().unwrap()], ..HostNetwork::default() };
    let classifier = Classifier::new(host);
    let command = ["true".to_owned()];
    let advice = Advice { allow_changes_default: true };
    let subject = Subject { command: &command, network, classifier: Some(&classifier), advice };
    Recording::begin(record_as(store, kind, sandbox), subject).unwrap()
}

fn rename(store: &RunStore, from: &RunId, to: &RunId) {
    let about = store.root().join(from.as_str()).join(RUN_FILE);
    let text = fs::read_to_string(&about).unwrap().replace(from.as_str(), to.as_str());
    fs::write(&about, text).unwrap();
    fs::rename(store.root().join(from.as_str()), store.root().join(to.as_str())).unwrap();
}

fn ended(exit_status: u8) -> Ended {
    Ended { time: "then".to_owned(), exit_status, duration_ms: 5, totals: Totals::default() }
}

fn notice(message: &str) -> Vec<u8> {
    let body = EventBody::GatewayNotice { message: message.to_owned() };
    serde_json::to_vec(&Event { v: 1, time: "then".to_owned(), mono_ns: 7, source: EventSource::Gateway, body })
        .unwrap()
}

fn message(event: &Event) -> String {
    let EventBody::GatewayNotice { message } = &event.body else { panic!("{event:?}") };
    message.clone()
}

fn messages(run: &StoredRun) -> Vec<String> {
    run.events().unwrap().map(|event| message(&event.unwrap())).collect()
}

fn write(segments: &mut Segments, lines: &[Vec<u8>]) {
    for line in lines {
        segments.write_all(&[line, &b"\n"[..]].concat()).unwrap();
    }
}

#[test]
fn denials_of_look_ups_are_found_by_what_the_gateway_writes() {
    // The search stands on how a verdict is written.
    assert_eq!(serde_json::to_string(&Action::Deny).unwrap(), "\"deny\"");
}
