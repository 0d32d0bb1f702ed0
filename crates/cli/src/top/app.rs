//! What is shown, what is selected, and what keys do about it. No clock, no terminal: times come in, effects go out.

use std::collections::VecDeque;

use cofferdam_control::change::rule_about;
use cofferdam_control::store::{About, RunId, RunState};
use cofferdam_control::summary::{DeniedTarget, TargetId, escaped};
use cofferdam_evidence::live::{Destination, Flow, Live};
use cofferdam_model::{Action, Direction, Event, FlowId, Layer, Protocol};

use super::keys::Key;

/// Runs that are shown; of more, those that ended first go.
const MAX_RUNS: usize = 64;
/// Flows in the list: more than anybody scrolls through.
const MAX_FLOWS: usize = 500;
/// Rules that are remembered to be printed.
const MAX_MADE: usize = 1_000;
/// How far a page goes.
const PAGE: usize = 10;

/// The three lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pane {
    Runs,
    Flows,
    Blocked,
}

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) about: About,
    pub(super) state: RunState,
    pub(super) live: Live,
    /// What time of its stream it is, by the clock of who looks.
    pub(super) now: u64,
}

/// What stands in front of the lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dialog {
    /// A rule is being looked at by the run's policy.
    Asking {
        rule: String,
    },
    /// A rule waits for a yes, with what is in its way.
    Confirm {
        run: RunId,
        rule: String,
        remark: Option<String>,
    },
    /// It is being put in force.
    Applying {
        rule: String,
    },
    /// The rules that were made.
    Made,
    Help,
}

/// What keys have the shell do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Leave,
    /// Ask what this rule would do to the run.
    Propose {
        run: RunId,
        rule: String,
    },
    /// Put what was proposed last in force.
    Apply,
    /// Let go of what was proposed.
    Forget,
    Redraw,
}

#[derive(Debug)]
pub(super) struct App {
    pub(super) runs: Vec<Run>,
    pub(super) pane: Pane,
    /// Of each list, what is selected. Lists change their order while somebody looks: it is the thing, and not the place.
    selected_run: Selected<RunId>,
    selected_flow: Selected<FlowId>,
    selected_denial: Selected<TargetId>,
    pub(super) dialog: Option<Dialog>,
    /// What was said last.
    pub(super) message: Option<String>,
    /// The rules that are in force by what was done here, with whose they are.
    pub(super) made: VecDeque<(RunId, String)>,
    /// Whether runs that begin meanwhile are shown.
    pub(super) follows_all: bool,
}

impl App {
    pub(super) fn new(follows_all: bool) -> App {
        App {
            runs: Vec::new(),
            pane: Pane::Blocked,
            selected_run: Selected::at(0),
            selected_flow: Selected::at(0),
            selected_denial: Selected::at(0),
            dialog: None,
            message: None,
            made: VecDeque::new(),
            follows_all,
        }
    }

    /// Another run is shown. Of too many, one that has ended goes; `false`: none has.
    pub(super) fn add(&mut self, about: About, state: RunState) -> bool {
        if self.runs.len() >= MAX_RUNS {
            let Some(place) = self.runs.iter().position(|run| run.state != RunState::Running) else { return false };
            self.runs.remove(place);
        }
        let live = Live::new(about.advice);
        self.runs.push(Run { about, state, live, now: 0 });
        self.settle();
        true
    }

    /// The sandbox that a rule for this run is kept by, where it is one that stays.
    pub(super) fn sandbox_of(&self, id: &RunId) -> Option<&str> {
        self.runs.iter().find(|run| run.about.id == *id)?.about.sandbox.as_deref()
    }

