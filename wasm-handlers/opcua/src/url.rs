//! URLs of OPC UA by TCP, and which of them is a server's.

use akri_handler::tcp::Peer;

const SCHEME: &str = "opc.tcp";
/// Longest URL of a server, in bytes.
const MOST_URL: usize = 512;
/// Of discovery endpoints that name none.
const PORT: u16 = 4840;

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub peer: Peer,
    /// From its slash on.
    pub path: String,
}

pub fn place(url: &str) -> Option<Place> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (host, port) = inner.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some("")))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        },
    };
    let port = match port? {
        "" => PORT,
        port => port.parse().ok().filter(|port| *port > 0)?,
    };
    let is_host = |letter: char| !letter.is_whitespace() && !letter.is_control() && !"@/\\:".contains(letter);
    let is_plain = !host.is_empty() && (authority.starts_with('[') || host.chars().all(is_host));
    is_plain.then(|| Place { peer: Peer { host: host.to_owned(), port }, path: path.to_owned() })
}

/// The URL of a server among those that it names: the first by TCP.
pub fn of_application(urls: &[String]) -> Option<&str> {
    let url = urls.iter().find(|url| url.starts_with(SCHEME))?;
    let is_plain = url.len() <= MOST_URL && !url.chars().any(char::is_control);
    place(url).filter(|_| is_plain).map(|_| url.as_str())
}

/// The URL of a server whose own host is not known here, as Akri's own handler makes it: the discovery endpoint's, with the server's
/// path if the endpoint has none.
pub fn by_endpoint(endpoint: &str, of_server: &str) -> String {
    let path_of =
        |url: &str| place(url).map(|place| place.path.split(['?', '#']).next().unwrap_or_default().to_owned());
    let (of_endpoint, path) = (path_of(endpoint).unwrap_or_default(), path_of(of_server).unwrap_or_default());
    if !of_endpoint.is_empty() && of_endpoint != "/" {
        return endpoint.to_owned();
    }
    match endpoint.ends_with('/') {
        true => format!("{endpoint}{}", path.strip_prefix('/').unwrap_or(&path)),
        false => format!("{endpoint}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_somewhere() {
        let of = |url: &str| place(url).map(|place| (place.peer.host, place.peer.port, place.path));
        let is = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(of("opc.tcp://10.0.0.1:4840/"), is("10.0.0.1", 4840, "/"));
        assert_eq!(of("OPC.TCP://plc.example"), is("plc.example", 4840, ""));
        assert_eq!(of("opc.tcp://[fd00::1]:4855/a/b"), is("fd00::1", 4855, "/a/b"));
        assert_eq!(of("opc.tcp://[fd00::1]"), is("fd00::1", 4840, ""));
        for url in [
            "http://10.0.0.1:4840/",
            "opc.tcp:/10.0.0.1",
            "opc.tcp://",
            "opc.tcp://:4840",
            "opc.tcp://a:b",
            "opc.tcp://a:0",
            "opc.tcp://a:70000",
            "opc.tcp://[fd00::1",
            "opc.tcp://[plc]:1",
            "opc.tcp://user@a:1",
            "opc.tcp://a b:1",
        ] {
            assert_eq!(of(url), None, "{url}");
        }
    }

    #[test]
    fn a_server_is_known_by_its_first_url_of_tcp() {
        let of = |urls: &[&str]| {
            of_application(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>()).map(str::to_owned)
        };
        assert_eq!(of(&["http://a/", "opc.tcp://a:1", "opc.tcp://b:1"]).as_deref(), Some("opc.tcp://a:1"));
        assert_eq!(of(&["https://a/"]), None);
        assert_eq!(of(&["opc.tcp://"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_server_without_a_name_here_is_known_by_its_endpoint() {
        assert_eq!(by_endpoint("opc.tcp://10.0.0.1:4840/", "opc.tcp://plc:4855/UA/x"), "opc.tcp://10.0.0.1:4840/UA/x");
        assert_eq!(by_endpoint("opc.tcp://10.0.0.1:4840", "opc.tcp://plc:4855/UA/x"), "opc.tcp://10.0.0.1:4840/UA/x");
        assert_eq!(by_endpoint("opc.tcp://10.0.0.1:4840", "opc.tcp://plc:4855"), "opc.tcp://10.0.0.1:4840");
        assert_eq!(by_endpoint("opc.tcp://10.0.0.1:4840/", "opc.tcp://plc:4855/"), "opc.tcp://10.0.0.1:4840/");
        assert_eq!(by_endpoint("opc.tcp://10.0.0.1:4840/lds", "opc.tcp://plc:4855/x"), "opc.tcp://10.0.0.1:4840/lds");
    }
}
