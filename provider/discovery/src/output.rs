//! The stream as a session writes it: the newest list, and that again until the Agent has made Instances of it.
//!
//! The Agent applies a list that comes too soon onto an Instance that it is deleting, when it or the handler was restarted or a
//! device comes back, and forgets it; a deletion waits for device plugins that register, a second each. The same list, sent
//! again, heals that, however long it took.
//!
//! # Guarantees
//! - Where the node may read Instances, a list is sent again while one of them is missing, at least once a minute. Where it may
//!   not, it is sent again for ever, ever more seldom, at least once in five minutes.
//! - A change is sent at once, and the next one 200 ms later at the earliest: of a device that flaps the Agent hears no more.
//! - A guest whose lists alternate costs the Agent one list a second.

use crate::instance::StreamInstances;
use akri_krustlet_host::{TokenBucket, until};
use akri_proto::v0::DiscoverResponse;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

/// Repetitions in a list's first moments come in any case: an Instance that is there may be about to be deleted.
const ALWAYS: Duration = Duration::from_secs(2);
/// Longest pause before a list is sent again, of a few devices, while an Instance is missing.
const LONGEST_WHILE_MISSING: Duration = Duration::from_secs(60);
/// The same where it cannot be told whether one is missing.
const LONGEST: Duration = Duration::from_secs(300);
/// From this pause on, lists are sent again at the node's common moments: a thousand streams at rest wake it once in ten
/// seconds and not a hundred times.
const COMMON: Duration = Duration::from_secs(30);
/// The time between two of those.
const MOMENTS: Duration = Duration::from_secs(10);
/// The least time between two changes of the list.
const SETTLE: Duration = Duration::from_millis(200);
/// A change so soon after another one is repeated in no hurry: the next one makes up for what the Agent lost of it.
const SOON: Duration = Duration::from_secs(1);
/// Changes of the list that are sent without further pauses, and how many are sent each second after that.
const CHANGES: (f64, f64) = (32.0, 1.0);

/// The pause before a list is sent again, after what time since it was new. With many devices they are longer: each list costs
/// the Agent a request to the API server for each device.
fn pause(age: Duration, devices: usize, longest: Duration) -> Duration {
    let devices = u32::try_from(devices).unwrap_or(u32::MAX);
    let at_least = |pause: Duration, each: Duration| pause.max(each.saturating_mul(devices));
    match age.as_millis() {
        0..100 => at_least(Duration::from_millis(50), Duration::from_millis(5)),
        100..250 => at_least(Duration::from_millis(150), Duration::from_millis(25)),
        250..5_000 => at_least(Duration::from_millis(200), Duration::from_millis(25)),
        5_000..30_000 => at_least(Duration::from_secs(1), Duration::from_millis(50)),
        // A thousand streams at rest are to cost nothing.
        _ => at_least((age / 2).min(longest), Duration::from_millis(50)),
    }
}

/// When a list is sent again that was sent then: after the pause, or a little before, at one of the common moments, of which the
/// first is given.
fn again(sent: Instant, pause: Duration, first: Instant) -> Instant {
    let due = sent + pause;
    if pause < COMMON {
        return due;
    }
    let late = due.saturating_duration_since(first).as_nanos() % MOMENTS.as_nanos();
    due - Duration::from_nanos(u64::try_from(late).unwrap_or(0))
}

/// The newest list wins over a slow reader.
pub(crate) struct Output {
    sender: mpsc::Sender<Result<DiscoverResponse, Status>>,
    instances: StreamInstances,
    last: Option<DiscoverResponse>,
    /// `last` waits for room in the channel.
    unsent: bool,
    /// `last` waits for its turn among the changes.
    held: bool,
    changes: TokenBucket,
    /// When a change was sent last.
    changed: Option<Instant>,
    /// Until when a change that came soon after another one is repeated in no hurry.
    calm: Option<Instant>,
    /// When the list was new, or one of its Instances went, and when it was sent last.
    repeated: Option<(Instant, Instant)>,
    was_missing: bool,
    /// Changes come faster than they are sent.
    is_hurried: bool,
}

