use std::net::SocketAddr;

use cofferdam_control::store::{About, RunId};
use cofferdam_model::{
    CloseReason, Direction, Event, EventBody, EventSource, FlowCounters, FlowId, FlowProgress, Group, Process, RuleText,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::app::Effect;
use super::super::keys::Key;
use super::*;

const FLAT: Theme = Theme { colours: false };

fn about(id: &str, command: &[&str]) -> About {
    let json = serde_json::json!({
        "v": 1, "id": id, "kind": "run", "command": command, "started": "2026-11-26T08:00:00.000000Z",
        "network": [], "advice": { "allow_changes_default": false },
    });
    serde_json::from_value(json).unwrap()
}

fn id(text: &str) -> RunId {
    text.parse().unwrap()
}

const FIRST: &str = "20261126T080000Z-k3f9xa";
const SECOND_RUN: &str = "20261126T080100Z-q7m2ab";

fn event(second: u64, body: EventBody) -> Event {
    let mono_ns = second * SECOND;
    Event { v: 1, time: "2026-11-26T08:00:00.000000Z".to_owned(), mono_ns, source: EventSource::Gateway, body }
}

fn denied(remote: &str, names: &[&str], comm: &str) -> EventBody {
    let process = Process { pid: 2, comm: comm.to_owned(), argv0: None };
    EventBody::FlowDenied {
        decision: "d0rgj2fja".to_owned(),
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        guest: "172.16.0.2:40000".parse().unwrap(),
        remote: remote.parse().unwrap(),
        group: Group::Public,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        rule: RuleText { text: "default egress deny".to_owned(), ..RuleText::default() },
        shown: None,
        look_up_again: None,
        process: Some(process),
    }
}

fn opened(flow: u64, direction: Direction, remote: &str, names: &[&str], comm: &str) -> EventBody {
    let remote: SocketAddr = remote.parse().unwrap();
    EventBody::FlowOpened {
        flow: FlowId(flow),
        direction,
        protocol: Protocol::Tcp,
        guest: "172.16.0.2:40000".parse().unwrap(),
        remote,
        group: Group::Public,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        rule: RuleText { text: "allow@public".to_owned(), ..RuleText::default() },
        process: Some(Process { pid: 2, comm: comm.to_owned(), argv0: None }),
    }
}

fn moved(flow: u64, bytes_in: u64) -> EventBody {
    let counters = FlowCounters { bytes_in, ..FlowCounters::default() };
    EventBody::FlowProgress { flows: vec![FlowProgress { flow: FlowId(flow), counters }], more: 0 }
}

/// A run with two flows, one of which moves, and two things that were blocked.
fn app() -> App {
    let mut app = App::new(true);
    assert!(app.add(about(FIRST, &["./agent", "--fast"]), RunState::Running));
    let run = id(FIRST);
    for (second, body) in [
        (1, opened(1, Direction::Egress, "93.184.215.14:443", &["api.example.org"], "curl")),
        (1, opened(2, Direction::Egress, "[2606:2800:21f:cb07::14]:80", &[], "wget")),
        (2, moved(1, 3_000_000)),
        (2, denied("198.51.100.7:443", &["telemetry.example.com"], "agent")),
        (2, denied("198.51.100.7:443", &["telemetry.example.com"], "agent")),
        (3, denied("203.0.113.9:25", &[], "agent")),
    ] {
        app.record(&run, &event(second, body));
    }
    app.set_now(&run, 3 * SECOND);
    app.settle();
    app
}

fn shown(app: &mut App, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    app.settle();
    terminal.draw(|frame| draw(frame, app, FLAT)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

#[track_caller]
fn has(lines: &[String], words: &[&str]) {
    assert!(lines.iter().any(|line| words.iter().all(|word| line.contains(word))), "{words:?}: {lines:#?}");
}

#[test]
fn everything_is_there_in_eighty_by_twenty_four() {
    let lines = shown(&mut app(), 80, 24);
    has(&lines, &["cofferdam top", "1 running"]);
    has(&lines, &["▸", "k3f9xa", "./agent --fast", "running", "2", "3"]);
    has(&lines, &["FLOWS 2", "PROGRAM"]);
    has(&lines, &["api.example.org:443", "tcp", "curl", "1.5MB", "3.0MB"]);
    has(&lines, &["[2606:2800:21f:cb07::14]:80", "wget", "0B"]);
    has(&lines, &["telemetry.example.com:443", "×2", "→ --allow telemetry.example.com:443"]);
    has(&lines, &["203.0.113.9:25", "×1"]);
    has(&lines, &["a allow", "d deny", "q leave"]);
    // What moves comes first.
    let at = |text: &str| lines.iter().position(|line| line.contains(text)).unwrap();
    assert!(at("api.example.org") < at("2606:2800"));
}

#[test]
fn any_size_is_drawn_without_harm_with_every_dialog() {
    let mut app = app();
    let dialogs = [
        None,
        Some(Dialog::Help),
        Some(Dialog::Made),
        Some(Dialog::Asking { rule: "allow@a.example".to_owned() }),
        Some(Dialog::Confirm { run: id(FIRST), rule: "allow@a.example".to_owned(), remark: Some("x".repeat(300)) }),
        Some(Dialog::Applying { rule: "allow@a.example".to_owned() }),
    ];
    for dialog in dialogs {
        app.dialog = dialog;
        for pane in [Pane::Runs, Pane::Flows, Pane::Blocked] {
            app.pane = pane;
            for (width, height) in
                [(1, 1), (10, 3), (30, 5), (40, 10), (79, 15), (80, 16), (200, 60), (1, 60), (200, 1)]
            {
                shown(&mut app, width, height);
            }
        }
        shown(&mut App::new(true), 80, 24);
    }
    app.dialog = None;
    has(&shown(&mut app, 20, 4), &["too small"]);
    // A low window has the list that has the keys.
    app.pane = Pane::Flows;
    let lines = shown(&mut app, 60, 8);
    has(&lines, &["FLOWS 2"]);
    assert!(!lines.iter().any(|line| line.contains("BLOCKED")));
}

#[test]
fn words_of_the_guest_cannot_write_on_the_screen() {
    let mut app = App::new(true);
    app.add(about(FIRST, &["\u{1b}[2J", "a\nb"]), RunState::Running);
    let run = id(FIRST);
    let evil = "\u{1b}]0;x\u{7}\u{202e}\n";
    app.record(&run, &event(1, opened(1, Direction::Egress, "93.184.215.14:443", &[evil], evil)));
    app.record(&run, &event(1, denied("198.51.100.7:443", &[evil], evil)));
    for line in shown(&mut app, 120, 30) {
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }
    has(&shown(&mut app, 120, 30), &["u{1b}"]);
}

#[test]
fn a_denial_is_allowed_after_a_yes_and_the_rule_is_kept() {
    let mut app = app();
    let rule = "allow@telemetry.example.com:tcp:443".to_owned();
    assert_eq!(app.press(Key::Char('a')), Some(Effect::Propose { run: id(FIRST), rule: rule.clone() }));
    assert_eq!(app.press(Key::Char('a')), None, "one thing at a time");
    app.proposed(&id(FIRST), Ok((rule.clone(), Some("it will be denied all the same, by x (floor)".to_owned()))));
    let lines = shown(&mut app, 80, 24);
    has(&lines, &[&rule]);
    has(&lines, &["denied all the same"]);
    assert_eq!(app.press(Key::Char('n')), Some(Effect::Forget));
    assert!(app.dialog.is_none());
    app.proposed(&id(FIRST), Ok((rule.clone(), None)));
    assert_eq!(app.press(Key::Enter), Some(Effect::Apply));
    app.applied(&id(FIRST), rule.clone(), Ok(()));
    has(&shown(&mut app, 80, 24), &["in force", &rule]);
    app.applied(&id(FIRST), "deny@b.example:tcp:80".to_owned(), Ok(()));
    let text = "# made for run 20261126T080000Z-k3f9xa\n\
                --net-rule 'deny@b.example:tcp:80'\n--net-rule 'allow@telemetry.example.com:tcp:443'\n";
    assert_eq!(app.made_text(), text, "the last one stands before the others");
    assert_eq!(app.press(Key::Char('p')), None);
    has(&shown(&mut app, 80, 24), &["--net-rule 'allow@telemetry.example.com:tcp:443'"]);
}

#[test]
fn a_flow_is_denied_by_its_name_and_by_its_address_where_it_has_none() {
    let mut app = app();
    app.pane = Pane::Flows;
    let propose = |rule: &str| Some(Effect::Propose { run: id(FIRST), rule: rule.to_owned() });
    assert_eq!(app.press(Key::Char('d')), propose("deny@api.example.org:tcp:443"));
    app.proposed(&id(FIRST), Err("no".to_owned()));
    has(&shown(&mut app, 80, 24), &["no"]);
    app.press(Key::Down);
    assert_eq!(app.press(Key::Char('d')), propose("deny@[2606:2800:21f:cb07::14]:tcp:80"));
}

/// The line that is shown in reverse.
fn highlighted(app: &mut App) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    app.settle();
    terminal.draw(|frame| draw(frame, app, FLAT)).unwrap();
    let buffer = terminal.backend().buffer();
    let is_reversed = |y: &u16| buffer[(0, *y)].modifier.contains(Modifier::REVERSED);
    let lines: Vec<u16> = (0..24).filter(is_reversed).collect();
    let [y] = lines[..] else { panic!("{lines:?}") };
    (0..80).map(|x| buffer[(x, y)].symbol()).collect()
}

#[test]
fn what_is_selected_stays_so_wherever_it_goes_in_its_list_and_is_what_keys_act_on() {
    let mut app = app();
    let propose = |rule: &str| Some(Effect::Propose { run: id(FIRST), rule: rule.to_owned() });
    app.press(Key::Down);
    assert!(highlighted(&mut app).contains("203.0.113.9:25"));
    let more = |app: &mut App| {
        for _ in 0..5 {
            app.record(&id(FIRST), &event(4, denied("203.0.113.9:25", &[], "agent")));
            app.record(&id(FIRST), &event(4, denied("192.0.2.1:1", &[], "agent")));
        }
    };
    // It is the first by now, whether that was drawn already or not.
    more(&mut app);
    assert_eq!(app.press(Key::Char('d')), propose("deny@203.0.113.9:tcp:25"));
    app.proposed(&id(FIRST), Err("no".to_owned()));
    assert!(highlighted(&mut app).contains("203.0.113.9:25"));
    assert_eq!(app.press(Key::Char('d')), propose("deny@203.0.113.9:tcp:25"));
    app.proposed(&id(FIRST), Err("no".to_owned()));
    app.press(Key::Down);
    assert!(highlighted(&mut app).contains("192.0.2.1:1 "));

    app.press(Key::Tab);
    app.press(Key::Tab);
    assert_eq!(app.pane, Pane::Flows);
    assert!(highlighted(&mut app).contains("api.example.org"));
    app.record(&id(FIRST), &event(4, moved(2, 90_000_000)));
    app.set_now(&id(FIRST), 4 * SECOND);
    assert_eq!(app.press(Key::Char('d')), propose("deny@api.example.org:tcp:443"));
    app.proposed(&id(FIRST), Err("no".to_owned()));
    assert!(highlighted(&mut app).contains("api.example.org"));
    // It ends: the other one is what is selected only once that was seen.
    let counters = FlowCounters::default();
    let closed = EventBody::FlowClosed { flow: FlowId(1), by: CloseReason::Guest, counters, duration_ms: 1 };
    app.record(&id(FIRST), &event(5, closed));
    assert_eq!(app.press(Key::Char('d')), None);
    assert!(app.message.as_deref().unwrap().contains("has ended"));
    assert!(highlighted(&mut app).contains("2606:2800"));
    assert_eq!(app.press(Key::Char('d')), propose("deny@[2606:2800:21f:cb07::14]:tcp:80"));
}

#[test]
fn a_run_stays_selected_when_another_one_makes_room() {
    let mut app = App::new(true);
    let name = |number: usize| format!("20261126T080000Z-{number:06}");
    for number in 0..64 {
        app.add(about(&name(number), &["x"]), RunState::Running);
    }
    app.pane = Pane::Runs;
    app.press(Key::PageDown);
    assert!(highlighted(&mut app).contains("000010"));
    app.set_state(&id(&name(3)), RunState::Ended);
    assert!(app.add(about(FIRST, &["y"]), RunState::Running));
    assert!(highlighted(&mut app).contains("000010"));
}

#[test]
fn what_has_no_rule_says_why() {
    let mut app = app();
    app.record(&id(FIRST), &event(4, opened(3, Direction::Ingress, "192.0.2.1:5000", &[], "nginx")));
    app.record(&id(FIRST), &event(4, moved(3, 90_000_000)));
    app.set_now(&id(FIRST), 4 * SECOND);
    app.pane = Pane::Flows;
    // It moves most, so it is the first.
    app.settle();
    app.press(Key::PageUp);
    assert_eq!(app.press(Key::Char('d')), None);
    assert!(app.message.as_deref().unwrap().contains("only where a program goes"));
    app.pane = Pane::Runs;
    assert_eq!(app.press(Key::Char('a')), None);
    assert!(app.message.as_deref().unwrap().contains("select a flow"));
    app.set_state(&id(FIRST), RunState::Ended);
    has(&shown(&mut app, 80, 24), &["k3f9xa has ended"]);
    app.pane = Pane::Blocked;
    assert_eq!(app.press(Key::Char('a')), None);
    assert!(app.message.as_deref().unwrap().contains("goes on no more"));
}

#[test]
fn runs_come_end_and_are_removed_while_they_are_shown() {
    let mut app = app();
    app.add(about(SECOND_RUN, &["make"]), RunState::Running);
    has(&shown(&mut app, 80, 24), &["2 running"]);
    for (state, word) in [(RunState::Died, "died"), (RunState::Removed, "removed")] {
        app.set_state(&id(SECOND_RUN), state);
        has(&shown(&mut app, 80, 24), &["q7m2ab", word]);
    }
    has(&shown(&mut app, 80, 24), &["1 running"]);
    // The other run's flows are shown when it is selected.
    app.pane = Pane::Runs;
    app.press(Key::Down);
    has(&shown(&mut app, 80, 24), &["FLOWS 0"]);
    app.press(Key::Up);
    has(&shown(&mut app, 80, 24), &["FLOWS 2"]);
    // A rule that waits for a run that has ended is not asked about any more.
    app.dialog = Some(Dialog::Confirm { run: id(FIRST), rule: "allow@x".to_owned(), remark: None });
    app.set_state(&id(FIRST), RunState::Ended);
    assert!(app.dialog.is_none());
}

#[test]
fn those_that_have_ended_make_room() {
    let mut app = App::new(true);
    let name = |number: usize| format!("20261126T080000Z-{number:06}");
    for number in 0..64 {
        assert!(app.add(about(&name(number), &["x"]), RunState::Running));
    }
    assert!(!app.add(about(FIRST, &["y"]), RunState::Running));
    app.set_state(&id(&name(7)), RunState::Ended);
    assert!(app.add(about(FIRST, &["y"]), RunState::Running));
    assert_eq!(app.runs.len(), 64);
}

#[test]
fn without_colours_there_are_none() {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    for (colours, expected) in [(false, false), (true, true)] {
        terminal.draw(|frame| draw(frame, &app(), Theme { colours })).unwrap();
        let coloured = terminal.backend().buffer().content().iter().any(|cell| cell.fg != Color::Reset);
        assert_eq!(coloured, expected);
    }
}

#[test]
fn sizes_fit_their_column() {
    for (bytes, text) in [
        (0, "0B"),
        (999, "999B"),
        (1_000, "1.0kB"),
        (99_950, "99.9kB"),
        (100_000, "100kB"),
        (3_400_000, "3.4MB"),
        (u64::MAX, "18.4EB"),
    ] {
        assert_eq!(size(bytes), text);
        assert!(text.len() <= 6);
    }
}
