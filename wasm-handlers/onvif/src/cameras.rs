//! The cameras that are there: who has answered, who has been missing for how long, and what their services say.
//!
//! Whoever is on the network can send what a camera sends. So nothing that is said takes a camera away or makes it another one: only
//! its own service does, by not answering. It is asked when somebody says that it is there, but not at each probe.

use crate::credentials::{Credential, Credentials};
use crate::details::{Details, Identity, alike, passes};
use crate::device_service::{self, Interfaces};
use crate::discovery::Match;
use akri_handler::http::{AT_ONCE, Call, ErrorKind, send_all};
use akri_handler::{Device, Properties, time};
use std::collections::BTreeMap;
use std::time::Duration;

/// A service that has not answered is asked again after that time, so often.
const AGAIN: Duration = Duration::from_secs(2);
const MOST_TRIES: u32 = 3;
/// What a service says of itself is asked for again when it has been asked so often whether it is there.
const RENEWED: u32 = 2;
/// So many probes are believed of a service that has answered for itself, until it is asked again.
const BELIEVED: u32 = 2;
/// Most services that are kept, and of one host.
const MOST_SERVICES: usize = 1024;
const MOST_OF_HOST: usize = 8;

/// A camera's service at one of its URLs.
#[derive(Default)]
struct Service {
    uuid: String,
    scopes: Vec<String>,
    /// From when on it is to be asked: it has answered a probe or said something, and not been asked since.
    due: Option<Duration>,
    /// How often it was asked without an answer since then.
    tries: u32,
    /// It has said bye, and is gone if it does not answer.
    leaves: bool,
    /// When it was asked last.
    asked: Duration,
    /// It has answered for itself, and so many probes ago.
    is_alive: bool,
    unasked: u32,
    /// Probes since it was there last.
    missed: u32,
    /// What it says of its network, and for how many more probes that is believed.
    interfaces: Option<Interfaces>,
    believed: u32,
    trouble: Option<&'static str>,
    denied: Option<String>,
}

impl Service {
    /// Whether it need not be asked though somebody says that it is there.
    fn is_sure(&self) -> bool {
        let is_new = self.interfaces.is_some() && self.believed == 0;
        self.is_alive && self.unasked <= BELIEVED && self.due.is_none() && !self.leaves && !is_new
    }

    /// It has not answered.
    fn try_again(&mut self) {
        self.tries += 1;
        self.due = (self.tries < MOST_TRIES).then(|| time::now() + AGAIN);
    }
}

pub struct Cameras {
    details: Details,
    credentials: Credentials,
    /// By their URLs.
    services: BTreeMap<String, Service>,
    /// Hosts at which the names and passwords of uuids were right: they go nowhere else.
    known_by: BTreeMap<String, String>,
}

impl Cameras {
    pub fn new(details: Details, properties: &Properties) -> Self {
        let credentials = Credentials::new(properties);
        Self { details, credentials, services: BTreeMap::new(), known_by: BTreeMap::new() }
    }

    pub fn has_said_hello(&mut self, camera: Match) {
        self.is_there(camera);
    }

    /// Anybody can say so of anybody: it is gone if its service is.
    pub fn has_said_bye(&mut self, uuid: &str) {
        for service in self.services.values_mut().filter(|service| service.uuid == uuid) {
            (service.leaves, service.tries, service.due) = (true, 0, Some(time::now() + AGAIN));
        }
    }

    /// Those who have answered a probe, and so who has not.
    pub fn have_answered(&mut self, found: Vec<Match>) {
        for service in self.services.values_mut() {
            service.unasked = service.unasked.saturating_add(1);
            // One that had no turn since it answered last has missed nothing.
            if service.due.is_none() || service.tries > 0 {
                service.missed = service.missed.saturating_add(1);
            }
        }
        found.into_iter().for_each(|camera| self.is_there(camera));
        let most = self.details.missed_probes;
        for service in self.services.values_mut() {
            service.is_alive &= service.missed <= most;
        }
        self.services.retain(|_, service| service.missed <= most || service.due.is_some());
    }

    fn is_there(&mut self, camera: Match) {
        let scopes: Vec<_> = camera.scopes.iter().map(String::as_str).collect();
        let wanted = passes(self.details.scopes.as_ref(), Some(&scopes), |scope, item| scope == item)
            && passes(self.details.uuids.as_ref(), Some(&[&camera.uuid]), alike);
        if !wanted {
            return;
        }
        for url in camera.urls {
            if !self.services.contains_key(&url) && !self.has_room_for(&url) {
                continue;
            }
            let service = self.services.entry(url).or_default();
            // A service that is there keeps its uuid, whoever else claims it.
            if service.is_alive && service.uuid != camera.uuid {
                continue;
            }
            if service.uuid != camera.uuid || service.scopes != camera.scopes {
                (service.uuid, service.scopes, service.believed) = (camera.uuid.clone(), camera.scopes.clone(), 0);
            }
            if service.is_sure() {
                service.missed = 0;
            } else {
                (service.due, service.tries) = (Some(time::now()), 0);
            }
        }
    }

