//! FindServers, as one conversation (part 4 of the specification, 5.4.2): a channel, a request, close.

use akri_handler::tcp::{Next, Talk};
use opcua_codec::{Broken, Channel, Description, Event, Malformed, Reader, response};

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
            Event::Response(message) => {
                let found = match servers(&message) {
                    Err(Broken::Refused(why)) => Err(why),
                    found => Ok(found?),
                };
                Next::Last(self.channel.close(), found)
            }
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

fn servers(message: &[u8]) -> Result<Vec<Application>, Broken> {
    Ok(response("FindServers", FIND_RESPONSE, message)?.array(application)?)
}

fn application(reader: &mut Reader<'_>) -> Result<Application, Malformed> {
    let Description { name, kind, urls } = Description::read(reader)?;
    let kind = match kind {
        0 => ApplicationType::Server,
        1 => ApplicationType::Client,
        2 => ApplicationType::ClientAndServer,
        3 => ApplicationType::DiscoveryServer,
        _ => return Err(Malformed("an application is of an unknown type")),
    };
    Ok(Application { name, kind, urls })
}
