//! CPU time: guest threads, the epoch clock, and shares.
//!
//! # Flow
//! Guests run on a tokio runtime of their own, whose threads have a lower priority than the host's. Wasmtime ends a
//! guest's turn when the epoch changes, at most every 10 ms; the epoch clock stands still while no guest runs.
//! `Metered` wraps a guest's future and decides before each turn whether it may run:
//! - a container with `limits.cpu` has a [`CpuShare`], a balance that fills at that rate; turns are paid from it in
//!   measured thread CPU time, and a guest waits while the balance is below zero;
//! - a guest that used up most of its last turn, or more than a quarter of the time lately in however short turns, is a
//!   *spinner*, and spinners queue for as many places as there are cores.
//!   There is one thread more than that, so a guest that was woken to answer never waits behind them.

use crate::engine::EPOCH;
use rustix::time::{ClockId, clock_gettime};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::PollSemaphore;
use wasmtime::Engine;

/// How far a container's unused CPU time adds up: what 100 ms at its rate give, as with the kernel's CFS period.
const BURST: Duration = Duration::from_millis(100);
/// After this time a guest that waits looks whether its container's rate has changed.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Turns of this length or more make a guest a spinner.
const SPINNING: Duration = Duration::from_millis(5);
/// So do shorter ones that add up: this much of what it used in about the last [`MEMORY`].
const BUSY: f64 = 0.025;
/// Seconds over which what was used is forgotten.
const MEMORY: f64 = 0.1;

/// A container's CPU time: a balance that fills at a rate and is paid in thread CPU time.
#[derive(Debug)]
pub struct CpuShare {
    /// Thousandths of a core; 0 for one without a limit.
    millis: AtomicU32,
    balance: Mutex<Balance>,
}

#[derive(Debug)]
struct Balance {
    /// Seconds of CPU time; negative when owed.
    seconds: f64,
    at: Instant,
}

impl CpuShare {
    /// A share of `millis` thousandths of a core, 0 of which count as 1; `None`: as much as there is.
    pub fn new(millis: Option<u32>) -> Self {
        let millis = AtomicU32::new(Self::stored(millis));
        Self { millis, balance: Mutex::new(Balance { seconds: 0.0, at: Instant::now() }) }
    }

    fn stored(millis: Option<u32>) -> u32 {
        millis.map_or(0, |millis| millis.max(1))
    }

    /// Its thousandths of a core.
    pub fn millis(&self) -> Option<u32> {
        Some(self.millis.load(Ordering::Relaxed)).filter(|millis| *millis > 0)
    }

    /// Another share from now on. What is owed stays owed, and is paid at the new rate.
    pub fn set(&self, millis: Option<u32>) {
        if self.millis() == millis.map(|millis| millis.max(1)) {
            return;
        }
        // What was earned until now, at the old one.
        let _ = self.pay(Duration::ZERO);
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        (balance.seconds, balance.at) = (balance.seconds.min(0.0), Instant::now());
        self.millis.store(Self::stored(millis), Ordering::Relaxed);
    }

    /// Pays for `used` and returns how long to wait until the balance is positive again.
    pub(crate) fn pay(&self, used: Duration) -> Option<Duration> {
        let rate = f64::from(self.millis()?) / 1000.0;
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let filled = now.duration_since(balance.at).as_secs_f64() * rate;
        balance.seconds = (balance.seconds + filled).min(BURST.as_secs_f64() * rate) - used.as_secs_f64();
        balance.at = now;
        (balance.seconds < 0.0).then(|| Duration::from_secs_f64(-balance.seconds / rate))
    }
}

/// The threads that guests run on.
#[derive(Debug)]
pub struct GuestThreads {
    runtime: Option<tokio::runtime::Runtime>,
    spinners: Arc<Semaphore>,
    clock: Arc<EpochClock>,
}

impl GuestThreads {
    /// Starts the threads and the epoch clock of `engine`.
    pub fn start(engine: &Engine) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores + 1)
            .max_blocking_threads(32)
            .thread_name("guest")
            .thread_stack_size(1 << 20)
            .on_thread_start(|| {
                // Only lowers the priority of this thread; a host that forbids it still has the spinners' queue.
                let _ = rustix::process::nice(10);
            })
            .enable_all()
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            spinners: Arc::new(Semaphore::new(cores)),
            clock: EpochClock::start(engine.clone())?,
        })
    }

    pub(crate) fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.runtime {
            Some(runtime) => runtime.spawn(future),
            None => unreachable!("the runtime is taken only by drop"),
        }
    }

    /// Wraps a guest's future so that it pays for its turns.
    pub(crate) fn meter<F: Future>(&self, limits: Arc<crate::limits::SharedLimits>, guest: F) -> Metered<F> {
        // Its container may be in debt.
        let pause = limits.pay(Duration::ZERO).map(sleep);
        Metered {
            guest: Box::pin(guest),
            limits,
            clock: self.clock.clone(),
            spinners: self.spinners.clone(),
            recent: Recent { seconds: 0.0, at: Instant::now() },
            queue: None,
            pause,
        }
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        self.clock.stop();
        if let Some(runtime) = self.runtime.take() {
            // A guest may be in a host call that blocks for ever, such as reading a FIFO that a user mounted.
            runtime.shutdown_background();
        }
    }
}

/// A guest's future, polled only when its container may have CPU time.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    limits: Arc<crate::limits::SharedLimits>,
    clock: Arc<EpochClock>,
    spinners: Arc<Semaphore>,
    /// What it used lately.
    recent: Recent,
    /// Set while the guest is a spinner.
    queue: Option<Box<PollSemaphore>>,
    /// Set while its container is in debt.
    pause: Option<Pin<Box<Sleep>>>,
}