    /// The next event of a run.
    pub(super) fn record(&mut self, id: &RunId, event: &Event) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.about.id == *id) {
            run.live.record(event);
        }
    }

    /// A run goes on, or has ended.
    pub(super) fn set_state(&mut self, id: &RunId, state: RunState) {
        let Some(run) = self.runs.iter_mut().find(|run| run.about.id == *id && run.state != state) else { return };
        run.state = state;
        self.message = Some(match state {
            RunState::Running => format!("{} goes on", short(id)),
            RunState::Ended => match run.live.stopped() {
                Some(stopped) => format!("{} has ended with exit status {}", short(id), stopped.exit_status),
                None => format!("{} has ended", short(id)),
            },
            RunState::Died => format!("{} was killed with whoever supervised it", short(id)),
            RunState::Removed => format!("the record of {} was removed", short(id)),
        });
        if matches!(&self.dialog, Some(Dialog::Confirm { run, .. }) if run == id) {
            self.dialog = None;
        }
    }

    /// Time goes on in a run's stream.
    pub(super) fn set_now(&mut self, id: &RunId, now: u64) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.about.id == *id) {
            run.now = now;
        }
    }

    /// The run whose flows are shown.
    pub(super) fn run(&self) -> Option<&Run> {
        self.runs.get(self.selected_run.place)
    }

    /// The flows of that run: those that move most first, then the youngest.
    pub(super) fn flows(&self) -> Vec<&Flow> {
        let Some(run) = self.run() else { return Vec::new() };
        let rate = |flow: &Flow| {
            let rate = flow.rate(run.now);
            rate.out.saturating_add(rate.into)
        };
        let mut flows: Vec<(u64, &Flow)> = run.live.open_flows().map(|flow| (rate(flow), flow)).collect();
        flows.sort_by_key(|(rate, flow)| (std::cmp::Reverse(*rate), std::cmp::Reverse(flow.opened)));
        flows.into_iter().take(MAX_FLOWS).map(|(_, flow)| flow).collect()
    }

    /// What was denied in that run.
    pub(super) fn blocked(&self) -> Vec<DeniedTarget> {
        self.run().map(|run| run.live.denied()).unwrap_or_default()
    }

    /// What is selected stays so, wherever it is in its list by now. Called before it is drawn: keys act on what was seen.
    pub(super) fn settle(&mut self) {
        let runs = self.runs.iter().map(|run| run.about.id.clone()).collect();
        if self.selected_run.settle(runs) {
            (self.selected_flow, self.selected_denial) = (Selected::at(0), Selected::at(0));
        }
        let flows = self.flows().into_iter().map(|flow| flow.id).collect();
        self.selected_flow.settle(flows);
        let denials = self.blocked().into_iter().map(|denied| denied.id).collect();
        self.selected_denial.settle(denials);
    }

    /// The place in a list of what is selected there.
    pub(super) fn place(&self, pane: Pane) -> usize {
        match pane {
            Pane::Runs => self.selected_run.place,
            Pane::Flows => self.selected_flow.place,
            Pane::Blocked => self.selected_denial.place,
        }
    }

    fn len(&self) -> usize {
        match self.pane {
            Pane::Runs => self.runs.len(),
            Pane::Flows => self.flows().len(),
            Pane::Blocked => self.blocked().len(),
        }
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: Key) -> Option<Effect> {
        match (&self.dialog, key) {
            (_, Key::Leave) => return Some(Effect::Leave),
            (_, Key::Redraw) => return Some(Effect::Redraw),
            (Some(Dialog::Confirm { rule, .. }), Key::Enter | Key::Char('y' | 'Y')) => {
                self.dialog = Some(Dialog::Applying { rule: rule.clone() });
                return Some(Effect::Apply);
            }
            (Some(Dialog::Confirm { .. }), Key::Escape | Key::Char('n' | 'N' | 'q')) => {
                self.dialog = None;
                self.message = Some("nothing was changed".to_owned());
                return Some(Effect::Forget);
            }
            // What has begun is waited for.
            (Some(Dialog::Confirm { .. } | Dialog::Asking { .. } | Dialog::Applying { .. }), _) => return None,
            (Some(Dialog::Made | Dialog::Help), _) => {
                self.dialog = None;
                return None;
            }
            (None, _) => {}
        }
        self.message = None;
        match key {
            Key::Char('q') => return Some(Effect::Leave),
            Key::Char('?' | 'h') => self.dialog = Some(Dialog::Help),
            Key::Char('p') => self.dialog = Some(Dialog::Made),
            Key::Char('a') => return self.propose(Action::Allow),
            Key::Char('d') => return self.propose(Action::Deny),
            Key::Tab => self.turn([Pane::Runs, Pane::Flows, Pane::Blocked]),
            Key::BackTab => self.turn([Pane::Blocked, Pane::Flows, Pane::Runs]),
            Key::Up | Key::Char('k') => self.go(|place| place.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.go(|place| place.saturating_add(1)),
            Key::PageUp => self.go(|place| place.saturating_sub(PAGE)),
            Key::PageDown => self.go(|place| place.saturating_add(PAGE)),
            Key::Char(_) | Key::Enter | Key::Escape | Key::Leave | Key::Redraw => {}
        }
        None
    }

    fn turn(&mut self, order: [Pane; 3]) {
        let [first, second, third] = order;
        self.pane = if self.pane == first {
            second
        } else if self.pane == second {
            third
        } else {
            first
        };
    }

    fn go(&mut self, to: impl FnOnce(usize) -> usize) {
        self.settle();
        let before = self.place(self.pane);
        let place = to(before).min(self.len().saturating_sub(1));
        if place == before {
            return;
        }
        match self.pane {
            Pane::Runs => self.selected_run = Selected::at(place),
            Pane::Flows => self.selected_flow = Selected::at(place),
            Pane::Blocked => self.selected_denial = Selected::at(place),
        }
        self.settle();
    }

    fn propose(&mut self, action: Action) -> Option<Effect> {
        match self.rule(action) {
            Ok((run, rule)) => {
                self.dialog = Some(Dialog::Asking { rule: rule.clone() });
                Some(Effect::Propose { run, rule })
            }
            Err(why) => {
                self.message = Some(why);
                None
            }
        }
    }

    /// The rule about what is selected, or why there is none.
    fn rule(&self, action: Action) -> Result<(RunId, String), String> {
        let is_selected = |run: &&Run| self.selected_run.is(&run.about.id);
        let run = self.runs.iter().find(is_selected).ok_or("nothing runs")?;
        if run.state != RunState::Running {
            return Err(format!("{} goes on no more: its policy cannot be changed", short(&run.about.id)));
        }
        let rule = match self.pane {
            Pane::Runs => return Err("select a flow or something that was blocked first (Tab)".to_owned()),
            Pane::Flows if self.selected_flow.thing.is_none() => return Err("there is no flow to select".to_owned()),
            Pane::Flows => {
                let flow = run.live.open_flows().find(|flow| self.selected_flow.is(&flow.id));
                rule_of_flow(action, flow.ok_or("the flow that was selected has ended")?)?
            }
            Pane::Blocked => {
                let denied = run.live.denied().into_iter().find(|denied| self.selected_denial.is(&denied.id));
                rule_of_denial(action, &denied.ok_or("nothing was blocked")?)?
            }
        };
        Ok((run.about.id.clone(), rule))
    }

    /// What a rule would do was found out.
    pub(super) fn proposed(&mut self, run: &RunId, result: Result<(String, Option<String>), String>) {
        self.dialog = match result {
            Ok((rule, remark)) => Some(Dialog::Confirm { run: run.clone(), rule, remark }),
            Err(why) => {
                self.message = Some(why);
                None
            }
        };
    }

    /// A rule is in force, or not.
    pub(super) fn applied(&mut self, run: &RunId, rule: String, result: Result<(), String>) {
        self.dialog = None;
        match result {
            Ok(()) => {
                self.message = Some(format!("in force: {rule}"));
                if self.made.len() >= MAX_MADE {
                    self.made.pop_front();
                }
                self.made.push_back((run.clone(), rule));
            }
            Err(why) => self.message = Some(why),
        }
    }

    /// The rules that were made, as a person keeps them: each run's, the last that was made first, since that is their order.
    pub(super) fn made_text(&self) -> String {
        let mut runs: Vec<&RunId> = Vec::new();
        self.made.iter().for_each(|(run, _)| {
            if !runs.contains(&run) {
                runs.push(run)
            }
        });
        let of = |run: &RunId| {
            let rules = self.made.iter().rev().filter(|(of, _)| of == run);
            rules.map(|(_, rule)| format!("--net-rule '{rule}'\n")).collect::<String>()
        };
        runs.into_iter().map(|run| format!("# made for run {run}\n{}", of(run))).collect()
    }
}

