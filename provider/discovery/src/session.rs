//! One Discover stream.
//!
//! # Flow
//! 1. A request that was open when the node ended begins with its last good list ([`crate::last_lists`]).
//! 2. The session takes a guest of the handler's serving container and gives it the request.
//! 3. Each answer that passes the checks and differs from the last one is sent.
//! 4. The guest's end, a stopped container or a newer one: the stream stays open, a new guest takes over.
//! 5. The session ends when the client goes, when the guest says that the details are invalid while the call waits for that, or
//!    when the handler is gone for good.
//!
//! # Guarantees
//! - The stream never ends while its handler exists: the Agent would delete all Instances of the Configuration and re-create
//!   them with new UIDs, killing every broker.
//! - A bad answer or a failing guest changes nothing for the client: the last good list stays in force. It is reported
//!   once, not once per occurrence.
//! - After the first list and after each change, the current list is sent again, every 200 ms at first, then ever more seldom, at
//!   last every five minutes. The Agent applies a list that comes too soon onto an Instance that it is deleting, when it or
//!   the handler was restarted or a device comes back, and forgets it; a deletion waits for device plugins that register, a
//!   second each. The repetition after it heals that, however long it took.

use crate::container::{ContainerError, HandlerContainer, ServingGuest};
use crate::device::Answer;
use crate::exchange::Files;
use crate::handlers::Handler;
use crate::last_lists::LastList;
use akri_krustlet_runtime::Outcome;
use akri_proto::v0::DiscoverResponse;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;

/// The pause before a list is sent again, after what time since it was new. With many devices they are longer: each list costs
/// the Agent a request to the API server for each device. They never end: a busy Agent may forget a list minutes later.
fn repetition(age: Duration, devices: usize) -> Duration {
    let devices = u32::try_from(devices).unwrap_or(u32::MAX);
    let at_least = |pause: Duration, each: Duration| pause.max(each.saturating_mul(devices));
    match age.as_millis() {
        0..100 => Duration::from_millis(50),
        100..250 => Duration::from_millis(150),
        250..5_000 => at_least(Duration::from_millis(200), Duration::from_millis(25)),
        5_000..30_000 => at_least(Duration::from_secs(1), Duration::from_millis(50)),
        30_000..120_000 => at_least(Duration::from_secs(5), Duration::from_millis(50)),
        _ => at_least((age / 4).min(LONGEST_REPETITION), Duration::from_millis(50)),
    }
}

/// Longest pause before a list is sent again, of a few devices.
const LONGEST_REPETITION: Duration = Duration::from_secs(300);

/// Pause before a failed guest is replaced: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Longest complaint, in bytes.
const MOST_COMPLAINT: usize = 1024;
/// A guest that lived this long did not fail at once: the pause starts over.
const STABLE: Duration = Duration::from_secs(600);

/// What is known of a request when its guest first speaks.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// A list was sent.
    Answered,
    /// The guest refused the details.
    InvalidDetails(String),
    /// No guest can be had: the container's limits are used up.
    Exhausted(String),
}

type Stream = mpsc::Receiver<Result<DiscoverResponse, Status>>;

/// Opens a session for a request. The verdict's sender is dropped if the session ends before there is one.
pub(crate) fn open(handler: Arc<Handler>, request: Vec<u8>) -> (Stream, oneshot::Receiver<Verdict>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (sender, stream) = mpsc::channel(4);
    let (verdict, first_verdict) = oneshot::channel();
    let mut session = Session {
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        serving: handler.serving.subscribe(),
        kept: handler.lists.stream(&handler.name, &request),
        handler,
        request,
        output: Output { sender, last: None, unsent: false, repeated: None },
        verdict: Some(verdict),
        back_off: BACK_OFF.0,
        complained: None,
        rate: AnswerRate::new(),
    };
    session.take_up_last_list();
    tokio::spawn(session.run());
    (stream, first_verdict)
}

struct Session {
    number: u64,
    handler: Arc<Handler>,
    serving: watch::Receiver<Option<Arc<HandlerContainer>>>,
    request: Vec<u8>,
    output: Output,
    kept: LastList,
    verdict: Option<oneshot::Sender<Verdict>>,
    back_off: Duration,
    /// Whose status tells of this stream's trouble.
    complained: Option<Arc<HandlerContainer>>,
    rate: AnswerRate,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.withdraw_complaint();
    }
}

/// Bounds the work that a guest makes for the host by answering: reading, checking, sending.
struct AnswerRate {
    /// Bytes that may be read at once; negative when more were.
    bytes: f64,
    at: Instant,
}

