//! Reads the text of a recording.

use crate::{Device, Event, Http, Recording, Said, Tcp};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Where a text is no recording, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ReadError {}

/// Longest path, and largest recording, in bytes.
const MOST_PATH: usize = 4096;
const MOST: usize = 32 << 20;

const FIRST: &str = "akri-krustlet recording 1";

/// A word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(Vec<u8>),
    Pair(String, Vec<u8>),
}

type Of<T> = Result<T, String>;

pub(crate) fn read(text: &str) -> Result<Recording, ReadError> {
    if text.len() > MOST {
        return Err(ReadError { line: 1, what: format!("it has {} bytes; {MOST} at most are taken", text.len()) });
    }
    let mut lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    match lines.next() {
        Some((_, FIRST)) => {}
        Some((line, first)) if first.starts_with("akri-krustlet recording ") => {
            let what = format!("{first:?} is of another version of akri-krustlet; this one reads {FIRST:?}");
            return Err(ReadError { line, what });
        }
        _ => {
            return Err(ReadError { line: 1, what: format!("it is no recording, which begins with {FIRST:?}") });
        }
    }
    // An event, and the lines that go on with it.
    let mut whole: Vec<(usize, Vec<Token>)> = Vec::new();
    for (number, line) in lines {
        if line.trim_matches([' ', '\t']).is_empty() || line.starts_with('#') {
            continue;
        }
        let tokens = tokens(line).map_err(|what| ReadError { line: number, what })?;
        match whole.last_mut().filter(|_| line.starts_with([' ', '\t'])) {
            Some((_, before)) => before.extend(tokens),
            None => whole.push((number, tokens)),
        }
    }
    let last = whole.last().map_or(1, |(number, _)| *number);
    let mut recording = Recording::default();
    let (mut has_ended, mut before) = (false, Duration::ZERO);
    for (number, tokens) in whole {
        let failed = |what: String| ReadError { line: number, what };
        if has_ended {
            return Err(failed("there is something after `end`".to_owned()));
        }
        let mut words = Words(tokens.into_iter());
        let first = words.text("a word").map_err(failed)?;
        if !first.starts_with(|letter: char| letter.is_ascii_digit()) {
            recording.say(&first, &mut words).and_then(|()| words.end()).map_err(failed)?;
            continue;
        }
        let at = time(&first).map_err(failed)?;
        if at < before {
            return Err(failed(format!("{first} is before the event above it; events are in their order")));
        }
        before = at;
        match event(&mut words).map_err(failed)? {
            Some(event) => recording.events.push((at, event)),
            None => {
                recording.end = at;
                has_ended = true;
            }
        }
        words.end().map_err(failed)?;
    }
    behind_links(&recording)?;
    if !has_ended {
        let what = format!(
            "the recording is cut: its last line is no `end`. Record it again, or end it by hand with the line `{} end`",
            crate::write::seconds(before)
        );
        return Err(ReadError { line: last, what });
    }
    if recording.details.is_empty() {
        return Err(ReadError { line: 1, what: "it has no line `details`".to_owned() });
    }
    Ok(recording)
}

/// What is made of a recording is below a directory, which a link could lead out of.
fn behind_links(recording: &Recording) -> Result<(), ReadError> {
    // Some file systems take letters of both cases for one.
    let folded = |path: &str| format!("{}/", path.trim_end_matches('/').to_lowercase());
    let link = |(_, event): &(Duration, Event)| match event {
        Event::Symlink { path, .. } => Some(folded(path)),
        _ => None,
    };
    let links: std::collections::BTreeSet<_> = recording.events.iter().filter_map(link).collect();
    for volume in &recording.volumes {
        let volume = folded(volume);
        if let Some(link) = links.iter().find(|link| volume.starts_with(link.as_str())) {
            let what = format!("the volume {volume} is behind the link {link}");
            return Err(ReadError { line: 1, what });
        }
    }
    let files = recording.events.iter().filter_map(|(_, event)| match event {
        Event::File { path, .. } | Event::Directory(path) | Event::Symlink { path, .. } | Event::Gone(path) => {
            Some(path)
        }
        _ => None,
    });
    for path in files {
        let path = path.to_lowercase();
        let mut above = path.char_indices().filter(|(_, letter)| *letter == '/').map(|(at, _)| &path[..=at]);
        if let Some(link) = above.rfind(|above| links.contains(*above)) {
            let what = format!("{path} is behind the link {}", link.trim_end_matches('/'));
            return Err(ReadError { line: 1, what });
        }
    }
    Ok(())
}