/// What is selected of a list.
#[derive(Debug)]
struct Selected<T> {
    /// Where it was when the list was looked at last.
    place: usize,
    /// `None`: whatever is at that place.
    thing: Option<T>,
}

impl<T: PartialEq> Selected<T> {
    fn at(place: usize) -> Selected<T> {
        Selected { place, thing: None }
    }

    fn is(&self, thing: &T) -> bool {
        self.thing.as_ref() == Some(thing)
    }

    /// The list is this one by now. What has gone leaves its place to another. Whether that is so.
    fn settle(&mut self, list: Vec<T>) -> bool {
        if let Some(place) = list.iter().position(|thing| self.is(thing)) {
            self.place = place;
            return false;
        }
        self.place = self.place.min(list.len().saturating_sub(1));
        self.thing = list.into_iter().nth(self.place);
        true
    }
}

/// The end of an id, which is what people call it by.
pub(super) fn short(id: &RunId) -> &str {
    id.as_str().rsplit('-').next().unwrap_or_default()
}

/// Where a flow goes, as people read it.
pub(super) fn destination(flow: &Flow) -> String {
    match &flow.destination {
        Destination::Socket(path) => format!("socket {}", escaped(path)),
        Destination::Remote { remote, protocol, direction, guest, .. } => {
            let host = match flow.names.first() {
                Some(name) => escaped(name),
                None => match remote.ip().to_canonical() {
                    std::net::IpAddr::V4(v4) => v4.to_string(),
                    std::net::IpAddr::V6(v6) => format!("[{v6}]"),
                },
            };
            match (protocol, direction) {
                (Protocol::IcmpV4 | Protocol::IcmpV6, _) => host,
                (Protocol::Tcp | Protocol::Udp, Direction::Ingress) => format!("{host} → port {}", guest.port()),
                (Protocol::Tcp | Protocol::Udp, Direction::Egress | Direction::Any) => {
                    format!("{host}:{}", remote.port())
                }
            }
        }
    }
}

