//! The handler in a faked world: servers made of bytes.

use crate::Opcua;
use akri_handler::fake::{Session, World};
use akri_handler::{Error, Step};
use opcua_codec::{Reader, Writer};
use std::cell::Cell;
use std::rc::Rc;

/// An application as a server writes it.
fn application(name: &str, kind: u32, urls: &[&str]) -> Vec<u8> {
    let mut writer = Writer::default().string("urn:x").string("");
    writer.0.push(2);
    let writer = writer.string(name).u32(kind).null().null().u32(u32::try_from(urls.len()).unwrap());
    urls.iter().fold(writer, |writer, url| writer.string(url)).0
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [&kind[..], &u32::try_from(content.len() + 8).unwrap().to_le_bytes(), content].concat()
}

fn response_header(status: u32) -> Vec<u8> {
    let mut header = vec![0; 12];
    header.extend(status.to_le_bytes());
    header.push(0);
    header.extend(u32::MAX.to_le_bytes());
    header.extend([0; 3]);
    header
}

fn opened() -> Vec<u8> {
    let mut content =
        Writer::default().u32(7).string("http://opcfoundation.org/UA/SecurityPolicy#None").null().null().u32(1).u32(1);
    content.0.extend([1, 0, 0xc1, 1]);
    content.0.extend(response_header(0));
    let mut content = content.u32(0).u32(7).u32(9);
    content.0.extend([0; 8]);
    chunk(b"OPNF", &content.u32(60_000).null().0)
}

/// The body of an answer to FindServers.
fn found(applications: &[Vec<u8>]) -> Vec<u8> {
    let count = u32::try_from(applications.len()).unwrap();
    [vec![1, 0, 0xa9, 1], response_header(0), count.to_le_bytes().to_vec(), applications.concat()].concat()
}

fn message(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    // To the second request, after that for the channel.
    chunk(kind, &[&[0; 12][..], &[2, 0, 0, 0], body].concat())
}

/// A server that answers FindServers with that message, and counts the channels that were closed.
fn server(answer: Vec<u8>, closed: Rc<Cell<u32>>) -> impl Fn() -> Session {
    move || {
        let (answer, closed) = (answer.clone(), closed.clone());
        Box::new(move |sent: &[u8]| {
            Some(match sent.first_chunk::<4>()? {
                b"HELF" => {
                    let mut hello = Reader(&sent[28..]);
                    assert!(hello.string().unwrap().starts_with("opc.tcp://"));
                    chunk(b"ACKF", &[0; 20])
                }
                b"OPNF" => opened(),
                b"MSGF" => {
                    // The channel and token that it was given.
                    assert_eq!(sent[8..16], [7, 0, 0, 0, 9, 0, 0, 0]);
                    answer.clone()
                }
                b"CLOF" => {
                    closed.set(closed.get() + 1);
                    Vec::new()
                }
                other => panic!("{other:?}"),
            })
        })
    }
}

