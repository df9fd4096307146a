//! Draws it.

use super::model::{Model, Panel, containers};
use akri_krustlet_host::one_line;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

/// Letters of a text.
const MOST: usize = 1000;

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let handlers = u16::try_from(model.overview.handlers.len()).unwrap_or(u16::MAX).saturating_add(3).clamp(4, 9);
    let [head, first, second, third, log, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(handlers),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(third);
    draw_head(frame, model, head);
    draw_handlers(frame, model, first);
    draw_containers(frame, model, second);
    draw_devices(frame, model, left);
    draw_events(frame, model, right);
    draw_log(frame, model, log);
    let keys = "Tab next table   ↑ ↓ select   q end";
    frame.render_widget(Paragraph::new(keys).dim(), foot);
}

fn draw_head(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let overview = &model.overview;
    let mut parts = vec![
        Span::from(format!("akri-krustlet {}", overview.node)).bold(),
        Span::from(format!(
            "  {}, {}, for {}, memory {}, CPU {}",
            overview.version,
            if overview.in_cluster { "in a cluster" } else { "alone" },
            duration(overview.at - overview.started),
            bytes(overview.memory_bytes),
            model.cpu.map_or_else(|| "-".to_owned(), percent),
        )),
    ];
    if let Some(trouble) = &model.trouble {
        parts.push(Span::from(format!("  {}", text(trouble))).red());
    }
    frame.render_widget(Paragraph::new(Line::from(parts)), area);
}

fn draw_handlers(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let rows = model.overview.handlers.iter().map(|handler| {
        let complaints = handler.streams.iter().filter_map(|stream| stream.complaint.as_deref());
        let complaints = complaints.collect::<Vec<_>>().join("; ");
        let (state, is_bad) = match &handler.container {
            None => ("no container serves it".to_owned(), true),
            Some(_) if complaints.is_empty() => ("serves".to_owned(), false),
            Some(_) => (complaints, true),
        };
        let devices: usize = handler.streams.iter().map(|stream| stream.count).sum();
        let shared = if handler.shared { "shared" } else { "" };
        Row::new([
            Cell::from(text(&handler.name)),
            Cell::from(shared),
            Cell::from(handler.streams.len().to_string()),
            Cell::from(devices.to_string()),
            Cell::from(text(&state)).style(colour(is_bad)),
        ])
    });
    let widths = [
        Constraint::Length(24),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let header = ["HANDLER", "", "STREAMS", "DEVICES", "STATE"];
    draw_table(frame, model, Panel::Handlers, area, ("Handlers", header.to_vec()), widths.to_vec(), rows.collect());
}

fn draw_devices(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let at = model.overview.at;
    let rows =
        model.overview.handlers.iter().flat_map(|handler| {
            handler.streams.iter().flat_map(|stream| &stream.devices).map(move |device| {
                Row::new([text(&handler.name), duration(at - device.since as f64), text(&device.id)])
            })
        });
    let widths = vec![Constraint::Length(10), Constraint::Length(5), Constraint::Fill(1)];
    draw_table(frame, model, Panel::Devices, area, ("Devices", vec!["HANDLER", "FOR", "ID"]), widths, rows.collect());
}

fn draw_containers(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let rows = containers(&model.overview).map(|(name, container)| {
        let limit = container.memory_limit.map(|most| format!(" of {}", bytes(most))).unwrap_or_default();
        let cpu = model.cpu_of.get(&name).copied().map_or_else(|| "-".to_owned(), percent);
        Row::new([
            Cell::from(text(&name)),
            Cell::from(text(&container.state)).style(colour(container.state != "running")),
            Cell::from(container.restarts.to_string()),
            Cell::from(cpu),
            Cell::from(bytes(container.memory_bytes) + &limit),
        ])
    });
    let widths = vec![
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(20),
    ];
    let header = vec!["CONTAINER", "STATE", "RESTARTS", "CPU", "MEMORY"];
    draw_table(frame, model, Panel::Containers, area, ("Containers", header), widths, rows.collect());
}

fn draw_events(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let at = model.overview.at;
    let rows = model.overview.events.iter().map(|event| {
        Row::new([
            Cell::from(duration(at - event.at as f64)),
            Cell::from(text(&event.reason)).style(if event.warning { colour(true) } else { Style::new() }),
            Cell::from(format!("{}: {}", text(&event.object), text(&event.message))),
        ])
    });
    let widths = vec![Constraint::Length(5), Constraint::Length(16), Constraint::Fill(1)];
    draw_table(frame, model, Panel::Events, area, ("Events", vec!["AGO", "REASON", ""]), widths, rows.collect());
}

fn draw_table(
    frame: &mut Frame<'_>,
    model: &Model,
    panel: Panel,
    area: Rect,
    (title, header): (&str, Vec<&str>),
    widths: Vec<Constraint>,
    rows: Vec<Row<'_>>,
) {
    let is_here = model.panel == panel;
    let border = if is_here { Style::new().fg(Color::Cyan) } else { Style::new() };
    let title = if is_here { format!("▸ {title}") } else { title.to_owned() };
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::DIM)))
        .row_highlight_style(if is_here { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() })
        .block(Block::bordered().border_style(border).title(title));
    let mut state = TableState::new().with_selected(model.selected(panel));
    frame.render_stateful_widget(table, area, &mut state);
}

/// The newest lines that fit.
fn draw_log(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let title = model.logged().map_or_else(|| "Log".to_owned(), |name| format!("Log of {}", text(&name)));
    let room = usize::from(area.height.saturating_sub(2));
    let lines = model.log.iter().skip(model.log.len().saturating_sub(room)).map(|line| Line::from(text(line)));
    let log = Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(title));
    frame.render_widget(log, area);
}

/// Guests and devices have a say in it.
fn text(text: &str) -> String {
    one_line(text, MOST)
}

fn colour(is_bad: bool) -> Style {
    Style::new().fg(if is_bad { Color::Red } else { Color::Green })
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn bytes(number: u64) -> String {
    match number {
        0..0x10_0000 => format!("{} KiB", number >> 10),
        _ => format!("{:.1} MiB", number as f64 / f64::from(1 << 20)),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