fn rule_of_flow(action: Action, flow: &Flow) -> Result<String, String> {
    let Destination::Remote { direction: Direction::Egress | Direction::Any, protocol, remote, .. } = &flow.destination
    else {
        return Err("only where a program goes can be allowed or denied from here".to_owned());
    };
    let host = flow.names.first().cloned().unwrap_or_else(|| remote.ip().to_canonical().to_string());
    let port = matches!(protocol, Protocol::Tcp | Protocol::Udp).then(|| remote.port());
    rule_about(action, &host, Some(*protocol), port).map_err(|error| error.to_string())
}

fn rule_of_denial(action: Action, denied: &DeniedTarget) -> Result<String, String> {
    if action == Action::Allow {
        let none = || match denied.rule.layer {
            _ if denied.look_up_again => {
                format!("no rule is needed: the program has to look {} up again", escaped(&denied.target))
            }
            Some(Layer::Floor) => "no rule helps: the operator of this machine has denied it".to_owned(),
            Some(Layer::Session | Layer::Run) | None => format!("no rule allows it: {}", escaped(&denied.rule.text)),
        };
        return denied.allow_rule.clone().ok_or_else(none);
    }
    let protocol = match denied.protocols.as_slice() {
        ["tcp"] => Some(Protocol::Tcp),
        ["udp"] => Some(Protocol::Udp),
        ["icmp"] => Some(Protocol::IcmpV4),
        _ => None,
    };
    rule_about(action, &denied.target, protocol, denied.port).map_err(|error| error.to_string())
}
