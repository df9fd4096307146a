//! What one guest may reach: its pod's rules, the operator's ceiling, and places that nobody reaches by accident.
//!
//! A rule for a network or a name does not open this machine (loopback and its own addresses), the metadata services of clouds or
//! the places that the node names (the API server): each of them needs a rule with its own address.

use super::denials::Denials;
use super::rules::{NamePattern, NetworkCeiling, NetworkRules, Ports, Protocol, Rule, Target};
use super::special::{SpecialAddresses, canonical, is_private, is_single};
use akri_krustlet_events::LinkNames;
use akri_krustlet_host::TokenBucket;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use wasmtime_wasi::sockets::SocketAddrUse;

/// Bytes that the guests of one container may send each second; also their burst.
pub(super) const SENT_BYTES: f64 = (4 << 20) as f64;
/// Addresses of names that one guest is remembered to have looked up.
const MOST_RESOLVED: usize = 256;
/// Peers of its listeners that are remembered, so that they can be answered.
const MOST_HEARD: usize = 64;
/// Look-ups of one container at once.
const MOST_LOOK_UPS: usize = 2;

const NO_RULES: &str = "its pod grants no network (spec.hostNetwork: true and annotation akri-krustlet/network)";
const CEILING: &str = "the node gives it to no pod (--network-ceiling)";
const SPECIAL: &str =
    "it is this machine's, a cloud's metadata service or the API server, and needs a rule with just that address";

/// What all containers of a node are held to.
#[derive(Debug, Default)]
pub struct NodeNetwork {
    ceiling: NetworkCeiling,
    special: SpecialAddresses,
    denials: AtomicU64,
}

impl NodeNetwork {
    /// Whether rules give listening on a port, or on any without one, and the ceiling lets them.
    pub fn gives_listening(&self, rules: &NetworkRules, protocol: Protocol, port: Option<u16>) -> bool {
        let allowed = self.ceiling.allowed.as_ref();
        rules.give_listening(protocol, port)
            && !self.ceiling.denies_listening
            && allowed.is_none_or(|allowed| allowed.give_listening(protocol, port))
    }

    /// With a ceiling.
    pub fn new(ceiling: NetworkCeiling) -> Self {
        Self { ceiling, ..Self::default() }
    }

    /// From now on, these addresses need a rule of their own, as this machine's.
    pub fn protect(&self, addresses: Vec<IpAddr>) {
        self.special.protect(addresses);
    }

    /// Attempts that were denied, since the node began.
    pub fn denials(&self) -> u64 {
        self.denials.load(Ordering::Relaxed)
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
    /// What its guests send.
    sent: Arc<Mutex<TokenBucket>>,
    /// Look-ups that wait for the resolver.
    pub(super) look_ups: Arc<Semaphore>,
}

impl NetworkGrant {
    /// Of a container whose pod has these rules.
    pub fn new(rules: Arc<NetworkRules>, node: Arc<NodeNetwork>, denials: Arc<Denials>) -> Self {
        let sent = Arc::new(Mutex::new(TokenBucket::new(SENT_BYTES, SENT_BYTES)));
        Self { rules, node, denials, sent, look_ups: Arc::new(Semaphore::new(MOST_LOOK_UPS)) }
    }
}

impl NetworkGrant {
    /// Whether a rule gives it a multicast group.
    pub fn joins_groups(&self) -> bool {
        self.rules.0.iter().any(|rule| matches!(rule, Rule::Join { .. }))
    }
}

/// What one guest may reach.
#[derive(Debug)]
pub struct NetworkAccess {
    pub(super) grant: NetworkGrant,
    /// What the details of its request name, as far as a rule gives that.
    details: Vec<Rule>,
    /// Where names led that its rules have, and where those led that the ceiling has.
    resolved: Mutex<Resolved>,
    ceiling_resolved: Mutex<Resolved>,
    /// Who has sent something to its listeners.
    heard: Mutex<VecDeque<SocketAddr>>,
}

impl NetworkAccess {
    /// Of a guest that has a request with these details, JSON; or none.
    pub fn new(grant: NetworkGrant, details: &str) -> Arc<Self> {
        let protocols = grant.rules.0.iter().filter_map(|rule| match rule {
            Rule::Details(protocol) => Some(*protocol),
            _ => None,
        });
        let details = protocols.flat_map(|protocol| super::details::places(details, protocol)).collect();
        Arc::new(Self {
            grant,
            details,
            resolved: Mutex::default(),
            ceiling_resolved: Mutex::default(),
            heard: Mutex::default(),
        })
    }

