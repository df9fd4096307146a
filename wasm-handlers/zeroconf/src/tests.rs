//! The handler in a faked world: services made of records.

use crate::Zeroconf;
use akri_handler::fake::{Opened, World};
use akri_handler::links::Link;
use akri_handler::udp::Datagram;
use akri_handler::{Device, Error, Step, multicast};
use simple_dns::rdata::{A, PTR, RData, SRV, TXT};
use simple_dns::{CLASS, Name, Packet, QTYPE, ResourceRecord, TYPE};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A record: its name, how long it may be believed, and what it says.
#[derive(Clone)]
struct Record(&'static str, u32, Says);

#[derive(Clone)]
enum Says {
    Is(&'static str),
    At(&'static str, u16),
    Texts(&'static [&'static str]),
    Has([u8; 4]),
}

fn message(records: &[Record]) -> Vec<u8> {
    let mut packet = Packet::new_reply(0);
    for Record(name, ttl, says) in records {
        let rdata = match says {
            Says::Is(to) => RData::PTR(PTR(Name::new(to).unwrap())),
            Says::At(target, port) => {
                RData::SRV(SRV { priority: 0, weight: 0, port: *port, target: Name::new(target).unwrap() })
            }
            Says::Texts(texts) => RData::TXT(texts.iter().fold(TXT::new(), |txt, text| txt.with_string(text).unwrap())),
            Says::Has(address) => RData::A(A { address: u32::from_be_bytes(*address) }),
        };
        packet.answers.push(ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, *ttl, rdata));
    }
    packet.build_bytes_vec().unwrap()
}

/// What a printer says of itself.
fn printer() -> Vec<Record> {
    vec![
        Record("_ipp._tcp.local", 10, Says::Is(r"My\.Printer 2._ipp._tcp.local")),
        Record(r"My\.Printer 2._ipp._tcp.local", 10, Says::At("printer.local", 631)),
        Record(r"My\.Printer 2._ipp._tcp.local", 10, Says::Texts(&["ty=Laser", "pdl-x=a=b", "color", "kind=no"])),
        Record("printer.local", 10, Says::Has([192, 0, 2, 7])),
    ]
}

/// A world in which these records answer the questions about their names, each in a message of its own if `apart`.
fn world(records: &Rc<RefCell<Vec<Record>>>, apart: bool) -> World {
    let world = World::new();
    let link = |name: &str, address: &str| Link {
        name: name.to_owned(),
        addresses: vec![(address.parse().unwrap(), 24)],
        multicast: true,
        loopback: false,
    };
    world.set_links(vec![link("eth0", "192.0.2.1"), link("eth1", "198.51.100.1")]);
    let there = records.clone();
    world.responder(move |sent| {
        assert_eq!(sent.to, "224.0.0.251:5353".parse().unwrap());
        let packet = Packet::parse(&sent.payload).unwrap();
        let asks = |record: &&Record| {
            packet.questions.iter().any(|question| {
                let kind = match record.2 {
                    Says::Is(_) => TYPE::PTR,
                    Says::At(..) => TYPE::SRV,
                    Says::Texts(_) => TYPE::TXT,
                    Says::Has(_) => TYPE::A,
                };
                question.qname == Name::new(record.0).unwrap() && question.qtype == QTYPE::TYPE(kind)
            })
        };
        let there = there.borrow();
        let asked: Vec<_> = there.iter().filter(asks).cloned().collect();
        let messages: Vec<_> = match apart {
            _ if asked.is_empty() => Vec::new(),
            true => asked.iter().map(|record| message(std::slice::from_ref(record))).collect(),
            // With everything else that may be of use.
            false => vec![message(&there)],
        };
        let datagram = |payload| Datagram { from: "192.0.2.7:5353".parse().unwrap(), payload };
        messages.into_iter().map(|payload| (Duration::from_millis(120), datagram(payload))).collect()
    });
    world
}

fn next(world: &World, zeroconf: &mut Opened<Zeroconf>) -> Vec<Device> {
    let Step { devices, wake_after, .. } = zeroconf.step().unwrap();
    world.advance(wake_after.unwrap());
    devices.unwrap()
}

fn property<'a>(device: &'a Device, name: &str) -> Option<&'a str> {
    device.properties.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
}

