//! The text of a recording.

use crate::{Device, Event, Http, Recording, Said, Tcp};
use std::fmt::Write as _;
use std::time::Duration;

/// Bytes of a text that are on one line, about.
const LINE: usize = 100;

/// The first lines.
pub fn header(recording: &Recording) -> String {
    let Recording { handler, clock, random, details, properties, volumes, .. } = recording;
    let mut text = String::from("akri-krustlet recording 1\n");
    let _ = writeln!(text, "handler {}", word(handler));
    let _ = writeln!(text, "clock {}", seconds(*clock));
    let _ = writeln!(text, "random {random}");
    let _ = writeln!(text, "details {}", quoted(details.as_bytes()));
    for (name, value) in properties {
        let value = value.as_ref().map_or_else(|| "withheld".to_owned(), |value| quoted(value));
        let _ = writeln!(text, "property {} {value}", word(name));
    }
    for path in volumes {
        let _ = writeln!(text, "volume {}", word(path));
    }
    text.push('\n');
    text
}

/// One event; `None` is the end.
pub fn line(at: Duration, event: Option<&Event>) -> String {
    let what = match event {
        None => "end".to_owned(),
        Some(event) => of(event),
    };
    format!("{} {what}\n", seconds(at))
}

fn of(event: &Event) -> String {
    match event {
        Event::Udp { own, sent, peer, payload } => {
            format!("udp {own} {} {peer}{}", if *sent { '>' } else { '<' }, text(payload))
        }
        Event::Tcp(number, Tcp::Open(peer)) => format!("tcp {number} open {peer}"),
        Event::Tcp(number, Tcp::Failed(peer, why)) => format!("tcp {number} failed {peer} {why}"),
        Event::Tcp(number, Tcp::Wrote(bytes)) => format!("tcp {number} >{}", text(bytes)),
        Event::Tcp(number, Tcp::Read(bytes)) => format!("tcp {number} <{}", text(bytes)),
        Event::Tcp(number, Tcp::End) => format!("tcp {number} end"),
        Event::Tcp(number, Tcp::Broken) => format!("tcp {number} broken"),
        Event::Http(number, Http::Asked { method, url }) => format!("http {number} {} {}", word(method), word(url)),
        Event::Http(number, Http::Header(name, value)) => {
            format!("http {number} > {}{}", header_name(name), text(value))
        }
        Event::Http(number, Http::Body(bytes)) => format!("http {number} >{}", text(bytes)),
        Event::Http(number, Http::Status(status)) => format!("http {number} status {status}"),
        Event::Http(number, Http::AnswerHeader(name, value)) => {
            format!("http {number} < {}{}", header_name(name), text(value))
        }
        Event::Http(number, Http::AnswerBody(bytes)) => format!("http {number} <{}", text(bytes)),
        Event::Http(number, Http::End) => format!("http {number} end"),
        Event::Http(number, Http::Failed(why)) => format!("http {number} failed {why}"),
        Event::Name(name, Ok(addresses)) => {
            let addresses = addresses.iter().map(|address| format!(" {address}")).collect::<String>();
            format!("name {}{addresses}", word(name))
        }
        Event::Name(name, Err(why)) => format!("name {} failed {why}", word(name)),
        Event::Uevent { action, path, properties } => {
            format!("uevent {} {}{}", word(action), word(path), pairs(properties))
        }
        Event::Group { place, link, from, payload } => {
            format!("group {place} < {from} {}{}", word(link), text(payload))
        }
        Event::SentToGroup { place, payload } => format!("group {place} >{}", text(payload)),
        Event::Lost(kind, count) => format!("lost {kind} {count}"),
        Event::Link { name, addresses, multicast, loopback } => {
            let addresses = addresses.iter().map(|(address, prefix)| format!(" {address}/{prefix}"));
            let flags = [(*multicast, " multicast"), (*loopback, " loopback")];
            let flags = flags.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned());
            format!("link {}{}", word(name), addresses.chain(flags).collect::<String>())
        }
        Event::LinkGone(name) => format!("link {} gone", word(name)),
        Event::File { path, content } => format!("file {}{}", word(path), text(content)),
        Event::Directory(path) => format!("directory {}", word(path)),
        Event::Symlink { path, to } => format!("symlink {} {}", word(path), word(to)),
        Event::Gone(path) => format!("gone {}", word(path)),
        Event::Changed { directory, name } => format!("changed {} {}", word(directory), word(name)),
        Event::Said(Said::List(devices)) => format!("list{}", devices.iter().map(device).collect::<String>()),
        Event::Said(Said::InvalidDetails(what)) => format!("invalid-details{}", text(what.as_bytes())),
        Event::Said(Said::Unavailable(what)) => format!("unavailable{}", text(what.as_bytes())),
        Event::Said(Said::Internal(what)) => format!("internal{}", text(what.as_bytes())),
    }
}

