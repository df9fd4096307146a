//! Filters of Akri's own handlers.

use crate::Text;

/// What a filter's items are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub enum Action {
    /// Whoever is one of them passes.
    #[default]
    Include,
    /// Whoever is none of them passes.
    Exclude,
}

/// Who passes, as Configurations for Akri's own handlers say it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct FilterList {
    /// The items.
    pub items: Vec<Text>,
    /// What they are about.
    #[serde(default)]
    pub action: Action,
}

impl FilterList {
    /// Whether somebody of whom this is known passes.
    pub fn passes(&self, known: &[&str], is_same: impl Fn(&str, &str) -> bool) -> bool {
        let is_item = self.items.iter().any(|item| known.iter().any(|known| is_same(known, &item.0)));
        is_item == (self.action == Action::Include)
    }
}
