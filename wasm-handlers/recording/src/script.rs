//! Answers as the recorded world has answered.
//!
//! Who asks is found by whom it asks, not by when and with what: a handler that was changed a little, or whose random numbers are other
//! ones, still gets the answers. The n-th time it gets what it got the n-th time; whoever asks more often gets the last answer again.

use crate::{Event, Http, Recording, Tcp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A recorded world that answers.
#[derive(Clone, Debug, Default)]
pub struct Script {
    udp: BTreeMap<(IpAddr, SocketAddr), VecDeque<Datagrams>>,
    connections: BTreeMap<SocketAddr, VecDeque<Conversation>>,
    requests: BTreeMap<(String, String), VecDeque<Exchange>>,
    names: BTreeMap<String, VecDeque<Result<Vec<IpAddr>, String>>>,
    changes: VecDeque<(Duration, Event)>,
    missing: BTreeSet<String>,
}

/// Answers to one datagram: how long after it, by whom, and what.
pub type Datagrams = Vec<(Duration, SocketAddr, Vec<u8>)>;

/// One connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Why there is none.
    pub failed: Option<String>,
    turns: VecDeque<Turn>,
    has_written: bool,
    /// What it wrote is being answered; more of it is a part of the same question.
    is_answered: bool,
}

/// What comes next in a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The handler has to write first.
    Asks,
    /// This comes, so long after what came before it or was written.
    Says(Duration, Vec<u8>),
    /// The other side has said all.
    Ends,
    /// It breaks.
    Breaks,
    /// Nothing more comes.
    Silent,
}

impl Conversation {
    /// There is none, for this reason.
    pub fn failed(why: &str) -> Self {
        Self { failed: Some(why.to_owned()), ..Self::default() }
    }

    /// The handler has written something.
    pub fn wrote(&mut self) {
        self.has_written = !self.is_answered;
    }

    /// What comes next, without taking it.
    pub fn turn(&mut self) -> Turn {
        while self.turns.front() == Some(&Turn::Asks) && self.has_written {
            while self.turns.front() == Some(&Turn::Asks) {
                self.turns.pop_front();
            }
            self.has_written = false;
            self.is_answered = true;
        }
        self.turns.front().cloned().unwrap_or(Turn::Silent)
    }

    /// It has come.
    pub fn taken(&mut self) {
        if matches!(self.turns.front(), Some(Turn::Says(..))) {
            self.turns.pop_front();
        }
        self.is_answered = false;
    }
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// How long it took until the answer began, or failed.
    pub after: Duration,
    /// Why there is no answer, or not all of it.
    pub failed: Option<String>,
    /// The answer's status; 0 if there is none.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Script {
    /// Of a recording.
    pub fn of(recording: &Recording) -> Self {
        let mut script = Self::default();
        let mut open: BTreeMap<u32, (SocketAddr, Duration, Conversation)> = BTreeMap::new();
        let mut asked: BTreeMap<u32, ((String, String), Duration, Exchange)> = BTreeMap::new();
        let mut order = (Vec::new(), Vec::new());
        // Datagrams that were sent, in their order.
        let mut sent: Vec<(Duration, IpAddr, SocketAddr, Datagrams)> = Vec::new();
        let (mut last, mut last_to_many) = (BTreeMap::new(), BTreeMap::new());
        let to_many =
            |to: &SocketAddr| to.ip().is_multicast() || matches!(to.ip(), IpAddr::V4(to) if to.octets()[3] == 255);
        for (at, event) in &recording.events {
            match event {
                Event::Udp { own, sent: true, peer, .. } => {
                    last.insert((*own, Some(*peer)), sent.len());
                    last.insert((*own, None), sent.len());
                    if to_many(peer) {
                        last_to_many.insert(*own, sent.len());
                    }
                    sent.push((*at, *own, *peer, Vec::new()));
                }
                Event::Udp { own, sent: false, peer, payload } => {
                    // To what it answers: what was sent there last, or to all.
                    let question = last.get(&(*own, Some(*peer))).or_else(|| last_to_many.get(own));
                    let question = question.or_else(|| last.get(&(*own, None))).copied();
                    if let Some((then, .., answers)) = question.map(|place| &mut sent[place]) {
                        answers.push((at.saturating_sub(*then), *peer, payload.clone()));
                    }
                }
                Event::Tcp(number, what) => match what {
                    Tcp::Open(peer) => {
                        open.insert(*number, (*peer, *at, Conversation::default()));
                        order.0.push(*number);
                    }
                    Tcp::Failed(peer, why) => {
                        open.insert(*number, (*peer, *at, Conversation::failed(why)));
                        order.0.push(*number);
                    }
                    other => {
                        let Some((_, before, conversation)) = open.get_mut(number) else { continue };
                        let turn = match other {
                            Tcp::Wrote(_) => Turn::Asks,
                            Tcp::Read(bytes) => Turn::Says(at.saturating_sub(*before), bytes.clone()),
                            Tcp::End => Turn::Ends,
                            _ => Turn::Breaks,
                        };
                        conversation.turns.push_back(turn);
                        *before = *at;
                    }
                },
                Event::Http(number, what) => match what {
                    Http::Asked { method, url } => {
                        asked.insert(*number, ((method.clone(), plain(url)), *at, Exchange::default()));
                        order.1.push(*number);
                    }
                    other => {
                        let Some((_, since, exchange)) = asked.get_mut(number) else { continue };
                        match other {
                            Http::Status(status) => {
                                exchange.status = *status;
                                exchange.after = at.saturating_sub(*since);
                            }
                            Http::AnswerHeader(name, value) => exchange.headers.push((name.clone(), value.clone())),
                            Http::AnswerBody(bytes) => exchange.body.extend(bytes),
                            Http::Failed(why) => {
                                exchange.failed = Some(why.clone());
                                if exchange.status == 0 {
                                    exchange.after = at.saturating_sub(*since);
                                }
                            }
                            _ => {}
                        }
                    }
                },
                Event::Name(name, found) => {
                    script.names.entry(name.clone()).or_default().push_back(found.clone());
                }
                Event::Said(_) | Event::SentToGroup { .. } => {}
                other => script.changes.push_back((*at, other.clone())),
            }
        }
        for (_, own, to, answers) in sent {
            script.udp.entry((own, to)).or_default().push_back(answers);
        }
        for number in order.0 {
            if let Some((peer, _, conversation)) = open.remove(&number) {
                script.connections.entry(peer).or_default().push_back(conversation);
            }
        }
        for number in order.1 {
            if let Some((of, _, exchange)) = asked.remove(&number) {
                script.requests.entry(of).or_default().push_back(exchange);
            }
        }
        script.begin_with_first_looks();
        script
    }

