//! What one guest may reach: its pod's rules, the operator's ceiling, and places that nobody reaches by accident.
//!
//! A rule for a network or a name does not open this machine (loopback and its own addresses), the metadata services of clouds or
//! the places that the node names (the API server): each of them needs a rule with its own address.

use super::rules::{NamePattern, NetworkCeiling, NetworkRules, Ports, Protocol, Rule, Target};
use crate::log::ContainerLog;
use akri_krustlet_host::TokenBucket;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use wasmtime_wasi::sockets::SocketAddrUse;

/// Bytes that one guest may send each second; also its burst.
pub(super) const SENT_BYTES: f64 = (4 << 20) as f64;
/// Addresses of names that one guest is remembered to have looked up.
const MOST_RESOLVED: usize = 256;
/// A denial is told once in this time.
const TOLD: Duration = Duration::from_secs(60);
/// Different denials that are told of one container in that time.
const MOST_TOLD: usize = 32;

/// Where clouds tell a machine's secrets to whoever asks.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
];

/// What all containers of a node are held to.
#[derive(Debug, Default)]
pub struct NodeNetwork {
    ceiling: NetworkCeiling,
    /// Addresses that need a rule of their own, besides those that always do.
    protected: Mutex<Vec<IpAddr>>,
    denials: AtomicU64,
}

impl NodeNetwork {
    /// With a ceiling.
    pub fn new(ceiling: NetworkCeiling) -> Self {
        Self { ceiling, ..Self::default() }
    }

    /// From now on, these addresses need a rule of their own, as this machine's.
    pub fn protect(&self, addresses: Vec<IpAddr>) {
        *self.protected.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Attempts that were denied, since the node began.
    pub fn denials(&self) -> u64 {
        self.denials.load(Ordering::Relaxed)
    }

    fn is_protected(&self, address: IpAddr) -> bool {
        self.protected.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }
}

/// What one container was granted.
#[derive(Clone, Debug)]
pub struct NetworkGrant {
    /// Its pod's rules.
    pub rules: Arc<NetworkRules>,
    /// What the node says.
    pub node: Arc<NodeNetwork>,
    /// What was denied lately, and told.
    pub denials: Arc<Denials>,
}

/// What one guest may reach.
#[derive(Debug)]
pub struct NetworkAccess {
    grant: NetworkGrant,
    /// What the details of its request name, as far as a rule gives that.
    details: Vec<Rule>,
    /// Where names led.
    resolved: Mutex<Vec<(IpAddr, Protocol, Ports)>>,
    sent: Mutex<TokenBucket>,
}

impl NetworkAccess {
    /// Of a guest that has a request with these details, JSON; or none.
    pub fn new(grant: NetworkGrant, details: &str) -> Arc<Self> {
        let protocols = grant.rules.0.iter().filter_map(|rule| match rule {
            Rule::Details(protocol) => Some(*protocol),
            _ => None,
        });
        let details = protocols.flat_map(|protocol| super::details::places(details, protocol)).collect();
        let sent = Mutex::new(TokenBucket::new(SENT_BYTES, SENT_BYTES));
        Arc::new(Self { grant, details, resolved: Mutex::default(), sent })
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.grant.rules.0.iter().chain(&self.details)
    }

    /// Whether a socket may do this; a denial is counted and told.
    pub(super) fn permits(&self, address: SocketAddr, how: SocketAddrUse) -> bool {
        let place = SocketAddr::new(address.ip().to_canonical(), address.port());
        let permitted = match how {
            SocketAddrUse::TcpBind => self.may_bind(Protocol::Tcp, place.port()),
            SocketAddrUse::UdpBind => self.may_bind(Protocol::Udp, place.port()),
            SocketAddrUse::TcpListen => self.listens(Protocol::Tcp, Some(place.port())),
            SocketAddrUse::TcpAccept => self.listens(Protocol::Tcp, None),
            SocketAddrUse::TcpConnect => self.may_reach(Protocol::Tcp, place),
            SocketAddrUse::UdpSend => {
                self.may_reach(Protocol::Udp, place) || self.listens(Protocol::Udp, None) && !self.is_special(place)
            }
            // Nobody is told of what came uncalled.
            SocketAddrUse::UdpReceive => return self.may_receive(place),
        };
        if !permitted {
            let what = match how {
                SocketAddrUse::TcpConnect => "tcp connection to",
                SocketAddrUse::UdpSend => "udp datagram to",
                SocketAddrUse::TcpBind | SocketAddrUse::TcpListen => "tcp listener on",
                SocketAddrUse::UdpBind => "udp socket on",
                _ => "use of",
            };
            self.deny(&format!("{what} {place}"), self.hint(place));
        }
        permitted
    }

