//! Places of requests by HTTP, as rules write them: `SCHEME://HOST:PORTS/PATH`.

use super::rules::{NamePattern, Ports, Target, canonical, no_name, ports};
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use url::Url;

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// By TLS.
    Https,
}

impl Scheme {
    /// By the name in a URL.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// What a server has to show before a request is sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// A certificate for its name, by an authority that the machine trusts.
    Valid,
    /// Any certificate, for devices that have made theirs themselves.
    Any,
}

/// Which paths.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Paths {
    All,
    One(String),
    Below(String),
}

/// Which requests a rule gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlPattern {
    scheme: Scheme,
    /// Where to.
    pub host: Target,
    ports: Ports,
    paths: Paths,
    /// What is asked of the server.
    pub certificates: Certificates,
}

impl UrlPattern {
    /// All paths of the host and port of a URL, if it is one of HTTP.
    pub fn origin(url: &Url, certificates: Certificates) -> Option<Self> {
        let scheme = Scheme::named(url.scheme())?;
        let host = match url.host()? {
            url::Host::Domain(name) => Target::Name(NamePattern::host(name)?),
            url::Host::Ipv4(address) => Target::Net(IpAddr::from(address).into()),
            url::Host::Ipv6(address) => Target::Net(IpAddr::from(address).to_canonical().into()),
        };
        let ports = Ports::one(url.port().unwrap_or(scheme.port()));
        Some(Self { scheme, host, ports, paths: Paths::All, certificates })
    }

    /// As a rule writes it.
    pub(super) fn read(text: &str, certificates: Certificates) -> Result<Self, String> {
        let expected = || {
            format!(
                "{text:?} is no URL of a rule: expected one as https://inventory.plant.example/devices*, http://[10.0.0.0/24]:8080"
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let scheme = Scheme::named(scheme).ok_or_else(expected)?;
        if certificates == Certificates::Any && scheme == Scheme::Http {
            return Err("`any-certificate` is about https".to_owned());
        }
        if rest.contains(['?', '@']) {
            return Err("a rule's URL has neither a user nor a query; they are not looked at".to_owned());
        }
        let (host, rest) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, rest) = inner.split_once(']').ok_or_else(expected)?;
                (in_brackets(host)?, rest)
            }
            None => {
                let end = rest.find([':', '/']).unwrap_or(rest.len());
                (plain(&rest[..end])?, &rest[end..])
            }
        };
        let (listed, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let ports = match listed.strip_prefix(':') {
            Some(listed) => ports(listed)?,
            None if listed.is_empty() => Ports::one(scheme.port()),
            None => return Err(expected()),
        };
        Ok(Self { scheme, host, ports, paths: paths(path)?, certificates })
    }

    /// Whether some request is one of these and one of the others.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let paths = match (&self.paths, &other.paths) {
            (Paths::All, _) | (_, Paths::All) => true,
            (Paths::One(one), Paths::One(other)) => one == other,
            (Paths::One(one), Paths::Below(start)) | (Paths::Below(start), Paths::One(one)) => one.starts_with(start),
            (Paths::Below(one), Paths::Below(other)) => one.starts_with(other) || other.starts_with(one),
        };
        self.scheme == other.scheme && paths && other.is_among(&self.host, &self.ports)
    }

    /// Whether some request goes to these places.
    pub(super) fn is_among(&self, host: &Target, ports: &Ports) -> bool {
        self.host.meets(host) && self.ports.meet(ports)
    }

    /// Whether a request is one of these but for its host.
    pub(super) fn covers(&self, url: &Url, port: u16) -> bool {
        let path = url.path();
        Scheme::named(url.scheme()) == Some(self.scheme)
            && self.ports.contain(port)
            && match &self.paths {
                Paths::All => true,
                Paths::One(one) => path == one,
                Paths::Below(start) => path.starts_with(start.as_str()) && !may_climb(path),
            }
    }
}

/// Whether a server may take a path for one that leads out of where it begins: what URLs call one segment has a slash or two dots in it,
/// perhaps when it is decoded once more, or in more bytes than they need.
fn may_climb(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    ["..", "%2f", "%5c", "%25", "%c0", "%c1"].iter().any(|climbs| path.contains(climbs))
}