/// A sum of turns that fades.
#[derive(Debug)]
struct Recent {
    seconds: f64,
    at: Instant,
}

impl Recent {
    /// The sum with one more turn, which has just ended.
    fn add(&mut self, turn: Duration) -> f64 {
        let now = Instant::now();
        let faded = self.seconds * (-now.duration_since(self.at).as_secs_f64() / MEMORY).exp();
        self.seconds = faded + turn.as_secs_f64();
        self.at = now;
        self.seconds
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        while let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            // Another guest of the container may have spent meanwhile what this one was waiting for, or the rate be another one.
            this.pause = this.limits.pay(Duration::ZERO).map(sleep);
        }
        let place = match &mut this.queue {
            Some(queue) => ready!(queue.poll_acquire(context)),
            None => None,
        };
        let started = Instant::now();
        let cpu_before = thread_cpu_time();
        this.clock.enter();
        let polled = this.guest.as_mut().poll(context);
        this.clock.leave();
        drop(place);
        let pause = this.limits.pay(thread_cpu_time().saturating_sub(cpu_before));
        if polled.is_ready() {
            // A component's call may be short; whoever is called next in its container waits for it.
            return polled;
        }
        this.pause = pause.map(sleep);
        if this.pause.is_some() {
            // Registers the timer; the guest's own wake-up may have been before it.
            context.waker().wake_by_ref();
        }
        let turn = started.elapsed();
        if turn < SPINNING && this.recent.add(turn) < BUSY {
            this.queue = None;
        } else if this.queue.is_none() {
            this.queue = Some(Box::new(PollSemaphore::new(this.spinners.clone())));
        }
        Poll::Pending
    }
}

/// For as long as a guest has to wait, or until its container's rate is looked at again.
fn sleep(duration: Duration) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep(duration.min(LONGEST_PAUSE)))
}

pub(crate) fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Advances the engine's epoch every 10 ms while guests run, and sleeps without a timer while none does.
#[derive(Debug)]
struct EpochClock {
    running: AtomicUsize,
    parked: AtomicBool,
    stopped: AtomicBool,
    thread: Mutex<Option<std::thread::Thread>>,
}

/// Epochs without a running guest after which the clock stops: waking it costs more than some idle ticks.
const IDLE_EPOCHS: u32 = 10;

impl EpochClock {
    fn start(engine: Engine) -> std::io::Result<Arc<Self>> {
        let clock = Arc::new(Self {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let of_thread = clock.clone();
        let handle = std::thread::Builder::new()
            .name("epoch".to_owned())
            .stack_size(64 << 10)
            .spawn(move || of_thread.run(&engine))?;
        *clock.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.thread().clone());
        Ok(clock)
    }

    fn run(&self, engine: &Engine) {
        let mut idle = 0;
        while !self.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(EPOCH);
            engine.increment_epoch();
            idle = if self.running.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
            if idle < IDLE_EPOCHS {
                continue;
            }
            self.parked.store(true, Ordering::SeqCst);
            while self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::Relaxed) {
                std::thread::park();
                // A turn may have begun and ended since: `enter` cleared the mark, so stay up for a while.
                if !self.parked.load(Ordering::SeqCst) {
                    break;
                }
            }
            self.parked.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }

    fn enter(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            self.unpark();
        }
    }

    fn leave(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_share_lets_a_tenth_of_a_core_through() {
        let share = CpuShare::new(Some(100));
        let mut used = Duration::ZERO;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            let turn = Duration::from_millis(10);
            used += turn;
            tokio::time::advance(turn).await;
            if let Some(pause) = share.pay(turn) {
                tokio::time::advance(pause).await;
            }
        }
        let cores = used.as_secs_f64() / start.elapsed().as_secs_f64();
        assert!((0.095..=0.105).contains(&cores), "{cores}");
    }

    #[tokio::test(start_paused = true)]
    async fn short_turns_that_add_up_are_seen_and_forgotten() {
        let mut recent = Recent { seconds: 0.0, at: Instant::now() };
        let turn = Duration::from_millis(4);
        let mut sum = 0.0;
        for _ in 0..20 {
            tokio::time::advance(turn).await;
            sum = recent.add(turn);
        }
        assert!(sum > BUSY, "{sum}");
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut most: f64 = 0.0;
        for _ in 0..20 {
            tokio::time::advance(Duration::from_millis(40)).await;
            most = most.max(recent.add(turn));
        }
        assert!(most < BUSY, "a guest that works a tenth of the time is none: {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_can_be_another_one() {
        let share = CpuShare::new(Some(1));
        assert!(share.pay(Duration::from_secs(1)).is_some_and(|pause| pause > Duration::from_secs(900)));
        share.set(Some(500));
        // What is owed is paid more quickly.
        let pause = share.pay(Duration::ZERO);
        assert!(pause.is_some_and(|pause| (1900..=2000).contains(&pause.as_millis())), "{pause:?}");
        share.set(Some(500));
        assert_eq!(share.pay(Duration::ZERO), pause, "the same again changes nothing");
        share.set(None);
        assert_eq!((share.pay(Duration::from_secs(1)), share.millis()), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn unused_time_does_not_add_up_beyond_the_burst() {
        let share = CpuShare::new(Some(500));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(share.pay(Duration::from_millis(50)), None);
        assert!(share.pay(Duration::from_millis(50)).is_some());
    }
}