    /// Whether it may listen to groups.
    pub fn joins_groups(&self) -> bool {
        self.grant.joins_groups()
    }

    /// Whether there is nothing to reach; then the attempt to make a socket is counted and told.
    pub(super) fn denies_sockets(&self) -> bool {
        let denies = self.grant.rules.0.is_empty();
        if denies {
            self.deny("a socket", NO_RULES);
        }
        denies
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.grant.rules.0.iter().chain(&self.details)
    }

    /// Whether a socket may do this; a denial is counted and told.
    pub(super) fn permits(&self, address: SocketAddr, how: SocketAddrUse) -> bool {
        let place = canonical(address);
        let (what, permitted) = match how {
            SocketAddrUse::TcpBind => ("tcp socket on", self.may_bind(Protocol::Tcp, place.port())),
            SocketAddrUse::UdpBind => ("udp socket on", self.may_bind(Protocol::Udp, place.port())),
            SocketAddrUse::TcpListen => ("tcp listener on", self.listens(Protocol::Tcp, Some(place.port()))),
            SocketAddrUse::TcpConnect => ("tcp connection to", self.may_reach(Protocol::Tcp, place)),
            SocketAddrUse::UdpSend => {
                ("udp datagram to", self.may_reach(Protocol::Udp, place) || self.may_answer(place))
            }
            // Nobody is told of what came uncalled.
            SocketAddrUse::TcpAccept => return self.listens(Protocol::Tcp, None) && !self.is_denied(place),
            SocketAddrUse::UdpReceive => return self.may_receive(place),
        };
        if !permitted {
            self.deny(&format!("{what} {place}"), self.reason(place, how));
        }
        permitted
    }

    /// Why something is denied, and the way out.
    fn reason(&self, place: SocketAddr, how: SocketAddrUse) -> &'static str {
        let (protocol, is_bind) = match how {
            SocketAddrUse::TcpConnect => (Protocol::Tcp, false),
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => (Protocol::Tcp, true),
            SocketAddrUse::UdpBind => (Protocol::Udp, true),
            SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => (Protocol::Udp, false),
        };
        if self.grant.rules.0.is_empty() {
            return NO_RULES;
        }
        match is_bind {
            true if self.grant.rules.give_listening(protocol, Some(place.port())) => CEILING,
            true => "no rule `listen` of its pod gives that port",
            false if self.is_given(protocol, place) => CEILING,
            false if self.is_special(place) => SPECIAL,
            false => "no rule of its pod gives it",
        }
    }

    pub(crate) fn deny(&self, what: &str, why: &str) {
        self.grant.node.denials.fetch_add(1, Ordering::Relaxed);
        self.grant.denials.tell(what, why);
    }

    fn ceiling(&self) -> &NetworkCeiling {
        &self.grant.node.ceiling
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
        self.grant.node.gives_listening(&self.grant.rules, protocol, port)
    }

    fn may_reach(&self, protocol: Protocol, place: SocketAddr) -> bool {
        self.is_given(protocol, place) && !self.is_denied(place) && self.is_allowed(protocol, place)
    }

    fn is_given(&self, protocol: Protocol, place: SocketAddr) -> bool {
        let special = self.is_special(place);
        // Only the pod's author opens special places, not a Configuration's.
        let by_rule = self.grant.rules.0.iter().any(|rule| gives(rule, protocol, place, special));
        let by_details = || self.details.iter().any(|rule| gives(rule, protocol, place, false));
        by_rule || !special && (by_details() || led_to(&self.resolved, protocol, place))
    }

