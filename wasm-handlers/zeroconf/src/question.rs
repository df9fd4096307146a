//! Questions, and the time in which they are answered.

use crate::services::Services;
use akri_handler::{time, udp};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, TYPE};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Where questions go and services announce themselves.
pub const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), 5353);

/// How long answers are awaited: to the question of who is there, and to what that leaves open. Whoever shares a name waits for up
/// to 120 ms (RFC 6762, 6).
const WHO: Duration = Duration::from_millis(700);
const WHAT: Duration = Duration::from_millis(400);
/// Rounds of questions that answers leave open: for kinds their services, for services their hosts, for those their addresses.
const ROUNDS: usize = 3;
/// Questions of one message.
const AT_ONCE: usize = 16;
/// Services that one sender may name in one round and that were not known; others on the network have their places, too.
const MOST_OF_ONE: usize = 64;

/// A name, and what is asked about it.
pub type Asked = (String, TYPE);

/// Asks who is there, on every link, from a port of its own, so that answers come here; and then what the answers leave open.
pub fn ask_who(services: &mut Services) -> Result<(), String> {
    let first = [services.first_question()];
    let sockets = sockets(&first)?;
    gather(&sockets, WHO, services);
    ask_what(&sockets, services);
    Ok(())
}

/// Asks what announcements leave open.
pub fn ask_rest(services: &mut Services) -> Result<(), String> {
    if !services.open_questions().is_empty() {
        ask_what(&sockets(&[])?, services);
    }
    Ok(())
}

/// A socket on each link, on which these questions were asked.
fn sockets(questions: &[Asked]) -> Result<Vec<udp::Socket>, String> {
    udp::ask_on_links(|socket| send(socket, questions)).map(|(sockets, _)| sockets)
}

fn ask_what(sockets: &[udp::Socket], services: &mut Services) {
    let mut before = Vec::new();
    for _ in 0..ROUNDS {
        let open = services.open_questions();
        // Nobody has said anything new: what is left is asked with the next question of who is there.
        if open.is_empty() || open == before {
            break;
        }
        for questions in open.chunks(AT_ONCE) {
            for socket in sockets {
                // A link that has gone meanwhile is asked no more.
                let _ = send(socket, questions);
            }
        }
        gather(sockets, WHAT, services);
        before = open;
    }
}

fn gather(sockets: &[udp::Socket], window: Duration, services: &mut Services) {
    let all: Vec<_> = sockets.iter().collect();
    let until = time::now() + window;
    let mut of_sender = BTreeMap::<IpAddr, usize>::new();
    while let Some((_, datagram)) = udp::receive(&all, until) {
        let named = of_sender.entry(datagram.from.ip()).or_default();
        *named += services.have_said(&datagram.payload, MOST_OF_ONE - *named);
    }
}

fn send(socket: &udp::Socket, questions: &[Asked]) -> Result<(), akri_handler::Error> {
    if questions.is_empty() {
        return Ok(());
    }
    let mut packet = Packet::new_query(0);
    for (name, kind) in questions {
        if let Ok(name) = Name::new(name) {
            packet.questions.push(Question::new(name, QTYPE::TYPE(*kind), QCLASS::CLASS(CLASS::IN), true));
        }
    }
    match packet.build_bytes_vec() {
        Ok(bytes) => socket.send(GROUP, &bytes),
        Err(error) => Err(akri_handler::Error::Internal(format!("a question cannot be written: {error}"))),
    }
}
