//! FindServers, as one conversation (part 4 of the specification, 5.4.2): a channel, a request, close.

use akri_handler::tcp::{Next, Talk};
use opcua_codec::{Broken, Channel, Event, Malformed, Reader, SERVICE_FAULT, status};

/// Encodings of messages.
const FIND_REQUEST: u16 = 422;
const FIND_RESPONSE: u32 = 425;

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

/// Asks one discovery endpoint for its applications.
pub struct FindServers {
    url: String,
    channel: Channel,
}

/// What a discovery endpoint has said, or why it is not understood.
pub type Found = Result<Vec<Application>, String>;

impl FindServers {
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), channel: Channel::new(url, LIFETIME) }
    }

    fn go_on(&mut self) -> Result<Next<Found>, Broken> {
        Ok(match self.channel.next_event()? {
            Event::Nothing => Next::More(Vec::new()),
            Event::Send(bytes) => Next::More(bytes),
            Event::Opened => {
                let url = &self.url;
                Next::More(
                    self.channel.request(FIND_REQUEST, |request, handle| {
                        request.request_header(handle).string(url).u32(0).u32(0)
                    }),
                )
            }
            Event::Response(message) => Next::Last(self.channel.close(), servers(&message)?),
        })
    }
}

impl Talk for FindServers {
    type Said = Found;

    fn begin(&mut self) -> Vec<u8> {
        self.channel.hello()
    }

    fn received(&mut self, bytes: &[u8]) -> Next<Found> {
        self.channel.receive(bytes);
        self.go_on().unwrap_or_else(|why| Next::Done(Err(why.to_string())))
    }
}

fn servers(message: &[u8]) -> Result<Found, Malformed> {
    let mut reader = Reader(message);
    let encoding = reader.node_id()?;
    let code = reader.response_header()?;
    if encoding == Some(SERVICE_FAULT) || code & 0x8000_0000 != 0 {
        return Ok(Err(format!("FindServers failed: {}", status(code, ""))));
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
