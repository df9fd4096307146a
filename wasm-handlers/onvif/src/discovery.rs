//! WS-Discovery (OASIS, with ONVIF's types): probes, and what cameras answer or say of themselves.

use crate::xml::{self, Element};
use akri_handler::{random, time, udp};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Where probes go and cameras say hello.
pub const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 3702);

/// What is asked for: cameras as ONVIF's first versions call them, and any device of it.
const TYPES: [&str; 2] = [
    r#"xmlns:o="http://www.onvif.org/ver10/network/wsdl">o:NetworkVideoTransmitter"#,
    r#"xmlns:o="http://www.onvif.org/ver10/device/wsdl">o:Device"#,
];

/// A camera may wait for 500 ms before it answers (APP_MAX_DELAY), and answers twice.
const LEAST_WINDOW: Duration = Duration::from_millis(1500);
/// A probe is sent again after that time, for datagrams get lost.
const REPEATED: Duration = Duration::from_millis(200);

/// Most cameras of one round, and of one sender: others on the network have their places, too. Most datagrams of one sender.
const MOST_MATCHES: usize = 2048;
const MOST_OF_ONE: usize = 16;
const MOST_DATAGRAMS: usize = 256;
/// Of so many senders the last answer is kept to know it again, and the longest one that is.
const MOST_SENDERS_KEPT: usize = 1024;
const MOST_KEPT: usize = 2048;
/// Most URLs of one answer, of one camera by all its answers, and longest one.
const MOST_URLS: usize = 4;
const MOST_MERGED: usize = 8;
const MOST_URL: usize = 512;
/// Most scopes of one camera, and longest scope and uuid.
const MOST_SCOPES: usize = 32;
const MOST_SCOPE: usize = 256;
const MOST_UUID: usize = 128;

/// What came from whom.
pub type Senders = BTreeMap<IpAddr, Sender>;

#[derive(Default)]
pub struct Sender {
    pub datagrams: usize,
    /// How many cameras were in them.
    cameras: usize,
    /// What the last one said.
    body: Vec<u8>,
}

/// A camera, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub uuid: String,
    pub scopes: Vec<String>,
    /// Its service, at one or more addresses.
    pub urls: Vec<String>,
}

impl Match {
    fn add(&mut self, urls: Vec<String>) {
        for url in urls {
            if self.urls.len() < MOST_MERGED && !self.urls.contains(&url) {
                self.urls.push(url);
            }
        }
    }
}

/// What a camera tells everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    Hello(Match),
    /// The camera of this uuid goes.
    Bye(String),
}

/// Asks on every link that carries multicast, and gathers what is answered within the window; with why a link could not be asked on.
/// The error is why none could.
pub fn probe(window: Duration) -> Result<(Vec<Match>, Option<String>), String> {
    let until = time::now() + window.max(LEAST_WINDOW);
    let (sockets, failed) = udp::ask_on_links(ask)?;
    let all: Vec<_> = sockets.iter().collect();
    let again = time::now() + REPEATED;
    let mut found = Vec::<Match>::new();
    let mut of_sender = Senders::new();
    let mut gather = |until: Duration| {
        while let Some((_, datagram)) = udp::receive(&all, until) {
            let has_room = of_sender.len() < MOST_SENDERS_KEPT;
            let sender = of_sender.entry(datagram.from.ip()).or_default();
            sender.datagrams += 1;
            if sender.datagrams > MOST_DATAGRAMS {
                continue;
            }
            // Reading is what costs, and each camera says the same several times.
            let body = body(&datagram.payload);
            if sender.body == body {
                continue;
            }
            let cameras = matches(&datagram.payload);
            // What cannot be read does not stand for what can.
            let is_kept = has_room || !sender.body.is_empty();
            if is_kept && body.len() <= MOST_KEPT && !cameras.is_empty() {
                sender.body = body.to_vec();
            }
            for camera in cameras {
                let has_room = sender.cameras < MOST_OF_ONE && found.len() < MOST_MATCHES;
                match found.iter_mut().find(|known| known.uuid == camera.uuid) {
                    // Each answers twice, to each question, and on each of its links with other addresses. Nobody takes any away.
                    Some(known) => known.add(camera.urls),
                    None if has_room => {
                        sender.cameras += 1;
                        found.push(camera);
                    }
                    None => {}
                }
            }
        }
    };
    gather(again.min(until));
    for socket in &sockets {
        let _ = ask(socket);
    }
    gather(until);
    Ok((found, failed.map(|why| format!("a network link is not probed: {why}"))))
}