/// Bytes of answers that a stream takes each second; also its burst.
const ANSWER_BYTES: f64 = (4 << 20) as f64;
/// The least that an answer counts for.
const ANSWER_LEAST: usize = 64 << 10;

impl AnswerRate {
    fn new() -> Self {
        Self { bytes: ANSWER_BYTES, at: Instant::now() }
    }

    fn spend(&mut self, bytes: usize) {
        let filled = self.at.elapsed().as_secs_f64() * ANSWER_BYTES;
        self.bytes = (self.bytes + filled).min(ANSWER_BYTES) - bytes.max(ANSWER_LEAST) as f64;
        self.at = Instant::now();
    }

    /// When the next answer may be read.
    fn next(&self) -> Instant {
        self.at + Duration::from_secs_f64((-self.bytes / ANSWER_BYTES).max(0.0))
    }
}

/// Why a session stops using a guest.
enum Turn {
    /// The session is over.
    End,
    /// Another container serves now, or none.
    Replaced,
    /// The guest failed; another one after a pause.
    Failed(String),
}

impl Session {
    /// To its end, which is not that of the node.
    async fn run(mut self) {
        self.serve().await;
        self.kept.close();
    }

    /// Begins with the list that was in force when the node ended, if the container that serves now may still give it.
    fn take_up_last_list(&mut self) {
        let Some(json) = self.kept.take_left() else { return };
        let Some(container) = self.serving.borrow().clone() else { return };
        if let Ok(Answer::Devices { list, .. }) = Answer::read(&json, container.allowed_host_paths()) {
            self.output.send(list);
            self.say(Verdict::Answered);
        }
    }

