//! How the view looks: three lists one below the other, in 80 × 24 and in less.

use cofferdam_control::store::{RunKind, RunState};
use cofferdam_control::summary::{DeniedTarget, escaped};
use cofferdam_evidence::live::{Destination, Flow, Moved};
use cofferdam_model::Protocol;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Table, TableState, Wrap};

use super::app::{App, Dialog, Pane, Run, destination, short};
use crate::log::described;

/// Rows of the list of runs, at most.
const RUNS: usize = 5;
/// Below this many lines only the list that has the keys is there.
const LOW: u16 = 16;
/// The least that anything can be read in.
const LEAST: (u16, u16) = (30, 5);
/// Moved within this time: a flow that shows a rate.
const SECOND: u64 = 1_000_000_000;

const HELP: &str = "\
Tab, ↑ ↓        which list, and what of it
a               allow what is selected
d               deny it
p               show the rules that were made
q, ^C           leave; the rules are printed then

A rule is shown before it is applied, and comes before
those there are. It lasts to the end of the run; with a
sandbox that stays, it stays there.";

/// How things look: with colours, or without any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    pub(super) colours: bool,
}

impl Theme {
    fn colour(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn bad(self) -> Style {
        self.colour(Color::Red)
    }

    fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn strong() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn selected() -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, app: &App, theme: Theme) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        return frame.render_widget(Paragraph::new("too small").wrap(Wrap { trim: true }), area);
    }
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(header(app), head);
    let flows = app.flows();
    let blocked = app.blocked();
    if area.height < LOW {
        match app.pane {
            Pane::Runs => draw_runs(frame, body, app, theme),
            Pane::Flows => draw_flows(frame, body, app, &flows, theme),
            Pane::Blocked => draw_blocked(frame, body, app, &blocked, theme),
        }
    } else {
        let runs = u16::try_from(app.runs.len().clamp(1, RUNS)).unwrap_or(1) + 1;
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(runs), Constraint::Fill(1), Constraint::Fill(1)]).areas(body);
        draw_runs(frame, top, app, theme);
        draw_flows(frame, middle, app, &flows, theme);
        draw_blocked(frame, bottom, app, &blocked, theme);
    }
    frame.render_widget(footer(app, theme), foot);
    if let Some(dialog) = &app.dialog {
        draw_dialog(frame, body, app, dialog, theme);
    }
}

fn header(app: &App) -> Line<'static> {
    let running = app.runs.iter().filter(|run| run.state == RunState::Running).count();
    let rates = app.runs.iter().filter(|run| run.state == RunState::Running).map(|run| run.live.rate(run.now));
    let (out, into) = rates.fold((0_u64, 0_u64), |(out, into), rate| (out + rate.out, into + rate.into));
    Line::from(vec![
        Span::styled("cofferdam top", Theme::strong()),
        Span::raw(format!("  {running} running  ↑ {}/s  ↓ {}/s", size(out), size(into))),
    ])
}

fn footer(app: &App, theme: Theme) -> Line<'static> {
    match &app.message {
        Some(message) => Line::styled(message.clone(), Theme::strong()),
        None => Line::styled("Tab list  ↑↓ select  a allow  d deny  p rules made  ? help  q leave", theme.faint()),
    }
}

/// A list with its headings, and what is selected of it.
fn draw_list(
    frame: &mut Frame<'_>,
    area: Rect,
    (app, pane): (&App, Pane),
    (headings, widths): (Vec<String>, Vec<Constraint>),
    rows: Vec<Row<'_>>,
) {
    let has_keys = app.pane == pane;
    let heading = Style::new().add_modifier(Modifier::UNDERLINED);
    let heading = if has_keys { heading.add_modifier(Modifier::BOLD) } else { heading };
    let count = rows.len();
    let table = Table::new(rows, widths)
        .header(Row::new(headings).style(heading))
        .column_spacing(1)
        .row_highlight_style(if has_keys { Theme::selected() } else { Style::new() });
    let place = (count > 0).then(|| app.place(pane).min(count - 1));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(place));
}

fn draw_runs(frame: &mut Frame<'_>, area: Rect, app: &App, theme: Theme) {
    let chosen = app.place(Pane::Runs);
    let rows = app.runs.iter().enumerate().map(|(place, run)| {
        let style = if run.state == RunState::Running { Style::new() } else { theme.faint() };
        Row::new(run_cells(run, place == chosen)).style(style)
    });
    let rows: Vec<Row<'_>> = match app.runs.is_empty() {
        true => vec![Row::new(["", "", "nothing runs; what is started is shown"]).style(theme.faint())],
        false => rows.collect(),
    };
    let headings = ["", "RUN", "COMMAND", "STATE", "FLOWS", "BLOCKED", "↑/s", "↓/s"].map(str::to_owned).to_vec();
    let widths = [1, 6].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let widths = widths.chain([7, 6, 7, 7, 7].map(Constraint::Length)).collect();
    draw_list(frame, area, (app, Pane::Runs), (headings, widths), rows);
}