/// What a message says: all that follows the header, in which each has its own number.
fn body(payload: &[u8]) -> &[u8] {
    let name = b"Body";
    payload.windows(name.len()).position(|window| window == name).map_or(payload, |at| &payload[at..])
}

fn ask(socket: &udp::Socket) -> Result<(), akri_handler::Error> {
    TYPES.iter().try_for_each(|types| socket.send(GROUP, message(types).as_bytes()))
}

fn message(types: &str) -> String {
    format!(
        concat!(
            r#"<?xml version="1.0" encoding="UTF-8"?>"#,
            r#"<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery">"#,
            "<s:Header><a:MessageID>urn:uuid:{id}</a:MessageID><a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To>",
            "<a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</a:Action></s:Header>",
            "<s:Body><d:Probe><d:Types {types}</d:Types></d:Probe></s:Body></s:Envelope>",
        ),
        id = random::uuid(),
        types = types,
    )
}

/// The cameras of an answer; none if it is not one.
pub fn matches(payload: &[u8]) -> Vec<Match> {
    // Some send a ProbeMatch without the ProbeMatches around it.
    let document = xml::read(payload).unwrap_or_default();
    document.all("ProbeMatch").into_iter().filter_map(camera).collect()
}

/// What was said to the group, if it is about a camera. Other devices have other types, and their addresses are not asked.
pub fn announcement(payload: &[u8]) -> Option<Announcement> {
    let document = xml::read(payload)?;
    // Printers and computers have a type `Device` of another namespace; scopes of ONVIF are its devices' only.
    let is_camera = |hello: &Element| {
        let has = |name: &str, is_one: &dyn Fn(&str) -> bool| {
            hello.child(name).is_some_and(|child| child.text.split_whitespace().any(is_one))
        };
        has("Types", &|name| name.rsplit(':').next() == Some("NetworkVideoTransmitter"))
            || has("Scopes", &|scope| scope.starts_with("onvif://"))
    };
    if let Some(hello) = document.all("Hello").first() {
        return is_camera(hello).then(|| camera(hello)).flatten().map(Announcement::Hello);
    }
    document.all("Bye").first().and_then(|bye| uuid(bye)).map(Announcement::Bye)
}

fn camera(element: &Element) -> Option<Match> {
    let words = |name: &str| {
        let text = element.child(name).map(|child| child.text.as_str()).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut urls = words("XAddrs");
    urls.retain(|url| url.len() <= MOST_URL && is_reachable(url));
    urls.truncate(MOST_URLS);
    let mut scopes = words("Scopes");
    scopes.retain(|scope| scope.len() <= MOST_SCOPE);
    scopes.truncate(MOST_SCOPES);
    Some(Match { uuid: uuid(element)?, scopes, urls })
}

fn uuid(element: &Element) -> Option<String> {
    let address = &element.at(&["EndpointReference", "Address"])?.text;
    let plain = address.strip_prefix("urn:").unwrap_or(address);
    let plain = plain.strip_prefix("uuid:").unwrap_or(plain).to_ascii_lowercase();
    let is_plain = plain.bytes().all(|byte| byte.is_ascii_graphic());
    (!plain.is_empty() && plain.len() <= MOST_UUID && is_plain).then_some(plain)
}

/// A service's URL has a host and a path, in plain letters, and no query: nobody is to have something else called. A link-local IPv6
/// address leads nowhere without the name of its link, which is another one here than at the camera.
fn is_reachable(url: &str) -> bool {
    let lower = url.to_ascii_lowercase();
    let rest = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"));
    let is_plain = |rest: &&str| rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\\".contains(&byte));
    rest.filter(is_plain).is_some_and(|rest| {
        !rest.starts_with("[fe8") && !rest.starts_with("[fe9") && !rest.starts_with("[fea") && !rest.starts_with("[feb")
    })
}
