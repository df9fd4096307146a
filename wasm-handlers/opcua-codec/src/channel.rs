//! One channel: hello, secure channel, requests, close. Whoever has the socket passes on what goes out and what comes.

use crate::binary::{Malformed, Reader, Writer};
use crate::status::status;
use std::time::Duration;

/// Largest chunk that is taken, in bytes: what the hello says, and no peer may send more.
const CHUNK: u32 = 65_536;
/// Largest message, all its chunks together, and most chunks of one.
const MESSAGE: usize = 1 << 20;
const CHUNKS: usize = 256;

/// Encodings of messages.
const OPEN_REQUEST: u16 = 446;
const OPEN_RESPONSE: u32 = 449;
const CLOSE_REQUEST: u16 = 452;

/// The policy of channels without security.
pub const SECURITY_POLICY_NONE: &str = "http://opcfoundation.org/UA/SecurityPolicy#None";

/// A chunk: its kind, whether it is the last of its message (`F`, `C` or `A`), and its content.
type Chunk = ([u8; 3], u8, Vec<u8>);

#[derive(Debug, PartialEq)]
enum State {
    Hello,
    Opening,
    Open,
}

/// What has come.
#[derive(Debug)]
pub enum Event {
    /// Nothing whole yet.
    Nothing,
    /// The peer wants to have this.
    Send(Vec<u8>),
    /// Requests can be made now.
    Opened,
    /// A response, from its encoding on.
    Response(Vec<u8>),
}

/// Why the conversation is over.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// What came is not what the specification has.
    Malformed(&'static str),
    /// The peer says why.
    Refused(String),
}

impl From<Malformed> for Broken {
    fn from(Malformed(why): Malformed) -> Self {
        Self::Malformed(why)
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(why) => write!(formatter, "the answer is not OPC UA as it should be: {why}"),
            Self::Refused(why) => formatter.write_str(why),
        }
    }
}

/// The client's side of a channel.
pub struct Channel {
    url: String,
    /// How long it lives, in milliseconds: what is asked for, and then what the server has made of it.
    lifetime: u32,
    state: State,
    /// Its number and its token's, which the server gives.
    id: (u32, u32),
    /// The last number in its sequence, and of a request.
    number: u32,
    /// What has come and is no chunk yet.
    pending: Vec<u8>,
    /// The chunks of a message that has more of them, and how many those are.
    message: (Vec<u8>, usize),
}

impl Channel {
    /// To an endpoint, for so many milliseconds.
    pub fn new(url: &str, lifetime: u32) -> Self {
        Self {
            url: url.to_owned(),
            lifetime,
            state: State::Hello,
            id: (0, 0),
            number: 0,
            pending: Vec::new(),
            message: (Vec::new(), 0),
        }
    }

    /// What is to be sent first.
    pub fn hello(&self) -> Vec<u8> {
        let content = Writer::default().u32(0).u32(CHUNK).u32(CHUNK).u32(MESSAGE as u32).u32(CHUNKS as u32);
        chunk(*b"HEL", content.string(&self.url).0)
    }

    /// Takes what has come; [`Self::next_event`] says what it means.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// A request to be sent: `body` writes what comes after its encoding, and has the request's handle.
    pub fn request(&mut self, encoding: u16, body: impl FnOnce(Writer, u32) -> Writer) -> Vec<u8> {
        let (writer, number) = self.next_in_sequence();
        chunk(*b"MSG", body(writer.encoding(encoding), number).0)
    }

    /// How long it lives once it is open.
    pub fn lifetime(&self) -> Duration {
        Duration::from_millis(self.lifetime.into())
    }

    /// What is to be sent last.
    pub fn close(&mut self) -> Vec<u8> {
        let (writer, number) = self.next_in_sequence();
        chunk(*b"CLO", writer.encoding(CLOSE_REQUEST).request_header(number).0)
    }

    fn next_in_sequence(&mut self) -> (Writer, u32) {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        (Writer::default().u32(self.id.0).u32(self.id.1).u32(number).u32(number), number)
    }