fn details(urls: &[&str], more: &str) -> String {
    format!(r#"{{"opcuaDiscoveryMethod": {{"standard": {{"discoveryUrls": {urls:?}}}}}{more}}}"#)
}

fn ids(step: &Step) -> Vec<&str> {
    step.devices.as_ref().unwrap().iter().map(|device| device.id.as_str()).collect()
}

#[test]
fn servers_are_found_by_their_urls_as_native() {
    let world = World::new();
    let closed = Rc::new(Cell::new(0));
    let applications = [
        application("plc", 0, &["https://plc.example/", "opc.tcp://plc.example:4855/ua"]),
        application("by address", 0, &["opc.tcp://10.0.0.7:4855"]),
        application("nameless here", 0, &["opc.tcp://DESKTOP-1:4855/ua"]),
        application("client", 1, &["opc.tcp://10.0.0.8:1"]),
        application("both", 2, &["opc.tcp://10.0.0.9:1"]),
        application("lds", 3, &["opc.tcp://10.0.0.1:4840"]),
        application("web only", 0, &["https://web.example/"]),
        application("no url", 0, &[]),
    ];
    world.server("10.0.0.1", 4840, server(message(b"MSGF", &found(&applications)), closed.clone()));
    world.name("plc.example", vec!["10.0.0.5".parse().unwrap()]);
    let of = |more: &str| {
        let mut opcua = world.open::<Opcua>(&details(&["opc.tcp://10.0.0.1:4840/"], more)).unwrap();
        opcua.step().unwrap()
    };
    let step = of("");
    assert_eq!(ids(&step), ["opc.tcp://10.0.0.1:4840/ua", "opc.tcp://10.0.0.7:4855", "opc.tcp://plc.example:4855/ua"]);
    assert_eq!(step.note, None);
    assert_eq!(
        step.devices.as_ref().unwrap()[1].properties,
        [("OPCUA_DISCOVERY_URL".to_owned(), "opc.tcp://10.0.0.7:4855".to_owned())]
    );
    assert_eq!(closed.get(), 1, "the channel");
    assert_eq!(
        ids(&of(r#", "resolve": "never""#))[1..],
        ["opc.tcp://DESKTOP-1:4855/ua", "opc.tcp://plc.example:4855/ua"]
    );
    assert_eq!(ids(&of(r#", "applicationNames": {"items": ["plc"]}"#)), ["opc.tcp://plc.example:4855/ua"]);
    assert_eq!(ids(&of(r#", "applicationNames": {"items": ["plc"], "action": "Exclude"}"#)).len(), 2);
    assert_eq!(ids(&of(r#", "applicationTypes": ["ClientAndServer"]"#)), ["opc.tcp://10.0.0.9:1"]);
}

#[test]
fn an_endpoint_that_is_away_costs_the_others_nothing_and_keeps_its_servers_for_a_while() {
    let world = World::new();
    let closed = Rc::<Cell<u32>>::default();
    let one = |name: &str, url: &str| message(b"MSGF", &found(&[application(name, 0, &[url])]));
    world.server("10.0.0.1", 4840, server(one("a", "opc.tcp://10.0.0.1:1"), closed.clone()));
    world.server("10.0.0.2", 4840, server(one("b", "opc.tcp://10.0.0.2:1"), closed.clone()));
    let urls = ["opc.tcp://10.0.0.1:4840", "opc.tcp://10.0.0.2", "opc.tcp://nobody.example:4840/"];
    let mut opcua = world.open::<Opcua>(&details(&urls, r#", "missedPolls": 2"#)).unwrap();
    let step = opcua.step().unwrap();
    assert_eq!(ids(&step).len(), 2);
    assert_eq!(step.note.as_deref(), Some("tcp connection to nobody.example:4840: nobody listens there"));
    world.server("10.0.0.2", 4840, || Box::new(|_: &[u8]| None));
    for left in [2, 2, 1, 1] {
        let step = opcua.step().unwrap();
        assert_eq!(ids(&step).len(), left);
        assert!(step.note.unwrap().contains("tcp connection to 10.0.0.2:4840: it closed the connection"));
    }
    world.server("10.0.0.2", 4840, server(one("b", "opc.tcp://10.0.0.2:1"), closed));
    assert_eq!(ids(&opcua.step().unwrap()).len(), 2);
    // Whoever has never heard of anybody does not say that there is nobody.
    let mut alone = world.open::<Opcua>(&details(&["opc.tcp://nobody.example"], r#", "missedPolls": 1"#)).unwrap();
    assert!(matches!(alone.step(), Err(Error::Unavailable(why)) if why.contains("nobody.example")));
    assert!(ids(&alone.step().map_err(|_| alone.step()).unwrap_or_else(|after| after.unwrap())).is_empty());
}

#[test]
fn answers_come_in_pieces() {
    let world = World::new();
    let body = found(&[application("a", 0, &["opc.tcp://10.0.0.1:1"]), application("b", 0, &["opc.tcp://10.0.0.2:1"])]);
    let chunks =
        [message(b"MSGC", &body[..30]), message(b"MSGC", &body[30..31]), message(b"MSGF", &body[31..])].concat();
    world.server("10.0.0.1", 4840, server(chunks.clone(), Rc::default()));
    let mut opcua = world.open::<Opcua>(&details(&["opc.tcp://10.0.0.1"], "")).unwrap();
    assert_eq!(ids(&opcua.step().unwrap()).len(), 2);
    // The same, a few bytes at a time.
    use crate::conversation::FindServers;
    use akri_handler::tcp::{Next, Talk as _};
    let mut talk = FindServers::new("opc.tcp://10.0.0.1");
    talk.begin();
    let all = [chunk(b"ACKF", &[0; 20]), opened(), chunks].concat();
    let mut done = None;
    for piece in all.chunks(7) {
        if let Next::Last(_, found) = talk.received(piece) {
            done = Some(found.unwrap().len());
        }
    }
    assert_eq!(done, Some(2));
}

#[test]
fn hostile_answers_are_bounded_and_named() {
    let world = World::new();
    let header = response_header(0);
    let long_array = [vec![1, 0, 0xa9, 1], header.clone(), 0x7fff_ffff_u32.to_le_bytes().to_vec()].concat();
    let long_string = found(&[Writer::default().u32(0x7fff_ffff).0]);
    let deep = [vec![1, 0, 0xa9, 1], vec![0; 16], vec![0x40; 5000]].concat();
    let fault = [vec![1, 0, 0x8d, 1], response_header(0x800b_0000)].concat();
    let endless: Vec<u8> = (0..300).flat_map(|_| message(b"MSGC", &[0; 8])).collect();
    let huge: Vec<u8> = (0..20).flat_map(|_| message(b"MSGC", &[0; 60_000])).collect();
    for (answer, what) in [
        (message(b"MSGF", &long_array), "an array is longer than its message"),
        (message(b"MSGF", &long_string), "it ends within a value"),
        (message(b"MSGF", &deep), "nested too deep"),
        (message(b"MSGF", &[0x3f]), "unknown encoding"),
        (message(b"MSGF", &fault), "FindServers failed: BadServiceUnsupported (status 0x800b0000)"),
        (message(b"MSGA", &[0, 0, 8, 0x80, 255, 255, 255, 255]), "gave its answer up: BadEncodingLimitsExceeded"),
        (message(b"MSGX", &[]), "neither the last"),
        (endless, "its answer is too long"),
        (huge, "its answer is too long"),
        (chunk(b"MSGF", &[[0; 12].as_slice(), &[3, 0, 0, 0], &found(&[])].concat()), "another request"),
        (b"MSGF\xff\xff\xff\x7f".to_vec(), "a size that was not agreed on"),
        (b"MSGF\x00\x00\x00\x00".to_vec(), "a size that was not agreed on"),
        (chunk(b"ACKF", &[0; 20]), "not the one that is due"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "a size that was not agreed on"),
        (chunk(b"ERRF", &Writer::default().u32(0x807d_0000).string("try later").0), "BadTcpServerTooBusy, try later"),
    ] {
        world.server("10.0.0.1", 4840, server(answer, Rc::default()));
        let mut opcua = world.open::<Opcua>(&details(&["opc.tcp://10.0.0.1"], "")).unwrap();
        let error = opcua.step().unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("opc.tcp://10.0.0.1"), "{what}: {error}");
    }
}

#[test]
fn details_are_those_of_native() {
    let world = World::new();
    world.server("localhost", 4840, server(message(b"MSGF", &found(&[])), Rc::default()));
    let open = |details: &str| world.open::<Opcua>(details).map(|mut opcua| opcua.step());
    assert!(open(r#"{"opcuaDiscoveryMethod": {"standard": {}}}"#).unwrap().unwrap().devices.unwrap().is_empty());
    for (details, what) in [
        (details(&["http://10.0.0.1"], ""), "is no URL of OPC UA"),
        (details(&[], ""), "there are 0"),
        (details(&[""], ""), "is no URL of OPC UA"),
        ("{}".to_owned(), "opcuaDiscoveryMethod"),
        (details(&["opc.tcp://a"], r#", "applicationNames": {}"#), "items"),
    ] {
        let error = open(&details).unwrap_err();
        assert!(matches!(&error, Error::InvalidDetails(why) if why.contains(what)), "{details}: {error}");
    }
}

#[test]
fn names_of_many_servers_are_all_looked_up_and_again_later() {
    let world = World::new();
    let closed = Rc::<Cell<u32>>::default();
    let name = |number: usize| format!("s{number:03}.example");
    for number in 0..750 {
        world.name(&name(number), vec!["10.0.0.5".parse().unwrap()]);
    }
    let applications: Vec<_> =
        (0..750).map(|number| application("s", 0, &[&format!("opc.tcp://{}:4840/ua", name(number))])).collect();
    let mut urls = Vec::new();
    for (number, some) in applications.chunks(250).enumerate() {
        world.server(&format!("10.0.0.{number}"), 4840, server(message(b"MSGF", &found(some)), closed.clone()));
        urls.push(format!("opc.tcp://10.0.0.{number}:4840/"));
    }
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let mut opcua = world.open::<Opcua>(&details(&urls, "")).unwrap();
    let polls = (1..20).find(|_| ids(&opcua.step().unwrap()).len() == 750);
    assert_eq!(polls, Some(12), "64 a poll");
    // One that leads nowhere from now on is known by another URL, the last one of all too.
    for number in [0, 749] {
        world.name(&name(number), Vec::new());
        let lost = format!("opc.tcp://{}:4840/ua", name(number));
        let polls = (1..30).find(|_| !ids(&opcua.step().unwrap()).contains(&lost.as_str()));
        assert!(polls.is_some(), "{number}");
    }
}

#[test]
fn a_day_of_polls_leaves_nothing_behind() {
    let world = World::new();
    let polls = Rc::new(Cell::new(0_u32));
    let (number, closed) = (polls.clone(), Rc::<Cell<u32>>::default());
    // Each time another server, of another name, and now and then nobody.
    world.server("10.0.0.1", 4840, move || {
        number.set(number.get() + 1);
        let url = format!("opc.tcp://host-{:05}.example:1/ua", number.get());
        let answer = message(b"MSGF", &found(&[application("plc", 0, &[&url])]));
        server(if number.get() % 7 == 0 { Vec::new() } else { answer }, closed.clone())()
    });
    let mut opcua = world.open::<Opcua>(&details(&["opc.tcp://10.0.0.1"], "")).unwrap();
    let mut poll = || {
        let rest = opcua.step().unwrap().wake_after.unwrap();
        world.advance(rest);
    };
    (0..100).for_each(|_| poll());
    let day = allocation_counter::measure(|| (0..8640).for_each(|_| poll()));
    assert_eq!(polls.get(), 8740);
    assert!(day.count_total > 8640 && day.bytes_current < 4096, "{day:?}");
}

/// Of real programs; each file says which.
#[test]
fn what_was_recorded_is_said_again() {
    akri_handler::fake::replay_all::<crate::Opcua>("tests");
}