impl Recording {
    fn say(&mut self, kind: &str, words: &mut Words) -> Of<()> {
        match kind {
            "handler" => self.handler = words.text("a name")?,
            "clock" => self.clock = time(&words.text("seconds")?)?,
            "random" => self.random = words.parsed("a number")?,
            "details" => self.details = utf8(words.rest()?)?,
            "volume" => self.volumes.push(words.path()?),
            "property" => {
                let name = words.text("a name")?;
                let value = match words.peek() {
                    Some(Token::Word(word)) if word == "withheld" => {
                        words.next();
                        None
                    }
                    _ => Some(words.rest()?),
                };
                self.properties.push((name, value));
            }
            other => {
                return Err(format!(
                    "{other:?} is neither a time nor one of handler, clock, random, details, property, volume"
                ));
            }
        }
        Ok(())
    }
}

fn event(words: &mut Words) -> Of<Option<Event>> {
    let kind = words.text("what it is of")?;
    Ok(Some(match kind.as_str() {
        "end" => return Ok(None),
        "udp" => {
            let own = words.parsed("an address")?;
            let sent = words.way()?;
            Event::Udp { own, sent, peer: words.parsed("ADDRESS:PORT")?, payload: words.rest()? }
        }
        "tcp" => Event::Tcp(words.parsed("a number")?, tcp(words)?),
        "http" => Event::Http(words.parsed("a number")?, http(words)?),
        "name" => {
            let name = words.text("a name")?;
            let found = if words.is("failed") { Err(words.text("why")?) } else { Ok(words.all("an address")?) };
            Event::Name(name, found)
        }
        "uevent" => {
            let (action, path) = (words.text("an action")?, words.text("a path below /sys")?);
            Event::Uevent { action, path, properties: words.pairs()? }
        }
        "group" => {
            let place = words.parsed("ADDRESS:PORT")?;
            match words.way()? {
                true => Event::SentToGroup { place, payload: words.rest()? },
                false => {
                    let from = words.parsed("ADDRESS:PORT")?;
                    Event::Group { place, from, link: words.text("a link")?, payload: words.rest()? }
                }
            }
        }
        "lost" => {
            let of = words.text("uevents, groups or changes")?;
            if !["uevents", "groups", "changes"].contains(&of.as_str()) {
                return Err(format!("{of:?} is none of uevents, groups, changes"));
            }
            Event::Lost(of, words.parsed("a number")?)
        }
        "link" => link(words)?,
        "file" => Event::File { path: words.path()?, content: words.rest()? },
        "directory" => Event::Directory(words.path()?),
        "symlink" => Event::Symlink { path: words.path()?, to: words.text("where it leads")? },
        "gone" => Event::Gone(words.path()?),
        "changed" => Event::Changed { directory: words.path()?, name: words.text("a name")? },
        "list" => Event::Said(Said::List(devices(words)?)),
        "invalid-details" => Event::Said(Said::InvalidDetails(utf8(words.rest()?)?)),
        "unavailable" => Event::Said(Said::Unavailable(utf8(words.rest()?)?)),
        "internal" => Event::Said(Said::Internal(utf8(words.rest()?)?)),
        other => return Err(format!("there is no event {other:?}")),
    }))
}

fn tcp(words: &mut Words) -> Of<Tcp> {
    let what = words.text("open, failed, >, <, end or broken")?;
    Ok(match what.as_str() {
        "open" => Tcp::Open(words.parsed("ADDRESS:PORT")?),
        "failed" => Tcp::Failed(words.parsed("ADDRESS:PORT")?, words.text("why")?),
        ">" => Tcp::Wrote(words.rest()?),
        "<" => Tcp::Read(words.rest()?),
        "end" => Tcp::End,
        "broken" => Tcp::Broken,
        other => return Err(format!("{other:?} is none of open, failed, >, <, end, broken")),
    })
}

