//! FindServers without security, as one conversation (part 6, 7.1; part 4, 5.4.2): hello, secure channel, request, close.

use crate::binary::{Malformed, Reader, Writer};
use akri_handler::tcp::{Next, Talk};

/// Largest chunk that is taken, in bytes: what the hello says, and no peer may send more.
const CHUNK: u32 = 65_536;
/// Largest message, all its chunks together, and most chunks of one.
const MESSAGE: usize = 1 << 20;
const CHUNKS: usize = 256;

/// Encodings of messages.
const OPEN_REQUEST: u16 = 446;
const OPEN_RESPONSE: u32 = 449;
const FIND_REQUEST: u16 = 422;
const FIND_RESPONSE: u32 = 425;
const CLOSE_REQUEST: u16 = 452;
const FAULT: u32 = 397;

/// The policy of channels without security.
const POLICY: &str = "http://opcfoundation.org/UA/SecurityPolicy#None";
/// How long the channel may live, in milliseconds; it is closed at once.
const LIFETIME: u32 = 60_000;

/// What an application says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum ApplicationType {
    Server,
    Client,
    ClientAndServer,
    DiscoveryServer,
}

/// An application that a discovery endpoint names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    pub name: String,
    pub kind: ApplicationType,
    pub urls: Vec<String>,
}

enum State {
    Hello,
    Opening,
    Asked,
}

/// A chunk: its kind, whether it is the last of its message (`F`, `C` or `A`), and its content.
type Chunk = ([u8; 3], u8, Vec<u8>);

/// Asks one discovery endpoint for its applications.
pub struct FindServers {
    url: String,
    state: State,
    channel: (u32, u32),
    /// What has come and is no chunk yet.
    pending: Vec<u8>,
    /// The chunks of a message that has more of them, and how many those are.
    message: (Vec<u8>, usize),
}

/// What a discovery endpoint has said, or why it is not understood.
pub type Found = Result<Vec<Application>, String>;

impl FindServers {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            state: State::Hello,
            channel: (0, 0),
            pending: Vec::new(),
            message: (Vec::new(), 0),
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

    fn open(&self) -> Vec<u8> {
        let content = Writer::default()
            .u32(0)
            .string(POLICY)
            .null()
            .null()
            // The first in its sequence, and the first request.
            .u32(1)
            .u32(1)
            .encoding(OPEN_REQUEST)
            .request_header(1)
            // Protocol version 0; issue a token; no security; no nonce.
            .u32(0)
            .u32(0)
            .u32(1)
            .null()
            .u32(LIFETIME);
        Self::chunk(*b"OPN", content.0)
    }

    fn of_channel(&self, number: u32) -> Writer {
        Writer::default().u32(self.channel.0).u32(self.channel.1).u32(number).u32(number)
    }

    fn find(&self) -> Vec<u8> {
        let content = self.of_channel(2).encoding(FIND_REQUEST).request_header(2);
        Self::chunk(*b"MSG", content.string(&self.url).u32(0).u32(0).0)
    }

