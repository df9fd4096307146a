//! The rules by which a guest is given a network, one a line.
//!
//! | rule | what it gives |
//! |---|---|
//! | `udp ADDRESS:PORTS` | sending there, and what comes from there; to a group or a broadcast address, what private addresses answer |
//! | `tcp ADDRESS:PORTS` | connections there |
//! | `tcp NAME:PORTS`, `udp NAME:PORTS` | the same to what the name leads to; the name may be looked up |
//! | `tcp details`, `udp details` | the same to the hosts and ports of the URLs in the request's details |
//! | `http URL` | requests by `wasi:http`; the URL has a scheme, a host, and if wanted ports and a path (see [`UrlPattern`]) |
//! | `http details` | requests to the hosts and ports of the URLs in the request's details |
//! | `dns NAME`, `dns *` | looking the name up, or any |
//! | `listen tcp PORTS`, `listen udp PORTS` | being a server there |
//! | `join ADDRESS:PORTS`, `join ADDRESS:PORTS on LINK` | listening to a multicast group by `akri:host/multicast`, and sending to it from its port; on all links or on one |
//!
//! ADDRESS is an address or a network (`10.0.0.0/8`), IPv6 in brackets; NAME is a host's, or `*.` and a domain for all in it; PORTS are
//! ports and ranges with commas between; LINK is a network link's name, `eth*` for all that begin so. What follows `#` is a comment.

use super::urls::{Certificates, UrlPattern};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Most rules of one container.
pub const MOST_RULES: usize = 256;
/// Longest text of them, in bytes.
const MOST_BYTES: usize = 16 << 10;

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// One port.
    pub fn one(port: u16) -> Self {
        Self(vec![port..=port])
    }

    /// Whether a port is among them.
    pub fn contain(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    pub(super) fn meet(&self, other: &Self) -> bool {
        let meets = |range: &RangeInclusive<u16>| {
            other.0.iter().any(|other| range.start() <= other.end() && other.start() <= range.end())
        };
        self.0.iter().any(meets)
    }
}

/// A host's name, or all in a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// In lower case, without a dot at its end.
    name: String,
    is_domain: bool,
}

impl NamePattern {
    /// One host.
    pub fn host(name: &str) -> Option<Self> {
        Self::read(name).filter(|pattern| !pattern.is_domain)
    }

    /// Every name.
    fn any() -> Self {
        Self { name: String::new(), is_domain: true }
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let (name, is_domain) = match name.strip_prefix("*.") {
            Some(domain) => (domain.to_owned(), true),
            None => (name, false),
        };
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let is_name = name.len() <= 253 && name.split('.').all(is_label) && !is_number(&name);
        is_name.then_some(Self { name, is_domain })
    }

    /// Whether a name, in any case, is meant.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match self.is_domain {
            true if self.name.is_empty() => true,
            true => name.strip_suffix(&self.name).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1),
            false => name == self.name,
        }
    }
}

impl NamePattern {
    fn meets(&self, other: &Self) -> bool {
        self.matches(&other.name) || other.matches(&self.name) || self == other
    }
}

/// A last label of digits is an address that is written wrong.
fn is_number(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address, or a network.
    Net(IpNet),
    /// What a name leads to.
    Name(NamePattern),
}

impl Target {
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Net(one), Self::Net(other)) => one.contains(other) || other.contains(one),
            (Self::Name(one), Self::Name(other)) => one.meets(other),
            _ => false,
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Reaching out.
    Reach {
        /// By which protocol.
        protocol: Protocol,
        /// To whom.
        target: Target,
        /// On which ports.
        ports: Ports,
    },
    /// Reaching out to what the request's details name.
    Details(Protocol),
    /// Requests by HTTP.
    Http(UrlPattern),
    /// Requests to what the request's details name.
    HttpDetails(Certificates),
    /// Looking up names.
    Names(NamePattern),
    /// Being a server.
    Listen {
        /// By which protocol.
        protocol: Protocol,
        /// On which ports.
        ports: Ports,
    },
    /// Listening to multicast groups.
    Join {
        /// Which ones.
        groups: IpNet,
        /// On which ports.
        ports: Ports,
        /// On which network links, as [`akri_krustlet_events::LinkNames`] has them; on all without it.
        link: Option<String>,
    },
}

/// A line that is no rule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}, {text:?}: {what}")]
pub struct RuleError {
    line: usize,
    text: String,
    what: String,
}

