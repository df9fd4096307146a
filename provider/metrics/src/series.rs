//! Metrics with labels, of which no more than so many are kept.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Combinations of labels of one metric that are told apart.
pub const MOST_SERIES: usize = 1000;
/// What the others are counted under.
const OTHER: &str = "(others)";

/// Labels, as they are told.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The series of one metric.
#[derive(Debug)]
struct Series<const N: usize, M, C = fn() -> M> {
    names: [&'static str; N],
    family: Family<Labels, M, C>,
    /// The series that there are.
    known: Mutex<HashSet<Labels>>,
}

impl<const N: usize, M, C> Series<N, M, C>
where
    M: Metric,
    C: MetricConstructor<M> + Clone + Send + Sync + 'static,
    Family<Labels, M, C>: Metric,
{
    fn new(
        registry: &mut Registry,
        (name, help): (&str, &str),
        names: [&'static str; N],
        family: Family<Labels, M, C>,
    ) -> Self {
        registry.register(name, help, family.clone());
        Self { names, family, known: Mutex::default() }
    }

    fn of(&self, values: [&str; N]) -> Labels {
        self.names.into_iter().zip(values.map(str::to_owned)).collect()
    }

    /// Does something to the series of these values, or to that of the others if there are too many.
    fn with(&self, values: [&str; N], act: impl FnOnce(&M)) {
        let mut labels = self.of(values);
        // Held until it is done: nobody forgets the series meanwhile.
        let mut known = self.known();
        if !known.contains(&labels) {
            if known.len() < MOST_SERIES {
                known.insert(labels.clone());
            } else {
                labels = self.of([OTHER; N]);
            }
        }
        act(&self.family.get_or_create(&labels));
    }

    /// Forgets all series whose first labels have these values.
    fn forget(&self, first: &[&str]) {
        self.known().retain(|labels| {
            let is_gone = labels.len() >= first.len() && labels.iter().zip(first).all(|((_, value), one)| value == one);
            if is_gone {
                self.family.remove(labels);
            }
            !is_gone
        });
    }

    fn is_known(&self, values: [&str; N]) -> bool {
        self.known().contains(&self.of(values))
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Labels>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters of one metric, one for each combination of its labels' values.
#[derive(Debug)]
pub struct Counters<const N: usize>(Series<N, Counter>);

impl<const N: usize> Counters<N> {
    /// Without the name's suffix `_total`, which the formats add.
    pub(crate) fn new(registry: &mut Registry, name: &str, help: &str, names: [&'static str; N]) -> Self {
        Self(Series::new(registry, (name, help), names, Family::default()))
    }

    /// One more.
    pub fn add(&self, values: [&str; N]) {
        self.add_many(values, 1);
    }

    /// So many more.
    pub fn add_many(&self, values: [&str; N], number: u64) {
        self.0.with(values, |counter| {
            counter.inc_by(number);
        });
    }

    pub(crate) fn forget(&self, first: &[&str]) {
        self.0.forget(first);
    }
}

/// Gauges of one metric, one for each combination of its labels' values.
#[derive(Debug)]
pub struct Gauges<const N: usize>(Series<N, Gauge>);

impl<const N: usize> Gauges<N> {
    pub(crate) fn new(registry: &mut Registry, name: &str, help: &str, names: [&'static str; N]) -> Self {
        Self(Series::new(registry, (name, help), names, Family::default()))
    }

    /// So many more, or fewer. What was forgotten is not counted down, and what is not told apart is not told: what comes and goes
    /// has no sum of the others.
    pub fn change(&self, values: [&str; N], by: i64) {
        if self.0.is_known(values) || by >= 0 && self.0.known().len() < MOST_SERIES {
            self.0.with(values, |gauge| {
                gauge.inc_by(by);
            });
        }
    }

    pub(crate) fn forget(&self, first: &[&str]) {
        self.0.forget(first);
    }
}

/// Makes histograms with these bounds.
#[derive(Clone, Copy, Debug)]
struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Histograms of durations, one for each combination of its labels' values.
#[derive(Debug)]
pub struct Durations<const N: usize>(Series<N, Histogram, Bounds>);

impl<const N: usize> Durations<N> {
    pub(crate) fn new(
        registry: &mut Registry,
        name: &str,
        help: &str,
        names: [&'static str; N],
        bounds: &'static [f64],
    ) -> Self {
        Self(Series::new(registry, (name, help), names, Family::new_with_constructor(Bounds(bounds))))
    }

    /// It took so long, once.
    pub fn observe(&self, values: [&str; N], took: Duration) {
        self.0.with(values, |histogram| histogram.observe(took.as_secs_f64()));
    }

    pub(crate) fn forget(&self, first: &[&str]) {
        self.0.forget(first);
    }
}