#[test]
fn a_service_is_found_with_what_it_says() {
    for apart in [false, true] {
        let records = Rc::new(RefCell::new(printer()));
        let world = world(&records, apart);
        let mut zeroconf = world.open::<Zeroconf>(r#"{"kind": "_ipp._tcp"}"#).unwrap();
        let devices = next(&world, &mut zeroconf);
        assert_eq!(devices.len(), 1, "{apart}");
        assert_eq!(devices[0].id, r"My\.Printer 2._ipp._tcp.local");
        for (name, value) in [
            ("AKRI_ZEROCONF", Some("zeroconf")),
            ("AKRI_ZEROCONF_DEVICE_KIND", Some("_ipp._tcp")),
            ("AKRI_ZEROCONF_DEVICE_NAME", Some("My.Printer 2")),
            ("AKRI_ZEROCONF_DEVICE_HOST", Some("printer.local")),
            ("AKRI_ZEROCONF_DEVICE_ADDR", Some("192.0.2.7")),
            ("AKRI_ZEROCONF_DEVICE_PORT", Some("631")),
            ("AKRI_ZEROCONF_DEVICE_TY", Some("Laser")),
            ("AKRI_ZEROCONF_DEVICE_PDL_X", Some("a=b")),
            ("AKRI_ZEROCONF_DEVICE_COLOR", Some("")),
            ("AKRI_ZEROCONF_DEVICE_OTHER", None),
        ] {
            assert_eq!(property(&devices[0], name), value, "{name}");
        }
        // What is known is not asked for again.
        world.datagrams();
        assert_eq!(next(&world, &mut zeroconf), devices);
        assert_eq!(world.datagrams().len(), 2, "one question on each link");
    }
}

#[test]
fn what_is_asked_for_is_what_is_found() {
    let mut all = printer();
    all.extend([
        Record("_services._dns-sd._udp.local", 10, Says::Is("_ipp._tcp.local")),
        Record("_services._dns-sd._udp.local", 10, Says::Is("_rtsp._tcp.local")),
        Record("_rtsp._tcp.local", 10, Says::Is("cam._rtsp._tcp.local")),
        Record("cam._rtsp._tcp.local", 10, Says::At("cam.local", 554)),
        Record("half._rtsp._tcp.local", 10, Says::Texts(&[])),
        Record("_rtsp._tcp.local", 10, Says::Is("half._rtsp._tcp.local")),
        Record("_rtsp._tcp.example", 10, Says::Is("far._rtsp._tcp.example")),
    ]);
    let records = Rc::new(RefCell::new(all));
    let world = world(&records, true);
    let count = |details: &str| next(&world, &mut world.open::<Zeroconf>(details).unwrap()).len();
    for (details, found) in [
        ("{}", 2),
        (r#"{"kind": "_rtsp._tcp"}"#, 1),
        (r#"{"kind": "_RTSP._tcp", "port": 554}"#, 1),
        (r#"{"port": 631}"#, 1),
        (r#"{"name": "my.printer 2"}"#, 1),
        (r#"{"name": "nobody"}"#, 0),
        (r#"{"kind": "_http._tcp"}"#, 0),
        (r#"{"domain": "example"}"#, 0),
    ] {
        assert_eq!(count(details), found, "{details}");
    }
}

#[test]
fn a_service_goes_by_its_goodbye_or_when_it_is_missed_for_long() {
    let records = Rc::new(RefCell::new(printer()));
    let world = world(&records, false);
    let mut zeroconf = world.open::<Zeroconf>(r#"{"kind": "_ipp._tcp", "missedQuestions": 2}"#).unwrap();
    assert_eq!(next(&world, &mut zeroconf).len(), 1);
    let gone = records.take();
    let counts: Vec<_> = (0..4).map(|_| next(&world, &mut zeroconf).len()).collect();
    assert_eq!(counts, [1, 1, 1, 0], "gone after more than two");
    let group = "224.0.0.251:5353".parse().unwrap();
    let says = |records: &[Record]| multicast::Datagram {
        from: "192.0.2.7:5353".parse().unwrap(),
        link: "eth0".to_owned(),
        payload: message(records),
    };
    world.datagram(group, says(&gone));
    assert!(world.wants_step());
    assert_eq!(zeroconf.step().unwrap().devices.unwrap().len(), 1, "it has announced itself");
    let mut goodbye = gone.clone();
    goodbye[0].1 = 0;
    world.datagram(group, says(&goodbye[..1]));
    assert!(zeroconf.step().unwrap().devices.unwrap().is_empty());
    // No network is no reason to forget anybody.
    records.replace(gone);
    world.advance(Duration::from_secs(10));
    assert_eq!(next(&world, &mut zeroconf).len(), 1);
    world.set_links(Vec::new());
    world.advance(Duration::from_secs(10));
    assert!(matches!(zeroconf.step(), Err(Error::Unavailable(why)) if why.contains("no granted network link")));
}

#[test]
fn what_strangers_send_is_bounded() {
    let records = Rc::new(RefCell::new(printer()));
    let world = world(&records, false);
    world.responder(|_| {
        let from = |host: u32| format!("192.0.2.{host}:5353").parse().unwrap();
        let mut sent = Vec::new();
        for number in 0..1000_u32 {
            let mut packet = Packet::new_reply(0);
            let name = format!("f{number}._ipp._tcp.local");
            let pointer = RData::PTR(PTR(Name::new(&name).unwrap()));
            packet.answers.push(ResourceRecord::new(Name::new("_ipp._tcp.local").unwrap(), CLASS::IN, 10, pointer));
            sent.push((Duration::ZERO, Datagram { from: from(100), payload: packet.build_bytes_vec().unwrap() }));
        }
        for payload in [vec![], vec![0; 11], vec![0xff; 600], vec![0xc0; 100]] {
            sent.push((Duration::ZERO, Datagram { from: from(101), payload }));
        }
        sent.push((Duration::from_millis(500), Datagram { from: from(7), payload: message(&printer()) }));
        sent
    });
    let mut zeroconf = world.open::<Zeroconf>(r#"{"kind": "_ipp._tcp"}"#).unwrap();
    let devices = next(&world, &mut zeroconf);
    assert_eq!(devices.len(), 1, "those of which nobody knows where they are are none");
}

#[test]
fn a_day_of_questions_leaves_nothing_behind() {
    let world = world(&Rc::default(), false);
    let number = Rc::new(std::cell::Cell::new(0_u32));
    let of = number.clone();
    world.responder(move |_| {
        let name = |text: String| Name::new(&text).unwrap().into_owned();
        let (service, host) = (format!("s{}._ipp._tcp.local", of.get()), format!("h{}.local", of.get()));
        let record = |of: &str, rdata| ResourceRecord::new(name(of.to_owned()), CLASS::IN, 10, rdata);
        let mut packet = Packet::new_reply(0);
        packet.answers = vec![
            record("_ipp._tcp.local", RData::PTR(PTR(name(service.clone())))),
            record(&service, RData::SRV(SRV { priority: 0, weight: 0, port: 631, target: name(host.clone()) })),
            record(&host, RData::A(A { address: 0xc000_0207 })),
        ];
        let from = "192.0.2.7:5353".parse().unwrap();
        vec![(Duration::ZERO, Datagram { from, payload: packet.build_bytes_vec().unwrap() })]
    });
    let mut zeroconf = world.open::<Zeroconf>(r#"{"kind": "_ipp._tcp", "missedQuestions": 1}"#).unwrap();
    let mut found = 0;
    let mut ask = || {
        // Another service each time.
        number.set(number.get() + 1);
        found += next(&world, &mut zeroconf).len();
        world.datagrams();
    };
    (0..100).for_each(|_| ask());
    let day = allocation_counter::measure(|| (0..8640).for_each(|_| ask()));
    assert!(found >= 8740, "{found}");
    assert!(day.count_total > 8640 && day.bytes_current < 16_384, "{day:?}");
}

/// Of real programs; each file says which.
#[test]
fn what_was_recorded_is_said_again() {
    akri_handler::fake::replay_all::<crate::Zeroconf>("tests");
}