fn device(device: &Device) -> String {
    let Device { id, properties, mounts, nodes } = device;
    let mut text = format!("\n  {}{}", quoted(id.as_bytes()), pairs(properties));
    for (container, host, read_only) in mounts {
        let how = if *read_only { "ro" } else { "rw" };
        let _ = write!(text, " mount {} {} {how}", quoted(container.as_bytes()), quoted(host.as_bytes()));
    }
    for (container, host, permissions) in nodes {
        let [container, host, permissions] = [container, host, permissions].map(|text| quoted(text.as_bytes()));
        let _ = write!(text, " node {container} {host} {permissions}");
    }
    text
}

fn pairs(pairs: &[(String, String)]) -> String {
    // Of a name that cannot be written nothing is told: the kernel's and those of variables can.
    let is_plain =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"=".contains(&byte));
    let plain = pairs.iter().filter(|(name, _)| is_plain(name));
    plain.map(|(name, value)| format!(" {name}={}", quoted(value.as_bytes()))).collect()
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}

/// Never in quotes, which a body has.
fn header_name(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_graphic() && letter != '"' { letter } else { '_' };
    if name.is_empty() { "_".to_owned() } else { name.chars().map(plain).collect() }
}

/// As it is, if it is one word that means nothing else.
pub(crate) fn word(text: &str) -> String {
    let is_plain = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
        && !matches!(text, "<" | ">" | "failed" | "status" | "end" | "gone" | "mount" | "node");
    if is_plain { text.to_owned() } else { quoted(text.as_bytes()) }
}

/// A text of any length: on this line, or on its own ones.
fn text(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return " \"\"".to_owned();
    }
    let is_text = is_text(bytes);
    let mut pieces: Vec<&[u8]> = Vec::new();
    match is_text {
        true => {
            for of_line in bytes.split_inclusive(|byte| *byte == b'\n') {
                // Where no letter is cut: that would be bytes, and no text.
                let mut rest = of_line;
                while rest.len() > LINE {
                    let at = (1..=LINE).rev().find(|at| rest[*at] & 0xc0 != 0x80).unwrap_or(LINE);
                    let (piece, more) = rest.split_at(at);
                    pieces.push(piece);
                    rest = more;
                }
                pieces.push(rest);
            }
        }
        false => pieces.extend(bytes.chunks(LINE / 3)),
    }
    let written = pieces.iter().map(|piece| if is_text { quoted(piece) } else { hexadecimal(piece) });
    match pieces.len() {
        1 => written.map(|piece| format!(" {piece}")).collect(),
        _ => written.map(|piece| format!("\n  {piece}")).collect(),
    }
}

/// UTF-8 in which hardly anything is no letter.
fn is_text(bytes: &[u8]) -> bool {
    let odd = |byte: &&u8| **byte < b' ' && !b"\n\r\t".contains(byte) || **byte == 0x7f;
    std::str::from_utf8(bytes).is_ok() && bytes.iter().filter(odd).count() * 16 <= bytes.len()
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    format!("x\"{digits}\"")
}

/// What turns the direction of writing, or is no letter to see.
fn is_odd(letter: char) -> bool {
    matches!(letter, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

pub(crate) fn quoted(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return hexadecimal(bytes) };
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            // Controls of terminals, and letters that are none to look at.
            letter if letter.is_control() || is_odd(letter) => {
                let mut bytes = [0; 4];
                letter.encode_utf8(&mut bytes).bytes().for_each(|byte| {
                    let _ = write!(quoted, "\\x{byte:02x}");
                });
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
