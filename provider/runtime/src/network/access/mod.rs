//! What one guest may reach: its pod's rules, the operator's ceiling, and places that nobody reaches by accident.
//!
//! A rule for a network or a name does not open this machine (loopback and its own addresses), the metadata services of clouds or
//! the places that the node names (the API server): each of them needs a rule with its own address.

mod requests;
#[cfg(test)]
mod tests;

use super::denials::Denials;
use super::rules::{NamePattern, NetworkCeiling, NetworkRules, Ports, Protocol, Rule, Target};
use super::special::{SpecialAddresses, canonical, is_private, is_single};
use super::urls::UrlPattern;
use crate::limits::SharedLimits;
use akri_krustlet_events::LinkNames;
use akri_krustlet_host::TokenBucket;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::Semaphore;
use wasmtime_wasi::sockets::SocketAddrUse;

/// Bytes that the guests of one container may send each second; also their burst.
pub(super) const SENT_BYTES: f64 = (4 << 20) as f64;
/// Bytes of answers to requests that the node receives for the guests of one container each second; also their burst. Taking them
/// in, with TLS, is the node's work and not in a guest's share of CPU.
const RECEIVED_BYTES: f64 = (16 << 20) as f64;
/// Addresses of names that one guest is remembered to have looked up.
const MOST_RESOLVED: usize = 256;
/// Peers of its listeners that are remembered, so that they can be answered.
const MOST_HEARD: usize = 64;
/// Look-ups of one container at once.
const MOST_LOOK_UPS: usize = 2;

const NO_RULES: &str = "its pod grants no network (spec.hostNetwork: true, and annotation akri-krustlet/network or the container's variable AKRI_KRUSTLET_NETWORK)";
const NO_RULE: &str =
    "no rule of its pod gives it (annotation akri-krustlet/network, or the container's variable AKRI_KRUSTLET_NETWORK)";
const CEILING: &str = "the node gives it to no pod (--network-ceiling)";
const SPECIAL: &str =
    "it is this machine's, a cloud's metadata service or the API server, and needs a rule with just that address";

/// What all containers of a node are held to.
#[derive(Debug, Default)]
pub struct NodeNetwork {
    ceiling: RwLock<Arc<NetworkCeiling>>,
    /// How often the ceiling was replaced.
    generation: AtomicU64,
    special: SpecialAddresses,
    denials: AtomicU64,
}

impl NodeNetwork {
    /// Whether rules give listening on a port, or on any without one, and the ceiling lets them.
    pub fn gives_listening(&self, rules: &NetworkRules, protocol: Protocol, port: Option<u16>) -> bool {
        let ceiling = self.ceiling();
        let allowed = ceiling.allowed.as_ref();
        rules.give_listening(protocol, port)
            && !ceiling.denies_listening
            && allowed.is_none_or(|allowed| allowed.give_listening(protocol, port))
    }

    /// With a ceiling.
    pub fn new(ceiling: NetworkCeiling) -> Self {
        Self { ceiling: RwLock::new(Arc::new(ceiling)), ..Self::default() }
    }

    /// Takes another ceiling. Connections and groups that are open stay; what is sent or asked for from now on is held to it, and
    /// names are to be looked up again.
    pub fn replace_ceiling(&self, ceiling: NetworkCeiling) {
        *self.ceiling.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ceiling);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether the ceiling takes anything away.
    pub fn has_ceiling(&self) -> bool {
        !self.ceiling().is_empty()
    }