impl Output {
    pub(crate) fn new(sender: mpsc::Sender<Result<DiscoverResponse, Status>>, instances: StreamInstances) -> Self {
        let changes = TokenBucket::new(CHANGES.0, CHANGES.1);
        Self {
            sender,
            instances,
            last: None,
            unsent: false,
            held: false,
            changes,
            changed: None,
            calm: None,
            repeated: None,
            was_missing: true,
            is_hurried: false,
        }
    }

    /// No list was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// The list that was given last.
    pub(crate) fn last(&self) -> Option<&DiscoverResponse> {
        self.last.as_ref()
    }

    /// Sends a list unless it is the last one; whether it is new.
    pub(crate) fn send(&mut self, list: DiscoverResponse, shared: bool) -> bool {
        if self.last.as_ref() == Some(&list) {
            return false;
        }
        self.instances.list(&list, shared);
        self.last = Some(list);
        self.held = self.turn() > Instant::now() || !self.changes.try_take();
        self.is_hurried = self.changes.available() < CHANGES.0 / 2.0;
        if self.held {
            self.repeated = None;
        } else {
            self.send_new();
        }
        true
    }

    /// An empty list, for the last time.
    pub(crate) async fn close(&self) {
        let _ = self.sender.send(Ok(DiscoverResponse::default())).await;
    }

    pub(crate) fn client_gone(&self) -> impl Future<Output = ()> + use<> {
        let sender = self.sender.clone();
        async move { sender.closed().await }
    }

