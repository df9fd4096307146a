//! Which URL is a server's.

use akri_handler::tcp::Peer;
use opcua_codec::{Place, SCHEME, place};

/// Longest URL of a server, in bytes.
const MOST_URL: usize = 512;

/// The same for the SDK.
pub fn peer(place: &Place) -> Peer {
    Peer { host: place.host.clone(), port: place.port }
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