    /// Why a rule that seems to give it does not.
    fn hint(&self, place: SocketAddr) -> &'static str {
        if self.is_special(place) {
            "it is this machine's, a cloud's metadata service or the API server, and needs a rule with just that address"
        } else {
            "no rule gives it"
        }
    }

    pub(super) fn deny(&self, what: &str, why: &str) {
        self.grant.node.denials.fetch_add(1, Ordering::Relaxed);
        self.grant.denials.tell(what, why);
    }

    fn may_bind(&self, protocol: Protocol, port: u16) -> bool {
        if port != 0 {
            return self.listens(protocol, Some(port));
        }
        self.rules().any(|rule| match rule {
            Rule::Reach { protocol: of, .. } | Rule::Listen { protocol: of, .. } => *of == protocol,
            _ => false,
        })
    }

    fn listens(&self, protocol: Protocol, port: Option<u16>) -> bool {
        let is_it = |rule: &Rule| match rule {
            Rule::Listen { protocol: of, ports } => *of == protocol && port.is_none_or(|port| ports.contain(port)),
            _ => false,
        };
        let ceiling = &self.grant.node.ceiling.allowed;
        self.rules().any(is_it) && ceiling.as_ref().is_none_or(|ceiling| ceiling.0.iter().any(is_it))
    }

    fn may_reach(&self, protocol: Protocol, place: SocketAddr) -> bool {
        self.is_given(protocol, place) && self.is_below_ceiling(protocol, place)
    }

    fn is_given(&self, protocol: Protocol, place: SocketAddr) -> bool {
        let special = self.is_special(place);
        // Only the pod's author opens special places, not a Configuration's.
        let by_rule = self.grant.rules.0.iter().any(|rule| gives(rule, protocol, place, special));
        let by_details = || self.details.iter().any(|rule| gives(rule, protocol, place, false));
        by_rule || !special && (by_details() || self.resolved_to(protocol, place))
    }

    fn resolved_to(&self, protocol: Protocol, place: SocketAddr) -> bool {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved
            .iter()
            .any(|(address, of, ports)| *address == place.ip() && *of == protocol && ports.contain(place.port()))
    }

    fn is_below_ceiling(&self, protocol: Protocol, place: SocketAddr) -> bool {
        let ceiling = &self.grant.node.ceiling;
        let denies = |(target, ports): &(Target, Option<Ports>)| {
            let here = ports.as_ref().is_none_or(|ports| ports.contain(place.port()));
            here && matches!(target, Target::Net(net) if net.contains(&place.ip()))
        };
        let gives_it = |rules: &NetworkRules| rules.0.iter().any(|rule| gives(rule, protocol, place, false));
        !ceiling.denied.iter().any(denies) && ceiling.allowed.as_ref().is_none_or(gives_it)
    }

    fn may_receive(&self, place: SocketAddr) -> bool {
        let to_many = |rule: &Rule| match rule {
            Rule::Reach { protocol: Protocol::Udp, target: Target::Net(net), .. } => {
                net.addr().is_multicast() || net.addr() == IpAddr::V4(Ipv4Addr::BROADCAST) || is_directed_broadcast(net)
            }
            _ => false,
        };
        self.may_reach(Protocol::Udp, place)
            || self.listens(Protocol::Udp, None)
            || is_private(place.ip()) && self.rules().any(to_many)
    }

    /// Addresses that no network and no name opens.
    fn is_special(&self, place: SocketAddr) -> bool {
        let address = place.ip();
        address.is_loopback()
            || address.is_unspecified()
            || METADATA.contains(&address)
            || self.grant.node.is_protected(address)
            || is_own(place)
    }

    /// Whether a name may be looked up.
    pub(super) fn may_look_up(&self, name: &str) -> bool {
        let given = self.rules().any(|rule| match rule {
            Rule::Names(pattern) | Rule::Reach { target: Target::Name(pattern), .. } => pattern.matches(name),
            _ => false,
        });
        let ceiling = &self.grant.node.ceiling;
        let denied =
            ceiling.denied.iter().any(|(target, _)| matches!(target, Target::Name(pattern) if pattern.matches(name)));
        let allowed = ceiling.allowed.as_ref().is_none_or(|rules| {
            rules.0.iter().any(|rule| match rule {
                Rule::Names(pattern) | Rule::Reach { target: Target::Name(pattern), .. } => pattern.matches(name),
                _ => false,
            })
        });
        given && !denied && allowed
    }