    /// Whether there is room for a service, if need be that of a stranger.
    fn has_room_for(&mut self, url: &str) -> bool {
        let host = host(url);
        if self.services.keys().filter(|known| self::host(known) == host).count() >= MOST_OF_HOST {
            return false;
        }
        if self.services.len() >= MOST_SERVICES {
            let stranger = self.services.iter().find(|(_, service)| !service.is_alive).map(|(url, _)| url.clone());
            return stranger.is_some_and(|stranger| self.services.remove(&stranger).is_some());
        }
        true
    }

    /// When services want to be asked, if some do.
    pub fn wants(&self) -> Option<Duration> {
        self.services.values().filter_map(|service| service.due).min()
    }

    /// Asks the services that are due whether they are there, and what their network is, for as long as there is time.
    pub fn ask(&mut self, until: Duration) {
        let now = time::now();
        let due = self.services.iter().filter(|(_, service)| service.due.is_some_and(|due| due <= now));
        let mut due: Vec<_> = due.map(|(url, service)| (!service.is_alive, service.asked, url.clone())).collect();
        // Those that are known first, and of those who has waited longest: nobody is lost for the sake of strangers.
        due.sort_unstable();
        let urls: Vec<_> = due.into_iter().map(|(.., url)| url).collect();
        for urls in urls.chunks(AT_ONCE) {
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
            (service.due, service.asked) = (None, time::now());
            match answer {
                Ok(answer) if device_service::is_alive(&answer) => {
                    (service.is_alive, service.unasked) = (true, 0);
                    (service.missed, service.denied) = (0, None);
                    if service.leaves {
                        // It may be about to go: a camera says bye before it does.
                        service.try_again();
                        service.leaves = service.due.is_some();
                    }
                    service.believed = service.believed.saturating_sub(1);
                    if service.believed == 0 {
                        curious.push((url.clone(), device_service::clock_ahead(&answer).unwrap_or(0)));
                    }
                }
                _ if service.leaves => {
                    self.services.remove(url);
                }
                Err(error) if error.kind == ErrorKind::Denied => service.denied = Some(error.to_string()),
                _ => service.try_again(),
            }
        }
        self.ask_for_interfaces(&curious);
    }

    fn ask_for_interfaces(&mut self, curious: &[(String, i64)]) {
        let credential = |url: &String| self.credential(url);
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
            let has_password = self.credential(url).is_some();
            let Some(service) = self.services.get_mut(url) else { continue };
            match answer.as_ref().ok().and_then(device_service::interfaces) {
                Some(interfaces) => {
                    (service.interfaces, service.believed, service.trouble) = (Some(interfaces), RENEWED, None);
                    if has_password {
                        self.known_by.entry(service.uuid.clone()).or_insert_with(|| host(url).to_owned());
                    }
                }
                // What it said before stays.
                None => {
                    if answer.is_err() && !service.leaves {
                        service.try_again();
                    }
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

    /// The name and password for a service: where they were right before, and where ONVIF has its services.
    fn credential(&self, url: &str) -> Option<&Credential> {
        let uuid = &self.services.get(url)?.uuid;
        let is_its = self.known_by.get(uuid).is_none_or(|known| known == host(url));
        let path = url.split("://").nth(1).and_then(|rest| rest.find('/').map(|at| &rest[at..]));
        let is_service = path.is_some_and(|path| path.starts_with("/onvif/"));
        self.credentials.of(uuid).filter(|_| is_its && is_service)
    }

    pub fn devices(&self) -> Vec<Device> {
        let mut devices = Vec::<Device>::new();
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
            if !devices.iter().any(|known| known.id == id) {
                devices.push(device);
            }
        }
        devices
    }

    /// What the operator should know.
    pub fn troubles(&self) -> Vec<String> {
        let denied = self.services.values().filter_map(|service| service.denied.clone());
        let troubled = self.services.iter().filter(|(_, service)| service.is_alive);
        denied.chain(troubled.filter_map(|(url, service)| service.trouble.map(|why| format!("{url} {why}")))).collect()
    }
}

/// The host and port of a URL.
fn host(url: &str) -> &str {
    url.split('/').nth(2).unwrap_or_default()
}