    fn ceiling(&self) -> Arc<NetworkCeiling> {
        self.ceiling.read().unwrap_or_else(PoisonError::into_inner).clone()
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
    /// What its guests send, and what the node receives for them.
    sent: Arc<Mutex<TokenBucket>>,
    received: Arc<Mutex<TokenBucket>>,
    /// Where that is counted.
    limits: Option<Arc<SharedLimits>>,
    /// Look-ups that wait for the resolver.
    pub(super) look_ups: Arc<Semaphore>,
}

impl NetworkGrant {
    /// Of a container whose pod has these rules.
    pub fn new(rules: Arc<NetworkRules>, node: Arc<NodeNetwork>, denials: Arc<Denials>) -> Self {
        let sent = Arc::new(Mutex::new(TokenBucket::new(SENT_BYTES, SENT_BYTES)));
        let received = Arc::new(Mutex::new(TokenBucket::new(RECEIVED_BYTES, RECEIVED_BYTES)));
        let look_ups = Arc::new(Semaphore::new(MOST_LOOK_UPS));
        Self { rules, node, denials, sent, received, limits: None, look_ups }
    }

    /// The same; what is sent and received is counted as the container's.
    pub fn counted_by(self, limits: Option<Arc<SharedLimits>>) -> Self {
        Self { limits, ..self }
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
    /// The ceiling's generation that they are of.
    generation: AtomicU64,
    /// Who has sent something to its listeners.
    heard: Mutex<VecDeque<SocketAddr>>,
}

impl NetworkAccess {
    /// Of a guest that has a request with these details, JSON; or none.
    pub fn new(grant: NetworkGrant, details: &str) -> Arc<Self> {
        let generation = grant.node.generation.load(Ordering::Acquire);
        let details = grant.rules.0.iter().flat_map(|rule| super::details::given(rule, details)).collect();
        Arc::new(Self {
            grant,
            details,
            resolved: Mutex::default(),
            ceiling_resolved: Mutex::default(),
            generation: AtomicU64::new(generation),
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
            false => NO_RULE,
        }
    }

    pub(crate) fn deny(&self, what: &str, why: &str) {
        self.grant.node.denials.fetch_add(1, Ordering::Relaxed);
        self.grant.denials.tell(what, why);
    }

    fn ceiling(&self) -> Arc<NetworkCeiling> {
        self.grant.node.ceiling()
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

    /// Where names led by the rules of another ceiling counts no more.
    fn forget_old_names(&self) {
        let generation = self.grant.node.generation.load(Ordering::Acquire);
        if self.generation.swap(generation, Ordering::AcqRel) != generation {
            for resolved in [&self.resolved, &self.ceiling_resolved] {
                resolved.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }

    fn may_reach(&self, protocol: Protocol, place: SocketAddr) -> bool {
        self.forget_old_names();
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
        // The ceiling must give a group, too.
        let may = || {
            self.rules().any(to_many) && self.ceiling().allowed.as_ref().is_none_or(|rules| rules.0.iter().any(to_many))
        };
        self.may_reach(Protocol::Udp, place) || is_private(place.ip()) && may()
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
            return Some(NO_RULE);
        }
        let denied = |(target, _): &(Target, _)| matches!(target, Target::Name(pattern) if pattern.matches(name));
        let allowed = ceiling.allowed.as_ref().is_none_or(|rules| rules.0.iter().any(has));
        (ceiling.denied.iter().any(denied) || !allowed).then_some(CEILING)
    }

    /// What of the addresses that a name led to the guest is told; those that its rules give by the name can be reached from now on.
    pub(super) fn resolved(&self, name: &str, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        self.forget_old_names();
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
        self.grant.limits.iter().for_each(|limits| limits.count_sent(bytes));
        spend(&self.grant.sent, bytes)
    }

    /// The same of what the node receives for it.
    pub(super) fn receives(&self, bytes: usize) -> tokio::time::Instant {
        self.grant.limits.iter().for_each(|limits| limits.count_received(bytes));
        spend(&self.grant.received, bytes)
    }
}

fn spend(bucket: &Mutex<TokenBucket>, bytes: usize) -> tokio::time::Instant {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.spend(bytes as f64);
    bucket.when(0.0)
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
        Rule::Http(UrlPattern { host: Target::Name(pattern), .. }) => Some(pattern),
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
