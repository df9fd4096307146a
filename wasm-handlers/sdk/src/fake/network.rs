//! The network of a faked world.

use super::{State, World, here};
use crate::http::{Answer, Call, ErrorKind};
use crate::tcp::Peer;
use crate::udp::Datagram;
use akri_recording::Script;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// A datagram that the handler has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The address that its socket was bound to.
    pub from: IpAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it says.
    pub payload: Vec<u8>,
}

type Web = Rc<dyn Fn(&Call) -> Result<Answer, ErrorKind>>;
type Responder = Rc<dyn Fn(&Sent) -> Vec<(Duration, Datagram)>>;
/// What a server answers to what came; nothing closes the connection.
pub type Session = Box<dyn FnMut(&[u8]) -> Option<Vec<u8>>>;
type Server = Rc<dyn Fn() -> Session>;

/// What there is in the network.
#[derive(Default)]
pub(super) struct Network {
    web: Option<Web>,
    responder: Option<Responder>,
    servers: BTreeMap<(String, u16), Server>,
    /// Before all others.
    pub(super) script: Option<Script>,
    names: BTreeMap<String, Vec<IpAddr>>,
    sent: Vec<Sent>,
    /// In their order: when, to which socket, and what.
    coming: BTreeMap<(Duration, u64), (u64, Datagram)>,
    numbered: u64,
    sockets: u64,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("names", &self.names).field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl World {
    /// Answers all requests by HTTP.
    pub fn web(&self, answer: impl Fn(&Call) -> Result<Answer, ErrorKind> + 'static) {
        self.0.borrow_mut().network.web = Some(Rc::new(answer));
    }

    /// Answers datagrams: each answer comes after that time, to the socket that has asked.
    pub fn responder(&self, answer: impl Fn(&Sent) -> Vec<(Duration, Datagram)> + 'static) {
        self.0.borrow_mut().network.responder = Some(Rc::new(answer));
    }

    /// Serves connections to a host and port; elsewhere nobody listens.
    pub fn server(&self, host: &str, port: u16, session: impl Fn() -> Session + 'static) {
        self.0.borrow_mut().network.servers.insert((host.to_owned(), port), Rc::new(session));
    }

    /// What a name leads to.
    pub fn name(&self, name: &str, addresses: Vec<IpAddr>) {
        self.0.borrow_mut().network.names.insert(name.to_owned(), addresses);
    }

    /// The datagrams that the handler has sent since this was called last.
    pub fn datagrams(&self) -> Vec<Sent> {
        std::mem::take(&mut self.0.borrow_mut().network.sent)
    }
}

pub(crate) mod http {
    use super::super::replay;
    use super::here;
    use crate::http::{Answer, Call, Error, ErrorKind, MOST_SENT, parts};

    pub(crate) fn send_all(calls: Vec<Call>) -> Vec<Result<Answer, Error>> {
        calls.iter().map(|call| send(call).map_err(|kind| Error::new(&call.url, kind))).collect()
    }

    fn send(call: &Call) -> Result<Answer, ErrorKind> {
        parts(&call.url).ok_or(ErrorKind::Url)?;
        if call.body.len() > MOST_SENT {
            return Err(ErrorKind::TooLong);
        }
        if let Some(answer) = here(|state| replay::answer(state, call)) {
            return cut(call, answer?);
        }
        let web = here(|state| state.network.web.clone());
        let answer = web.ok_or_else(|| ErrorKind::Failed("nobody listens there".to_owned()))?(call)?;
        cut(call, answer)
    }

    fn cut(call: &Call, mut answer: Answer) -> Result<Answer, ErrorKind> {
        if answer.body.len() > call.most && !call.cut {
            return Err(ErrorKind::TooLong);
        }
        answer.body.truncate(call.most);
        Ok(answer)
    }
}

pub(crate) mod udp {
    use super::super::replay;
    use super::{Sent, State, here};
    use crate::Error;
    use crate::udp::Datagram;
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    #[derive(Debug)]
    pub(crate) struct Socket(u64, IpAddr);

    pub(crate) fn bind(address: IpAddr) -> Result<Socket, Error> {
        here(|state| {
            state.network.sockets += 1;
            Ok(Socket(state.network.sockets, address))
        })
    }

    pub(crate) fn send(socket: &Socket, to: SocketAddr, payload: &[u8]) -> Result<(), Error> {
        let sent = Sent { from: socket.1, to, payload: payload.to_vec() };
        let responder = here(|state| state.network.responder.clone());
        let scripted = here(|state| replay::datagrams(state, &sent));
        let answers = scripted.or_else(|| responder.map(|responder| responder(&sent))).unwrap_or_default();
        here(|state| {
            let network = &mut state.network;
            for (after, datagram) in answers {
                network.numbered += 1;
                network.coming.insert((state.now + after, network.numbered), (socket.0, datagram));
            }
            network.sent.push(sent);
        });
        Ok(())
    }

    pub(crate) fn receive(sockets: &[&Socket], until: Duration) -> Option<(usize, Datagram)> {
        here(|state: &mut State| {
            let place = |socket: u64| sockets.iter().position(|of| of.0 == socket);
            let came = state.network.coming.range(..=(until, u64::MAX));
            let first = came.into_iter().find(|(_, (socket, _))| place(*socket).is_some()).map(|(key, _)| *key);
            let Some((key, (socket, datagram))) = first.and_then(|key| state.network.coming.remove_entry(&key)) else {
                state.now = state.now.max(until);
                return None;
            };
            state.now = state.now.max(key.0);
            Some((place(socket)?, datagram))
        })
    }
}

pub(crate) mod tcp {
    use super::super::replay;
    use super::{Peer, here};
    use crate::Error;
    use crate::tcp::{LookUpError, Next, Talk};
    use std::net::IpAddr;
    use std::time::Duration;

    pub(crate) fn talk<T: Talk>(talks: Vec<(Peer, T)>, _: Duration) -> Vec<Result<T::Said, Error>> {
        talks.into_iter().map(|(peer, talk)| converse(&peer, talk)).collect()
    }

    fn converse<T: Talk>(peer: &Peer, mut talk: T) -> Result<T::Said, Error> {
        let failed = |why: &str| Error::Unavailable(format!("tcp connection to {}:{}: {why}", peer.host, peer.port));
        let server = here(|state| state.network.servers.get(&(peer.host.clone(), peer.port)).cloned());
        let mut session = match here(|state| replay::session(state, peer)) {
            Some(scripted) => scripted.map_err(failed)?,
            None => server.ok_or_else(|| failed("nobody listens there"))?(),
        };
        let mut unsent = talk.begin();
        loop {
            let answer = session(&unsent).ok_or_else(|| failed("it closed the connection"))?;
            match talk.received(&answer) {
                Next::Done(said) => return Ok(said),
                Next::Last(last, said) => {
                    session(&last);
                    return Ok(said);
                }
                // Whoever has nothing to say to nothing waits for ever.
                Next::More(more) if more.is_empty() && answer.is_empty() => return Err(failed("no answer in time")),
                Next::More(more) => unsent = more,
            }
        }
    }

    pub(crate) fn look_up(names: &[String], _: Duration) -> Vec<Result<Vec<IpAddr>, LookUpError>> {
        let of = |name: &String| match name.parse() {
            Ok(address) => Ok(vec![address]),
            Err(_) => here(|state| replay::name(state, name).or_else(|| state.network.names.get(name).cloned()))
                .ok_or_else(|| {
                    LookUpError::NotFound(Error::Unavailable(format!("look-up of {name}: its name leads nowhere")))
                }),
        };
        names.iter().map(of).collect()
    }
}