    /// What a handler saw of files and links for the first time may have been there before: a handler that looks earlier finds it, too.
    fn begin_with_first_looks(&mut self) {
        let mut seen = BTreeSet::new();
        let (mut first, mut later) = (VecDeque::new(), VecDeque::new());
        for (at, event) in std::mem::take(&mut self.changes) {
            let subject = match &event {
                Event::File { path, .. } | Event::Directory(path) | Event::Symlink { path, .. } | Event::Gone(path) => {
                    ("file", path.clone())
                }
                Event::Link { name, .. } | Event::LinkGone(name) => ("link", name.clone()),
                _ => {
                    later.push_back((at, event));
                    continue;
                }
            };
            match seen.insert(subject) {
                true => first.push_back((Duration::ZERO, event)),
                false => later.push_back((at, event)),
            }
        }
        first.extend(later);
        self.changes = first;
    }

    /// What comes by itself: the first that is left, and when.
    pub fn next_change(&self) -> Option<Duration> {
        self.changes.front().map(|(at, _)| *at)
    }

    /// Takes what has come by then.
    pub fn changes_until(&mut self, now: Duration) -> Vec<Event> {
        let count = self.changes.iter().take_while(|(at, _)| *at <= now).count();
        self.changes.drain(..count).map(|(_, event)| event).collect()
    }

    /// What answers a datagram.
    pub fn datagrams(&mut self, own: IpAddr, to: SocketAddr) -> Datagrams {
        // A socket of another address may be one of another machine.
        let key = match self.udp.contains_key(&(own, to)) {
            true => Some((own, to)),
            false => self.udp.keys().find(|(_, of)| *of == to).copied(),
        };
        match key.and_then(|key| self.udp.get_mut(&key)).and_then(next) {
            Some(answers) => answers,
            None => {
                self.miss(format!("a datagram to {to}"));
                Vec::new()
            }
        }
    }

    /// What becomes of a connection; none, if there was none there.
    pub fn connection(&mut self, to: SocketAddr) -> Option<Conversation> {
        let found = self.connections.get_mut(&to).and_then(next);
        if found.is_none() {
            self.miss(format!("a connection to {to}"));
        }
        found
    }

    /// What becomes of a request; none, if there was none.
    pub fn request(&mut self, method: &str, url: &str) -> Option<Exchange> {
        let url = plain(url);
        let without_query = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
        let exact = (method.to_owned(), url.clone());
        let key = match self.requests.contains_key(&exact) {
            true => Some(exact),
            // What is withheld of a query is another text then.
            false => {
                let like =
                    |(of, other): &&(String, String)| of == method && without_query(other) == without_query(&url);
                self.requests.keys().find(like).cloned()
            }
        };
        let found = key.and_then(|key| self.requests.get_mut(&key)).and_then(next);
        if found.is_none() {
            self.miss(format!("{method} {url}"));
        }
        found
    }

    /// Where a name leads.
    pub fn name(&mut self, name: &str) -> Result<Vec<IpAddr>, String> {
        if let Some(found) = self.names.get_mut(name).and_then(next) {
            return found;
        }
        self.miss(format!("a look-up of {name}"));
        Err("not-found".to_owned())
    }

    fn miss(&mut self, what: String) {
        // What a handler asks for may be without end.
        if self.missing.len() < 100 {
            self.missing.insert(what);
        }
    }

    /// What the handler asked for that is not in the recording.
    pub fn missing(&self) -> &BTreeSet<String> {
        &self.missing
    }
}

/// A URL as it is sent.
fn plain(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{}://{}{slash}{path}", scheme.to_ascii_lowercase(), authority.to_ascii_lowercase())
}

/// The first, or the last one again.
fn next<T: Clone>(all: &mut VecDeque<T>) -> Option<T> {
    match all.len() {
        0 | 1 => all.front().cloned(),
        _ => all.pop_front(),
    }
}