    /// What of the addresses that a name led to the guest is told; those that its rules give by the name can be reached from now on.
    pub(super) fn resolved(&self, name: &str, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let single = |address: &IpAddr| {
            let is_it =
                |rule: &Rule| matches!(rule, Rule::Reach { target: Target::Net(net), .. } if is_single(net, *address));
            self.grant.rules.0.iter().any(is_it)
        };
        let (told, kept_back): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .map(|address| address.to_canonical())
            .partition(|address| !self.is_special(SocketAddr::new(*address, 0)) || single(address));
        for address in kept_back {
            self.deny(&format!("{name}, which leads to {address},"), self.hint(SocketAddr::new(address, 0)));
        }
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in self.grant.rules.0.iter().chain(&self.details) {
            if let Rule::Reach { protocol, target: Target::Name(pattern), ports } = rule
                && pattern.matches(name)
            {
                resolved.extend(told.iter().map(|address| (*address, *protocol, ports.clone())));
            }
        }
        let surplus = resolved.len().saturating_sub(MOST_RESOLVED);
        resolved.drain(..surplus);
        told
    }

    /// Counts bytes as sent, and tells from when on more may be sent.
    pub(super) fn sends(&self, bytes: usize) -> tokio::time::Instant {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.spend(bytes as f64);
        sent.when(0.0)
    }
}

fn gives(rule: &Rule, protocol: Protocol, place: SocketAddr, is_special: bool) -> bool {
    match rule {
        Rule::Reach { protocol: of, target: Target::Net(net), ports } => {
            let there = if is_special { is_single(net, place.ip()) } else { net.contains(&place.ip()) };
            *of == protocol && there && ports.contain(place.port())
        }
        _ => false,
    }
}

fn is_single(net: &ipnet::IpNet, address: IpAddr) -> bool {
    net.prefix_len() == net.max_prefix_len() && net.addr() == address
}

/// A rule for one address that ends in ones is most often one for a network's broadcast address.
fn is_directed_broadcast(net: &ipnet::IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len() && matches!(net.addr(), IpAddr::V4(address) if address.octets()[3] == 255)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (address.is_private() || address.is_link_local()) && !METADATA.contains(&address.into()),
        IpAddr::V6(address) => {
            (address.is_unique_local() || address.is_unicast_link_local()) && !METADATA.contains(&address.into())
        }
    }
}

/// Whether an address is this machine's: what is sent to it would be sent from it, too. Nothing is sent to find out.
fn is_own(place: SocketAddr) -> bool {
    if place.ip().is_multicast() || place.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return false;
    }
    let any: SocketAddr = match place {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let mut there = place;
    there.set_port(9);
    let local = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(there)?;
        socket.local_addr()
    });
    local.is_ok_and(|local| local.ip() == place.ip())
}