fn in_brackets(host: &str) -> Result<Target, String> {
    let net = match host.parse::<Ipv6Addr>() {
        Ok(address) => IpNet::from(IpAddr::from(address)),
        Err(_) => host.parse::<IpNet>().map_err(|_| {
            format!("{host:?} is no IPv6 address and no network; those are in brackets: [fd00::1], [10.0.0.0/24]")
        })?,
    };
    if net.trunc() != net {
        return Err(format!("{host} is an address in a network, not a network: write {}", net.trunc()));
    }
    Ok(Target::Net(canonical(net)?))
}

fn plain(host: &str) -> Result<Target, String> {
    match host.parse::<Ipv4Addr>() {
        Ok(address) => Ok(Target::Net(IpAddr::from(address).into())),
        Err(_) => NamePattern::read(host).map(Target::Name).ok_or_else(|| no_name(host)),
    }
}

fn paths(text: &str) -> Result<Paths, String> {
    if text.is_empty() {
        return Ok(Paths::All);
    }
    let (path, is_start) = match text.strip_suffix('*') {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.contains('*') {
        return Err("`*` stands at the end of a path only".to_owned());
    }
    // In the notation of the URLs that are asked for.
    let read = Url::parse(&format!("http://host{path}")).map_err(|error| format!("path {path:?}: {error}"))?;
    let path = read.path().to_owned();
    Ok(if is_start { Paths::Below(path) } else { Paths::One(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<UrlPattern, String> {
        UrlPattern::read(text, Certificates::Valid)
    }

    #[test]
    fn urls_of_rules_are_read() {
        let pattern = read("https://Inventory.plant.example/devices*").unwrap();
        assert_eq!(pattern.host, Target::Name(NamePattern::host("inventory.plant.example").unwrap()));
        assert!(pattern.ports.contain(443) && !pattern.ports.contain(80));
        let net = |text: &str| match read(text).unwrap().host {
            Target::Net(net) => net.to_string(),
            Target::Name(name) => panic!("{name:?}"),
        };
        assert_eq!(net("http://192.0.2.1"), "192.0.2.1/32");
        assert_eq!(net("http://[10.0.0.0/24]:80,8000-8010/info"), "10.0.0.0/24");
        assert_eq!(net("http://[fd00::/8]:8080"), "fd00::/8");
        assert_eq!(net("http://[::ffff:192.0.2.1]"), "192.0.2.1/32");
        for (text, what) in [
            ("inventory.plant.example/devices", "is no URL of a rule"),
            ("ftp://a.example/", "is no URL of a rule"),
            ("http://a.example:0/", "are no ports"),
            ("http://a.example:/", "are no ports"),
            ("http://[192.0.2.1/24]/", "write 192.0.2.0/24"),
            ("http://[192.0.2.1]/", "no IPv6 address and no network"),
            ("http://[fd00::1/", "is no URL of a rule"),
            ("http://10.0.0.300/", "is no host's name"),
            ("http:///x", "is no host's name"),
            ("http://a.example/*/x", "at the end of a path only"),
            ("http://a.example/x?y", "neither a user nor a query"),
            ("http://user@a.example/", "neither a user nor a query"),
            ("http://[fd00::1]8080/", "is no URL of a rule"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
        assert!(UrlPattern::read("http://a.example", Certificates::Any).unwrap_err().contains("about https"));
    }

    #[test]
    fn a_path_is_held_to_its_start() {
        let covers = |rule: &str, url: &str| {
            let url = Url::parse(url).unwrap();
            read(rule).unwrap().covers(&url, url.port_or_known_default().unwrap())
        };
        assert!(covers("http://a.example", "http://a.example/any/path?x=y"));
        assert!(
            !covers("http://a.example", "https://a.example/") && !covers("http://a.example", "http://a.example:81/")
        );
        assert!(covers("http://a.example/devices", "http://a.example/devices?page=2"));
        assert!(!covers("http://a.example/devices", "http://a.example/devices/1"));
        assert!(covers("http://a.example/d%61ta/ä*", "http://a.example/d%61ta/%C3%A4/1"));
        let below = |url: &str| covers("http://a.example/devices/*", url);
        assert!(below("http://a.example/devices/1/x") && below("http://a.example/devices/.hidden"));
        for climbs in [
            "../secret",
            "%2e%2e/secret",
            "..%2fsecret",
            "x/..%5Csecret",
            "..;/secret",
            "%2E.;x/secret",
            "a\\..\\..\\secret",
            "%252e%252e/secret",
            "x..%c0%af",
        ] {
            assert!(!below(&format!("http://a.example/devices/{climbs}")), "{climbs}");
        }
    }
}