    fn close(&self) -> Vec<u8> {
        Self::chunk(*b"CLO", self.of_channel(3).encoding(CLOSE_REQUEST).request_header(3).0)
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

    fn go_on(&mut self) -> Result<Next<Found>, Malformed> {
        let Some((kind, last, content)) = self.next_chunk()? else { return Ok(Next::More(Vec::new())) };
        let mut reader = Reader(&content);
        match (&self.state, &kind) {
            (_, b"ERR") => {
                let (code, reason) = (reader.u32()?, reader.string()?);
                Ok(Next::Done(Err(format!("the server ended the conversation: {}", failed(code, &reason)))))
            }
            (State::Hello, b"ACK") => {
                self.state = State::Opening;
                Ok(Next::More(self.open()))
            }
            (State::Opening, b"OPN") => {
                // The channel's number, the policy, a certificate and its thumbprint, sequence and request.
                reader.u32()?;
                let policy = reader.string()?;
                reader.string()?;
                reader.string()?;
                reader.bytes(8)?;
                if policy != POLICY {
                    return Err(Malformed("its channel has another policy than asked for"));
                }
                let encoding = reader.node_id()?;
                let status = reader.response_header()?;
                if encoding != Some(OPEN_RESPONSE) || status != 0 {
                    return Ok(Next::Done(Err(format!(
                        "it opens no channel without security: {}",
                        failed(status, "")
                    ))));
                }
                reader.u32()?;
                self.channel = (reader.u32()?, reader.u32()?);
                self.state = State::Asked;
                Ok(Next::More(self.find()))
            }
            (State::Asked, b"MSG") => {
                reader.bytes(16)?;
                match last {
                    b'A' => {
                        let (code, reason) = (reader.u32()?, reader.string()?);
                        let found = Err(format!("the server gave its answer up: {}", failed(code, &reason)));
                        Ok(Next::Last(self.close(), found))
                    }
                    b'C' | b'F' => {
                        let (message, chunks) = &mut self.message;
                        message.extend(reader.0);
                        *chunks += 1;
                        if message.len() > MESSAGE || *chunks > CHUNKS {
                            return Err(Malformed("its answer is too long"));
                        }
                        if last == b'C' {
                            // Perhaps the next one has come, too.
                            return self.go_on();
                        }
                        let found = servers(&std::mem::take(message))?;
                        Ok(Next::Last(self.close(), found))
                    }
                    _ => Err(Malformed("a chunk is neither the last of its message nor has one after it")),
                }
            }
            _ => Err(Malformed("a message is not the one that is due")),
        }
    }
}

impl Talk for FindServers {
    type Said = Found;

    fn begin(&mut self) -> Vec<u8> {
        let content = Writer::default().u32(0).u32(CHUNK).u32(CHUNK).u32(MESSAGE as u32).u32(CHUNKS as u32);
        Self::chunk(*b"HEL", content.string(&self.url).0)
    }

    fn received(&mut self, bytes: &[u8]) -> Next<Found> {
        self.pending.extend(bytes);
        match self.go_on() {
            Ok(next) => next,
            Err(Malformed(why)) => Next::Done(Err(format!("the answer is not OPC UA as it should be: {why}"))),
        }
    }
}

fn servers(message: &[u8]) -> Result<Found, Malformed> {
    let mut reader = Reader(message);
    let encoding = reader.node_id()?;
    let status = reader.response_header()?;
    if encoding == Some(FAULT) || status & 0x8000_0000 != 0 {
        return Ok(Err(format!("FindServers failed: {}", failed(status, ""))));
    }
    if encoding != Some(FIND_RESPONSE) {
        return Err(Malformed("it answers something else than what was asked"));
    }
    reader.array(application).map(Ok)
}

fn application(reader: &mut Reader<'_>) -> Result<Application, Malformed> {
    // Its URI and its product's.
    reader.string()?;
    reader.string()?;
    let name = reader.localized_text()?;
    let kind = match reader.u32()? {
        0 => ApplicationType::Server,
        1 => ApplicationType::Client,
        2 => ApplicationType::ClientAndServer,
        3 => ApplicationType::DiscoveryServer,
        _ => return Err(Malformed("an application is of an unknown type")),
    };
    reader.string()?;
    reader.string()?;
    Ok(Application { name, kind, urls: reader.array(Reader::string)? })
}

/// A status code, by its name where that tells users something.
fn failed(code: u32, reason: &str) -> String {
    let name = match code {
        0x8007_0000 => "BadDecodingError",
        0x8008_0000 => "BadEncodingLimitsExceeded",
        0x800b_0000 => "BadServiceUnsupported",
        0x800d_0000 => "BadServerNotConnected",
        0x8010_0000 => "BadTooManySessions",
        0x8054_0000 => "BadSecurityModeRejected",
        0x8055_0000 => "BadSecurityPolicyRejected",
        0x807d_0000 => "BadTcpServerTooBusy",
        0x807e_0000 => "BadTcpMessageTypeInvalid",
        0x8083_0000 => "BadTcpEndpointUrlInvalid",
        _ => "",
    };
    let code = format!("status {code:#010x}");
    let parts = [name, reason, &code];
    let mut said: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let last = said.pop().unwrap_or_default();
    if said.is_empty() { last.to_owned() } else { format!("{} ({last})", said.join(", ")) }
}
