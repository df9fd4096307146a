//! The cameras that are there: who has answered, who has been missing for how long, and what their services say.

use crate::credentials::Credentials;
use crate::details::{Details, Identity, alike, passes};
use crate::device_service::{self, Interfaces};
use crate::discovery::Match;
use akri_handler::http::{AT_ONCE, Call, ErrorKind, send_all};
use akri_handler::{Device, Properties, time};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long services are asked in one step; those that had no turn have it at the next.
const ASKING: Duration = Duration::from_secs(5);
/// What a service says of itself is asked for again after so many probes that it has answered.
const RENEWED: u32 = 6;
/// Most services that are kept.
const MOST_SERVICES: usize = 4096;
/// Most troubles that a note names.
const MOST_NAMED: usize = 8;

/// A camera's service at one of its URLs.
struct Service {
    uuid: String,
    scopes: Vec<String>,
    /// Its turn has come: it has answered a probe, or said hello.
    due: bool,
    /// It has answered for itself, ever.
    is_alive: bool,
    /// Probes since it was there last.
    missed: u32,
    /// What it says of its network, and for how many more probes that is believed.
    interfaces: Option<Interfaces>,
    believed: u32,
    trouble: Option<&'static str>,
    denied: Option<String>,
}

pub struct Cameras {
    details: Details,
    credentials: Credentials,
    /// By their URLs.
    services: BTreeMap<String, Service>,
}

impl Cameras {
    pub fn new(details: Details, properties: &Properties) -> Self {
        Self { details, credentials: Credentials::new(properties), services: BTreeMap::new() }
    }

    pub fn has_said_hello(&mut self, camera: Match) {
        self.is_there(camera);
    }

    pub fn has_said_bye(&mut self, uuid: &str) {
        self.services.retain(|_, service| service.uuid != uuid);
    }

    /// Those who have answered a probe, and so who has not.
    pub fn have_answered(&mut self, found: Vec<Match>) {
        for service in self.services.values_mut() {
            service.missed = service.missed.saturating_add(1);
        }
        found.into_iter().for_each(|camera| self.is_there(camera));
        let most = self.details.missed_probes;
        self.services.retain(|_, service| service.missed <= most);
    }

    fn is_there(&mut self, camera: Match) {
        let scopes: Vec<_> = camera.scopes.iter().map(String::as_str).collect();
        let wanted = passes(self.details.scopes.as_ref(), Some(&scopes), |scope, item| scope == item)
            && passes(self.details.uuids.as_ref(), Some(&[&camera.uuid]), alike);
        if !wanted {
            return;
        }
        for url in camera.urls {
            if self.services.len() >= MOST_SERVICES && !self.services.contains_key(&url) {
                continue;
            }
            let service = self.services.entry(url).or_insert_with(|| Service {
                uuid: String::new(),
                scopes: Vec::new(),
                due: false,
                is_alive: false,
                missed: 0,
                interfaces: None,
                believed: 0,
                trouble: None,
                denied: None,
            });
            if service.uuid != camera.uuid || service.scopes != camera.scopes {
                (service.uuid, service.scopes, service.believed) = (camera.uuid.clone(), camera.scopes.clone(), 0);
            }
            service.due = true;
        }
    }

    pub fn are_all_asked(&self) -> bool {
        self.services.values().all(|service| !service.due)
    }

    /// Asks the services that are due whether they are there, and what their network is.
    pub fn ask(&mut self) {
        let until = time::now() + ASKING;
        // Those that are known first: nobody is lost for the sake of strangers.
        let due = |known: bool| {
            let is_it = move |(_, service): &(&String, &Service)| service.due && service.is_alive == known;
            self.services.iter().filter(is_it).map(|(url, _)| url.clone()).collect::<Vec<_>>()
        };
        let turns: Vec<_> = [due(true), due(false)].concat();
        for urls in turns.chunks(AT_ONCE) {
            if time::now() >= until {
                break;
            }
            self.ask_these(urls);
        }
    }

