//! What a guest sees of the world: the machine as it is granted, with a recorder beside if its author wants one ([`Recorder`]), or a
//! recording in its place ([`Replay`]).

mod recorder;
mod recording_streams;
mod replay;
mod replayed_sockets;

pub use akri_recording as recording;
pub use recorder::{RecordTo, Recorder};
pub(crate) use recording_streams::{RecordedInput, RecordedOutput, recorded};
pub(crate) use replay::Link;
pub use replay::Replay;
pub(crate) use replayed_sockets::add_to_linker;

use akri_recording::Random;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

/// What a guest sees.
#[derive(Clone, Debug, Default)]
pub enum World {
    /// The machine.
    #[default]
    Machine,
    /// The machine, and what it sees of it is written down.
    Recorded(Arc<Recorder>),
    /// What was written down.
    Replayed(Arc<Replay>),
}

impl World {
    /// Who writes down what the guest sees.
    pub fn recorder(&self) -> Option<&Arc<Recorder>> {
        match self {
            Self::Recorded(recorder) => Some(recorder),
            _ => None,
        }
    }

    /// What stands in the machine's place.
    pub fn replay(&self) -> Option<&Arc<Replay>> {
        match self {
            Self::Replayed(replay) => Some(replay),
            _ => None,
        }
    }

    /// Random numbers that can be had again, and in a replay the recording's time.
    pub(crate) fn give(&self, wasi: &mut WasiCtxBuilder) {
        let seed = match self {
            Self::Machine => return,
            Self::Recorded(recorder) => recorder.seed(),
            Self::Replayed(replay) => replay.seed(),
        };
        wasi.secure_random(Seeded(Random(seed)))
            .insecure_random(Seeded(Random(!seed)))
            .insecure_random_seed(seed.into());
        if let Self::Replayed(replay) = self {
            let started = Instant::now();
            wasi.monotonic_clock(Elapsed { since: started, at: Duration::ZERO });
            wasi.wall_clock(Elapsed { since: started, at: replay.clock() });
        }
    }
}

struct Seeded(Random);

impl rand_core::TryRng for Seeded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let [a, b, c, d, ..] = self.0.next().to_le_bytes();
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// The time of the runtime, which may stand still.
struct Elapsed {
    since: Instant,
    at: Duration,
}

impl HostMonotonicClock for Elapsed {
    fn resolution(&self) -> u64 {
        1_000_000
    }

    fn now(&self) -> u64 {
        u64::try_from((self.at + self.since.elapsed()).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl HostWallClock for Elapsed {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        self.at + self.since.elapsed()
    }
}
