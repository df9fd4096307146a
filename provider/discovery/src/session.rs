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
//! - What was in force before a restart of the node and was not found again yet stays beside a list that its guest has trouble with
//!   ([`crate::before`]): a server that is away for a moment is not gone because the node was.
//! - The current list is sent again until the Agent has made Instances of it ([`crate::output`]).

use crate::before::Before;
use crate::container::{ContainerError, HandlerContainer};
use crate::contract::{Ended, Files, Guest};
use crate::details::DiscoveryRequest;
use crate::device::{Checked, RefusedAnswer, Said, has_host_paths, look_at_host_paths};
use crate::handlers::Handler;
use crate::last_lists::LastList;
use crate::output::Output;
use crate::overview::Shown;
use akri_krustlet_host::patience::{Hangs, patiently};
use akri_krustlet_host::{BackOff, TokenBucket, one_line, until};
use akri_krustlet_metrics::counted;
use akri_krustlet_runtime::Outcome;
use akri_proto::v0::{Device, DiscoverResponse};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;
use tracing::Span;

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
pub(crate) fn open(
    handler: Arc<Handler>,
    request: DiscoveryRequest,
    called: (Instant, Span),
) -> (Stream, oneshot::Receiver<Verdict>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (sender, stream) = mpsc::channel(4);
    let (verdict, first_verdict) = oneshot::channel();
    counted().streams.change([&handler.name], 1);
    let (number, request) = (NEXT.fetch_add(1, Ordering::Relaxed), Arc::new(request));
    let shown = Arc::new(Shown::new(request.clone()));
    handler.streams().insert(number, shown.clone());
    let session = Session {
        called: Some(called),
        devices: 0,
        number,
        shown,
        serving: handler.serving.subscribe(),
        kept: handler.lists.stream(&handler.name, &request.json),
        output: Output::new(sender, handler.instances.of_stream()),
        handler,
        request,
        verdict: Some(verdict),
        back_off: BackOff::new(BACK_OFF.0, BACK_OFF.1),
        complained: None,
        answers: TokenBucket::new(ANSWER_BYTES, ANSWER_BYTES),
        is_sent: true,
        unlooked: None,
        before: None,
        complaints: TokenBucket::new(COMPLAINTS.0, COMPLAINTS.1),
    };
    tokio::spawn(session.run());
    (stream, first_verdict)
}

struct Session {
    number: u64,
    /// For whoever looks at the node.
    shown: Arc<Shown>,
    /// When it was asked for, until its first list is sent.
    called: Option<(Instant, Span)>,
    /// Devices in its newest list.
    devices: i64,
    handler: Arc<Handler>,
    serving: watch::Receiver<Option<Arc<HandlerContainer>>>,
    request: Arc<DiscoveryRequest>,
    output: Output,
    kept: LastList,
    verdict: Option<oneshot::Sender<Verdict>>,
    back_off: BackOff,
    /// Whose status tells of this stream's trouble.
    complained: Option<Arc<HandlerContainer>>,
    /// Bounds the work that a guest makes for the host by answering: reading, checking, sending.
    answers: TokenBucket,
    /// The guest's latest list was taken.
    is_sent: bool,
    /// An answer whose host paths did not answer, and when it is looked at again.
    unlooked: Option<(Instant, DiscoverResponse, Option<String>)>,
    /// What was in force before the node's start.
    before: Option<Before>,
    /// Bounds what is written of its trouble.
    complaints: TokenBucket,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.withdraw_complaint();
        self.handler.streams().remove(&self.number);
        // What was counted of a handler that is gone is forgotten, and may be another one's by now.
        if !self.handler.closing.is_cancelled() {
            counted().streams.change([&self.handler.name], -1);
            counted().devices.change([&self.handler.name], -self.devices);
        }
    }
}

/// Bytes of answers that a stream reads and checks each second; also its burst.
const ANSWER_BYTES: f64 = (4 << 20) as f64;
/// The least that an answer counts for.
const ANSWER_LEAST: usize = 64 << 10;
/// Lines about a stream's trouble in the container's log and the node's: so many at once, then so many a second.
const COMPLAINTS: (f64, f64) = (16.0, 0.2);