/// The rules of one pod; without any it has no network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRules(pub Vec<Rule>);

impl Rule {
    /// Whether something of what another rule gives is given by this one.
    fn gives_some_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Reach { protocol, target, ports }, Self::Reach { protocol: of, target: other, ports: others }) => {
                protocol == of && target.meets(other) && ports.meet(others)
            }
            (Self::Reach { protocol, .. } | Self::Details(protocol), Self::Details(of)) => protocol == of,
            (Self::Http(url), Self::Http(other)) => url.meets(other),
            // A connection to a place is requests to it, too.
            (Self::Reach { protocol: Protocol::Tcp, target, ports }, Self::Http(url)) => url.is_among(target, ports),
            (
                Self::Http(_)
                | Self::HttpDetails(_)
                | Self::Reach { protocol: Protocol::Tcp, .. }
                | Self::Details(Protocol::Tcp),
                Self::HttpDetails(_),
            ) => true,
            (Self::Names(name) | Self::Reach { target: Target::Name(name), .. }, Self::Names(other)) => {
                name.meets(other)
            }
            (Self::Http(url), Self::Names(other)) => matches!(&url.host, Target::Name(name) if name.meets(other)),
            (Self::Listen { protocol, ports }, Self::Listen { protocol: of, ports: others }) => {
                protocol == of && ports.meet(others)
            }
            (Self::Join { groups, ports, .. }, Self::Join { groups: other, ports: others, .. }) => {
                (groups.contains(other) || other.contains(groups)) && ports.meet(others)
            }
            _ => false,
        }
    }
}

impl NetworkRules {
    /// Whether one of them gives something of what a rule would give.
    pub fn give_some_of(&self, rule: &Rule) -> bool {
        self.0.iter().any(|own| own.gives_some_of(rule))
    }

    /// Whether one of them gives listening on a port, or on any without one.
    pub fn give_listening(&self, protocol: Protocol, port: Option<u16>) -> bool {
        self.0.iter().any(|rule| match rule {
            Rule::Listen { protocol: of, ports } => *of == protocol && port.is_none_or(|port| ports.contain(port)),
            _ => false,
        })
    }
}

impl FromStr for NetworkRules {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.len() > MOST_BYTES {
            let what = format!("the rules have {} bytes, {MOST_BYTES} at most are taken", text.len());
            return Err(RuleError { line: 1, text: String::new(), what });
        }
        let mut rules = Vec::new();
        for (number, line) in lines(text) {
            let failed = |what| RuleError { line: number, text: line.to_owned(), what };
            rules.push(rule(line).map_err(failed)?);
            if rules.len() > MOST_RULES {
                return Err(failed(format!("there are more than {MOST_RULES} rules; take networks and ranges")));
            }
        }
        Ok(Self(rules))
    }
}

/// The lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let without_comment = |line: &str| line.find('#').unwrap_or(line.len());
    let lines = text.lines().zip(1..).map(move |(line, number)| (number, line[..without_comment(line)].trim()));
    lines.filter(|(_, line)| !line.is_empty())
}

fn rule(line: &str) -> Result<Rule, String> {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        ["udp", "details"] => Ok(Rule::Details(Protocol::Udp)),
        ["tcp", "details"] => Ok(Rule::Details(Protocol::Tcp)),
        ["udp", place] => reach(Protocol::Udp, place),
        ["tcp", place] => reach(Protocol::Tcp, place),
        ["dns", "*"] => Ok(Rule::Names(NamePattern::any())),
        ["dns", name] => NamePattern::read(name).map(Rule::Names).ok_or_else(|| no_name(name)),
        ["listen", "tcp", listed] => Ok(Rule::Listen { protocol: Protocol::Tcp, ports: ports(listed)? }),
        ["listen", "udp", listed] => Ok(Rule::Listen { protocol: Protocol::Udp, ports: ports(listed)? }),
        ["join", group] => join(group, None),
        ["join", group, "on", link] => join(group, Some(link)),
        ["http", "details"] => Ok(Rule::HttpDetails(Certificates::Valid)),
        ["http", "details", "any-certificate"] => Ok(Rule::HttpDetails(Certificates::Any)),
        ["http", url] => UrlPattern::read(url, Certificates::Valid).map(Rule::Http),
        ["http", url, "any-certificate"] => UrlPattern::read(url, Certificates::Any).map(Rule::Http),
        _ => Err(
            "expected `udp ADDRESS:PORTS`, `tcp ADDRESS:PORTS`, `tcp NAME:PORTS`, `tcp details`, `http URL [any-certificate]`, `http details [any-certificate]`, `dns NAME`, `listen tcp|udp PORTS` or `join GROUP:PORT [on LINK]`"
                .to_owned(),
        ),
    }
}