fn run_cells(run: &Run, is_chosen: bool) -> Vec<String> {
    let kind = match (run.about.kind, &run.about.sandbox) {
        (RunKind::Session, Some(name)) => format!("[{}] ", escaped(name)),
        (RunKind::Run | RunKind::Exec | RunKind::Session, _) => String::new(),
    };
    let rate = if run.state == RunState::Running { run.live.rate(run.now) } else { Moved::default() };
    let blocked: u64 = run.live.denied().iter().map(|denied| denied.count).fold(0, u64::saturating_add);
    vec![
        if is_chosen { "▸" } else { "" }.to_owned(),
        short(&run.about.id).to_owned(),
        format!("{kind}{}", described(&run.about)),
        run.state.as_str().to_owned(),
        run.live.open_flows().len().to_string(),
        blocked.to_string(),
        size(rate.out),
        size(rate.into),
    ]
}

fn draw_flows(frame: &mut Frame<'_>, area: Rect, app: &App, flows: &[&Flow], theme: Theme) {
    let now = app.run().map_or(0, |run| run.now);
    let row = |flow: &&Flow| {
        let rate = flow.rate(now);
        let style = if flow.is_moving(now, 3 * SECOND) { Style::new() } else { theme.faint() };
        let process = flow.process.as_ref().map(|process| escaped(&process.comm)).unwrap_or_default();
        Row::new([
            destination(flow),
            kind(flow).to_owned(),
            process,
            size(rate.out),
            size(rate.into),
            size(flow.moved.out.saturating_add(flow.moved.into)),
        ])
        .style(style)
    };
    let rows = flows.iter().map(row).collect();
    let headings =
        [&format!("FLOWS {}", flows.len()), "", "PROGRAM", "↑/s", "↓/s", "TOTAL"].map(str::to_owned).to_vec();
    let widths = [Constraint::Fill(1), Constraint::Length(4), Constraint::Length(12)].into_iter();
    let widths = widths.chain([7, 7, 7].map(Constraint::Length)).collect();
    draw_list(frame, area, (app, Pane::Flows), (headings, widths), rows);
}

fn kind(flow: &Flow) -> &'static str {
    match &flow.destination {
        Destination::Socket(_) => "unix",
        Destination::Remote { protocol, .. } => match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::IcmpV4 | Protocol::IcmpV6 => "ping",
        },
    }
}

fn draw_blocked(frame: &mut Frame<'_>, area: Rect, app: &App, blocked: &[DeniedTarget], theme: Theme) {
    let row = |denied: &DeniedTarget| {
        let remedy = match &denied.allow_with {
            Some(flag) => format!("→ {flag}"),
            None if denied.look_up_again => "look it up again".to_owned(),
            None => escaped(&denied.rule.to_string()),
        };
        Row::new([denied.label(), format!("×{}", denied.count), remedy]).style(theme.bad())
    };
    let rows = blocked.iter().map(row).collect();
    let headings = [&format!("BLOCKED {}", blocked.len()), "", "WHAT WOULD ALLOW IT"].map(str::to_owned).to_vec();
    let widths = vec![Constraint::Fill(1), Constraint::Length(6), Constraint::Fill(1)];
    draw_list(frame, area, (app, Pane::Blocked), (headings, widths), rows);
}

fn draw_dialog(frame: &mut Frame<'_>, area: Rect, app: &App, dialog: &Dialog, theme: Theme) {
    let (title, text) = match dialog {
        Dialog::Asking { rule } => ("one moment", vec![Line::raw(rule.clone())]),
        Dialog::Applying { rule } => ("one moment", vec![Line::raw(format!("{rule} is being put in force"))]),
        Dialog::Confirm { run, rule, remark } => {
            let (whose, title) = match app.sandbox_of(run) {
                Some(name) => {
                    (format!("for sandbox {name}, where it stays, before its other rules:"), "a rule for a sandbox")
                }
                None => (format!("for run {run}, before its own rules, until it ends:"), "a rule for this run"),
            };
            let mut lines = vec![Line::raw(whose), Line::raw("")];
            lines.push(Line::styled(format!("  {rule}"), Theme::strong()));
            lines.extend(remark.iter().map(|remark| Line::styled(escaped(remark), theme.bad())));
            lines.extend([Line::raw(""), Line::raw("Enter, y  apply it      Esc, n  leave it")]);
            (title, lines)
        }
        Dialog::Made if app.made.is_empty() => ("rules that were made", vec![Line::raw("none")]),
        Dialog::Made => {
            let text = app.made_text();
            ("rules that were made", text.lines().map(|line| Line::raw(line.to_owned())).collect())
        }
        Dialog::Help => ("keys", HELP.lines().map(Line::raw).collect()),
    };
    let width = area.width.saturating_sub(2).min(76);
    let lines = u16::try_from(text.len()).unwrap_or(u16::MAX);
    // Room for a line or two that wrap.
    let height = lines.saturating_add(4).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(title);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }).block(block), place);
}

/// A number of bytes in at most six characters.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    let (mut whole, mut tenths) = (bytes, 0);
    while whole >= 1000 && unit + 1 < UNITS.len() {
        (whole, tenths) = (whole / 1000, whole % 1000 / 100);
        unit += 1;
    }
    let unit = UNITS.get(unit).unwrap_or(&"");
    if unit == &"B" || whole >= 100 { format!("{whole}{unit}") } else { format!("{whole}.{tenths}{unit}") }
}

#[cfg(test)]
mod tests;
