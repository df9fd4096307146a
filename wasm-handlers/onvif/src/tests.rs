//! The handler in a faked world: cameras made of XML.

use crate::Onvif;
use crate::discovery::{self, Announcement};
use akri_handler::fake::{Opened, World};
use akri_handler::http::{Answer, Call, ErrorKind};
use akri_handler::links::Link;
use akri_handler::multicast;
use akri_handler::udp::Datagram;
use akri_handler::{Device, Error, Step};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const GROUP: &str = "239.255.255.250:3702";

fn link(name: &str, address: &str) -> Link {
    Link { name: name.to_owned(), addresses: vec![(address.parse().unwrap(), 24)], multicast: true, loopback: false }
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into() }
}

fn probe_match(uuid: &str, urls: &str) -> String {
    format!(
        r#"<?xml version="1.0"?><e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope" xmlns:wsa="http://schemas.xmlsoap.org/ws/2004/08/addressing"
        xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><e:Body><d:ProbeMatches><d:ProbeMatch>
        <wsa:EndpointReference><wsa:Address>urn:uuid:{uuid}</wsa:Address></wsa:EndpointReference><d:Types>dn:NetworkVideoTransmitter</d:Types>
        <d:Scopes>onvif://www.onvif.org/name/{uuid} onvif://www.onvif.org/hardware/x</d:Scopes><d:XAddrs>{urls}</d:XAddrs>
        </d:ProbeMatch></d:ProbeMatches></e:Body></e:Envelope>"#
    )
}

fn date(year: u32) -> String {
    format!(
        "<e><GetSystemDateAndTimeResponse><SystemDateAndTime><UTCDateTime><Time><Hour>1</Hour><Minute>2</Minute><Second>3</Second></Time>
        <Date><Year>{year}</Year><Month>2</Month><Day>3</Day></Date></UTCDateTime></SystemDateAndTime></GetSystemDateAndTimeResponse></e>"
    )
}

fn interfaces(ip: &str, mac: &str) -> String {
    format!(
        "<e><tds:GetNetworkInterfacesResponse><tds:NetworkInterfaces token=\"eth0\"><tt:Info><tt:Name>eth0</tt:Name><tt:HwAddress>{mac}</tt:HwAddress></tt:Info>
        <tt:IPv4><tt:Config><tt:Manual><tt:Address>{ip}</tt:Address></tt:Manual></tt:Config></tt:IPv4></tds:NetworkInterfaces></tds:GetNetworkInterfacesResponse></e>"
    )
}

/// A network of cameras: each with its uuid, the address at which it is, and how long after a probe it answers.
#[derive(Clone, Default)]
struct Cameras(Rc<RefCell<Vec<(String, String, u64)>>>);

impl Cameras {
    fn add(&self, uuid: &str, host: &str, delay: u64) {
        self.0.borrow_mut().push((uuid.to_owned(), host.to_owned(), delay));
    }

    fn live_in(&self, world: &World) {
        let (cameras, web) = (self.clone(), self.clone());
        world.responder(move |sent| {
            assert_eq!(sent.to, GROUP.parse().unwrap());
            let of = |(uuid, host, delay): &(String, String, u64)| {
                let payload = probe_match(uuid, &format!("http://{host}/onvif/device_service")).into_bytes();
                let datagram = Datagram { from: format!("{host}:3702").parse().unwrap(), payload };
                // Each answers twice.
                [(Duration::from_millis(*delay), datagram.clone()), (Duration::from_millis(delay + 40), datagram)]
            };
            cameras.0.borrow().iter().flat_map(of).collect()
        });
        world.web(move |call| {
            let host = call.url.split('/').nth(2).unwrap();
            let is_there = web.0.borrow().iter().any(|(_, of, _)| of == host);
            if !is_there {
                return Err(ErrorKind::Timeout);
            }
            let asked = String::from_utf8(call.body.clone()).unwrap();
            Ok(match asked.contains("GetSystemDateAndTime") {
                true => answer(200, date(2024)),
                false => answer(200, interfaces(host, "00:11:22:33:44:55")),
            })
        });
    }
}

fn world(cameras: &Cameras) -> World {
    let world = World::new();
    world.set_links(vec![link("eth0", "192.0.2.1"), link("eth1", "198.51.100.1")]);
    cameras.live_in(&world);
    world
}

