//! A session with a server: without security and a user, for reading (part 4 of the specification, 5.6 and 5.10).

use crate::node::NodeId;
use crate::value;
use opcua_codec::{Channel, Event, FAULT, Malformed, POLICY, Reader, Writer, status};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// How long the server may take to be reached, and to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a channel lives, and a session nobody uses; another channel is opened in good time.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The port of a URL without one.
const PORT: u16 = 4840;

/// Encodings of requests and their responses.
const CREATE: (u16, u32) = (461, 464);
const ACTIVATE: (u16, u32) = (467, 470);
const CLOSE: (u16, u32) = (473, 476);
const READ: (u16, u32) = (631, 634);
/// Encoding of the token of a user without a name.
const ANONYMOUS_TOKEN: u16 = 321;
/// Kind of such a user.
const ANONYMOUS: u32 = 0;
/// The attribute that is a node's value.
const VALUE: u32 = 13;
/// Times are not wanted.
const NEITHER: u32 = 3;

/// A session that is in use.
pub struct Session {
    stream: TcpStream,
    channel: Channel,
    /// What the server calls it, as it writes that.
    token: Vec<u8>,
    opened: Instant,
}

impl Session {
    pub fn open(url: &str) -> Result<Self, String> {
        let stream = connect(url)?;
        let lifetime = u32::try_from(LIFETIME.as_millis()).unwrap_or(u32::MAX);
        let mut session =
            Self { stream, channel: Channel::new(url, lifetime), token: vec![0; 2], opened: Instant::now() };
        let hello = session.channel.hello();
        session.send(&hello)?;
        while !matches!(session.next()?, Event::Opened) {}
        let created = session.ask("CreateSession", CREATE, |writer| {
            // This application: without a URI, of type Client.
            let writer =
                writer.string("").string("").bytes(&[2]).string("akri opcua-broker").u32(1).null().null().u32(0);
            // The server that is meant, and the session; no nonce, no certificate.
            let writer = writer.null().string(url).string("akri").null().null();
            let milliseconds = LIFETIME.as_secs_f64() * 1000.0;
            writer.bytes(&milliseconds.to_le_bytes()).u32(0)
        })?;
        let (token, policy) = created_session(&created).map_err(|why| format!("CreateSession: {}", broken(why)))?;
        session.token = token;
        let policy = policy.ok_or("it has no endpoint without security for users without a name")?;
        session.ask("ActivateSession", ACTIVATE, |writer| {
            // No signature, no certificates, no languages.
            let writer = writer.null().null().u32(0).u32(0);
            let token = Writer::default().string(&policy).0;
            let writer = writer.encoding(ANONYMOUS_TOKEN).bytes(&[1]).u32(token.len() as u32).bytes(&token);
            writer.null().null()
        })?;
        Ok(session)
    }

    /// A node's value, or its status, as text.
    pub fn read(&mut self, node: &NodeId) -> Result<String, String> {
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
        value().map_err(|why| format!("Read: {}", broken(why)))
    }

    /// Whether its channel has not long to live.
    pub fn is_due(&self) -> bool {
        self.opened.elapsed() > LIFETIME / 4 * 3
    }

    /// The server need not wait for its end.
    pub fn close(&mut self) {
        // With its subscriptions, of which there are none.
        let _ = self.ask("CloseSession", CLOSE, |writer| writer.bytes(&[1]));
        let close = self.channel.close();
        let _ = self.send(&close);
    }

    /// Asks, and waits for the response; what comes after its header.
    fn ask(
        &mut self,
        name: &str,
        (request, response): (u16, u32),
        body: impl FnOnce(Writer) -> Writer,
    ) -> Result<Vec<u8>, String> {
        let token = self.token.clone();
        let request = self.channel.request(request, |writer, handle| body(writer.request_header_of(&token, handle)));
        self.send(&request)?;
        let answer = loop {
            if let Event::Response(answer) = self.next()? {
                break answer;
            }
        };
        let read = || {
            let mut reader = Reader(&answer);
            let encoding = reader.node_id()?;
            let code = reader.response_header()?;
            Ok((encoding, code, reader.0.to_vec()))
        };
        match read().map_err(broken)? {
            (encoding, code, _) if encoding == Some(FAULT) || code & 0x8000_0000 != 0 => {
                Err(format!("{name} failed: {}", status(code, "")))
            }
            (encoding, _, rest) if encoding == Some(response) => Ok(rest),
            _ => Err(format!("{name}: it answers something else than what was asked")),
        }
    }

    /// The next event; what the channel wants to send is sent.
    fn next(&mut self) -> Result<Event, String> {
        loop {
            match self.channel.next_event().map_err(|why| why.to_string())? {
                Event::Nothing => {
                    let mut buffer = [0; 8192];
                    match self.stream.read(&mut buffer) {
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

fn broken(Malformed(why): Malformed) -> String {
    format!("the answer is not OPC UA as it should be: {why}")
}

fn connect(url: &str) -> Result<TcpStream, String> {
    let authority = url.strip_prefix("opc.tcp://").map(|rest| rest.split('/').next().unwrap_or(rest));
    let authority =
        authority.filter(|authority| !authority.is_empty()).ok_or("it is no URL as opc.tcp://10.0.0.1:4840/")?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let place = if has_port { authority.to_owned() } else { format!("{authority}:{PORT}") };
    let addresses = place.to_socket_addrs().map_err(|error| format!("{place} cannot be looked up: {error}"))?;
    let mut failed = "its name leads nowhere".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => {
                let timeouts = stream.set_read_timeout(Some(TIMEOUT)).and(stream.set_write_timeout(Some(TIMEOUT)));
                return timeouts.map(|()| stream).map_err(|error| format!("its connection has no deadline: {error}"));
            }
            Err(error) => failed = format!("no connection to {address}: {error}"),
        }
    }
    Err(failed)
}

/// The token of a session, and the policy of users without a name of the endpoint without security.
fn created_session(answer: &[u8]) -> Result<(Vec<u8>, Option<String>), Malformed> {
    let mut reader = Reader(answer);
    // The session's own name.
    reader.node_id_bytes()?;
    let token = reader.node_id_bytes()?.to_vec();
    // Its lifetime, a nonce, a certificate.
    reader.bytes(8)?;
    reader.byte_string()?;
    reader.byte_string()?;
    let policies = reader.array(endpoint)?;
    Ok((token, policies.into_iter().flatten().next()))
}

/// The policy of users without a name of an endpoint, if it is one without security.
fn endpoint(reader: &mut Reader<'_>) -> Result<Option<String>, Malformed> {
    reader.string()?;
    // The application: its URI, its product's, its name, kind, gateway, profile and URLs.
    reader.string()?;
    reader.string()?;
    reader.localized_text()?;
    reader.u32()?;
    reader.string()?;
    reader.string()?;
    reader.array(Reader::string)?;
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
    Ok(anonymous.filter(|_| policy == POLICY))
}
