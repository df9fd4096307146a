//! Akri's OPC UA discovery handler: servers that discovery endpoints name.
//!
//! # Flow
//! Details -> a [`conversation`] with each discovery endpoint, all at once -> applications, filtered -> their URLs ([`url`]), as
//! Akri's own handler makes them -> devices. What an endpoint said last stays for some polls that it misses.

mod conversation;
#[cfg(test)]
mod tests;
mod url;

use akri_handler::{Device, Error, FilterList, Handler, Request, Step, handler, summary, tcp};
use conversation::{Application, ApplicationType, FindServers};
use opcua_codec::{Place, place};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// As Akri's own handler has it.
const URL: &str = "OPCUA_DISCOVERY_URL";

/// How long one endpoint may take; less for each if there are many, so that all are asked within a step.
const TIMEOUT: Duration = Duration::from_secs(3);
const ALL: Duration = Duration::from_secs(7);
/// How long names may take to be looked up, and for how many polls one is remembered.
const NAMES: Duration = Duration::from_secs(1);
const REMEMBERED: u32 = 6;
/// Names that are looked up in one poll; the others have their turn at the next.
const MOST_LOOK_UPS: usize = 64;
/// Applications of one endpoint that count: others have theirs, too.
const MOST_APPLICATIONS: usize = 4096;
/// A name of which so many look-ups in a row have failed counts as one that leads nowhere.
const MOST_FAILED: u32 = 3;
/// Most discovery endpoints of one Configuration.
const MOST_URLS: usize = 256;

/// What the node checks before it asks.
const SCHEMA: &str = r##"{
    "$defs": {
        "text": {"type": ["string", "number", "boolean", "null"]},
        "filter": {
            "type": ["object", "null"], "required": ["items"],
            "properties": {
                "items": {"type": "array", "items": {"$ref": "#/$defs/text"}},
                "action": {"enum": ["Include", "Exclude"]}
            }
        }
    },
    "type": "object",
    "required": ["opcuaDiscoveryMethod"],
    "properties": {
        "opcuaDiscoveryMethod": {
            "type": "object", "required": ["standard"], "additionalProperties": false,
            "properties": {"standard": {
                "type": ["object", "null"],
                "properties": {"discoveryUrls": {"type": "array", "maxItems": 256, "items": {"type": "string"}}}
            }}
        },
        "applicationNames": {"$ref": "#/$defs/filter"},
        "applicationTypes": {"type": "array", "minItems": 1,
            "items": {"enum": ["Server", "Client", "ClientAndServer", "DiscoveryServer"]}},
        "resolve": {"enum": ["node", "never"]},
        "interval": {"type": "number", "minimum": 1, "maximum": 86400},
        "missedPolls": {"type": "integer", "minimum": 0, "maximum": 1000}
    }
}"##;

/// `discoveryDetails`, with the keys of Akri's own handler and four more.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    opcua_discovery_method: Method,
    application_names: Option<FilterList>,
    #[serde(default = "servers")]
    application_types: Vec<ApplicationType>,
    #[serde(default)]
    resolve: Resolve,
    #[serde(default = "ten")]
    interval: f64,
    #[serde(default = "three")]
    missed_polls: u32,
}

fn servers() -> Vec<ApplicationType> {
    vec![ApplicationType::Server]
}

fn ten() -> f64 {
    10.0
}

fn three() -> u32 {
    3
}

#[derive(serde::Deserialize)]
struct Method {
    standard: Option<Standard>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Standard {
    discovery_urls: Option<Vec<String>>,
}

/// Whether a server whose name this node cannot look up is found by its discovery endpoint's URL.
#[derive(Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Resolve {
    #[default]
    Node,
    Never,
}

/// A discovery endpoint, and what it has said.
struct Endpoint {
    url: String,
    place: Place,
    last: Option<Vec<Application>>,
    missed: u32,
}

struct Opcua {
    endpoints: Vec<Endpoint>,
    filter: Option<FilterList>,
    kinds: Vec<ApplicationType>,
    resolve: Resolve,
    interval: Duration,
    missed_polls: u32,
    names: BTreeMap<String, Name>,
}

/// What is known of a server's name.
#[derive(Default)]
struct Name {
    /// Whether it leads somewhere; unknown at first.
    leads: Option<bool>,
    /// How many polls ago that was found out.
    polls: u32,
    /// How often nobody could say, one after the other.
    failed: u32,
}

