//! The device service of cameras, by SOAP: whether it answers, what time it has, and its network interfaces.

use crate::credentials::Credential;
use crate::digest;
use crate::xml::{self, Element, escaped};
use akri_handler::http::{Answer, Call};
use akri_handler::{random, time};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};
use std::net::IpAddr;
use std::time::Duration;

/// How long a camera may take to answer, and how much.
const TIMEOUT: Duration = Duration::from_secs(1);
const MOST: usize = 64 << 10;
/// How far a camera's clock may be ahead, in seconds; it may be behind as far as it likes, for many are never set.
const MOST_AHEAD: i64 = 86_400;

/// What a camera says of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    pub ip: String,
    pub mac: String,
}

fn call(url: &str, function: &str, header: &str) -> Call {
    let body = format!(
        concat!(
            r#"<?xml version="1.0" encoding="UTF-8"?>"#,
            r#"<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:t="http://www.onvif.org/ver10/device/wsdl">"#,
            "{header}<s:Body><t:{function}/></s:Body></s:Envelope>",
        ),
        header = header,
        function = function,
    );
    let kind =
        format!("application/soap+xml; charset=utf-8; action=\"http://www.onvif.org/ver10/device/wsdl/{function}\"");
    Call::post(url, body).header("content-type", kind).timeout(TIMEOUT).most(MOST)
}

/// Asks for the time, which cameras tell everybody.
pub fn date_and_time(url: &str) -> Call {
    call(url, "GetSystemDateAndTime", "")
}

/// Whether an answer is a camera's. Some ask for a password even here.
pub fn is_alive(answer: &Answer) -> bool {
    matches!(answer.status, 200 | 401)
}

/// By how much a camera's clock is ahead of this one, in seconds.
pub fn clock_ahead(answer: &Answer) -> Option<i64> {
    let document = xml::read(&answer.body)?;
    let time_of = document.all("UTCDateTime").first().copied()?;
    let number = |path: [&str; 2]| time_of.at(&path)?.text.parse::<i64>().ok();
    let (year, month, day) = (number(["Date", "Year"])?, number(["Date", "Month"])?, number(["Date", "Day"])?);
    let (hour, minute, second) = (number(["Time", "Hour"])?, number(["Time", "Minute"])?, number(["Time", "Second"])?);
    let is_date = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_time = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    let at = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let ahead = at - i64::try_from(time::wall_clock().as_secs()).unwrap_or(i64::MAX);
    // Whoever says that it is far in the future wants what is sent to be of use for long.
    (is_date && is_time && ahead < MOST_AHEAD).then_some(ahead)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    before + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// The date and time of a moment, as XML has it.
fn date(seconds: i64) -> String {
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The year in which the day is: not later than this, and not much earlier.
    let mut year = 1970 + day / 366;
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days(year, *month, 1) <= day).unwrap_or(1);
    let of_month = day - days(year, month, 1) + 1;
    format!("{year:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Asks for the network interfaces, with the user's name and a digest of its password (WS-UsernameToken) by the camera's clock.
pub fn network_interfaces(url: &str, credential: Option<&Credential>, clock_ahead: i64) -> Call {
    let header = credential.map(|credential| {
        let now = i64::try_from(time::wall_clock().as_secs()).unwrap_or(0);
        token(credential, &random::bytes::<16>(), &date(now.saturating_add(clock_ahead)))
    });
    call(url, "GetNetworkInterfaces", &header.unwrap_or_default())
}

fn token(credential: &Credential, nonce: &[u8], created: &str) -> String {
    let digest = Sha1::new().chain_update(nonce).chain_update(created).chain_update(&credential.password).finalize();
    const PROFILE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss";
    format!(
        concat!(
            r#"<s:Header><w:Security s:mustUnderstand="1" xmlns:w="{p}-wssecurity-secext-1.0.xsd" xmlns:u="{p}-wssecurity-utility-1.0.xsd">"#,
            "<w:UsernameToken><w:Username>{name}</w:Username>",
            r#"<w:Password Type="{p}-username-token-profile-1.0#PasswordDigest">{digest}</w:Password>"#,
            r#"<w:Nonce EncodingType="{p}-soap-message-security-1.0#Base64Binary">{nonce}</w:Nonce>"#,
            "<u:Created>{created}</u:Created></w:UsernameToken></w:Security></s:Header>",
        ),
        p = PROFILE,
        name = escaped(&credential.name),
        digest = STANDARD.encode(digest),
        nonce = STANDARD.encode(nonce),
        created = created,
    )
}

/// The same request as an answer asks for it, if that wants HTTP's digest instead.
pub fn with_digest(url: &str, answer: &Answer, credential: &Credential) -> Option<Call> {
    let challenges = answer.headers.iter().filter(|(name, _)| name == "www-authenticate");
    let (_, rest) = url.split_once("://")?;
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    let authorization = digest::authorization(challenges.map(|(_, value)| value.as_str()), credential, "POST", path)?;
    Some(call(url, "GetNetworkInterfaces", "").header("authorization", authorization))
}

/// What an answer says of the network: the first address, as Akri's own handler takes it.
pub fn interfaces(answer: &Answer) -> Option<Interfaces> {
    let document = xml::read(&answer.body).filter(|_| answer.status == 200)?;
    let response = document.all("GetNetworkInterfacesResponse").first().copied()?.clone();
    let interfaces = || response.children.iter().filter(|child| child.name == "NetworkInterfaces");
    let address_of = |interface: &Element| {
        let config = interface.at(&["IPv4", "Config"])?;
        let addresses = config.children.iter().filter_map(|kind| kind.child("Address"));
        addresses.map(|address| &address.text).find(|text| text.parse::<IpAddr>().is_ok()).cloned()
    };
    let is_mac = |text: &&String| {
        (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit() || b":-.".contains(&byte))
    };
    let ip = interfaces().find_map(address_of)?;
    let macs = interfaces().filter_map(|interface| interface.at(&["Info", "HwAddress"])).map(|mac| &mac.text);
    let mac = macs.into_iter().find(is_mac)?.clone();
    Some(Interfaces { ip, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
        for day in (0..60_000).step_by(13) {
            let text = date(day * 86_400);
            let number = |at: std::ops::Range<usize>| text[at].parse::<i64>().unwrap();
            assert_eq!(days(number(0..4), number(5..7), number(8..10)), day, "{text}");
        }
    }

    #[test]
    fn a_password_is_sent_as_a_digest() {
        let credential = Credential { name: "a<b".to_owned(), password: "1234567".to_owned() };
        let token = token(&credential, b"nonce", "2000-01-01T12:34:56:789Z");
        assert!(token.contains("AGsoQQ+qNJu6Ha7h/QAPoQvYcV0=") && token.contains(">bm9uY2U=<"), "{token}");
        assert!(token.contains(">a&lt;b<") && !token.contains("1234567"));
    }
}
