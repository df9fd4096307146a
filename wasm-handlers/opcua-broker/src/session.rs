//! A session with a server: without security and a user, for reading (part 4 of the specification, 5.6 and 5.10).

use crate::node::NodeId;
use crate::value;
use opcua_codec::{Broken, Channel, Description, Event, Malformed, Reader, SECURITY_POLICY_NONE, Writer, place};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// How long the server may take to be reached, to open a session, and to answer, to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a channel may live; the server may want less. Another one is opened in good time.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How long a session outlives its last request at least: the server has it for no longer when the broker is gone.
const SESSION: Duration = Duration::from_secs(60);

/// Encodings of requests and their responses.
const CREATE: (u16, u32) = (461, 464);
const ACTIVATE: (u16, u32) = (467, 470);
const READ: (u16, u32) = (631, 634);
const CLOSE_REQUEST: u16 = 473;
/// Longest token of a session that is taken, in bytes.
const MOST_TOKEN: usize = 4096;
/// What stands where a session's token will be.
const NO_TOKEN: [u8; 2] = [0; 2];
/// Encoding of the token of a user without a name.
const ANONYMOUS_TOKEN: u16 = 321;
/// Kind of such a user.
const ANONYMOUS: u32 = 0;
/// The attribute that is a node's value.
const VALUE: u32 = 13;
/// Times are not wanted.
const NEITHER: u32 = 3;

/// A session that is in use. It is closed when it is dropped.
pub struct Session {
    stream: TcpStream,
    channel: Channel,
    /// By what the server knows it, as it writes that.
    authentication_token: Vec<u8>,
    opened: Instant,
    used: Instant,
    /// How long the server keeps it without a request.
    timeout: Duration,
    /// When it is given up, whatever has come until then.
    deadline: Instant,
}

impl Session {
    /// For a request in each interval.
    pub fn open(url: &str, interval: Duration) -> Result<Self, String> {
        let lifetime = u32::try_from(LIFETIME.as_millis()).unwrap_or(u32::MAX);
        let (stream, now) = (connect(url)?, Instant::now());
        let mut session = Self {
            stream,
            channel: Channel::new(url, lifetime),
            authentication_token: NO_TOKEN.to_vec(),
            opened: now,
            used: now,
            timeout: SESSION.max(interval * 3),
            deadline: now + TIMEOUT,
        };
        let hello = session.channel.hello();
        session.send(&hello)?;
        while !matches!(session.next()?, Event::Opened) {}
        let milliseconds = session.timeout.as_secs_f64() * 1000.0;
        let created = session.ask("CreateSession", CREATE, |writer| {
            // This application: without a URI, of type Client.
            let writer =
                writer.string("").string("").bytes(&[2]).string("akri opcua-broker").u32(1).null().null().u32(0);
            // The server that is meant, and the session; no nonce, no certificate.
            let writer = writer.null().string(url).string("akri").null().null();
            writer.bytes(&milliseconds.to_le_bytes()).u32(0)
        })?;
        let created = Created::read(&created).map_err(|why| format!("CreateSession: {}", Broken::from(why)))?;
        session.authentication_token = created.authentication_token;
        session.timeout = Duration::try_from_secs_f64(created.timeout / 1000.0).unwrap_or(session.timeout);
        let user_policy = created.anonymous.ok_or("it has no endpoint without security for users without a name")?;
        session.ask("ActivateSession", ACTIVATE, |writer| {
            // No signature, no certificates, no languages.
            let writer = writer.null().null().u32(0).u32(0);
            let user = Writer::default().string(&user_policy).0;
            let writer = writer.encoding(ANONYMOUS_TOKEN).bytes(&[1]).u32(user.len() as u32).bytes(&user);
            writer.null().null()
        })?;
        Ok(session)
    }

    /// A node's value, or its status, as text.
    pub fn read(&mut self, node: &NodeId) -> Result<String, String> {
        self.deadline = Instant::now() + TIMEOUT;
        let answer = self.ask("Read", READ, |writer| {
            let writer = node.write(writer.bytes(&0f64.to_le_bytes()).u32(NEITHER).u32(1)).u32(VALUE);
            // All of it, in the encoding that there is.
            writer.null().bytes(&[0, 0]).null()
        })?;
        let value = || {
            let mut reader = Reader(&answer);
            match reader.u32()? {
                1 => value::data_value(&mut reader),
                _ => Err(Malformed("one node was read, and not one value is there")),
            }
        };
        value().map_err(|why| format!("Read: {}", Broken::from(why)))
    }