fn http(words: &mut Words) -> Of<Http> {
    let what = words.text("a method, status, >, <, end or failed")?;
    let is_header = matches!(words.peek(), Some(Token::Word(_)));
    Ok(match what.as_str() {
        ">" if is_header => Http::Header(words.text("a name")?, words.rest()?),
        ">" => Http::Body(words.rest()?),
        "<" if is_header => Http::AnswerHeader(words.text("a name")?, words.rest()?),
        "<" => Http::AnswerBody(words.rest()?),
        "status" => Http::Status(words.parsed("a status")?),
        "end" => Http::End,
        "failed" => Http::Failed(words.text("why")?),
        _ => Http::Asked { method: what, url: words.text("a URL")? },
    })
}

fn link(words: &mut Words) -> Of<Event> {
    let name = words.text("a name")?;
    if words.is("gone") {
        return Ok(Event::LinkGone(name));
    }
    let (mut addresses, mut multicast, mut loopback) = (Vec::new(), false, false);
    while let Some(word) = words.next() {
        match word {
            Token::Word(word) if word == "multicast" => multicast = true,
            Token::Word(word) if word == "loopback" => loopback = true,
            Token::Word(word) => {
                let parts = word
                    .split_once('/')
                    .and_then(|(address, prefix)| Some((address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?)));
                addresses.push(parts.ok_or_else(|| format!("{word:?} is no ADDRESS/PREFIX, multicast or loopback"))?);
            }
            other => return Err(format!("{other:?} is no ADDRESS/PREFIX, multicast or loopback")),
        }
    }
    Ok(Event::Link { name, addresses, multicast, loopback })
}

fn devices(words: &mut Words) -> Of<Vec<Device>> {
    let mut devices: Vec<Device> = Vec::new();
    while let Some(token) = words.next() {
        if let Token::Text(id) = token {
            devices.push(Device { id: utf8(id)?, ..Device::default() });
            continue;
        }
        let device = devices.last_mut().ok_or("a device begins with its id, in quotes")?;
        match token {
            Token::Pair(name, value) => device.properties.push((name, utf8(value)?)),
            Token::Word(word) if word == "mount" => {
                let (container, host) = (words.text("a path")?, words.text("a path")?);
                let how = words.text("ro or rw")?;
                device.mounts.push((container, host, how == "ro"));
            }
            Token::Word(word) if word == "node" => {
                let (container, host) = (words.text("a path")?, words.text("a path")?);
                device.nodes.push((container, host, words.text("permissions")?));
            }
            other => return Err(format!("{other:?}: a device has an id, NAME=\"VALUE\", mount and node")),
        }
    }
    for device in &mut devices {
        device.properties.sort();
    }
    Ok(devices)
}

struct Words(std::vec::IntoIter<Token>);

impl Words {
    fn next(&mut self) -> Option<Token> {
        self.0.next()
    }

    fn peek(&self) -> Option<&Token> {
        self.0.as_slice().first()
    }

    /// Whether that word is the next one, which is taken then.
    fn is(&mut self, word: &str) -> bool {
        let is = matches!(self.peek(), Some(Token::Word(of)) if of == word);
        if is {
            self.next();
        }
        is
    }

