//! A range of addresses, asked a part at a time.

use crate::details::{RangeDetails, headers};
use crate::{ENDPOINT, MARK};
use akri_handler::http::{Answer, Call, ErrorKind, send_all};
use akri_handler::{Device, Error, Properties, Step, time};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Most places of one range: addresses times ports.
const MOST_PLACES: u128 = 16_384;
/// How long one place has to answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer that is looked at, in bytes.
const MOST: usize = 64 << 10;
/// Time between two parts of a round.
const PART: Duration = Duration::from_secs(1);

/// Places that are asked one after the other, round after round.
pub struct Range {
    first: IpAddr,
    count: u128,
    ports: Vec<u16>,
    scheme: String,
    path: String,
    headers: Vec<(String, String)>,
    status: u16,
    contains: String,
    interval: Duration,
    per_second: usize,
    missed: u32,
    /// Where this round is, and when it began.
    next: u128,
    began: Duration,
    /// URLs that answered, and how many rounds ago.
    found: BTreeMap<String, u32>,
    /// What is not granted, in this round and in the one before.
    denied: (Option<String>, Option<String>),
    /// All places have been asked, ever.
    is_complete: bool,
}

impl Range {
    pub fn new(details: RangeDetails, properties: &Properties) -> Result<Self, Error> {
        let (first, count) = network(&details.network).map_err(Error::InvalidDetails)?;
        let places = count * details.ports.len() as u128;
        if places > MOST_PLACES {
            return Err(Error::InvalidDetails(format!(
                "range: {} with {} ports has {places} places, {MOST_PLACES} can be asked: take a smaller network or fewer ports",
                details.network,
                details.ports.len()
            )));
        }
        Ok(Self {
            first,
            count,
            ports: details.ports,
            scheme: details.scheme,
            path: details.path,
            headers: headers(details.headers, properties)?,
            status: details.status,
            contains: details.contains,
            interval: Duration::from_secs_f64(details.interval),
            per_second: details.per_second,
            missed: details.missed,
            next: 0,
            began: time::now(),
            found: BTreeMap::new(),
            denied: (None, None),
            is_complete: false,
        })
    }

    pub fn step(&mut self) -> Result<Step, Error> {
        let places = self.count * self.ports.len() as u128;
        let last = places.min(self.next + self.per_second as u128);
        let began = time::now();
        let urls: Vec<_> = (self.next..last).map(|place| self.url(place)).collect();
        let answers = send_all(urls.iter().map(|url| self.call(url)).collect());
        for (url, answer) in urls.into_iter().zip(answers) {
            match answer {
                Ok(answer) if self.is_one(&answer) => {
                    self.found.insert(url, 0);
                }
                Err(error) if error.kind == ErrorKind::Denied => self.denied.0 = Some(error.to_string()),
                _ => {
                    if let Some(rounds) = self.found.get_mut(&url) {
                        *rounds += 1;
                    }
                }
            }
        }
        let missed = self.missed;
        self.found.retain(|_, rounds| *rounds <= missed);
        self.next = last;
        let mut rest = PART.saturating_sub(time::now().saturating_sub(began));
        if self.next >= places {
            rest = rest.max(self.interval.saturating_sub(time::now().saturating_sub(self.began)));
            self.next = 0;
            self.began = time::now() + rest;
            self.is_complete = true;
            self.denied = (None, self.denied.0.take());
        }
        let device = |url: &String| Device::new(url).property(MARK.0, MARK.1).property(ENDPOINT, url);
        let step = match self.is_complete {
            true => Step::devices(self.found.keys().map(device).collect()),
            // The rest may be those that were there before a restart.
            false => Step::unchanged(),
        };
        let denied = self.denied.0.as_ref().or(self.denied.1.as_ref());
        Ok(denied.into_iter().fold(step.wake_after(rest), |step, denied| step.note(denied)))
    }

    fn is_one(&self, answer: &Answer) -> bool {
        answer.status == self.status && String::from_utf8_lossy(&answer.body).contains(&self.contains)
    }

    fn url(&self, place: u128) -> String {
        let ports = self.ports.len() as u128;
        let (number, port) = (place / ports, self.ports[usize::try_from(place % ports).unwrap_or(0)]);
        let host = match self.first {
            IpAddr::V4(first) => {
                IpAddr::from((u32::from(first) + u32::try_from(number).unwrap_or(0)).to_be_bytes()).to_string()
            }
            IpAddr::V6(first) => format!("[{}]", IpAddr::from((u128::from(first) + number).to_be_bytes())),
        };
        format!("{}://{host}:{port}{}", self.scheme, self.path)
    }

    fn call(&self, url: &str) -> Call {
        let mut call = Call::get(url).timeout(TIMEOUT).cut(MOST);
        call.headers.clone_from(&self.headers);
        call
    }
}

/// The addresses of a network that machines may have: the first, and how many.
fn network(text: &str) -> Result<(IpAddr, u128), String> {
    let wrong = || format!("range: network {text:?} is no network; expected one as 10.0.0.0/24");
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
    let (bits, number) = match address {
        IpAddr::V4(address) => (32, u128::from(u32::from(address))),
        IpAddr::V6(address) => (128, u128::from(address)),
    };
    let rest = bits - Some(prefix).filter(|prefix| *prefix <= bits).ok_or_else(wrong)?;
    let count = if rest >= 64 { u128::MAX / 16 } else { 1 << rest };
    if rest < 128 && number % count != 0 && rest < 64 {
        return Err(format!(
            "range: network {text:?} has an address of a machine in it; write the network's first address"
        ));
    }
    // The first and the last one of an IPv4 network are the network's own.
    match address {
        IpAddr::V4(first) if rest >= 2 => {
            Ok((IpAddr::from((u32::from(first) + 1).to_be_bytes()), count.saturating_sub(2)))
        }
        address => Ok((address, count)),
    }
}