    fn is_denied(&self, place: SocketAddr) -> bool {
        self.ceiling().denied.iter().any(|(target, ports)| {
            let here = ports.as_ref().is_none_or(|ports| ports.contain(place.port()));
            here && matches!(target, Target::Net(net) if net.contains(&place.ip()))
        })
    }

    fn is_allowed(&self, protocol: Protocol, place: SocketAddr) -> bool {
        let by_rule = |rules: &NetworkRules| rules.0.iter().any(|rule| gives(rule, protocol, place, false));
        self.ceiling().allowed.as_ref().is_none_or(by_rule) || led_to(&self.ceiling_resolved, protocol, place)
    }

    fn may_receive(&self, place: SocketAddr) -> bool {
        let to_many = |rule: &Rule| match rule {
            Rule::Reach { protocol: Protocol::Udp, target: Target::Net(net), .. } => net.addr().is_multicast(),
            _ => false,
        };
        if self.is_denied(place) {
            return false;
        }
        if self.listens(Protocol::Udp, None) {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if !heard.contains(&place) {
                heard.push_back(place);
            }
            if heard.len() > MOST_HEARD {
                heard.pop_front();
            }
            return true;
        }
        self.may_reach(Protocol::Udp, place) || is_private(place.ip()) && self.rules().any(to_many)
    }

    /// On which network links a group may be listened to, of one or of all; none if it may not, which is counted and told.
    pub(crate) fn may_join(&self, place: SocketAddr, link: Option<&str>) -> Option<LinkNames> {
        let place = canonical(place);
        let (mut links, mut why) = (joins(self.rules(), place), "no rule `join` of its pod gives it");
        if let Some(names) = links {
            links = match &self.ceiling().allowed {
                _ if self.is_denied(place) => None,
                None => Some(names),
                Some(rules) => joins(rules.0.iter(), place).and_then(|allowed| names.and(allowed)),
            };
            why = CEILING;
        }
        if let (Some(names), Some(link)) = (&links, link) {
            links = names.contain(link).then(|| LinkNames::Named(vec![link.to_owned()]));
        }
        if links.is_none() {
            let why = if self.grant.rules.0.is_empty() { NO_RULES } else { why };
            self.deny(
                &format!("multicast group {place}{}", link.map(|link| format!(" on {link}")).unwrap_or_default()),
                why,
            );
        }
        links
    }

    /// Whose datagrams a listener to a group is given: those of a local network, and of whom its rules name.
    pub(crate) fn may_hear(&self, from: SocketAddr) -> bool {
        let from = canonical(from);
        !self.is_denied(from) && (is_private(from.ip()) || self.may_reach(Protocol::Udp, from))
    }

    /// A server answers who has asked it.
    fn may_answer(&self, place: SocketAddr) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.contains(&place) && self.listens(Protocol::Udp, None) && !self.is_denied(place)
    }

    /// Addresses that no network and no name opens.
    fn is_special(&self, place: SocketAddr) -> bool {
        self.grant.node.special.contain(place)
    }

    /// Why a name may not be looked up, if it may not.
    pub(super) fn look_up_denied(&self, name: &str) -> Option<&'static str> {
        let has = |rule: &Rule| name_of(rule).is_some_and(|pattern| pattern.matches(name));
        let ceiling = self.ceiling();
        if self.grant.rules.0.is_empty() {
            return Some(NO_RULES);
        }
        if !self.rules().any(has) {
            return Some("no rule of its pod gives it");
        }
        let denied = |(target, _): &(Target, _)| matches!(target, Target::Name(pattern) if pattern.matches(name));
        let allowed = ceiling.allowed.as_ref().is_none_or(|rules| rules.0.iter().any(has));
        (ceiling.denied.iter().any(denied) || !allowed).then_some(CEILING)
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
            self.deny(&format!("{name}, which leads to {address},"), SPECIAL);
        }
        remember(&self.resolved, self.rules(), name, &told);
        remember(&self.ceiling_resolved, self.ceiling().allowed.iter().flat_map(|rules| &rules.0), name, &told);
        told
    }

    /// Counts bytes as sent, and tells from when on more may be sent.
    pub(super) fn sends(&self, bytes: usize) -> tokio::time::Instant {
        let mut sent = self.grant.sent.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The links on which rules give a group.
fn joins<'a>(rules: impl Iterator<Item = &'a Rule>, place: SocketAddr) -> Option<LinkNames> {
    let mut named = None;
    for rule in rules {
        match rule {
            Rule::Join { groups, ports, link } if groups.contains(&place.ip()) && ports.contain(place.port()) => {
                match link {
                    None => return Some(LinkNames::All),
                    Some(link) => named.get_or_insert_with(Vec::new).push(link.clone()),
                }
            }
            _ => {}
        }
    }
    named.map(LinkNames::Named)
}

