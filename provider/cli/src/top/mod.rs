//! `top`: what the node on this machine is at, live.

mod ask;
mod draw;
mod model;

use crate::DirectoryArguments;
use anyhow::{Context as _, bail};
use ask::ask;
use model::{Model, Panel};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Show what the node on this machine is at, live: handlers, streams, devices with their age, what containers take, events, and the log
/// of the selected one. Beside a cluster and without one.
///
/// Keys: Tab to the next table, arrows or j and k to the next line, q to end.
#[derive(Debug, clap::Args)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    directories: DirectoryArguments,
    /// How often the node is asked, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Print it once, as text, and end; so it does where there is no terminal
    #[arg(long)]
    once: bool,
}

/// Of what is printed where there is no terminal.
const SIZE: (u16, u16) = (120, 40);
/// The longest wait for a key.
const KEY: Duration = Duration::from_millis(200);

pub(crate) fn top(arguments: &TopArguments) -> anyhow::Result<()> {
    let interval = Duration::try_from_secs_f64(arguments.interval).ok().filter(|time| *time >= KEY / 2);
    let interval = interval
        .with_context(|| format!("--interval {}: not a number of seconds, of 0.1 or more", arguments.interval))?;
    let data = arguments.directories.data_directory()?;
    let socket = data.overview_socket();
    let asker = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut model = Model::default();
    let first = asker.block_on(ask(&socket, &mut model));
    if let Err(error) = first {
        let directory = data.path().display();
        if !data.is_locked() {
            bail!("no node runs here with the data directory {directory}; name another one with --data-dir");
        }
        return Err(error.context(format!("the node of {directory} does not answer at {}", socket.display())));
    }
    if arguments.once || !std::io::stdout().is_terminal() {
        print!("{}", as_text(&model, SIZE)?);
        return Ok(());
    }
    // Undone when it ends, however it ends.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used; --once prints without one")?;
    let result = live(&mut terminal, &asker, &socket, model, interval);
    ratatui::restore();
    result
}

fn live(
    terminal: &mut ratatui::DefaultTerminal,
    asker: &tokio::runtime::Runtime,
    socket: &Path,
    mut model: Model,
    interval: Duration,
) -> anyhow::Result<()> {
    let mut asked = Instant::now();
    loop {
        terminal.draw(|frame| draw::draw(frame, &model))?;
        if event::poll(KEY.min(interval.saturating_sub(asked.elapsed())))? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Tab | KeyCode::Right => model.turn(Panel::next),
                    KeyCode::BackTab | KeyCode::Left => model.turn(Panel::previous),
                    KeyCode::Down | KeyCode::Char('j') => model.select(1),
                    KeyCode::Up | KeyCode::Char('k') => model.select(-1),
                    KeyCode::PageDown => model.select(10),
                    KeyCode::PageUp => model.select(-10),
                    _ => {}
                },
                _ => {}
            }
        }
        if asked.elapsed() >= interval {
            asked = Instant::now();
            // It may come back.
            model.trouble = asker.block_on(ask(socket, &mut model)).err().map(|error| format!("{error:#}"));
        }
    }
}