    async fn serve(&mut self) {
        let closing = self.handler.closing.clone();
        loop {
            let client_gone = self.output.client_gone();
            let container = tokio::select! {
                container = next_container(&mut self.serving) => container,
                end = self.output.tend() => match end {},
                () = client_gone => return,
                () = closing.cancelled() => return self.close().await,
            };
            let started = Instant::now();
            let turn = self.use_guest_of(&container).await;
            if started.elapsed() >= STABLE {
                self.back_off = BACK_OFF.0;
            }
            match turn {
                Turn::End => return,
                Turn::Replaced => self.withdraw_complaint(),
                Turn::Failed(reason) => {
                    self.complain(&container, reason);
                    let pause = self.back_off;
                    self.back_off = (pause * 2).min(BACK_OFF.1);
                    let stopped = container.stopped().clone();
                    let client_gone = self.output.client_gone();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        // The next container's guest need not wait for what this one's did.
                        () = stopped.cancelled() => self.back_off = BACK_OFF.0,
                        () = replaced(&mut self.serving, &container) => self.back_off = BACK_OFF.0,
                        end = self.output.tend() => match end {},
                        () = client_gone => {}
                        () = closing.cancelled() => {}
                    }
                }
            }
        }
    }

    /// One guest, from its request to its end.
    async fn use_guest_of(&mut self, container: &Arc<HandlerContainer>) -> Turn {
        let guest = match container.take_guest() {
            Ok(guest) => guest,
            Err(ContainerError::Stopped) => return Turn::Replaced,
            Err(error) => return Turn::Failed(format!("no guest can be started: {error}")),
        };
        let mut files = container.files();
        let mut current_files = files.borrow_and_update().clone();
        let mut progress = guest.progress();
        // What it wrote before it had the request is no answer.
        let mut seen_writes = progress.as_ref().map_or(0, |progress| progress.borrow().answers);
        if let Err(error) = guest.request(&self.request, &current_files).await {
            return Turn::Failed(format!("the request cannot be given to the guest: {error}"));
        }
        let closing = self.handler.closing.clone();
        loop {
            tokio::select! {
                biased;
                () = self.output.client_gone() => return Turn::End,
                () = closing.cancelled() => {
                    self.close().await;
                    return Turn::End;
                }
                () = container.stopped().cancelled() => return Turn::Replaced,
                () = replaced(&mut self.serving, container) => return Turn::Replaced,
                () = written(&mut progress, &mut seen_writes, self.rate.next()) => {
                    if let Some(turn) = self.take_answer(&guest, container) {
                        return turn;
                    }
                }
                outcome = guest.outcome() => {
                    // It may have answered with its last breath.
                    if let Some(turn) = self.take_answer(&guest, container) {
                        return turn;
                    }
                    return self.guest_ended(outcome);
                }
                Ok(()) = files.changed() => {
                    let new: Arc<Files> = files.borrow_and_update().clone();
                    if let Err(error) = guest.update_files(&current_files, &new) {
                        self.complain(container, format!("a file cannot be handed on to the guest: {error}"));
                    }
                    current_files = new;
                }
                end = self.output.tend() => match end {},
            }
        }
    }

    /// Reads what the guest wrote, if it did; `Some` if that ends the guest's use.
    fn take_answer(&mut self, guest: &ServingGuest, container: &Arc<HandlerContainer>) -> Option<Turn> {
        let json = match guest.take_answer() {
            Ok(None) => {
                // A look has its price, too.
                self.rate.spend(0);
                return None;
            }
            Ok(Some(json)) => {
                self.rate.spend(json.len());
                json
            }
            Err(error) => {
                self.rate.spend(crate::device::MOST_ANSWER);
                self.complain(container, error.to_string());
                return None;
            }
        };
        match Answer::read(&json, container.allowed_host_paths()) {
            Ok(Answer::Devices { list, warning }) => {
                match warning {
                    Some(warning) => self.complain(container, warning),
                    None => self.withdraw_complaint(),
                }
                if self.output.send(list) {
                    self.kept.keep(&json);
                }
                self.say(Verdict::Answered);
                None
            }
            Ok(Answer::InvalidDetails(reason)) => self.refuse_details(reason, container),
            Err(refused) => {
                self.complain(container, refused.to_string());
                None
            }
        }
    }

    /// The guest does not understand the request. The call that still waits fails with it. Later the stream stays, and what the
    /// guest says is told by the pod's condition: the Agent would open an ended stream again at once, for ever.
    fn refuse_details(&mut self, mut reason: String, container: &Arc<HandlerContainer>) -> Option<Turn> {
        // It becomes an HTTP/2 header.
        reason.truncate(reason.floor_char_boundary(MOST_COMPLAINT));
        if self.output.last.is_none() && self.say(Verdict::InvalidDetails(reason.clone())) {
            tracing::warn!(handler = self.handler.name, reason, "discovery details refused by the guest");
            return Some(Turn::End);
        }
        let now = if self.output.last.is_some() { "now " } else { "" };
        self.complain(container, format!("the guest {now}calls its discovery details invalid: {reason}"));
        None
    }

    fn guest_ended(&mut self, outcome: Outcome) -> Turn {
        match outcome {
            Outcome::Interrupted => Turn::Replaced,
            Outcome::Exited(code) => Turn::Failed(format!("the guest of a stream exited with code {code}")),
            Outcome::Trapped(report) => Turn::Failed(format!("the guest of a stream trapped: {report}")),
            Outcome::OutOfMemory { limit } => {
                let reason = format!(
                    "no memory for the guest of a stream: all guests of the container share resources.limits.memory ({} MiB); raise it",
                    limit >> 20
                );
                if self.output.last.is_none() && self.say(Verdict::Exhausted(reason.clone())) {
                    return Turn::End;
                }
                Turn::Failed(reason)
            }
        }
    }

    fn withdraw_complaint(&mut self) {
        if let Some(container) = self.complained.take() {
            container.complain(self.number, None);
        }
    }

    fn complain(&mut self, container: &Arc<HandlerContainer>, mut complaint: String) {
        // A guest's own words may be in it.
        complaint.truncate(complaint.floor_char_boundary(MOST_COMPLAINT));
        let known = container.complaints().borrow().get(&self.number).is_some_and(|old| *old == complaint);
        if !known {
            tracing::warn!(handler = self.handler.name, container = container.name(), "{complaint}");
            container.note(&format!("[akri-krustlet] {complaint}"));
            container.complain(self.number, Some(complaint));
            self.complained = Some(container.clone());
        }
    }

    /// Tells the waiting call; false if it no longer waits.
    fn say(&mut self, verdict: Verdict) -> bool {
        self.verdict.take().is_some_and(|waiting| waiting.send(verdict).is_ok())
    }

    /// The handler is gone for good: an empty list, then the end.
    async fn close(&mut self) {
        let _ = self.output.sender.send(Ok(DiscoverResponse::default())).await;
    }
}

async fn next_container(serving: &mut watch::Receiver<Option<Arc<HandlerContainer>>>) -> Arc<HandlerContainer> {
    loop {
        let container = serving.borrow_and_update().clone();
        if let Some(container) = container.filter(|container| !container.stopped().is_cancelled()) {
            return container;
        }
        if serving.changed().await.is_err() {
            pending().await
        }
    }
}

/// Resolves when another container serves than `mine`.
async fn replaced(serving: &mut watch::Receiver<Option<Arc<HandlerContainer>>>, mine: &Arc<HandlerContainer>) {
    let other =
        |container: &Option<Arc<HandlerContainer>>| container.as_ref().is_none_or(|other| !Arc::ptr_eq(other, mine));
    if serving.wait_for(other).await.is_err() {
        pending().await
    }
}