/// Tells of denials: each once in a while, in the container's log and the node's.
#[derive(Debug)]
pub struct Denials {
    container: String,
    log: Option<Arc<ContainerLog>>,
    told: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Denials {
    /// Of a container, `namespace/pod/container`.
    pub fn new(container: &str, log: Option<Arc<ContainerLog>>) -> Arc<Self> {
        Arc::new(Self { container: container.to_owned(), log, told: Mutex::default() })
    }

    fn tell(&self, what: &str, why: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = match told.get_mut(what) {
            Some((at, more)) if now.duration_since(*at) < TOLD => {
                *more += 1;
                return;
            }
            Some((_, more)) => std::mem::take(more),
            None => 0,
        };
        told.retain(|_, (at, _)| now.duration_since(*at) < TOLD);
        if told.len() >= MOST_TOLD {
            return;
        }
        told.insert(what.to_owned(), (now, 0));
        drop(told);
        let again = if before > 0 { format!(" ({before} more in the meantime)") } else { String::new() };
        tracing::warn!(container = self.container, "network: {what} denied: {why}{again}");
        if let Some(log) = &self.log {
            log.note(&format!("[akri-krustlet] network: {what} denied: {why}{again}"));
        }
    }
}

/// A host named in details.
pub(super) fn host_rule(protocol: Protocol, host: &str, port: u16) -> Option<Rule> {
    let target = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(address) => Target::Net(address.to_canonical().into()),
        Err(_) => Target::Name(NamePattern::host(host)?),
    };
    Some(Rule::Reach { protocol, target, ports: Ports::one(port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(rules: &str, node: NodeNetwork, details: &str) -> Arc<NetworkAccess> {
        let grant = NetworkGrant {
            rules: Arc::new(rules.parse().unwrap()),
            node: Arc::new(node),
            denials: Denials::new("default/pod/main", None),
        };
        NetworkAccess::new(grant, details)
    }

    fn tcp(access: &NetworkAccess, place: &str) -> bool {
        access.permits(place.parse().unwrap(), SocketAddrUse::TcpConnect)
    }

    #[tokio::test]
    async fn networks_and_names_do_not_open_this_machine_nor_metadata_nor_what_the_node_protects() {
        let node = NodeNetwork::default();
        node.protect(vec!["192.0.2.9".parse().unwrap()]);
        let access = access("tcp 0.0.0.0/0:1-65535\ntcp [::/0]:1-65535\ntcp 127.0.0.1:8080\n", node, "");
        assert!(tcp(&access, "192.0.2.1:80") && tcp(&access, "[2001:db8::1]:80"));
        for place in [
            "127.0.0.1:80",
            "127.8.8.8:80",
            "0.0.0.0:80",
            "[::]:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fd00:ec2::254]:80",
            "192.0.2.9:6443",
            "[::ffff:192.0.2.9]:6443",
        ] {
            assert!(!tcp(&access, place), "{place}");
        }
        assert!(tcp(&access, "127.0.0.1:8080") && tcp(&access, "[::ffff:127.0.0.1]:8080"), "it has a rule of its own");
        assert!(!tcp(&access, "127.0.0.2:8080"));
        assert_eq!(access.grant.node.denials(), 12);
    }

    #[tokio::test]
    async fn this_machines_own_addresses_are_known_without_a_packet() {
        // Loopback is the one address that every machine has.
        assert!(is_own("127.0.0.1:80".parse().unwrap()));
        assert!(!is_own("192.0.2.1:80".parse().unwrap()) && !is_own("239.255.255.250:3702".parse().unwrap()));
    }

    #[tokio::test]
    async fn answers_to_a_group_come_from_private_addresses_and_others_from_whom_was_asked() {
        let receives =
            |access: &NetworkAccess, place: &str| access.permits(place.parse().unwrap(), SocketAddrUse::UdpReceive);
        let group = access("udp 239.255.255.250:3702", NodeNetwork::default(), "");
        assert!(group.permits("239.255.255.250:3702".parse().unwrap(), SocketAddrUse::UdpSend));
        assert!(!group.permits("239.255.255.250:3703".parse().unwrap(), SocketAddrUse::UdpSend));
        assert!(!group.permits("192.168.1.5:3702".parse().unwrap(), SocketAddrUse::UdpSend));
        assert!(receives(&group, "192.168.1.5:3702") && receives(&group, "[fe80::1]:5353"));
        assert!(!receives(&group, "8.8.8.8:3702") && !receives(&group, "169.254.169.254:80"));
        let one = access("udp 192.168.1.5:161", NodeNetwork::default(), "");
        assert!(
            receives(&one, "192.168.1.5:161")
                && !receives(&one, "192.168.1.6:161")
                && !receives(&one, "192.168.1.5:162")
        );
        assert!(one.permits("0.0.0.0:0".parse().unwrap(), SocketAddrUse::UdpBind));
        assert!(!one.permits("0.0.0.0:161".parse().unwrap(), SocketAddrUse::UdpBind));
        assert!(!one.permits("0.0.0.0:0".parse().unwrap(), SocketAddrUse::TcpBind));
    }

    #[tokio::test]
    async fn a_name_opens_where_it_leads_unless_that_is_special() {
        let access = access("tcp *.plant.example:80\ndns other.example\ntcp 127.0.0.1:1\n", NodeNetwork::default(), "");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(access.may_look_up("A.plant.example.") && access.may_look_up("other.example"));
        assert!(!access.may_look_up("plant.example") && !access.may_look_up("x.other.example"));
        assert!(!tcp(&access, "203.0.113.1:80"));
        let all =
            vec![ip("203.0.113.1"), ip("169.254.169.254"), ip("::1"), ip("::ffff:169.254.169.254"), ip("0.0.0.0")];
        assert_eq!(
            access.resolved("a.plant.example", all),
            [ip("203.0.113.1")],
            "a name that leads elsewhere now opens nothing"
        );
        assert!(
            tcp(&access, "203.0.113.1:80") && !tcp(&access, "203.0.113.1:81") && !tcp(&access, "169.254.169.254:80")
        );
        // Looked up only; and an address that is granted itself is told.
        assert_eq!(
            access.resolved("other.example", vec![ip("203.0.113.2"), ip("127.0.0.1")]),
            [ip("203.0.113.2"), ip("127.0.0.1")]
        );
        assert!(!tcp(&access, "203.0.113.2:80") && tcp(&access, "127.0.0.1:1") && !tcp(&access, "127.0.0.1:80"));
        for number in 0..1000 {
            access.resolved("a.plant.example", vec![IpAddr::from([198, 51, 100, (number % 256) as u8])]);
        }
        assert!(access.resolved.lock().unwrap().len() <= MOST_RESOLVED);
    }

    #[tokio::test]
    async fn a_ceiling_is_above_every_rule() {
        let all = "tcp 0.0.0.0/0:1-65535\ndns *.example\nlisten tcp 80,81\n";
        let denied = NodeNetwork::new("deny 10.0.0.0/8\ndeny 192.0.2.1:22\ndeny *.corp.example".parse().unwrap());
        let access_denied = access(all, denied, "");
        assert!(
            !tcp(&access_denied, "10.1.2.3:80")
                && !tcp(&access_denied, "192.0.2.1:22")
                && tcp(&access_denied, "192.0.2.1:80")
        );
        assert!(!access_denied.may_look_up("a.corp.example") && access_denied.may_look_up("a.example"));
        let only = NodeNetwork::new("tcp 192.0.2.0/24:80\nlisten tcp 80".parse().unwrap());
        let access_only = access(all, only, "");
        assert!(
            tcp(&access_only, "192.0.2.1:80")
                && !tcp(&access_only, "192.0.2.1:81")
                && !tcp(&access_only, "198.51.100.1:80")
        );
        assert!(access_only.permits("0.0.0.0:80".parse().unwrap(), SocketAddrUse::TcpBind));
        assert!(!access_only.permits("0.0.0.0:81".parse().unwrap(), SocketAddrUse::TcpBind));
        assert!(!access_only.may_look_up("a.example"));
    }

    #[tokio::test]
    async fn details_open_what_their_urls_name_and_no_more() {
        let details = r#"{"discoveryUrls": ["opc.tcp://192.0.2.1:4840/", "opc.tcp://lds.plant.example", "http://[2001:db8::1]/x",
            "https://user:secret@198.51.100.7/?u=http://203.0.113.1/", "opc.tcp://127.0.0.1:4840", "no url", "file:///etc/passwd", "10.0.0.1:80"]}"#;
        let by_details = access("tcp details", NodeNetwork::default(), details);
        assert!(
            tcp(&by_details, "192.0.2.1:4840")
                && tcp(&by_details, "[2001:db8::1]:80")
                && tcp(&by_details, "198.51.100.7:443")
        );
        for place in ["192.0.2.1:80", "203.0.113.1:80", "10.0.0.1:80", "127.0.0.1:4840"] {
            assert!(!tcp(&by_details, place), "{place}");
        }
        assert!(by_details.may_look_up("lds.plant.example") && !by_details.may_look_up("plant.example"));
        let lds = by_details.resolved("lds.plant.example", vec!["192.0.2.50".parse().unwrap()]);
        assert!(lds.len() == 1 && tcp(&by_details, "192.0.2.50:4840") && !tcp(&by_details, "192.0.2.50:4841"));
        let without = access("tcp 198.51.100.1:1", NodeNetwork::default(), details);
        assert!(!tcp(&without, "192.0.2.1:4840") && !without.may_look_up("lds.plant.example"));
    }

    #[tokio::test]
    async fn denials_are_counted_and_told_once() {
        let access = access("tcp 192.0.2.1:80", NodeNetwork::default(), "");
        for _ in 0..1000 {
            assert!(!tcp(&access, "192.0.2.2:80"));
        }
        for port in 1..1000 {
            tcp(&access, &format!("192.0.2.3:{port}"));
        }
        assert_eq!(access.grant.node.denials(), 1999);
        let told = access.grant.denials.told.lock().unwrap();
        assert!(told.len() <= MOST_TOLD && told["tcp connection to 192.0.2.2:80"].1 == 999);
    }
}