fn ids(step: &Step) -> Vec<&str> {
    step.devices.as_ref().unwrap().iter().map(|device| device.id.as_str()).collect()
}

fn property<'a>(device: &'a Device, name: &str) -> Option<&'a str> {
    device.properties.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
}

/// What is known when the next probe is due, with all that is asked until then.
fn next(world: &World, onvif: &mut Opened<Onvif>) -> Step {
    loop {
        let step = onvif.step().unwrap();
        let rest = step.wake_after.unwrap();
        world.advance(rest);
        if rest > Duration::from_secs(2) {
            return step;
        }
    }
}

#[test]
fn cameras_are_found_as_native_finds_them() {
    let cameras = Cameras::default();
    cameras.add("AAAA-1", "192.0.2.7", 0);
    cameras.add("bbbb-2", "192.0.2.8", 590);
    let world = world(&cameras);
    let mut onvif = world.open::<Onvif>("{}").unwrap();
    let step = next(&world, &mut onvif);
    assert_eq!(
        ids(&step),
        ["http://192.0.2.7/onvif/device_service-aaaa-1", "http://192.0.2.8/onvif/device_service-bbbb-2"],
        "also one that is as late as it may be"
    );
    assert_eq!(step.note, None);
    let device = &step.devices.as_ref().unwrap()[0];
    assert_eq!(property(device, "ONVIF_DEVICE_SERVICE_URL"), Some("http://192.0.2.7/onvif/device_service"));
    assert_eq!(property(device, "ONVIF_DEVICE_UUID"), Some("aaaa-1"));
    assert_eq!(property(device, "ONVIF_DEVICE_IP_ADDRESS"), Some("192.0.2.7"));
    assert_eq!(property(device, "ONVIF_DEVICE_MAC_ADDRESS"), Some("00:11:22:33:44:55"));
    // On each link, for both types, twice; with prefixes that are declared.
    let sent = world.datagrams();
    assert_eq!(sent.len(), 8);
    assert_eq!(sent.iter().filter(|sent| sent.from.to_string() == "198.51.100.1").count(), 4);
    for sent in &sent {
        let text = String::from_utf8(sent.payload.clone()).unwrap();
        assert!(text.contains("xmlns:o=") && text.contains(">o:"), "{text}");
    }
    let by_uuid = next(&world, &mut world.open::<Onvif>(r#"{"identity": "uuid"}"#).unwrap());
    assert_eq!(ids(&by_uuid), ["aaaa-1", "bbbb-2"]);
}

#[test]
fn filters_are_those_of_native() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 0);
    cameras.add("b", "192.0.2.8", 0);
    let world = world(&cameras);
    let count = |details: &str| ids(&next(&world, &mut world.open::<Onvif>(details).unwrap())).len();
    for (details, found) in [
        (r#"{"uuids": {"items": ["A"]}}"#, 1),
        (r#"{"uuids": {"items": ["A"], "action": "Exclude"}}"#, 1),
        (r#"{"uuids": {"items": []}}"#, 0),
        (r#"{"uuids": {"items": [], "action": "Exclude"}}"#, 2),
        (r#"{"ipAddresses": {"items": ["192.0.2.7"]}}"#, 1),
        (r#"{"macAddresses": {"items": ["00:11:22:33:44:55"]}}"#, 2),
        (r#"{"macAddresses": {"items": ["00:11:22:33:44:55"], "action": "Exclude"}}"#, 0),
        (r#"{"scopes": {"items": ["onvif://www.onvif.org/name/a"]}}"#, 1),
        (r#"{"scopes": {"items": ["onvif://www.onvif.org/name"]}}"#, 0),
        (r#"{"scopes": {"items": ["onvif://www.onvif.org/name/a"], "action": "Exclude"}}"#, 1),
        (r#"{"ipAddresses": null, "discoveryTimeoutSeconds": 2}"#, 2),
    ] {
        assert_eq!(count(details), found, "{details}");
    }
    // Nothing is known of the network of one that does not tell: it passes only where nothing is asked.
    let tells_nothing = |call: &Call| {
        let asked = String::from_utf8(call.body.clone()).unwrap();
        Ok(answer(if asked.contains("GetSystemDateAndTime") { 200 } else { 400 }, "<x/>"))
    };
    world.web(tells_nothing);
    assert_eq!(count("{}"), 2);
    assert_eq!(count(r#"{"ipAddresses": {"items": ["192.0.2.9"], "action": "Exclude"}}"#), 0);
    assert_eq!(count(r#"{"ipAddresses": {"items": [], "action": "Exclude"}}"#), 2);
}

#[test]
fn a_camera_stays_for_some_probes_that_it_misses() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 0);
    let world = world(&cameras);
    let mut onvif = world.open::<Onvif>(r#"{"missedProbes": 2}"#).unwrap();
    assert_eq!(ids(&next(&world, &mut onvif)).len(), 1);
    let gone = cameras.0.take();
    let counts: Vec<_> = (0..4).map(|_| ids(&next(&world, &mut onvif)).len()).collect();
    assert_eq!(counts, [1, 1, 0, 0]);
    cameras.0.replace(gone);
    assert_eq!(ids(&next(&world, &mut onvif)).len(), 1);
    // One that answers probes and nothing else has gone, too: two probes are believed, then it is asked.
    world.web(|_| Err(ErrorKind::Timeout));
    let counts: Vec<_> = (0..6).map(|_| ids(&next(&world, &mut onvif)).len()).collect();
    assert_eq!(counts, [1, 1, 1, 1, 0, 0]);
    // No network is no reason to forget anybody.
    cameras.live_in(&world);
    assert_eq!(ids(&next(&world, &mut onvif)).len(), 1);
    world.set_links(Vec::new());
    assert!(matches!(onvif.step(), Err(Error::Unavailable(why)) if why.contains("no granted network link")));
    world.set_links(vec![link("eth0", "192.0.2.1")]);
    world.advance(Duration::from_secs(10));
    assert_eq!(ids(&next(&world, &mut onvif)).len(), 1);
}

#[test]
fn a_camera_that_answers_is_asked_at_every_third_probe() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 0);
    let world = world(&cameras);
    let asked = Rc::<Cell<u32>>::default();
    let counted = asked.clone();
    world.web(move |call| {
        counted.set(counted.get() + 1);
        let is_time = String::from_utf8_lossy(&call.body).contains("GetSystemDateAndTime");
        Ok(if is_time { answer(200, date(2024)) } else { answer(200, interfaces("192.0.2.7", "00:22")) })
    });
    let mut onvif = world.open::<Onvif>("{}").unwrap();
    let requests: Vec<_> = (0..10)
        .map(|_| {
            assert_eq!(ids(&next(&world, &mut onvif)).len(), 1);
            asked.take()
        })
        .collect();
    // The time, and what its network is besides at every sixth.
    assert_eq!(requests, [2, 0, 0, 1, 0, 0, 2, 0, 0, 1]);
}

#[test]
fn passwords_are_sent_as_cameras_want_them() {
    let cameras = Cameras::default();
    cameras.add("a-b", "192.0.2.7", 0);
    let world = world(&cameras);
    let properties = [("username_a_b", b"admin".as_slice()), ("password_a_b", b"secret".as_slice())];
    let calls = Rc::<RefCell<Vec<Call>>>::default();
    let details = "{}";
    // By WS-UsernameToken, at the camera's time.
    let noted = calls.clone();
    world.web(move |call| {
        noted.borrow_mut().push(call.clone());
        let asked = String::from_utf8(call.body.clone()).unwrap();
        Ok(match asked.contains("GetSystemDateAndTime") {
            true => answer(401, date(2001)),
            false if asked.contains("<w:Username>admin<") && asked.contains("<u:Created>2001-02-03T01:02:03Z<") => {
                answer(200, interfaces("192.0.2.7", "00-11"))
            }
            false => answer(400, "<fault/>"),
        })
    });
    let step = next(&world, &mut world.open_with::<Onvif>(details, properties).unwrap());
    assert_eq!(property(&step.devices.as_ref().unwrap()[0], "ONVIF_DEVICE_MAC_ADDRESS"), Some("00-11"));
    assert!(calls.borrow().iter().all(|call| !String::from_utf8_lossy(&call.body).contains("secret")));
    // Without one, the camera is there, and the note says what is missing.
    let step = next(&world, &mut world.open::<Onvif>(details).unwrap());
    assert_eq!(property(&step.devices.as_ref().unwrap()[0], "ONVIF_DEVICE_IP_ADDRESS"), None);
    assert!(step.note.unwrap().contains("the Configuration has no name and password for it"));
    // By HTTP's digest.
    let noted = calls.clone();
    noted.borrow_mut().clear();
    world.web(move |call| {
        noted.borrow_mut().push(call.clone());
        let asked = String::from_utf8(call.body.clone()).unwrap();
        let authorization =
            call.headers.iter().find(|(name, _)| name == "authorization").map(|(_, value)| value.as_str());
        Ok(match authorization {
            _ if asked.contains("GetSystemDateAndTime") => answer(200, date(2024)),
            Some(digest)
                if digest.contains("username=\"admin\"") && digest.contains("uri=\"/onvif/device_service\"") =>
            {
                answer(200, interfaces("192.0.2.7", "00:22"))
            }
            _ => {
                let mut refused = answer(401, "");
                let challenge = "Digest realm=\"camera\", qop=\"auth\", nonce=\"0123\", algorithm=MD5";
                refused.headers.push(("www-authenticate".to_owned(), "Basic realm=\"camera\"".to_owned()));
                refused.headers.push(("www-authenticate".to_owned(), challenge.to_owned()));
                refused
            }
        })
    });
    let step = next(&world, &mut world.open_with::<Onvif>(details, properties).unwrap());
    assert_eq!(property(&step.devices.as_ref().unwrap()[0], "ONVIF_DEVICE_MAC_ADDRESS"), Some("00:22"));
    assert_eq!(calls.borrow().len(), 3);
}

#[test]
fn a_camera_that_is_slow_is_asked_again_soon() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 0);
    let world = world(&cameras);
    let asked = Rc::new(RefCell::new(Vec::new()));
    let noted = asked.clone();
    world.web(move |call| {
        let is_time = String::from_utf8_lossy(&call.body).contains("GetSystemDateAndTime");
        noted.borrow_mut().push(is_time);
        // Every other answer is too late.
        match (noted.borrow().len() % 2 == 0, is_time) {
            (false, _) => Err(ErrorKind::Timeout),
            (true, true) => Ok(answer(200, date(2024))),
            (true, false) => Ok(answer(200, interfaces("192.0.2.7", "00-11"))),
        }
    });
    let mut onvif = world.open::<Onvif>(r#"{"interval": 3600}"#).unwrap();
    let soon = Some(Duration::from_secs(2));
    for _ in 0..2 {
        let step = onvif.step().unwrap();
        assert_eq!((&step.devices, step.wake_after), (&None, soon), "the first list waits for those who are slow");
        world.advance(Duration::from_secs(2));
    }
    let step = onvif.step().unwrap();
    assert_eq!(ids(&step).len(), 1, "its time was told, its interfaces were not");
    assert_eq!(property(&step.devices.as_ref().unwrap()[0], "ONVIF_DEVICE_MAC_ADDRESS"), None);
    assert!(step.wake_after > soon, "not for ever");
    assert_eq!(*asked.borrow(), [true, true, false, true, false]);
}

#[test]
fn hello_and_bye_count_at_once() {
    let cameras = Cameras::default();
    let world = world(&cameras);
    let mut onvif = world.open::<Onvif>("{}").unwrap();
    assert!(ids(&next(&world, &mut onvif)).is_empty());
    world.datagrams();
    let says = |text: String| multicast::Datagram {
        from: "192.0.2.7:3702".parse().unwrap(),
        link: "eth0".to_owned(),
        payload: text.into_bytes(),
    };
    let hello = probe_match("a", "http://192.0.2.7/onvif/device_service")
        .replace("ProbeMatches", "x")
        .replace("ProbeMatch", "Hello");
    world.datagram(GROUP.parse().unwrap(), says(hello.clone()));
    assert!(world.wants_step());
    // Not a probe later.
    let mut early = world.open::<Onvif>(r#"{"interval": 3600}"#).unwrap();
    drop(early.step());
    world.datagrams();
    cameras.add("a", "192.0.2.7", 0);
    world.datagram(GROUP.parse().unwrap(), says(hello.clone()));
    assert_eq!(ids(&early.step().unwrap()).len(), 1);
    assert!(world.datagrams().is_empty());
    // Somebody says that it goes, and it does not.
    let bye =
        "<e><b><Bye><EndpointReference><Address>urn:uuid:A</Address></EndpointReference></Bye></b></e>".to_owned();
    world.datagram(GROUP.parse().unwrap(), says(bye.clone()));
    for _ in 0..5 {
        let step = early.step().unwrap();
        assert_eq!(ids(&step).len(), 1);
        world.advance(step.wake_after.unwrap().min(Duration::from_secs(2)));
    }
    cameras.0.take();
    world.datagram(GROUP.parse().unwrap(), says(bye));
    let step = early.step().unwrap();
    assert_eq!((ids(&step).len(), step.wake_after), (1, Some(Duration::from_secs(2))));
    world.advance(Duration::from_secs(2));
    assert!(ids(&early.step().unwrap()).is_empty());
    // A printer is no camera.
    let printer =
        hello.replace("dn:NetworkVideoTransmitter", "wsdp:Device wprt:PrintDeviceType").replace("onvif://", "other://");
    assert_eq!(discovery::announcement(printer.as_bytes()), None);
    assert!(matches!(discovery::announcement(hello.as_bytes()), Some(Announcement::Hello(_))));
}

#[test]
fn what_strangers_send_changes_nothing_for_others() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 300);
    let world = world(&cameras);
    let fake = |number: u32, uuid: &str, urls: &str| Datagram {
        from: format!("192.0.2.{}:3702", 100 + number % 2).parse().unwrap(),
        payload: probe_match(uuid, urls).into_bytes(),
    };
    world.responder(move |_| {
        let mut sent: Vec<_> = (0..10_000)
            .map(|number| {
                (Duration::ZERO, fake(number, &format!("f{number}"), &format!("http://192.0.2.100:{number}/")))
            })
            .collect();
        for text in ["", "<", "no xml", "<a><b></a>", &"<a>".repeat(10_000)] {
            sent.push((
                Duration::ZERO,
                Datagram { from: "192.0.2.9:1".parse().unwrap(), payload: text.as_bytes().to_vec() },
            ));
        }
        for urls in ["http://[fe80::1]/x", "ftp://192.0.2.9/", &"http://192.0.2.9/".repeat(1000), ""] {
            sent.push((
                Duration::ZERO,
                Datagram { from: "192.0.2.9:1".parse().unwrap(), payload: probe_match("c", urls).into_bytes() },
            ));
        }
        let payload = probe_match("a", "http://192.0.2.7/onvif/device_service").into_bytes();
        sent.push((Duration::from_millis(300), Datagram { from: "192.0.2.7:3702".parse().unwrap(), payload }));
        sent
    });
    let mut onvif = world.open::<Onvif>("{}").unwrap();
    let step = next(&world, &mut onvif);
    assert_eq!(ids(&step), ["http://192.0.2.7/onvif/device_service-a"]);
}

#[test]
fn nobody_takes_a_camera_away_or_over() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 100);
    let world = world(&cameras);
    let properties = [("username_default", b"admin".as_slice()), ("password_default", b"secret".as_slice())];
    let mut onvif = world.open_with::<Onvif>(r#"{"missedProbes": 1}"#, properties).unwrap();
    let before = next(&world, &mut onvif).devices;
    // Others answer with its uuid and other places, or with its place and other uuids, before and after it does.
    world.responder(|_| {
        let says = |after, uuid: &str, url: &str| {
            let payload = probe_match(uuid, url).into_bytes();
            (Duration::from_millis(after), Datagram { from: "192.0.2.66:3702".parse().unwrap(), payload })
        };
        let own = "http://192.0.2.7/onvif/device_service";
        let other = "http://192.0.2.66/onvif/device_service";
        vec![says(0, "a", other), says(1, "b", own), says(100, "a", own), says(200, "a", other), says(201, "b", own)]
    });
    let calls = Rc::<RefCell<Vec<Call>>>::default();
    let noted = calls.clone();
    world.web(move |call| {
        noted.borrow_mut().push(call.clone());
        let is_own = call.url.contains("192.0.2.7/");
        let asked = String::from_utf8_lossy(&call.body).into_owned();
        Ok(match (is_own, asked.contains("GetSystemDateAndTime")) {
            (_, true) => answer(200, date(2024)),
            (true, false) => answer(200, interfaces("192.0.2.7", "00:11:22:33:44:55")),
            (false, false) => answer(400, "<fault/>"),
        })
    });
    for _ in 0..8 {
        let now = next(&world, &mut onvif).devices.unwrap();
        assert!(now.contains(&before.as_ref().unwrap()[0]), "{now:?}");
    }
    // Its name and password went to where they were right.
    let to_stranger = calls
        .borrow()
        .iter()
        .any(|call| call.url.contains("192.0.2.66/") && String::from_utf8_lossy(&call.body).contains("UsernameToken"));
    assert!(!to_stranger);
}

#[test]
fn what_looks_like_an_answer_does_not_stand_for_it() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 0);
    let world = world(&cameras);
    let mut onvif = world.open::<Onvif>(r#"{"missedProbes": 0}"#).unwrap();
    let before = next(&world, &mut onvif).devices;
    // Somebody sends what ends as the camera's answer does, from its address and before it, and nobody can read it.
    world.responder(|_| {
        let own = probe_match("a", "http://192.0.2.7/onvif/device_service");
        let at = own.find("<e:Body>").unwrap();
        let [other, own] = [format!("<x><y></x>{}", &own[at..]), own].map(String::into_bytes);
        let says = |after, payload| {
            (Duration::from_millis(after), Datagram { from: "192.0.2.7:3702".parse().unwrap(), payload })
        };
        vec![says(0, other.clone()), says(1, other), says(2, own)]
    });
    for _ in 0..4 {
        assert_eq!(next(&world, &mut onvif).devices, before);
    }
}

#[test]
fn cameras_behind_one_address_are_told_apart() {
    let world = world(&Cameras::default());
    // A recorder answers for each of its cameras, with attributes at tags, and twice.
    world.responder(|_| {
        let says = |after, uuid: &str| {
            let answer = probe_match(uuid, &format!("http://192.0.2.9/onvif/{uuid}"));
            let payload = answer.replace("<e:Body>", "<e:Body xmlns:x=\"y\">").into_bytes();
            (Duration::from_millis(after), Datagram { from: "192.0.2.9:3702".parse().unwrap(), payload })
        };
        vec![says(0, "a"), says(1, "b"), says(2, "c"), says(40, "a"), says(41, "b"), says(42, "c")]
    });
    world.web(|call| {
        let is_time = String::from_utf8_lossy(&call.body).contains("GetSystemDateAndTime");
        Ok(if is_time { answer(200, date(2024)) } else { answer(200, interfaces("192.0.2.9", "00:22")) })
    });
    let mut onvif = world.open::<Onvif>(r#"{"identity": "uuid"}"#).unwrap();
    assert_eq!(ids(&next(&world, &mut onvif)), ["a", "b", "c"]);
}

#[test]
fn a_service_that_the_pod_does_not_grant_is_named() {
    let cameras = Cameras::default();
    cameras.add("a", "192.0.2.7", 0);
    let world = world(&cameras);
    world.web(|_| Err(ErrorKind::Denied));
    let step = next(&world, &mut world.open::<Onvif>("{}").unwrap());
    assert!(ids(&step).is_empty());
    assert!(step.note.unwrap().contains("http://192.0.2.7/onvif/device_service: the pod does not grant it"));
}

#[test]
fn a_day_of_a_thousand_cameras_does_not_grow() {
    let cameras = Cameras::default();
    for number in 0..1000 {
        cameras.add(&format!("u{number}"), &format!("10.0.{}.{}", number / 250, number % 250 + 1), number % 500);
    }
    let world = world(&cameras);
    let mut onvif = world.open::<Onvif>("{}").unwrap();
    for round in 0..5 {
        let step = next(&world, &mut onvif);
        assert_eq!(ids(&step).len(), 1000, "{round}");
    }
    let rounds = world.datagrams().len() / 8;
    assert_eq!(rounds, 5, "one probe a round on each of two links");
}

#[test]
fn a_day_of_probes_leaves_nothing_behind() {
    let cameras = Cameras::default();
    let world = world(&cameras);
    let mut onvif = world.open::<Onvif>(r#"{"missedProbes": 1}"#).unwrap();
    let mut found = 0;
    let mut probe = |number: u32| {
        // Another camera in the place of the one before.
        cameras.0.borrow_mut().clear();
        cameras.add(&format!("camera-{number:05}"), &format!("192.0.2.{}", 10 + number % 100), 0);
        found += ids(&next(&world, &mut onvif)).len();
        world.datagrams();
    };
    (0..100).for_each(&mut probe);
    let day = allocation_counter::measure(|| (100..8740).for_each(&mut probe));
    assert!(found >= 8740, "{found}");
    assert!(day.count_total > 8640 && day.bytes_current < 16_384, "{day:?}");
}

/// Of real programs; each file says which.
#[test]
fn what_was_recorded_is_said_again() {
    akri_handler::fake::replay_all::<crate::Onvif>("tests");
}