impl Handler for Opcua {
    const NAME: &'static str = "opcua";
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        Some(SCHEMA.to_owned())
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let details = request.details;
        let urls = details.opcua_discovery_method.standard.and_then(|standard| standard.discovery_urls);
        let urls = urls.unwrap_or_else(|| vec!["opc.tcp://localhost:4840/".to_owned()]);
        if urls.is_empty() || urls.len() > MOST_URLS {
            return Err(Error::InvalidDetails(format!(
                "discoveryUrls: there are {}, 1 to {MOST_URLS} can be asked",
                urls.len()
            )));
        }
        let endpoint = |url: String| match place(&url) {
            Some(place) => Ok(Endpoint { url, place, last: None, missed: 0 }),
            None => Err(Error::InvalidDetails(format!(
                "discoveryUrls: {url:?} is no URL of OPC UA by TCP; expected one as opc.tcp://10.0.0.1:4840/"
            ))),
        };
        Ok(Self {
            endpoints: urls.into_iter().map(endpoint).collect::<Result<_, _>>()?,
            filter: details.application_names,
            kinds: details.application_types,
            resolve: details.resolve,
            interval: Duration::from_secs_f64(details.interval),
            missed_polls: details.missed_polls,
            names: BTreeMap::new(),
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let mut notes = self.poll();
        if self.endpoints.iter().all(|endpoint| endpoint.last.is_none() && endpoint.missed <= self.missed_polls) {
            // There may be all of the servers that were there before.
            return Err(Error::Unavailable(summary(&notes)));
        }
        notes.extend(self.look_up());
        let mut found = BTreeSet::new();
        for endpoint in &self.endpoints {
            let applications = endpoint.last.iter().flatten().filter(|application| self.is_wanted(application));
            for url in applications.filter_map(|application| url::of_application(&application.urls)) {
                found.extend(self.url(endpoint, url));
            }
        }
        let device = |url: &String| Device::new(url).property(URL, url);
        let step = Step::devices(found.iter().map(device).collect()).wake_after(self.interval);
        Ok(step.troubles(&notes))
    }
}

impl Opcua {
    /// Asks all endpoints; says which of them did not answer, and why.
    fn poll(&mut self) -> Vec<String> {
        let turns = u32::try_from(self.endpoints.len().div_ceil(tcp::AT_ONCE)).unwrap_or(u32::MAX).max(1);
        let peer = |endpoint: &Endpoint| url::peer(&endpoint.place);
        let talks = self.endpoints.iter().map(|endpoint| (peer(endpoint), FindServers::new(&endpoint.url)));
        let answers = tcp::talk(talks.collect(), TIMEOUT.min(ALL / turns));
        let mut failed = Vec::new();
        for (endpoint, answer) in self.endpoints.iter_mut().zip(answers) {
            let said = answer.map_err(|error| error.to_string());
            match said.and_then(|found| found.map_err(|why| format!("{}: {why}", endpoint.url))) {
                Ok(mut applications) => {
                    if applications.len() > MOST_APPLICATIONS {
                        failed.push(format!(
                            "{}: it names {} applications, {MOST_APPLICATIONS} count",
                            endpoint.url,
                            applications.len()
                        ));
                        applications.truncate(MOST_APPLICATIONS);
                    }
                    (endpoint.last, endpoint.missed) = (Some(applications), 0);
                }
                Err(why) => {
                    failed.push(why);
                    endpoint.missed = endpoint.missed.saturating_add(1);
                    if endpoint.missed > self.missed_polls {
                        endpoint.last = None;
                    }
                }
            }
        }
        failed
    }

    fn is_wanted(&self, application: &Application) -> bool {
        let passes = |filter: &FilterList| filter.passes(&[&application.name], |name, item| name == item);
        self.kinds.contains(&application.kind) && self.filter.as_ref().is_none_or(passes)
    }

    /// Looks up the names of servers that are not known yet; says which look-ups are not granted.
    fn look_up(&mut self) -> Vec<String> {
        if self.resolve == Resolve::Never {
            return Vec::new();
        }
        for name in self.names.values_mut() {
            name.polls = name.polls.saturating_add(1);
        }
        let wanted = self.endpoints.iter().flat_map(|endpoint| endpoint.last.iter().flatten());
        let wanted = wanted.filter(|application| self.is_wanted(application));
        let hosts = wanted.filter_map(|application| url::of_application(&application.urls)).filter_map(place);
        let hosts: BTreeSet<_> = hosts.map(|place| place.host).collect();
        self.names.retain(|name, _| hosts.contains(name));
        for host in hosts {
            self.names.entry(host).or_default();
        }
        let is_due = |name: &Name| name.leads.is_none() || name.polls >= REMEMBERED;
        let mut due: Vec<_> = self.names.iter().filter(|(_, name)| is_due(name)).collect();
        // Servers whose names are unknown are in no list yet; then who has waited longest. Those that nobody could say come last
        // among their like: they take the time of the others.
        due.sort_by_key(|(_, name)| (name.leads.is_some(), name.failed, Reverse(name.polls)));
        let due: Vec<_> = due.into_iter().take(MOST_LOOK_UPS).map(|(host, _)| host.clone()).collect();
        let mut denied = Vec::new();
        for (host, found) in due.iter().zip(tcp::look_up(&due, NAMES)) {
            let name = self.names.entry(host.clone()).or_default();
            let leads = match found {
                Ok(addresses) => !addresses.is_empty(),
                Err(tcp::LookUpError::NotFound(_)) => false,
                Err(tcp::LookUpError::Denied(error)) => {
                    denied.push(error.to_string());
                    false
                }
                Err(tcp::LookUpError::Unavailable(error)) => {
                    name.failed += 1;
                    // What was known stays for as long as nobody knows better.
                    if name.leads.is_none() && name.failed >= MOST_FAILED {
                        name.leads = Some(false);
                        denied.push(error.to_string());
                    }
                    continue;
                }
            };
            *name = Name { leads: Some(leads), polls: 0, failed: 0 };
        }
        denied
    }

    /// The URL of a server, unless it is not known yet whether its name leads somewhere.
    fn url(&self, endpoint: &Endpoint, of_server: &str) -> Option<String> {
        let leads = match (self.resolve, place(of_server)) {
            (Resolve::Never, _) => true,
            (Resolve::Node, Some(place)) => self.names.get(&place.host)?.leads?,
            (Resolve::Node, None) => false,
        };
        Some(if leads { of_server.to_owned() } else { url::by_endpoint(&endpoint.url, of_server) })
    }
}

handler!(Opcua);
akri_handler::needs! {
    network: ["tcp details"],
    // Whether servers' names lead anywhere decides their ids, unless the details say otherwise.
    optional_network: ["dns *"],
}