    fn text(&mut self, what: &str) -> Of<String> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word),
            Some(Token::Text(text)) => utf8(text),
            Some(Token::Pair(name, _)) => Err(format!("{name}=: expected {what}")),
            None => Err(format!("expected {what}, and the line ends")),
        }
    }

    fn parsed<T: FromStr>(&mut self, what: &str) -> Of<T> {
        let text = self.text(what)?;
        text.parse().map_err(|_| format!("{text:?} is not {what}"))
    }

    fn all<T: FromStr>(&mut self, what: &str) -> Of<Vec<T>> {
        std::iter::from_fn(|| self.peek().is_some().then(|| self.parsed(what))).collect()
    }

    fn path(&mut self) -> Of<String> {
        let path = self.text("a path")?;
        if path.len() > MOST_PATH {
            return Err(format!("a path of {} bytes; {MOST_PATH} at most are taken", path.len()));
        }
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if !path.starts_with('/') || parts.contains(&"..") {
            return Err(format!("{path:?} is not an absolute path without `..`"));
        }
        Ok(format!("/{}", parts.join("/")))
    }

    /// Whether it went out.
    fn way(&mut self) -> Of<bool> {
        match self.text("> or <")?.as_str() {
            ">" => Ok(true),
            "<" => Ok(false),
            other => Err(format!("{other:?} is neither > nor <")),
        }
    }

    /// All texts that are left, as one.
    fn rest(&mut self) -> Of<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(token) = self.next() {
            match token {
                Token::Text(text) => bytes.extend(text),
                Token::Word(word) | Token::Pair(word, _) => return Err(format!("{word:?}: expected a text in quotes")),
            }
        }
        Ok(bytes)
    }

    fn pairs(&mut self) -> Of<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        while let Some(token) = self.next() {
            match token {
                Token::Pair(name, value) => pairs.push((name, utf8(value)?)),
                // As it is written in a hurry.
                Token::Word(word) => match word.split_once('=') {
                    Some((name, value)) => pairs.push((name.to_owned(), value.to_owned())),
                    None => return Err(format!("{word:?}: expected NAME=\"VALUE\"")),
                },
                Token::Text(_) => return Err("expected NAME=\"VALUE\"".to_owned()),
            }
        }
        Ok(pairs)
    }

    fn end(&mut self) -> Of<()> {
        match self.next() {
            None => Ok(()),
            Some(Token::Word(word) | Token::Pair(word, _)) => Err(format!("{word:?} is too much")),
            Some(Token::Text(_)) => Err("a text is too much".to_owned()),
        }
    }
}

fn utf8(bytes: Vec<u8>) -> Of<String> {
    String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())
}

fn time(text: &str) -> Of<Duration> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..1e10).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("{text:?} is not a number of seconds"))?;
    // Of milliseconds, which is what is written.
    Ok(Duration::from_millis(Duration::from_secs_f64(seconds + 0.0005).as_millis() as u64))
}

fn tokens(line: &str) -> Of<Vec<Token>> {
    let mut tokens = Vec::new();
    const BLANKS: [char; 2] = [' ', '\t'];
    let mut rest = line.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let at = rest.find([' ', '\t', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(at);
        if !after.starts_with('"') {
            tokens.push(Token::Word(word.to_owned()));
            rest = after.trim_start_matches(BLANKS);
            continue;
        }
        let (bytes, after) = match word {
            "x" => bytes(&after[1..])?,
            _ => text(&after[1..])?,
        };
        tokens.push(match word {
            "" | "x" => Token::Text(bytes),
            _ => match word.strip_suffix('=').filter(|name| !name.is_empty()) {
                Some(name) => Token::Pair(name.to_owned(), bytes),
                None => return Err(format!("{word:?} stands before a quote; a pair is NAME=\"VALUE\"")),
            },
        });
        rest = after.trim_start_matches(BLANKS);
    }
    Ok(tokens)
}

/// A text up to its quote, and what comes after that.
fn text(of: &str) -> Of<(Vec<u8>, &str)> {
    let mut bytes = Vec::new();
    let mut letters = of.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((bytes, &of[at + 1..])),
            '\\' => match letters.next().map(|(_, letter)| letter) {
                Some('n') => bytes.push(b'\n'),
                Some('r') => bytes.push(b'\r'),
                Some('t') => bytes.push(b'\t'),
                Some('"') => bytes.push(b'"'),
                Some('\\') => bytes.push(b'\\'),
                Some('x') => {
                    let digits: String = letters.by_ref().take(2).map(|(_, letter)| letter).collect();
                    let byte = u8::from_str_radix(&digits, 16);
                    bytes.push(byte.map_err(|_| format!("\\x{digits}: expected two hexadecimal digits"))?);
                }
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!("\\{other}: there are \\n, \\r, \\t, \\\", \\\\ and \\xHH"));
                }
            },
            letter => bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Err("a quote is not closed".to_owned())
}

fn bytes(of: &str) -> Of<(Vec<u8>, &str)> {
    let (digits, rest) = of.split_once('"').ok_or("a quote is not closed")?;
    let byte = |pair: &str| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2);
    let bytes =
        digits.split_whitespace().map(|pair| byte(pair).ok_or(format!("{pair:?}: expected bytes as x\"0a ff\"")));
    Ok((bytes.collect::<Of<_>>()?, rest))
}