    fn open(&mut self) -> Vec<u8> {
        self.number = 1;
        // A channel that is none yet, and no certificates; the first in its sequence, and the first request.
        let content = Writer::default().u32(0).string(SECURITY_POLICY_NONE).null().null().u32(1).u32(1);
        // Protocol version 0; issue a token; no security; no nonce.
        let content = content.encoding(OPEN_REQUEST).request_header(1).u32(0).u32(0).u32(1).null();
        chunk(*b"OPN", content.u32(self.lifetime).0)
    }

    /// The next thing that has come.
    pub fn next_event(&mut self) -> Result<Event, Broken> {
        loop {
            let Some((kind, last, content)) = self.next_chunk()? else { return Ok(Event::Nothing) };
            let mut reader = Reader(&content);
            match (&self.state, &kind) {
                (_, b"ERR") => {
                    let (code, reason) = (reader.u32()?, reader.string()?);
                    let why = status(code, &reason);
                    return Err(Broken::Refused(format!("the server ended the conversation: {why}")));
                }
                (State::Hello, b"ACK") => {
                    self.state = State::Opening;
                    return Ok(Event::Send(self.open()));
                }
                (State::Opening, b"OPN") => {
                    self.opened(reader)?;
                    self.state = State::Open;
                    return Ok(Event::Opened);
                }
                (State::Open, b"MSG") => {
                    // The channel, its token, the number in the sequence.
                    reader.bytes(12)?;
                    if reader.u32()? != self.number {
                        return Err(Broken::Malformed("it answers another request than the last one"));
                    }
                    if let Some(message) = self.part(last, reader)? {
                        return Ok(Event::Response(message));
                    }
                }
                _ => return Err(Broken::Malformed("a message is not the one that is due")),
            }
        }
    }

    /// The next whole chunk of what has come.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, Malformed> {
        let Some(head) = self.pending.first_chunk::<8>() else { return Ok(None) };
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if !(8..=CHUNK).contains(&size) {
            return Err(Malformed("a chunk has a size that was not agreed on"));
        }
        let (kind, last) = ([head[0], head[1], head[2]], head[3]);
        let size = size as usize;
        if self.pending.len() < size {
            return Ok(None);
        }
        let content = self.pending[8..size].to_vec();
        self.pending.drain(..size);
        Ok(Some((kind, last, content)))
    }

    fn opened(&mut self, mut reader: Reader<'_>) -> Result<(), Broken> {
        // The channel's number, the policy, a certificate and its thumbprint, sequence and request.
        reader.u32()?;
        let policy = reader.string()?;
        reader.string()?;
        reader.string()?;
        reader.bytes(8)?;
        if policy != SECURITY_POLICY_NONE {
            return Err(Broken::Malformed("its channel has another policy than asked for"));
        }
        let encoding = reader.node_id()?;
        let code = reader.response_header()?;
        if encoding != Some(OPEN_RESPONSE) || code != 0 {
            let why = status(code, "");
            return Err(Broken::Refused(format!("it opens no channel without security: {why}")));
        }
        // The server's version of the protocol, and the time.
        reader.u32()?;
        self.id = (reader.u32()?, reader.u32()?);
        reader.bytes(8)?;
        self.lifetime = reader.u32()?;
        Ok(())
    }

    /// A chunk of a message; all of it with the last one.
    fn part(&mut self, last: u8, mut reader: Reader<'_>) -> Result<Option<Vec<u8>>, Broken> {
        match last {
            b'A' => {
                let (code, reason) = (reader.u32()?, reader.string()?);
                Err(Broken::Refused(format!("the server gave its answer up: {}", status(code, &reason))))
            }
            b'C' | b'F' => {
                let (message, chunks) = &mut self.message;
                message.extend(reader.0);
                *chunks += 1;
                if message.len() > MESSAGE || *chunks > CHUNKS {
                    return Err(Broken::Malformed("its answer is too long"));
                }
                Ok((last == b'F').then(|| std::mem::take(&mut self.message).0))
            }
            _ => Err(Broken::Malformed("a chunk is neither the last of its message nor has one after it")),
        }
    }
}

/// A chunk, and there is only one, of this kind.
fn chunk(kind: [u8; 3], content: Vec<u8>) -> Vec<u8> {
    let size = u32::try_from(content.len() + 8).unwrap_or(u32::MAX);
    let mut chunk = kind.to_vec();
    chunk.push(b'F');
    chunk.extend(size.to_le_bytes());
    chunk.extend(content);
    chunk
}