/// Resolves when the guest has written its answer more often than `seen`, but not before `earliest`, and counts that as seen.
/// What it writes between two calls is not missed.
async fn written(
    progress: &mut Option<watch::Receiver<akri_krustlet_runtime::wasi::Progress>>,
    seen: &mut u64,
    earliest: Instant,
) {
    let Some(progress) = progress else { return pending().await };
    if earliest > Instant::now() {
        tokio::time::sleep_until(earliest).await;
    }
    let writes = progress.wait_for(|progress| progress.answers != *seen).await.map(|progress| progress.answers);
    match writes {
        Ok(writes) => *seen = writes,
        // The guest has ended; its outcome tells how.
        Err(_) => pending().await,
    }
}

/// The stream as the session writes it: the newest list wins over a slow reader.
struct Output {
    sender: mpsc::Sender<Result<DiscoverResponse, Status>>,
    last: Option<DiscoverResponse>,
    /// `last` waits for room in the channel.
    unsent: bool,
    /// When the list was new, and when it was sent last.
    repeated: Option<(Instant, Instant)>,
}

/// Nothing: what [`Output::tend`] returns.
enum Never {}

impl Output {
    /// Sends a list unless it is the last one; whether it is new.
    fn send(&mut self, list: DiscoverResponse) -> bool {
        if self.last.as_ref() == Some(&list) {
            return false;
        }
        let now = Instant::now();
        self.repeated = Some((now, now));
        self.last = Some(list);
        self.push();
        true
    }

    fn push(&mut self) {
        if let Some(last) = &self.last {
            self.unsent = self.sender.try_send(Ok(last.clone())).is_err();
        }
    }

    fn client_gone(&self) -> impl Future<Output = ()> + use<> {
        let sender = self.sender.clone();
        async move { sender.closed().await }
    }

    /// Sends what waited for room, and the repetitions. Runs for ever; may be dropped at any time.
    async fn tend(&mut self) -> Never {
        loop {
            let devices = self.last.as_ref().map_or(0, |list| list.devices.len());
            let repetition = self.repeated.map(|(new, sent)| sent + repetition(sent - new, devices));
            let due = async {
                match repetition {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => pending().await,
                }
            };
            let room = async {
                match self.unsent {
                    true => self.sender.reserve().await.is_ok(),
                    false => pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    if let (Some((_, sent)), Some(due)) = (&mut self.repeated, repetition) {
                        *sent = due;
                    }
                    self.push();
                }
                true = room => self.push(),
                else => pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_proto::v0::Device;

    fn list(id: &str) -> DiscoverResponse {
        DiscoverResponse { devices: vec![Device { id: id.to_owned(), ..Device::default() }] }
    }

    fn output() -> (Output, Stream) {
        let (sender, stream) = mpsc::channel(4);
        (Output { sender, last: None, unsent: false, repeated: None }, stream)
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_repeated_for_ever_and_ever_more_seldom() {
        let (mut output, mut stream) = output();
        output.send(list("a"));
        let start = Instant::now();
        let mut times = Vec::new();
        let mut read = async || {
            while let Some(Ok(read)) = stream.recv().await {
                assert_eq!(read, list("a"));
                times.push(start.elapsed().as_millis());
            }
        };
        tokio::select! {
            _ = output.tend() => unreachable!(),
            () = read() => {}
            () = tokio::time::sleep(Duration::from_secs(7200)) => {}
        }
        assert_eq!(times[..6], [0, 50, 100, 250, 450, 650]);
        let longest = |from: u128, to: u128| {
            let pairs = times.windows(2).filter(|pair| pair[0] >= from && pair[1] <= to);
            pairs.map(|pair| pair[1] - pair[0]).max()
        };
        assert_eq!((longest(0, 5_000), longest(5_000, 31_000)), (Some(200), Some(1000)));
        assert_eq!((longest(31_000, 120_000), longest(120_000, 7_200_000)), (Some(5000), Some(300_000)));
        assert!(*times.last().unwrap() > 6_900_000 && times.len() < 150, "{times:?}");
        output.send(list("a"));
        assert!(stream.try_recv().is_err(), "an identical list is not sent");
        output.send(list("b"));
        assert_eq!(stream.try_recv().unwrap().unwrap(), list("b"));
        assert!(stream.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_newest_list() {
        let (mut output, mut stream) = output();
        for number in 0..10 {
            output.send(list(&number.to_string()));
        }
        let mut last = None;
        let mut read = async || {
            loop {
                last = stream.recv().await;
            }
        };
        tokio::select! {
            _ = output.tend() => unreachable!(),
            () = read() => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
        assert_eq!(last.unwrap().unwrap(), list("9"));
    }
}