/// Pause before host paths that did not answer are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

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
        self.take_up_last_list().await;
        self.serve().await;
        self.kept.close();
    }

    /// Begins with the list that was in force when the node ended, if the container that serves now may still give it.
    async fn take_up_last_list(&mut self) {
        let Some(devices) = self.kept.take_left() else { return };
        let Some(container) = self.serving.borrow().clone() else { return };
        if let Ok(Checked { list, .. }) = Checked::of(devices, container.host_paths())
            && look(&list, &container).await.is_ok()
        {
            self.before = Some(Before::new(&list.devices));
            self.send(list, container.settings().shared);
            self.say(Verdict::Answered);
        }
    }

    /// Sends a list unless it is the last one, and counts it; whether it is new.
    fn send(&mut self, list: DiscoverResponse, shared: bool) -> bool {
        let devices = i64::try_from(list.devices.len()).unwrap_or(i64::MAX);
        let is_news = self.output.send(list, shared);
        if is_news && let Some(list) = self.output.last() {
            self.shown.list(&list.devices);
        }
        if self.handler.closing.is_cancelled() {
            return is_news;
        }
        if is_news {
            counted().lists.add([&self.handler.name]);
            counted().devices.change([&self.handler.name], devices - std::mem::replace(&mut self.devices, devices));
        }
        if let Some((called, _ended)) = self.called.take() {
            self.request.ended();
            counted().first_list.observe([&self.handler.name], called.elapsed());
        }
        is_news
    }

    async fn serve(&mut self) {
        let closing = self.handler.closing.clone();
        loop {
            let client_gone = self.output.client_gone();
            let container = tokio::select! {
                container = next_container(&mut self.serving) => container,
                end = self.output.drive() => match end {},
                () = client_gone => return,
                () = closing.cancelled() => return self.close().await,
            };
            let started = Instant::now();
            let turn = self.use_guest_of(&container).await;
            if started.elapsed() >= STABLE {
                self.back_off.reset();
            }
            match turn {
                Turn::End => return,
                Turn::Replaced => self.withdraw_complaint(),
                Turn::Failed(reason) => {
                    self.complain(&container, reason);
                    let pause = self.back_off.pause();
                    let stopped = container.stopped().clone();
                    let client_gone = self.output.client_gone();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        // The next container's guest need not wait for what this one's did.
                        () = stopped.cancelled() => self.back_off.reset(),
                        () = replaced(&mut self.serving, &container) => self.back_off.reset(),
                        end = self.output.drive() => match end {},
                        () = client_gone => {}
                        () = closing.cancelled() => {}
                    }
                }
            }
        }
    }

    /// One guest, from its request to its end.
    async fn use_guest_of(&mut self, container: &Arc<HandlerContainer>) -> Turn {
        (self.unlooked, self.is_sent) = (None, true);
        let guest = match container.take_guest() {
            Ok(guest) => guest,
            Err(ContainerError::Stopped) => return Turn::Replaced,
            Err(error) => return Turn::Failed(format!("no guest can be started: {error}")),
        };
        let mut files = container.contract().files();
        let mut current_files = files.borrow_and_update().clone();
        let mut progress = guest.progress();
        // What it wrote before it had the request is no answer.
        let mut seen_writes = progress.as_ref().map_or(0, |progress| progress.borrow().answers);
        if let Err(error) = guest.request(&self.request, &current_files).await {
            return Turn::Failed(error);
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
                () = written(&mut progress, &mut seen_writes, self.answers.when(0.0)) => {
                    if let Some(turn) = self.take_answer(&guest, container).await {
                        return turn;
                    }
                }
                ended = guest.ended() => {
                    // It may have answered with its last breath.
                    if let Some(turn) = self.take_answer(&guest, container).await {
                        return turn;
                    }
                    return self.guest_ended(ended);
                }
                () = until(self.before.as_ref().map(Before::until)) => {
                    if let Some((devices, note)) = self.before.take().and_then(Before::end) {
                        self.use_devices(devices, Some(note), container).await;
                    }
                }
                (list, note) = again(&mut self.unlooked) => self.use_checked(list, note, container).await,
                Ok(()) = files.changed() => {
                    let new: Arc<Files> = files.borrow_and_update().clone();
                    if let Err(error) = guest.update_files(&current_files, &new) {
                        self.complain(container, error);
                    }
                    current_files = new;
                }
                end = self.output.drive() => match end {},
            }
        }
    }

    /// Reads what the guest said, if it did; `Some` if that ends the guest's use.
    async fn take_answer(&mut self, guest: &Guest, container: &Arc<HandlerContainer>) -> Option<Turn> {
        let taken = guest.take_answer();
        // A look has its price, too.
        self.answers.spend(taken.bytes.max(ANSWER_LEAST) as f64);
        match taken.said {
            Ok(None) => {}
            Ok(Some(Said::Found { devices: Some(devices), note })) => self.use_devices(devices, note, container).await,
            // The same as before, which may have been refused.
            Ok(Some(Said::Found { devices: None, note: None })) if !self.is_sent => {}
            Ok(Some(Said::Found { devices: None, note })) => self.note(note, container),
            Ok(Some(Said::InvalidDetails(reason))) => return self.refuse_details(reason, container),
            Ok(Some(Said::Trouble(message))) => self.complain(container, message),
            Err(refused) => self.complain(container, refused),
        }
        None
    }

    /// Checks a list and sends it.
    async fn use_devices(&mut self, devices: Vec<Device>, note: Option<String>, container: &Arc<HandlerContainer>) {
        self.unlooked = None;
        self.is_sent = false;
        // Without trouble the guest has heard of all.
        self.before.take_if(|_| note.is_none());
        let devices = match (&mut self.before, &note) {
            (Some(before), Some(note)) => before.complete(devices, note),
            _ => devices,
        };
        self.before.take_if(|before| before.is_found());
        match Checked::of(devices, container.host_paths()) {
            Ok(Checked { list, warning }) => self.use_checked(list, warning.or(note), container).await,
            Err(refused) => self.refuse(container, &refused),
        }
    }

    /// A list that breaks a rule.
    fn refuse(&mut self, container: &Arc<HandlerContainer>, refused: &RefusedAnswer) {
        counted().refused_lists.add([&self.handler.name, refused.name()]);
        self.complain(container, refused.to_string());
    }

    /// Sends a list that was checked, if its host paths may be named.
    async fn use_checked(&mut self, list: DiscoverResponse, note: Option<String>, container: &Arc<HandlerContainer>) {
        match look(&list, container).await {
            Ok(()) => {}
            Err(Unlooked::Refused(refused)) => return self.refuse(container, &refused),
            // The guest does not say it again.
            Err(Unlooked::Hangs(hangs)) => {
                self.complain(container, format!("the host paths of its devices: {hangs}"));
                self.unlooked = Some((Instant::now() + LOOK_AGAIN, list, note));
                return;
            }
        }
        self.note(note, container);
        self.is_sent = true;
        let is_news = self.send(list, container.settings().shared);
        // The call is answered before the disk is.
        self.say(Verdict::Answered);
        if let Some(list) = self.output.last().filter(|_| is_news) {
            self.kept.keep(list);
        }
    }

    /// What is to be told of the stream: nothing, if all is well.
    fn note(&mut self, note: Option<String>, container: &Arc<HandlerContainer>) {
        match note {
            Some(note) => self.complain(container, note),
            None => self.withdraw_complaint(),
        }
    }

    /// The guest does not understand the request. The call that still waits fails with it. Later the stream stays, and what the
    /// guest says is told by the pod's condition: the Agent would open an ended stream again at once, for ever.
    fn refuse_details(&mut self, mut reason: String, container: &Arc<HandlerContainer>) -> Option<Turn> {
        // It becomes an HTTP/2 header.
        reason.truncate(reason.floor_char_boundary(MOST_COMPLAINT));
        if self.output.is_empty() && self.say(Verdict::InvalidDetails(reason.clone())) {
            tracing::warn!(handler = self.handler.name, reason, "discovery details refused by the guest");
            return Some(Turn::End);
        }
        let now = if !self.output.is_empty() { "now " } else { "" };
        self.complain(container, format!("the guest {now}calls its discovery details invalid: {reason}"));
        None
    }

    fn guest_ended(&mut self, ended: Ended) -> Turn {
        let outcome = match ended {
            Ended::Guest(outcome) => outcome,
            Ended::Failed(reason) => return Turn::Failed(reason),
        };
        match outcome {
            Outcome::Interrupted => Turn::Replaced,
            Outcome::Exited(_) | Outcome::Trapped(_) => Turn::Failed(format!("the guest of a stream {outcome}")),
            Outcome::OutOfMemory { limit } => {
                let reason = format!(
                    "no memory for the guest of a stream: all guests of the container share resources.limits.memory ({} MiB); raise it",
                    limit >> 20
                );
                if self.output.is_empty() && self.say(Verdict::Exhausted(reason.clone())) {
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

    fn complain(&mut self, container: &Arc<HandlerContainer>, complaint: String) {
        // A guest's own words may be in it.
        let mut complaint = one_line(&complaint, MOST_COMPLAINT);
        complaint.truncate(complaint.floor_char_boundary(MOST_COMPLAINT));
        let known = container.complaints().borrow().get(&self.number).is_some_and(|old| *old == complaint);
        if !known {
            if self.complaints.try_take() {
                tracing::warn!(handler = self.handler.name, container = container.name(), "{complaint}");
                container.note(&format!("[akri-krustlet] {complaint}"));
            }
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
        self.output.close().await;
    }
}

/// Why a list with host paths is not sent.
enum Unlooked {
    /// One of them may not be named.
    Refused(RefusedAnswer),
    /// They do not answer.
    Hangs(Hangs),
}

/// Looks at the host paths that a list names, if it names any.
async fn look(list: &DiscoverResponse, container: &HandlerContainer) -> Result<(), Unlooked> {
    if !has_host_paths(list) {
        return Ok(());
    }
    let (list, allowed) = (list.clone(), container.host_paths().clone());
    match patiently(container.name(), move || look_at_host_paths(&list, &allowed)).await {
        Ok(looked) => looked.map_err(Unlooked::Refused),
        Err(hangs) => Err(Unlooked::Hangs(hangs)),
    }
}

/// Resolves when an answer is to be looked at again.
async fn again(
    unlooked: &mut Option<(Instant, DiscoverResponse, Option<String>)>,
) -> (DiscoverResponse, Option<String>) {
    if let Some((at, ..)) = unlooked {
        tokio::time::sleep_until(*at).await;
    }
    match unlooked.take() {
        Some((_, list, note)) => (list, note),
        None => pending().await,
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