/// As it would be drawn.
fn as_text(model: &Model, (width, height): (u16, u16)) -> anyhow::Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| draw::draw(frame, model))?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in buffer.content.chunks(usize::from(width)) {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_krustlet_discovery::overview::{DeviceOverview, HandlerOverview, StreamOverview};
    use akri_krustlet_node::cluster::RecentEvent;
    use akri_krustlet_node::overview::{ContainerOverview, Overview, PodOverview};

    fn pod(name: &str, container: &str, cpu_seconds: f64, memory_bytes: u64) -> PodOverview {
        let container = ContainerOverview {
            name: container.to_owned(),
            state: "running".to_owned(),
            restarts: 0,
            cpu_seconds,
            memory_bytes,
            memory_limit: Some(64 << 20),
        };
        PodOverview {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            status: "Running".to_owned(),
            started: 1_764_331_200,
            unhealthy: None,
            containers: vec![container],
        }
    }

    fn handler(name: &str, shared: bool, devices: &[(&str, u64)], complaint: Option<&str>) -> HandlerOverview {
        let devices = devices.iter().map(|(id, since)| DeviceOverview { id: (*id).to_owned(), since: *since });
        let devices: Vec<_> = devices.collect();
        let stream = StreamOverview {
            opened: 1_764_331_300,
            details: "{}".to_owned(),
            complaint: complaint.map(str::to_owned),
            count: devices.len(),
            devices,
        };
        HandlerOverview {
            name: name.to_owned(),
            shared,
            container: Some(format!("default/{name}/{name}")),
            streams: vec![stream],
        }
    }

    /// A node that was looked at twice.
    fn model() -> Model {
        const AT: u64 = 1_764_345_600;
        let overview = |at: f64, cpu: f64| Overview {
            node: "edge-7".to_owned(),
            version: "0.1.0".to_owned(),
            in_cluster: true,
            at,
            started: 1_764_331_190.0,
            cpu_seconds: 2.0 + cpu,
            memory_bytes: 24 << 20,
            handlers: vec![
                handler(
                    "onvif",
                    true,
                    &[
                        ("http://10.99.0.2:8001/onvif/device_service-e4dccde7", 1_764_331_201),
                        ("http://10.99.0.2:8002/onvif/device_service-6ae6323a", 1_764_345_580),
                    ],
                    None,
                ),
                handler(
                    "udev",
                    false,
                    &[("/devices/pnp0/00:05/tty/ttyS0", 1_764_331_200)],
                    Some("ttyUSB9: its node cannot be read"),
                ),
            ],
            pods: vec![
                pod("onvif", "onvif", 1.2 + cpu, 132_368),
                pod("udev", "udev", 0.1, 132_408),
                pod("viewer", "broker", 7.5 + 4.0 * cpu, 3 << 20),
            ],
            events: vec![
                RecentEvent {
                    at: AT - 3,
                    warning: true,
                    object: "default/udev".to_owned(),
                    reason: "BadAnswer".to_owned(),
                    message: "ttyUSB9: its node cannot be read".to_owned(),
                },
                RecentEvent {
                    at: AT - 14_400,
                    warning: false,
                    object: "default/onvif".to_owned(),
                    reason: "Started".to_owned(),
                    message: "Started container onvif".to_owned(),
                },
            ],
        };
        let mut model = Model::default();
        model.take(overview(1_764_345_598.0, 0.0));
        model.take(overview(1_764_345_600.0, 0.02));
        model.log =
            vec!["INFO onvif: 2 cameras answer".to_owned(), "\u{1b}[2JINFO onvif: a camera says hello".to_owned()];
        model
    }

    /// `docs/top.md` shows what is drawn here: with UPDATE_DOCS in the environment it is written.
    #[test]
    fn it_is_drawn_as_the_documentation_shows_it() {
        let text = as_text(&model(), SIZE).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/top.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = page.split_once("```text\n").unwrap();
        let (_, tail) = rest.split_once("```\n").unwrap();
        let right = format!("{head}```text\n{text}```\n{tail}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &right).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), right);
    }

    #[test]
    fn what_is_selected_stays_selected_and_its_log_is_shown() {
        let mut model = model();
        assert_eq!(model.logged().as_deref(), Some("default/onvif/onvif"));
        model.select(1);
        assert_eq!(model.logged().as_deref(), Some("default/udev/udev"));
        model.select(100);
        model.turn(Panel::next);
        model.turn(Panel::next);
        model.select(2);
        assert_eq!(model.logged().as_deref(), Some("default/viewer/broker"));
        let mut next = model.overview.clone();
        // One before it has gone.
        next.pods.remove(0);
        model.take(next);
        assert_eq!(model.logged().as_deref(), Some("default/viewer/broker"));
        model.take(Overview::default());
        assert_eq!(model.logged(), None);
        model.trouble = Some("it is away".to_owned());
        assert!(as_text(&model, SIZE).unwrap().contains("it is away"));
        for size in [(1, 1), (20, 5), (300, 100)] {
            as_text(&model, size).unwrap();
        }
    }

    #[test]
    fn what_guests_say_is_no_control_of_the_terminal() {
        let text = as_text(&model(), SIZE).unwrap();
        assert!(text.contains("a camera says hello") && !text.contains('\u{1b}'), "{text}");
    }
}