    fn ask_these(&mut self, urls: &[String]) {
        let answers = send_all(urls.iter().map(|url| device_service::date_and_time(url)).collect());
        let mut curious = Vec::new();
        for (url, answer) in urls.iter().zip(answers) {
            let Some(service) = self.services.get_mut(url) else { continue };
            service.due = false;
            match answer {
                Ok(answer) if device_service::is_alive(&answer) => {
                    (service.is_alive, service.missed, service.denied) = (true, 0, None);
                    service.believed = service.believed.saturating_sub(1);
                    if service.believed == 0 {
                        curious.push((url.clone(), device_service::clock_ahead(&answer).unwrap_or(0)));
                    }
                }
                Err(error) if error.kind == ErrorKind::Denied => service.denied = Some(error.to_string()),
                _ => {}
            }
        }
        let credential = |url: &String| self.services.get(url).and_then(|service| self.credentials.of(&service.uuid));
        let calls = curious.iter().map(|(url, ahead)| device_service::network_interfaces(url, credential(url), *ahead));
        let mut answers = send_all(calls.collect());
        // Those that want HTTP's digest are asked once more.
        let (mut again, mut calls): (Vec<usize>, Vec<Call>) = (Vec::new(), Vec::new());
        for (at, ((url, _), answer)) in curious.iter().zip(&answers).enumerate() {
            let Ok(answer) = answer else { continue };
            let call = credential(url).and_then(|credential| device_service::with_digest(url, answer, credential));
            if let Some(call) = call.filter(|_| answer.status == 401) {
                again.push(at);
                calls.push(call);
            }
        }
        for (at, answer) in again.into_iter().zip(send_all(calls)) {
            answers[at] = answer;
        }
        for ((url, _), answer) in curious.iter().zip(answers) {
            let Some(service) = self.services.get_mut(url) else { continue };
            let has_password = self.credentials.of(&service.uuid).is_some();
            match answer.ok().as_ref().and_then(device_service::interfaces) {
                Some(interfaces) => {
                    (service.interfaces, service.believed, service.trouble) = (Some(interfaces), RENEWED, None);
                }
                // What it said before stays; it is asked again with the next probe.
                None => {
                    service.trouble = Some(match has_password {
                        true => {
                            "does not tell its network interfaces, with the name and password that the Configuration has for it"
                        }
                        false => {
                            "does not tell its network interfaces; the Configuration has no name and password for it"
                        }
                    });
                }
            }
        }
    }

    pub fn devices(&self) -> Vec<Device> {
        let mut devices = BTreeMap::new();
        for (url, service) in &self.services {
            let of = |part: fn(&Interfaces) -> &str| service.interfaces.as_ref().map(part);
            let (ip, mac) = (of(|interfaces| &interfaces.ip), of(|interfaces| &interfaces.mac));
            let known = |what: Option<&str>, filter| match what {
                Some(what) => passes(filter, Some(&[what]), alike),
                None => passes(filter, None, alike),
            };
            let is_wanted = service.is_alive
                && known(ip, self.details.ip_addresses.as_ref())
                && known(mac, self.details.mac_addresses.as_ref());
            if !is_wanted {
                continue;
            }
            let id = match self.details.identity {
                Identity::Url => format!("{url}-{}", service.uuid),
                Identity::Uuid => service.uuid.clone(),
            };
            let mut device =
                Device::new(&id).property("ONVIF_DEVICE_SERVICE_URL", url).property("ONVIF_DEVICE_UUID", &service.uuid);
            if let (Some(ip), Some(mac)) = (ip, mac) {
                device = device.property("ONVIF_DEVICE_IP_ADDRESS", ip).property("ONVIF_DEVICE_MAC_ADDRESS", mac);
            }
            // By its uuid, a camera is known once: by the first of its URLs.
            devices.entry(id).or_insert(device);
        }
        devices.into_values().collect()
    }

    /// What the operator should know.
    pub fn notes(&self) -> Option<String> {
        let denied = self.services.values().filter_map(|service| service.denied.clone());
        let troubled = self.services.iter().filter(|(_, service)| service.is_alive);
        let troubled = troubled.filter_map(|(url, service)| service.trouble.map(|why| format!("{url} {why}")));
        let troubles: Vec<_> = denied.chain(troubled).collect();
        let named = troubles.iter().take(MOST_NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
        match troubles.len() {
            0 => None,
            count if count > MOST_NAMED => Some(format!("{named}; and {} more", count - MOST_NAMED)),
            _ => Some(named),
        }
    }
}
