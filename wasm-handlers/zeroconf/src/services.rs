//! The services that are there, put together from records that come in any order.

use crate::Details;
use crate::question::Asked;
use akri_handler::Device;
use simple_dns::rdata::RData;
use simple_dns::{Packet, TYPE};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What lists the kinds of services (RFC 6763, 9).
const KINDS: &str = "_services._dns-sd._udp";
/// Most kinds, services and hosts that are kept, most addresses of a host, and most texts of a service.
const MOST_KINDS: usize = 64;
const MOST_SERVICES: usize = 1024;
const MOST_ADDRESSES: usize = 8;
const MOST_TEXTS: usize = 32;
/// Most names that are asked for in one round.
const MOST_ASKED: usize = 256;

/// A service, as far as it is known.
#[derive(Debug, Default)]
struct Service {
    /// As `_rtsp._tcp`.
    kind: String,
    host: Option<(String, u16)>,
    texts: Option<BTreeMap<String, String>>,
    /// Questions since it was heard of last.
    missed: u32,
}

#[derive(Debug)]
pub struct Services {
    details: Details,
    kinds: BTreeSet<String>,
    /// By their full names, in the letters in which they were written.
    known: BTreeMap<String, Service>,
    /// Of hosts, by their names in lower case.
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Services {
    pub fn new(details: Details) -> Self {
        let kinds = details.kind.clone().into_iter().collect();
        Self { details, kinds, known: BTreeMap::new(), addresses: BTreeMap::new() }
    }

    /// Who is there.
    pub fn first_question(&self) -> Asked {
        let name = self.details.kind.as_deref().unwrap_or(KINDS);
        (format!("{name}.{}", self.details.domain), TYPE::PTR)
    }

    /// A question goes out: whoever does not answer has missed it.
    pub fn are_asked(&mut self) {
        let most = self.details.missed_questions;
        // Those of which nobody said where they are make room for others.
        self.known.retain(|_, service| service.missed <= most && service.host.is_some());
        for service in self.known.values_mut() {
            service.missed = service.missed.saturating_add(1);
        }
        let hosts: BTreeSet<_> = self.known.values().filter_map(Service::host).collect();
        self.addresses.retain(|host, _| hosts.contains(host));
    }

    /// What the answers so far leave open.
    pub fn open_questions(&self) -> Vec<Asked> {
        let mut open = Vec::new();
        if self.details.kind.is_none() {
            let is_unheard =
                |kind: &&String| !self.known.values().any(|service| service.kind == **kind && service.missed == 0);
            let of_kind = |kind: &String| (format!("{kind}.{}", self.details.domain), TYPE::PTR);
            open.extend(self.kinds.iter().filter(is_unheard).map(of_kind));
        }
        for (name, service) in self.known.iter().filter(|(_, service)| service.missed == 0) {
            if service.host.is_none() {
                open.push((name.clone(), TYPE::SRV));
            }
            if service.texts.is_none() {
                open.push((name.clone(), TYPE::TXT));
            }
            if let Some(host) = service.host().filter(|host| !self.addresses.contains_key(host)) {
                open.push((host, TYPE::A));
            }
        }
        open.truncate(MOST_ASKED);
        open
    }

    /// Reads a message: an answer, or an announcement, with so many services at most that were not known; returns how many those
    /// were. What is no message changes nothing.
    pub fn have_said(&mut self, payload: &[u8], most_new: usize) -> usize {
        let Ok(packet) = Packet::parse(payload) else { return 0 };
        let mut new = 0;
        // Pointers first: the other records are about the services that they name.
        let records = || packet.answers.iter().chain(&packet.additional_records);
        for record in records() {
            if let RData::PTR(to) = &record.rdata {
                let is_new = self.points(&record.name.to_string(), &to.0.to_string(), record.ttl, new < most_new);
                new += usize::from(is_new);
            }
        }
        for record in records() {
            let name = record.name.to_string();
            match &record.rdata {
                RData::SRV(srv) => {
                    if let Some(service) = self.service(&name) {
                        service.host = (record.ttl > 0).then(|| (srv.target.to_string(), srv.port));
                    }
                }
                RData::TXT(txt) => {
                    if let Some(service) = self.service(&name) {
                        let pairs = txt.attributes().into_iter().take(MOST_TEXTS);
                        service.texts = Some(pairs.map(|(key, value)| (key, value.unwrap_or_default())).collect());
                    }
                }
                _ => {}
            }
        }
        let hosts: BTreeSet<_> = self.known.values().filter_map(Service::host).collect();
        for record in records() {
            let address = match &record.rdata {
                RData::A(a) => IpAddr::from(a.address.to_be_bytes()),
                RData::AAAA(aaaa) => IpAddr::from(aaaa.address.to_be_bytes()),
                _ => continue,
            };
            let host = record.name.to_string().to_ascii_lowercase();
            if !hosts.contains(&host) {
                continue;
            }
            let of_host = self.addresses.entry(host).or_default();
            if record.ttl == 0 {
                of_host.remove(&address);
            } else if of_host.len() < MOST_ADDRESSES {
                of_host.insert(address);
            }
        }
        new
    }

    /// A record that says that there is something of a kind; whether that was not known, and is now.
    fn points(&mut self, from: &str, to: &str, ttl: u32, may_be_new: bool) -> bool {
        let in_domain = |name: &str| {
            let domain = &self.details.domain;
            let rest = name.len().checked_sub(domain.len() + 1)?;
            let (start, end) = (name.get(..rest)?, name.get(rest..)?);
            end.strip_prefix('.').filter(|end| end.eq_ignore_ascii_case(domain)).map(|_| start.to_owned())
        };
        let (Some(kind), Some(target)) = (in_domain(from), in_domain(to)) else { return false };
        if kind.eq_ignore_ascii_case(KINDS) {
            if self.details.kind.is_none() && ttl > 0 && self.kinds.len() < MOST_KINDS {
                self.kinds.insert(target.to_ascii_lowercase());
            }
            return false;
        }
        let wanted = self.details.kind.as_deref();
        let is_service = kind.to_ascii_lowercase().ends_with("._tcp") || kind.to_ascii_lowercase().ends_with("._udp");
        if !is_service || wanted.is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&kind)) {
            return false;
        }
        if ttl == 0 {
            self.known.retain(|name, _| !name.eq_ignore_ascii_case(to));
            return false;
        }
        if let Some(service) = self.service(to) {
            service.missed = 0;
            return false;
        }
        let has_room = may_be_new && self.known.len() < MOST_SERVICES;
        if has_room {
            self.known.insert(to.to_owned(), Service { kind: kind.to_ascii_lowercase(), ..Service::default() });
        }
        has_room
    }

    fn service(&mut self, name: &str) -> Option<&mut Service> {
        self.known.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, service)| service)
    }

    pub fn devices(&self) -> Vec<Device> {
        self.known.iter().filter_map(|(name, service)| self.device(name, service)).collect()
    }

    fn device(&self, full_name: &str, service: &Service) -> Option<Device> {
        let (host, port) = service.host.as_ref()?;
        let name = instance(full_name);
        let is_wanted = self.details.port.is_none_or(|wanted| wanted == *port)
            && self.details.name.as_ref().is_none_or(|wanted| wanted.0.eq_ignore_ascii_case(&name));
        if !is_wanted {
            return None;
        }
        let mut device = Device::new(full_name)
            .property("AKRI_ZEROCONF", "zeroconf")
            .property("AKRI_ZEROCONF_DEVICE_KIND", &service.kind)
            .property("AKRI_ZEROCONF_DEVICE_NAME", &name)
            .property("AKRI_ZEROCONF_DEVICE_HOST", host)
            .property("AKRI_ZEROCONF_DEVICE_PORT", port.to_string());
        let is_reachable = |address: &&IpAddr| match address {
            IpAddr::V4(_) => true,
            // Link-local: it leads nowhere without the name of the link.
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        };
        let addresses = self.addresses.get(&host.to_ascii_lowercase());
        if let Some(address) = addresses.and_then(|addresses| addresses.iter().find(is_reachable)) {
            device = device.property("AKRI_ZEROCONF_DEVICE_ADDR", address.to_string());
        }
        for (key, value) in service.texts.iter().flatten() {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric();
            let key: String =
                key.bytes().map(|byte| if is_plain(byte) { byte.to_ascii_uppercase().into() } else { '_' }).collect();
            if !key.is_empty() && !["KIND", "NAME", "HOST", "PORT", "ADDR"].contains(&key.as_str()) {
                device = device.property(&format!("AKRI_ZEROCONF_DEVICE_{key}"), value);
            }
        }
        Some(device)
    }
}

impl Service {
    fn host(&self) -> Option<String> {
        self.host.as_ref().map(|(host, _)| host.to_ascii_lowercase())
    }
}

/// The first label of a service's full name, as its users read it: a dot within it is written `\.`.
fn instance(full_name: &str) -> String {
    let mut name = String::new();
    let mut letters = full_name.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '.' => break,
            '\\' => name.extend(letters.next()),
            letter => name.push(letter),
        }
    }
    name
}
