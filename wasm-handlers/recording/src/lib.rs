//! What a discovery handler saw and said while it worked: a text that a person can read and edit, and that a later run is given in
//! place of the world.
//!
//! ```text
//! akri-krustlet recording 1
//! handler meter
//! clock 1764331200.250
//! random 81985529216486895
//! details "{\"ask\":\"239.255.0.1:4000\"}"
//! property token withheld
//!
//! 0.001 udp 0.0.0.0 > 239.255.0.1:4000 "who is there?"
//! 0.301 udp 0.0.0.0 < 192.0.2.7:4000 "me"
//! 1.002 list
//!   "192.0.2.7" METER_DEVICE="192.0.2.7:4000"
//! 11.004 end
//! ```
//!
//! The first lines say what the handler was asked. Each of the others is one event: seconds since the handler was opened, what it is of,
//! and its words. A line that begins with a space goes on with the event before, one that begins with `#` is for readers. Texts are in
//! quotes, with `\n`, `\r`, `\t`, `\"`, `\\` and `\xHH` in them; bytes that are no text are `x"00 ff"`. Texts that follow one another
//! are one text.
//!
//! [`Recording`] is such a text in parts, [`Script`] answers by it, [`Secrets`] are what is left out of it.

mod read;
mod script;
mod secrets;
mod write;

pub use read::ReadError;
pub use script::{Conversation, Datagrams, Exchange, Script, Turn};
pub use secrets::{Secrets, WITHHELD};
pub use write::{header, line};

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What a recording has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// The handler's name.
    pub handler: String,
    /// The machine's clock when the handler was opened, since 1970-01-01.
    pub clock: Duration,
    /// What its random numbers come from.
    pub random: u64,
    /// The details, as the handler got them: JSON.
    pub details: String,
    /// The values of the Configuration; those that are missing are withheld.
    pub properties: Vec<(String, Option<Vec<u8>>)>,
    /// Directories that the handler saw.
    pub volumes: Vec<String>,
    /// What happened, in its order, each so long after the handler was opened.
    pub events: Vec<(Duration, Event)>,
    /// When it ends.
    pub end: Duration,
}

impl Recording {
    /// Reads a text.
    pub fn read(text: &str) -> Result<Self, ReadError> {
        read::read(text)
    }

    /// What the handler is given for the values of the Configuration, by these that are known again.
    pub fn properties_with<'a>(&'a self, known: &[(String, Vec<u8>)]) -> Vec<(&'a str, Vec<u8>)> {
        let value = |name: &str, recorded: &Option<Vec<u8>>| {
            let again = known.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone());
            again.or_else(|| recorded.clone()).unwrap_or_else(|| WITHHELD.into())
        };
        self.properties.iter().map(|(name, recorded)| (name.as_str(), value(name, recorded))).collect()
    }

    /// What the handler has said, without what it repeated.
    pub fn said(&self) -> Vec<&Said> {
        let mut said: Vec<_> = self
            .events
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Said(said) => Some(said),
                _ => None,
            })
            .collect();
        said.dedup();
        said
    }
}

/// Something that the handler saw, did, or said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A datagram. `own` is the address that the handler's socket is bound to.
    Udp { own: IpAddr, sent: bool, peer: SocketAddr, payload: Vec<u8> },
    /// Something about one of its connections, which are numbered.
    Tcp(u32, Tcp),
    /// Something about one of its requests, which are numbered.
    Http(u32, Http),
    /// A name was looked up.
    Name(String, Result<Vec<IpAddr>, String>),
    /// The kernel told of a device. The properties have its action, path and subsystem, too.
    Uevent { action: String, path: String, properties: Vec<(String, String)> },
    /// A datagram to a group that the handler listens to.
    Group { place: SocketAddr, link: String, from: SocketAddr, payload: Vec<u8> },
    /// The handler sent to a group from the group's port.
    SentToGroup { place: SocketAddr, payload: Vec<u8> },
    /// So many events of that kind (`uevents`, `groups`, `changes`) came that could not be kept.
    Lost(String, u32),
    /// A network link as it is from then on.
    Link { name: String, addresses: Vec<(IpAddr, u8)>, multicast: bool, loopback: bool },
    /// A network link is gone.
    LinkGone(String),
    /// A file as it is from then on.
    File { path: String, content: Vec<u8> },
    /// There is a directory.
    Directory(String),
    /// There is a link of the file system, and where it leads.
    Symlink { path: String, to: String },
    /// Nothing is there.
    Gone(String),
    /// Something in a directory changed that the handler follows.
    Changed { directory: String, name: String },
    /// What the handler said.
    Said(Said),
}

/// Of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// It is there.
    Open(SocketAddr),
    /// There is none, for this reason: a word as `refused`.
    Failed(SocketAddr, String),
    /// The handler wrote.
    Wrote(Vec<u8>),
    /// The handler read.
    Read(Vec<u8>),
    /// The other side has said all.
    End,
    /// It broke.
    Broken,
}

/// Of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Http {
    /// It was sent.
    Asked { method: String, url: String },
    /// With that header.
    Header(String, Vec<u8>),
    /// With that body, or a part of it.
    Body(Vec<u8>),
    /// The answer's status.
    Status(u16),
    /// One of its headers.
    AnswerHeader(String, Vec<u8>),
    /// Its body, or a part of it.
    AnswerBody(Vec<u8>),
    /// All of it has come.
    End,
    /// There is no answer, or not all of it, for this reason: a word as `refused`.
    Failed(String),
}

/// What a handler says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// All devices that there are.
    List(Vec<Device>),
    /// The details are wrong.
    InvalidDetails(String),
    /// It could not find out.
    Unavailable(String),
    /// It has a fault.
    Internal(String),
}

/// A device of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub id: String,
    /// What brokers are told, sorted by name.
    pub properties: Vec<(String, String)>,
    /// Path in the container, path on the host, and whether it is read only.
    pub mounts: Vec<(String, String, bool)>,
    /// Path in the container, path on the host, and permissions.
    pub nodes: Vec<(String, String, String)>,
}

/// Random numbers that are the same each time; not for secrets.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Fills bytes, one of them from each number.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = self.next().to_le_bytes()[0]);
    }
}

#[cfg(test)]
mod tests;