/// The names that a rule has looked up.
fn name_of(rule: &Rule) -> Option<&NamePattern> {
    match rule {
        Rule::Names(pattern) | Rule::Reach { target: Target::Name(pattern), .. } => Some(pattern),
        _ => None,
    }
}

/// Addresses of names, and what of them is given.
type Resolved = VecDeque<(IpAddr, Protocol, Ports)>;

fn led_to(resolved: &Mutex<Resolved>, protocol: Protocol, place: SocketAddr) -> bool {
    let resolved = resolved.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it = |(address, of, ports): &(IpAddr, Protocol, Ports)| {
        *address == place.ip() && *of == protocol && ports.contain(place.port())
    };
    resolved.iter().any(is_it)
}

fn remember<'a>(resolved: &Mutex<Resolved>, rules: impl Iterator<Item = &'a Rule>, name: &str, addresses: &[IpAddr]) {
    let mut resolved = resolved.lock().unwrap_or_else(PoisonError::into_inner);
    for rule in rules {
        if let Rule::Reach { protocol, target: Target::Name(pattern), ports } = rule
            && pattern.matches(name)
        {
            for address in addresses {
                let new = (*address, *protocol, ports.clone());
                resolved.retain(|old| *old != new);
                resolved.push_back(new);
            }
        }
    }
    let surplus = resolved.len().saturating_sub(MOST_RESOLVED);
    resolved.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::denials::MOST_TOLD;

    impl NetworkAccess {
        fn looks_up(&self, name: &str) -> bool {
            self.look_up_denied(name).is_none()
        }
    }

    fn access(rules: &str, node: NodeNetwork, details: &str) -> Arc<NetworkAccess> {
        let denials = Denials::new("default/pod/main", None);
        let grant = NetworkGrant::new(Arc::new(rules.parse().unwrap()), Arc::new(node), denials);
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
        assert!(access.looks_up("A.plant.example.") && access.looks_up("other.example"));
        assert!(!access.looks_up("plant.example") && !access.looks_up("x.other.example"));
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
        assert!(!access_denied.looks_up("a.corp.example") && access_denied.looks_up("a.example"));
        let only = NodeNetwork::new("tcp 192.0.2.0/24:80\nlisten tcp 80".parse().unwrap());
        let access_only = access(all, only, "");
        assert!(
            tcp(&access_only, "192.0.2.1:80")
                && !tcp(&access_only, "192.0.2.1:81")
                && !tcp(&access_only, "198.51.100.1:80")
        );
        assert!(access_only.permits("0.0.0.0:80".parse().unwrap(), SocketAddrUse::TcpBind));
        assert!(!access_only.permits("0.0.0.0:81".parse().unwrap(), SocketAddrUse::TcpBind));
        assert!(!access_only.looks_up("a.example"));
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
        assert!(by_details.looks_up("lds.plant.example") && !by_details.looks_up("plant.example"));
        let lds = by_details.resolved("lds.plant.example", vec!["192.0.2.50".parse().unwrap()]);
        assert!(lds.len() == 1 && tcp(&by_details, "192.0.2.50:4840") && !tcp(&by_details, "192.0.2.50:4841"));
        let without = access("tcp 198.51.100.1:1", NodeNetwork::default(), details);
        assert!(!tcp(&without, "192.0.2.1:4840") && !without.looks_up("lds.plant.example"));
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

    #[tokio::test]
    async fn a_server_answers_who_has_asked_and_sends_to_nobody_else() {
        let node = NodeNetwork::new("deny 203.0.113.0/24".parse().unwrap());
        let server = access("listen udp 5000\nlisten tcp 80", node, "");
        let use_of = |place: &str, how| server.permits(place.parse().unwrap(), how);
        assert!(!use_of("198.51.100.1:99", SocketAddrUse::UdpSend), "nobody has asked");
        assert!(
            use_of("198.51.100.1:99", SocketAddrUse::UdpReceive) && use_of("198.51.100.1:99", SocketAddrUse::UdpSend)
        );
        assert!(
            !use_of("198.51.100.1:98", SocketAddrUse::UdpSend) && !use_of("198.51.100.2:99", SocketAddrUse::UdpSend)
        );
        // What the operator denies neither asks nor is answered.
        assert!(
            !use_of("203.0.113.7:99", SocketAddrUse::UdpReceive) && !use_of("203.0.113.7:99", SocketAddrUse::UdpSend)
        );
        assert!(
            !use_of("203.0.113.7:99", SocketAddrUse::TcpAccept) && use_of("198.51.100.1:1", SocketAddrUse::TcpAccept)
        );
        let silent = access("listen udp 5000", NodeNetwork::new("deny listen".parse().unwrap()), "");
        assert!(!silent.permits("0.0.0.0:5000".parse().unwrap(), SocketAddrUse::UdpBind));
    }

    #[tokio::test]
    async fn a_ceiling_of_names_gives_what_they_lead_to() {
        let node = NodeNetwork::new("tcp *.plant.example:4840".parse().unwrap());
        let access = access("tcp 0.0.0.0/0:1-65535\ndns *.example", node, "");
        assert!(access.looks_up("a.plant.example") && !access.looks_up("a.example"));
        assert!(!tcp(&access, "203.0.113.5:4840"));
        access.resolved("a.plant.example", vec!["203.0.113.5".parse().unwrap()]);
        assert!(tcp(&access, "203.0.113.5:4840") && !tcp(&access, "203.0.113.5:80"));
    }

    #[tokio::test]
    async fn a_denial_says_whose_it_is() {
        let told = |access: &NetworkAccess| {
            let told = access.grant.denials.told.lock().unwrap();
            told.keys().cloned().collect::<Vec<_>>().join("; ")
        };
        let connect = SocketAddrUse::TcpConnect;
        let node = NodeNetwork::new("deny 203.0.113.1".parse().unwrap());
        let some = access("tcp 203.0.113.1:80\nlisten tcp 80", node, "");
        let reason = |place: &str, how| some.reason(place.parse().unwrap(), how);
        assert_eq!(reason("203.0.113.1:80", connect), CEILING);
        assert_eq!(reason("127.0.0.1:80", connect), SPECIAL);
        assert!(reason("203.0.113.2:80", connect).starts_with("no rule of its pod"));
        assert!(reason("0.0.0.0:81", SocketAddrUse::TcpBind).contains("`listen`"));
        let none = access("", NodeNetwork::default(), "");
        assert!(!tcp(&none, "203.0.113.2:80") && !none.permits("0.0.0.0:0".parse().unwrap(), SocketAddrUse::UdpBind));
        assert_eq!(none.reason("203.0.113.2:80".parse().unwrap(), connect), NO_RULES);
        assert_eq!(none.look_up_denied("a.example"), Some(NO_RULES));
        assert!(told(&none).contains("tcp connection to 203.0.113.2:80"));
    }
}
