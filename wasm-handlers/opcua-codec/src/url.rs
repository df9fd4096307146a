//! URLs of OPC UA by TCP.

pub const SCHEME: &str = "opc.tcp";
/// Of URLs that name none.
const PORT: u16 = 4840;

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    /// From its slash on.
    pub path: String,
}

/// Reads a URL, if it is one.
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
    is_plain.then(|| Place { host: host.to_owned(), port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_somewhere() {
        let of = |url: &str| place(url).map(|place| (place.host, place.port, place.path));
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
}
