//! What is shown, and what of it is selected.

use akri_krustlet_node::overview::Overview;
use std::collections::BTreeMap;

/// A table that lines are selected of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Panel {
    #[default]
    Handlers,
    Devices,
    Containers,
    Events,
}

impl Panel {
    const ALL: [Self; 4] = [Self::Handlers, Self::Devices, Self::Containers, Self::Events];

    pub(super) fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    pub(super) fn previous(self) -> Self {
        Self::ALL[(self as usize + Self::ALL.len() - 1) % Self::ALL.len()]
    }
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) overview: Overview,
    /// Part of a core that the node took since it was asked before, and that of each container.
    pub(super) cpu: Option<f64>,
    pub(super) cpu_of: BTreeMap<String, f64>,
    pub(super) panel: Panel,
    /// Names of the lines.
    selected: BTreeMap<Panel, (String, usize)>,
    pub(super) log: Vec<String>,
    /// Why the node was not asked.
    pub(super) trouble: Option<String>,
}

impl Model {
    /// What the node says now.
    pub(super) fn take(&mut self, new: Overview) {
        let seconds = new.at - self.overview.at;
        // Of another process it would say nothing.
        let is_next = self.overview.at > 0.0 && seconds > 0.0 && new.started == self.overview.started;
        let share = |now: f64, then: f64| ((now - then) / seconds).max(0.0);
        let times = |overview: &Overview| -> BTreeMap<String, f64> {
            containers(overview).map(|(name, container)| (name, container.cpu_seconds)).collect()
        };
        let then = times(&self.overview);
        self.cpu = is_next.then(|| share(new.cpu_seconds, self.overview.cpu_seconds));
        self.cpu_of = match is_next {
            true => times(&new)
                .into_iter()
                .filter_map(|(name, now)| then.get(&name).map(|then| (name.clone(), share(now, *then))))
                .collect(),
            false => BTreeMap::new(),
        };
        self.overview = new;
    }

    /// Names of a table's lines, in their order.
    pub(super) fn lines(&self, panel: Panel) -> Vec<String> {
        let overview = &self.overview;
        match panel {
            Panel::Handlers => overview.handlers.iter().map(|handler| handler.name.clone()).collect(),
            Panel::Devices => {
                let of = |handler: &akri_krustlet_discovery::overview::HandlerOverview| {
                    let devices = handler.streams.iter().flat_map(|stream| &stream.devices);
                    devices.map(|device| format!("{} {}", handler.name, device.id)).collect::<Vec<_>>()
                };
                overview.handlers.iter().flat_map(of).collect()
            }
            Panel::Containers => containers(overview).map(|(name, _)| name).collect(),
            Panel::Events => {
                overview.events.iter().map(|event| format!("{} {} {}", event.at, event.object, event.reason)).collect()
            }
        }
    }

    /// Which line of a table is selected.
    pub(super) fn selected(&self, panel: Panel) -> Option<usize> {
        let lines = self.lines(panel);
        let same = |name: &String| {
            lines.iter().enumerate().filter(|(_, line)| *line == name).map(|(at, _)| at).collect::<Vec<_>>()
        };
        let known = self.selected.get(&panel).and_then(|(name, number)| {
            let same = same(name);
            same.get(*number).or(same.last()).copied()
        });
        known.or_else(|| (!lines.is_empty()).then_some(0))
    }

    pub(super) fn select(&mut self, by: isize) {
        let lines = self.lines(self.panel);
        let Some(at) = self.selected(self.panel) else { return };
        let at = at.saturating_add_signed(by).min(lines.len() - 1);
        let number = lines[..at].iter().filter(|line| **line == lines[at]).count();
        self.selected.insert(self.panel, (lines[at].clone(), number));
    }

    pub(super) fn turn(&mut self, to: impl Fn(Panel) -> Panel) {
        self.panel = to(self.panel);
    }

    /// `namespace/pod/container` of the log that is shown.
    pub(super) fn logged(&self) -> Option<String> {
        match self.panel {
            Panel::Containers => self.lines(Panel::Containers).get(self.selected(Panel::Containers)?).cloned(),
            _ => {
                let handlers = &self.overview.handlers;
                let container =
                    handlers.get(self.selected(Panel::Handlers)?).and_then(|handler| handler.container.clone());
                container.or_else(|| self.lines(Panel::Containers).first().cloned())
            }
        }
    }
}

/// All containers, by `namespace/pod/container`.
pub(super) fn containers(
    overview: &Overview,
) -> impl Iterator<Item = (String, &akri_krustlet_node::overview::ContainerOverview)> {
    overview.pods.iter().flat_map(|pod| {
        pod.containers
            .iter()
            .map(move |container| (format!("{}/{}/{}", pod.namespace, pod.name, container.name), container))
    })
}