pub(super) fn no_name(name: &str) -> String {
    format!("{name:?} is no host's name; expected one as camera.plant.example, or *.plant.example for all in a domain")
}

fn reach(protocol: Protocol, text: &str) -> Result<Rule, String> {
    let (target, ports) = place(text)?;
    Ok(Rule::Reach { protocol, target, ports })
}

fn join(text: &str, link: Option<&str>) -> Result<Rule, String> {
    let (target, ports) = place(text)?;
    let groups = match target {
        Target::Net(net) if net.addr().is_multicast() => net,
        _ => {
            return Err(format!(
                "{text:?} is no multicast group: expected one as 239.255.255.250:3702 or [ff02::fb]:5353"
            ));
        }
    };
    let is_name = |link: &str| {
        let name = link.strip_suffix('*').unwrap_or(link);
        name.len() <= 15
            && !link.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'*')
    };
    match link {
        Some(link) if !is_name(link) => Err(format!("{link:?} is no network link's name, as eth0 or eth*")),
        link => Ok(Rule::Join { groups, ports, link: link.map(str::to_owned) }),
    }
}

/// A place with its ports.
fn place(place: &str) -> Result<(Target, Ports), String> {
    let (host, listed) = match place.strip_prefix('[') {
        Some(rest) => {
            rest.split_once("]:").ok_or("expected an IPv6 address in brackets, a colon and ports, as [fd00::1]:80")?
        }
        None => place.rsplit_once(':').ok_or("it has no ports: expected ADDRESS:PORTS, as 10.0.0.0/8:80,8000-8999")?,
    };
    Ok((target(host, place.starts_with('['))?, ports(listed)?))
}

fn target(host: &str, in_brackets: bool) -> Result<Target, String> {
    let address = host.parse::<IpAddr>().map(IpNet::from).or_else(|_| host.parse::<IpNet>());
    match address {
        Ok(net) if net.addr().is_ipv6() != in_brackets => {
            Err("IPv6 addresses, and only those, are in brackets: [fd00::1]:80".to_owned())
        }
        Ok(net) if net.trunc() != net => {
            Err(format!("{host} is an address in a network, not a network: write {} or {}", net.trunc(), net.addr()))
        }
        Ok(net) => Ok(Target::Net(canonical(net)?)),
        Err(_) if in_brackets || host.contains('/') => Err(format!("{host:?} is no address or network")),
        Err(_) => NamePattern::read(host).map(Target::Name).ok_or_else(|| no_name(host)),
    }
}

/// A network of IPv4-mapped addresses is one of IPv4.
pub(super) fn canonical(net: IpNet) -> Result<IpNet, String> {
    let IpNet::V6(of_six) = net else { return Ok(net) };
    let mapped = of_six.addr().to_ipv4_mapped().filter(|_| of_six.prefix_len() >= 96);
    match mapped {
        Some(address) => IpNet::new(address.into(), of_six.prefix_len() - 96).map_err(|error| error.to_string()),
        None => Ok(net),
    }
}

pub(super) fn ports(listed: &str) -> Result<Ports, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let range = |text: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        (first <= last).then_some(first..=last)
    };
    let ports = listed.split(',').map(range).collect::<Option<Vec<_>>>();
    ports.map(Ports).ok_or_else(|| format!("{listed:?} are no ports: expected 1 to 65535, as 80,443,8000-8999"))
}

/// What no guest is given, whatever its pod's rules are: a file of the operator.
///
/// Lines `deny ADDRESS`, `deny ADDRESS:PORTS`, `deny NAME` and `deny listen` take away; the other lines are rules as a pod's, and if
/// there are any, nothing but what they give can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkCeiling {
    pub(super) denied: Vec<(Target, Option<Ports>)>,
    pub(super) denies_listening: bool,
    pub(super) allowed: Option<NetworkRules>,
}