    /// Sends what waited for room or for its turn, and the repetitions. Runs for ever; may be dropped at any time.
    pub(crate) async fn drive(&mut self) -> Infallible {
        loop {
            let repetition = self.next_repetition();
            let due = until(repetition);
            let turn = until(self.held.then(|| self.turn()));
            let room = async {
                match self.unsent {
                    true => self.sender.reserve().await.is_ok(),
                    false => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.instances.changed() => self.see_instances(),
                () = due => {
                    if let (Some((_, sent)), Some(due)) = (&mut self.repeated, repetition) {
                        // After a time in which none was due, the next one counts from now.
                        *sent = due.max(Instant::now() - Duration::from_secs(1));
                    }
                    self.push();
                }
                () = turn => {
                    if self.changes.try_take() {
                        self.held = false;
                        self.send_new();
                    }
                }
                true = room => self.push(),
                else => pending().await,
            }
        }
    }

    /// From when on the next change may be sent.
    fn turn(&self) -> Instant {
        let turn = self.changes.when(1.0);
        self.changed.map_or(turn, |changed| turn.max(changed + SETTLE))
    }

    fn send_new(&mut self) {
        let now = Instant::now();
        let is_soon = self.changed.replace(now).is_some_and(|changed| now < changed + SOON);
        self.calm = is_soon.then_some(now + SOON);
        self.repeated = Some((now, now));
        self.was_missing = self.is_missing();
        self.push();
    }

    fn is_missing(&self) -> bool {
        self.instances.is_one_missing() != Some(false)
    }

    fn push(&mut self) {
        if let Some(last) = self.last.as_ref().filter(|_| !self.held) {
            self.unsent = self.sender.try_send(Ok(last.clone())).is_err();
        }
    }

    /// An Instance that went is asked for as one that has never been there.
    fn see_instances(&mut self) {
        let is_missing = self.is_missing();
        // It counts as a change: Instances that come and go cost the Agent no more than lists that do.
        if is_missing && !self.was_missing && self.repeated.is_some() && self.changes.try_take() {
            let now = Instant::now();
            self.repeated = Some((now, now));
        }
        self.was_missing = is_missing;
    }

    fn next_repetition(&self) -> Option<Instant> {
        let (new, sent) = self.repeated?;
        let age = sent - new;
        let longest = match self.instances.is_one_missing() {
            Some(false) if age >= ALWAYS => return None,
            Some(_) => LONGEST_WHILE_MISSING,
            None => LONGEST,
        };
        let devices = self.last.as_ref().map_or(0, |list| list.devices.len());
        // Lists that alternate are not repeated in a hurry: the next one makes up for what the Agent lost of this one.
        let least = match self.is_hurried {
            true => Duration::from_secs(1),
            false if self.calm.is_some_and(|until| sent < until) => SETTLE,
            false => Duration::ZERO,
        };
        Some(again(sent, pause(age, devices, longest).max(least), self.instances.began()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{self, Instances};
    use akri_proto::v0::Device;
    use std::collections::HashMap;
    use std::sync::Arc;

    type Stream = mpsc::Receiver<Result<DiscoverResponse, Status>>;

    fn list(id: &str) -> DiscoverResponse {
        DiscoverResponse { devices: vec![Device { id: id.to_owned(), ..Device::default() }] }
    }

    fn output() -> (Output, Stream, Arc<Instances>) {
        let (sender, stream) = mpsc::channel(4);
        let instances = Instances::new("n");
        (Output::new(sender, instances.of_stream()), stream, instances)
    }

    /// When lists are sent in a time, in milliseconds since its beginning.
    async fn times(output: &mut Output, stream: &mut Stream, seconds: u64) -> Vec<u128> {
        let start = Instant::now();
        let mut times = Vec::new();
        let mut read = async || {
            while let Some(Ok(_)) = stream.recv().await {
                times.push(start.elapsed().as_millis());
            }
        };
        tokio::select! {
            _ = output.drive() => unreachable!(),
            () = read() => {}
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
        times
    }

    fn longest(times: &[u128], from: u128, to: u128) -> Option<u128> {
        let pairs = times.windows(2).filter(|pair| pair[0] >= from && pair[1] <= to);
        pairs.map(|pair| pair[1] - pair[0]).max()
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_repeated_for_ever_and_ever_more_seldom() {
        let (mut output, mut stream, _instances) = output();
        output.send(list("a"), true);
        let times = times(&mut output, &mut stream, 7200).await;
        assert_eq!(times[..6], [0, 50, 100, 250, 450, 650]);
        let longest = |from, to| longest(&times, from, to);
        assert_eq!((longest(0, 5_000), longest(5_000, 31_000)), (Some(200), Some(1000)));
        let in_first_minutes = times.iter().filter(|time| (60_000..120_000).contains(*time)).count();
        assert!((1..=2).contains(&in_first_minutes), "{times:?}");
        assert_eq!(longest(120_000, 7_200_000), Some(300_000));
        assert!(*times.last().unwrap() > 6_900_000 && times.len() < 150, "{times:?}");
        output.send(list("a"), true);
        assert!(stream.try_recv().is_err(), "an identical list is not sent");
        output.send(list("b"), true);
        assert_eq!(stream.try_recv().unwrap().unwrap(), list("b"));
        assert!(stream.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn lists_at_rest_are_repeated_at_common_moments() {
        let instances = Instances::new("n");
        let mut all = Vec::new();
        for late in [0, 1234, 7777] {
            tokio::time::sleep(Duration::from_millis(late)).await;
            let (sender, stream) = mpsc::channel(4);
            let mut output = Output::new(sender, instances.of_stream());
            output.send(list("a"), true);
            all.push((output, stream));
        }
        let start = Instant::now();
        let times = all.iter_mut().map(|(output, stream)| times(output, stream, 3600));
        let times = futures::future::join_all(times).await;
        assert_eq!(start.elapsed().as_secs(), 3600);
        let moments =
            |of: &[u128]| of.iter().filter(|time| **time > 120_000).map(|time| time % 10_000).collect::<Vec<_>>();
        let first = moments(&times[0]);
        assert!(first.len() > 5, "{times:?}");
        assert!(times.iter().flat_map(|of| moments(of)).all(|moment| moment.abs_diff(first[0]) <= 1), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_instances_are_known_a_list_is_repeated_while_one_is_missing() {
        let (mut output, mut stream, instances) = output();
        instances.update(Some(HashMap::new()));
        output.send(list("a"), true);
        let missing = times(&mut output, &mut stream, 7200).await;
        assert_eq!(longest(&missing, 300_000, 7_200_000), Some(60_000), "at least once a minute");
        let there = HashMap::from([(instance::hash_of(&instance::name("c", "a", true, "n")).unwrap(), 1)]);
        instances.update(Some(there.clone()));
        assert_eq!(times(&mut output, &mut stream, 7200).await, [] as [u128; 0], "it is there");
        instances.update(Some(HashMap::new()));
        assert_eq!(times(&mut output, &mut stream, 1).await[..3], [50, 100, 250], "it went");
        instances.update(Some(there.clone()));
        let rest = times(&mut output, &mut stream, 60).await;
        assert!(rest.iter().all(|time| *time < 1300), "it is there again: {rest:?}");
        // A list that finds its Instances in place, of which one goes later.
        output.send(list("b"), true);
        output.send(list("a"), true);
        let new = times(&mut output, &mut stream, 60).await;
        assert!(new.iter().any(|time| (1500..2500).contains(time)), "what is there may be about to go: {new:?}");
        assert!(*new.last().unwrap() < 2500, "{new:?}");
        instances.update(Some(HashMap::new()));
        assert_eq!(times(&mut output, &mut stream, 1).await[..3], [50, 100, 250], "it went after that");
        instances.update(None);
        assert!(!times(&mut output, &mut stream, 600).await.is_empty(), "nothing is known any more");
    }

    #[tokio::test(start_paused = true)]
    async fn lists_that_alternate_are_sent_once_a_second_and_the_last_one_in_the_end() {
        let (mut output, mut stream, _instances) = output();
        let mut received = Vec::new();
        for number in 0..1000 {
            output.send(list(&number.to_string()), true);
            tokio::select! {
                _ = output.drive() => unreachable!(),
                () = async { while let Some(read) = stream.recv().await { received.push(read.unwrap()) } } => {}
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
        assert!((32..=80).contains(&received.len()), "{} in 10 s, with repetitions", received.len());
        received.dedup();
        assert!((32..=43).contains(&received.len()), "{} in 10 s", received.len());
        assert_eq!(received[0], list("0"), "the first one at once");
        tokio::select! {
            _ = output.drive() => unreachable!(),
            () = async { while received.last() != Some(&list("999")) { received.push(stream.recv().await.unwrap().unwrap()) } } => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_flaps_costs_a_list_in_200_ms_at_most_and_settles() {
        let (mut output, mut stream, _instances) = output();
        let start = Instant::now();
        let mut received = Vec::new();
        // There and away ten times a second, for three seconds; away in the end.
        for number in 0..31 {
            output.send(if number % 2 == 0 { DiscoverResponse::default() } else { list("flaps") }, true);
            tokio::select! {
                _ = output.drive() => unreachable!(),
                () = async { while let Some(read) = stream.recv().await { received.push((start.elapsed(), read.unwrap())) } } => {}
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        tokio::select! {
            _ = output.drive() => unreachable!(),
            () = async { while let Some(read) = stream.recv().await { received.push((start.elapsed(), read.unwrap())) } } => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        assert_eq!(received[0], (Duration::ZERO, DiscoverResponse::default()), "the first one at once");
        assert_eq!(received.last().unwrap().1, DiscoverResponse::default(), "what is true in the end");
        // But for the first list, which is repeated in a hurry while it is alone.
        let later: Vec<_> = received.iter().map(|(time, _)| *time).filter(|time| *time >= SETTLE).collect();
        assert!(later.windows(2).all(|pair| pair[1] - pair[0] >= SETTLE), "{later:?}");
        assert!(later.len() <= 20, "{later:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_newest_list() {
        let (mut output, mut stream, _instances) = output();
        for number in 0..10 {
            output.send(list(&number.to_string()), true);
        }
        let mut last = None;
        let mut read = async || {
            loop {
                last = stream.recv().await;
            }
        };
        tokio::select! {
            _ = output.drive() => unreachable!(),
            () = read() => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
        assert_eq!(last.unwrap().unwrap(), list("9"));
    }
}