    /// Whether it comes to its end soon, or has done so.
    pub fn is_due(&self) -> bool {
        self.opened.elapsed() > self.channel.lifetime() / 4 * 3 || self.used.elapsed() > self.timeout / 4 * 3
    }

    /// Asks, and waits for the response; what comes after its header.
    fn ask(
        &mut self,
        name: &str,
        (request, response): (u16, u32),
        body: impl FnOnce(Writer) -> Writer,
    ) -> Result<Vec<u8>, String> {
        self.request(request, body)?;
        let answer = loop {
            if let Event::Response(answer) = self.next()? {
                break answer;
            }
        };
        opcua_codec::response(name, response, &answer).map(|rest| rest.0.to_vec()).map_err(|why| why.to_string())
    }

    fn request(&mut self, encoding: u16, body: impl FnOnce(Writer) -> Writer) -> Result<(), String> {
        self.used = Instant::now();
        let token = &self.authentication_token;
        let request = self.channel.request(encoding, |writer, handle| body(writer.request_header_of(token, handle)));
        self.send(&request)
    }

    /// The next event; what the channel wants to send is sent.
    fn next(&mut self) -> Result<Event, String> {
        loop {
            match self.channel.next_event().map_err(|why| why.to_string())? {
                Event::Nothing => {
                    let mut buffer = [0; 8192];
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(format!("no answer within {} s", TIMEOUT.as_secs()));
                    }
                    let timeout = self.stream.set_read_timeout(Some(left));
                    match timeout.and_then(|()| self.stream.read(&mut buffer)) {
                        Ok(0) => return Err("the server ended the connection".to_owned()),
                        Ok(count) => self.channel.receive(&buffer[..count]),
                        Err(error) => return Err(format!("no answer: {error}")),
                    }
                }
                Event::Send(bytes) => self.send(&bytes)?,
                event => return Ok(event),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|error| format!("cannot send: {error}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The server need not wait for the session's end, and nobody waits for its answer.
        if self.authentication_token != NO_TOKEN {
            // With its subscriptions, of which there are none.
            let _ = self.request(CLOSE_REQUEST, |writer| writer.bytes(&[1]));
        }
        let close = self.channel.close();
        let _ = self.send(&close);
    }
}

fn connect(url: &str) -> Result<TcpStream, String> {
    let place = place(url).ok_or("it is no URL as opc.tcp://10.0.0.1:4840/")?;
    let addresses = (place.host.as_str(), place.port).to_socket_addrs();
    let addresses = addresses.map_err(|error| format!("{} cannot be looked up: {error}", place.host))?;
    let mut failed = "its name leads nowhere".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => {
                let timeout = stream.set_write_timeout(Some(TIMEOUT));
                return timeout.map(|()| stream).map_err(|error| format!("its connection has no deadline: {error}"));
            }
            Err(error) => failed = format!("no connection to {address}: {error}"),
        }
    }
    Err(failed)
}

/// What a server says of a session that it has made.
struct Created {
    authentication_token: Vec<u8>,
    /// In milliseconds.
    timeout: f64,
    /// The policy of users without a name, at the endpoint without security.
    anonymous: Option<String>,
}

impl Created {
    fn read(answer: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(answer);
        // The session's own name.
        reader.node_id_bytes()?;
        let authentication_token = reader.node_id_bytes()?.to_vec();
        // It is sent with each request.
        if authentication_token.len() > MOST_TOKEN {
            return Err(Malformed("its session has a token without measure"));
        }
        let timeout = f64::from_le_bytes(reader.number()?);
        // A nonce, a certificate.
        reader.byte_string()?;
        reader.byte_string()?;
        let anonymous = reader.array(endpoint)?.into_iter().flatten().next();
        Ok(Self { authentication_token, timeout, anonymous })
    }
}

/// The policy of users without a name of an endpoint, if it is one without security.
fn endpoint(reader: &mut Reader<'_>) -> Result<Option<String>, Malformed> {
    reader.string()?;
    Description::read(reader)?;
    // A certificate.
    reader.byte_string()?;
    // None, Sign, SignAndEncrypt: 1 to 3.
    reader.u32()?;
    let policy = reader.string()?;
    let users = reader.array(|reader| {
        let (id, kind) = (reader.string()?, reader.u32()?);
        reader.string()?;
        reader.string()?;
        reader.string()?;
        Ok((id, kind))
    })?;
    reader.string()?;
    reader.u8()?;
    let anonymous = users.into_iter().find(|(_, kind)| *kind == ANONYMOUS).map(|(id, _)| id);
    Ok(anonymous.filter(|_| policy == SECURITY_POLICY_NONE))
}