impl NetworkCeiling {
    /// Whether it takes nothing away.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for NetworkCeiling {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut ceiling = Self::default();
        for (number, line) in lines(text) {
            let failed = |what| RuleError { line: number, text: line.to_owned(), what };
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["deny", "listen"] => ceiling.denies_listening = true,
                ["deny", place] => ceiling.denied.push(denied(place).map_err(failed)?),
                ["deny", ..] => {
                    let what = "expected `deny ADDRESS`, `deny ADDRESS:PORTS`, `deny NAME` or `deny listen`";
                    return Err(failed(what.to_owned()));
                }
                _ => match rule(line).map_err(failed)? {
                    Rule::Details(_) | Rule::HttpDetails(_) => {
                        return Err(failed("a ceiling is about places, not about details".to_owned()));
                    }
                    rule => ceiling.allowed.get_or_insert_default().0.push(rule),
                },
            }
        }
        Ok(ceiling)
    }
}

fn denied(text: &str) -> Result<(Target, Option<Ports>), String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok((target(inner, true)?, None));
    }
    match text.matches(':').count() {
        0 => Ok((target(text, false)?, None)),
        more if more > 1 && !text.starts_with('[') => {
            Err("IPv6 addresses are in brackets: [fd00::/8] or [fd00::1]:22".to_owned())
        }
        _ => place(text).map(|(target, ports)| (target, Some(ports))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_give_something_of_another_one_are_known() {
        for (given, asked, is_given) in [
            ("tcp 10.0.0.0/8:80", "tcp 10.1.0.0/16:1-100", true),
            ("tcp 10.0.0.0/8:80", "udp 10.1.0.0/16:80", false),
            ("tcp 10.0.0.0/8:80", "tcp 10.1.0.0/16:81-90", false),
            ("tcp 10.0.0.0/8:80", "tcp 192.168.0.0/16:80", false),
            ("tcp *.plant.example:80", "tcp a.plant.example:80", true),
            ("tcp a.plant.example:80", "tcp *.plant.example:80", true),
            ("tcp a.example:80", "tcp b.example:80", false),
            ("tcp 10.0.0.0/8:4840", "tcp details", true),
            ("udp 10.0.0.0/8:4840", "tcp details", false),
            ("tcp details", "tcp 10.0.0.1:80", false),
            ("http https://a.example", "http details", true),
            ("http http://a.example", "http https://a.example", false),
            ("http http://[10.0.0.0/8]:80/onvif/*", "http http://[10.1.0.0/16]:1-65535/onvif/*", true),
            ("http http://[10.0.0.0/8]:80/onvif/*", "http http://[10.1.0.0/16]:80/other", false),
            ("tcp 10.0.0.1:80", "http http://[10.0.0.0/8]:80", true),
            ("dns *", "dns lds.example", true),
            ("dns lds.example", "dns *", true),
            ("http https://a.example", "dns a.example", true),
            ("tcp a.example:80", "dns b.example", false),
            ("listen tcp 80", "listen tcp 1-100", true),
            ("listen tcp 80", "listen udp 80", false),
            ("join 239.0.0.0/8:3702 on eth0", "join 239.255.255.250:3702", true),
            ("join 239.0.0.0/8:3702", "udp 239.255.255.250:3702", false),
            ("", "dns *", false),
        ] {
            let read = |text: &str| text.parse::<NetworkRules>().unwrap();
            assert_eq!(read(given).give_some_of(&read(asked).0[0]), is_given, "{given:?} of {asked:?}");
        }
    }

    #[test]
    fn every_rule_is_read() {
        let rules: NetworkRules = "\
            # for the camera\n\
            udp 239.255.255.250:3702   # probes\n\
            \n\
            tcp 10.0.0.0/8:80,443,8000-8999\n\
            tcp [fd00::/8]:554\n\
            tcp [::ffff:192.0.2.1]:1\n\
            tcp *.plant.example:4840\n\
            tcp details\n\
            dns LDS.plant.example.\n\
            listen tcp 8080\n\
            join 239.255.255.250:3702 on cam*\n\
            join [ff02::fb]:5353\n\
            http https://inventory.plant.example/devices*\n\
            http https://[10.0.0.0/24]:8443 any-certificate\n\
            http details\n\
            dns *\n"
            .parse()
            .unwrap();
        assert_eq!(rules.0.len(), 14);
        assert!(matches!(&rules.0[13], Rule::Names(name) if name.matches("plc") && name.matches("a.example")));
        assert_eq!(rules.0[12], Rule::HttpDetails(Certificates::Valid));
        assert!(matches!(&rules.0[11], Rule::Http(url) if url.certificates == Certificates::Any));
        let Rule::Reach { target, ports, .. } = &rules.0[1] else { panic!() };
        assert_eq!(*target, Target::Net("10.0.0.0/8".parse().unwrap()));
        assert!([80, 443, 8000, 8500, 8999].iter().all(|port| ports.contain(*port)) && !ports.contain(81));
        let Rule::Reach { target, .. } = &rules.0[3] else { panic!() };
        assert_eq!(*target, Target::Net("192.0.2.1/32".parse().unwrap()), "the same place, however it is written");
        let Rule::Reach { target: Target::Name(name), .. } = &rules.0[4] else { panic!() };
        assert!(name.matches("a.plant.example") && name.matches("A.B.Plant.Example."));
        assert!(
            !name.matches("plant.example") && !name.matches("evilplant.example") && !name.matches(".plant.example")
        );
        let Rule::Names(name) = &rules.0[6] else { panic!() };
        assert!(name.matches("lds.PLANT.example") && !name.matches("x.lds.plant.example"));
        assert_eq!("".parse::<NetworkRules>().unwrap(), NetworkRules::default());
    }

    #[test]
    fn what_is_no_rule_is_named_by_line_and_reason() {
        for (text, what) in [
            ("tcp 10.0.0.1", "it has no ports"),
            ("tcp 10.0.0.1:", "are no ports"),
            ("tcp 10.0.0.1:0", "are no ports"),
            ("tcp 10.0.0.1:90-80", "are no ports"),
            ("tcp 10.0.0.1:65536", "are no ports"),
            ("tcp 10.0.0.1:*", "are no ports"),
            ("tcp 10.0.0.1/8:80", "write 10.0.0.0/8 or 10.0.0.1"),
            ("tcp 10.0.0.300:80", "no host's name"),
            ("tcp fd00::1:80", "in brackets"),
            ("tcp [10.0.0.1]:80", "in brackets"),
            ("tcp [fd00::1]", "in brackets"),
            ("tcp 10.0.0.0/33:80", "no address or network"),
            ("tcp a..b:80", "no host's name"),
            ("tcp *:80", "no host's name"),
            ("dns *.*.example", "no host's name"),
            ("icmp 10.0.0.1", "expected `udp"),
            ("tcp", "expected `udp"),
            ("tcp 10.0.0.1:80 please", "expected `udp"),
            ("listen tcp", "expected `udp"),
            ("listen sctp 80", "expected `udp"),
            ("join 10.0.0.1:3702", "no multicast group"),
            ("join camera.example:3702", "no multicast group"),
            ("join 239.255.255.250", "it has no ports"),
            ("join 239.255.255.250:1 on", "expected `udp"),
            ("join 239.255.255.250:1 on a/b", "no network link's name"),
            ("http camera.example/", "no URL of a rule"),
            ("http http://camera.example/ any-certificate", "about https"),
            ("http https://camera.example/ no-certificate", "expected `udp"),
        ] {
            let error = format!("dns a.example\n{text}\n").parse::<NetworkRules>().unwrap_err().to_string();
            assert!(error.starts_with("line 2, ") && error.contains(what), "{text}: {error}");
        }
        assert!("dns a.example\n".repeat(257).parse::<NetworkRules>().is_err());
        assert!(" ".repeat(MOST_BYTES + 1).parse::<NetworkRules>().is_err());
    }

    #[test]
    fn a_ceiling_takes_away_or_is_all_there_is() {
        let ceiling = "deny 10.0.0.0/8\ndeny\t[fd00::1]:22\ndeny [fe80::/10]\ndeny *.corp.example\ndeny listen\n";
        let ceiling: NetworkCeiling = ceiling.parse().unwrap();
        assert_eq!((ceiling.denied.len(), &ceiling.allowed, ceiling.denies_listening), (4, &None, true));
        assert!(ceiling.denied[1].1.is_some() && ceiling.denied[2].1.is_none());
        let ceiling: NetworkCeiling = "tcp 192.168.0.0/16:80\n".parse().unwrap();
        assert_eq!(ceiling.allowed.unwrap().0.len(), 1);
        assert!("deny everything".parse::<NetworkCeiling>().is_ok(), "a host may be called so");
        for line in [
            "deny 10.0.0.1:x",
            "deny fd00::1",
            "deny 2001:db8::1:22",
            "deny",
            "deny tcp 10.0.0.1",
            "tcp details",
            "http details",
            "allow x",
        ] {
            assert!(line.parse::<NetworkCeiling>().is_err(), "{line}");
        }
    }
}
