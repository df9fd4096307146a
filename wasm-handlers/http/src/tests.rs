//! The handler in a faked world.

use crate::Http;
use akri_handler::fake::World;
use akri_handler::http::{Answer, Call, ErrorKind};
use akri_handler::{Device, Error, Handler as _, Step};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

fn answer(status: u16, body: &str) -> Answer {
    Answer { status, headers: Vec::new(), body: body.as_bytes().to_vec() }
}

fn ids(step: &Step) -> Vec<&str> {
    step.devices.as_ref().unwrap().iter().map(|device| device.id.as_str()).collect()
}

fn property<'a>(device: &'a Device, name: &str) -> Option<&'a str> {
    device.properties.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
}

/// What was asked for in a world whose web answers by that.
fn world(web: impl Fn(&Call) -> Result<Answer, ErrorKind> + 'static) -> (World, Rc<RefCell<Vec<Call>>>) {
    let (world, calls) = (World::new(), Rc::<RefCell<Vec<Call>>>::default());
    let noted = calls.clone();
    world.web(move |call| {
        noted.borrow_mut().push(call.clone());
        web(call)
    });
    (world, calls)
}

#[test]
fn a_bare_url_is_a_list_of_lines() {
    let (world, _) = world(|call| match call.url.as_str() {
        "http://discovery:9999/discovery" => Ok(answer(200, "http://b:1\r\n\nhttp://a:1/x \nhttp://b:1\n")),
        _ => Ok(answer(404, "")),
    });
    let mut http = world.open::<Http>(r#""http://discovery:9999/discovery""#).unwrap();
    let step = http.step().unwrap();
    assert_eq!(ids(&step), ["http://a:1/x", "http://b:1"]);
    let device = &step.devices.as_ref().unwrap()[0];
    assert_eq!(property(device, "AKRI_HTTP"), Some("http"));
    assert_eq!(property(device, "AKRI_HTTP_DEVICE_ENDPOINT"), Some("http://a:1/x"));
    assert_eq!(step.wake_after, Some(Duration::from_secs(10)));
    let mut other = world.open::<Http>(r#"{"url": "http://discovery:9999/other?key=secret"}"#).unwrap();
    let error = other.step().unwrap_err();
    assert_eq!(error, Error::Unavailable("http://discovery:9999/other: the answer has status 404".to_owned()));
}

#[test]
fn json_is_read_by_pointers() {
    const LIST: &str = r#"{"devices": [
        {"serial": 7, "name": "seven", "at": {"url": "http://seven"}},
        {"serial": "8", "at": {}},
        {"name": "nobody"},
        {"serial": 7, "name": "again"}
    ]}"#;
    let (world, calls) = world(|_| Ok(answer(200, LIST)));
    let details = r#"{"url": "https://inventory.example/list", "interval": 30, "items": "/devices", "id": "/serial",
        "properties": {"NAME": "/name", "URL": "/at/url"}, "headers": {"accept": "application/json",
        "authorization": {"property": "token", "prefix": "Bearer "}}}"#;
    let mut http = world.open_with::<Http>(details, [("token", b"abc\n".as_slice())]).unwrap();
    let step = http.step().unwrap();
    assert_eq!(ids(&step), ["7", "8"]);
    assert_eq!(step.note.as_deref(), Some("1 items of the list have no id at \"/serial\""));
    let devices = step.devices.as_ref().unwrap();
    assert_eq!((property(&devices[0], "NAME"), property(&devices[1], "NAME")), (Some("again"), None));
    let headers: BTreeMap<_, _> = calls.borrow()[0].headers.iter().cloned().collect();
    assert_eq!((headers["authorization"].as_str(), headers["accept"].as_str()), ("Bearer abc", "application/json"));
    let missing = world.open::<Http>(details).err().unwrap().to_string();
    assert!(missing.contains("no discoveryProperties entry \"token\""), "{missing}");
    for (body, what) in [("[", "is no JSON"), ("{}", "has nothing at items"), (r#"{"devices": 1}"#, "is no list")] {
        world.web(move |_| Ok(answer(200, body)));
        let error = http.step().unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("https://inventory.example/list"), "{error}");
    }
}

#[test]
fn a_list_that_has_not_changed_is_not_sent_again() {
    let (world, calls) = world(|call| {
        let known = call.headers.iter().any(|(name, value)| name == "if-none-match" && value == "\"v1\"");
        let mut answer = if known { answer(304, "") } else { answer(200, "a\n") };
        answer.headers.push(("etag".to_owned(), "\"v1\"".to_owned()));
        Ok(answer)
    });
    let mut http = world.open::<Http>(r#"{"url": "http://a.example"}"#).unwrap();
    assert_eq!(ids(&http.step().unwrap()), ["a"]);
    assert_eq!(http.step().unwrap().devices, None);
    assert_eq!(http.step().unwrap().devices, None);
    assert_eq!(calls.borrow().len(), 3);
}

#[test]
fn redirects_are_followed_and_take_no_secrets_elsewhere() {
    let (world, calls) = world(|call| {
        let mut answer = answer(302, "");
        let location = match call.url.as_str() {
            "http://a.example/list" => "/other",
            "http://a.example/other" => "https://b.example/list",
            "http://loop.example/" => "http://loop.example/",
            _ => return Ok(self::answer(200, "a\n")),
        };
        answer.headers.push(("location".to_owned(), location.to_owned()));
        Ok(answer)
    });
    let mut http =
        world.open::<Http>(r#"{"url": "http://a.example/list", "headers": {"authorization": "secret"}}"#).unwrap();
    assert_eq!(ids(&http.step().unwrap()), ["a"]);
    let calls = calls.borrow();
    let sent: Vec<_> = calls.iter().map(|call| (call.url.as_str(), call.headers.len())).collect();
    assert_eq!(sent, [("http://a.example/list", 1), ("http://a.example/other", 1), ("https://b.example/list", 0)]);
    let mut circle = world.open::<Http>(r#""http://loop.example/""#).unwrap();
    drop(calls);
    assert!(circle.step().unwrap_err().to_string().contains("more than 3 times"));
}

#[test]
fn a_range_is_asked_a_part_at_a_time() {
    let present = Rc::new(RefCell::new(vec!["http://10.0.0.3:80/info", "http://10.0.0.3:8080/info"]));
    let there = present.clone();
    let (world, calls) = world(move |call| match there.borrow().contains(&call.url.as_str()) {
        true => Ok(answer(200, "I am a sensor")),
        false if call.url.contains("10.0.0.4:80/") => Ok(answer(200, "I am a printer")),
        false => Err(ErrorKind::Timeout),
    });
    let details = r#"{"range": {"network": "10.0.0.0/29", "ports": [80, 8080], "path": "/info", "contains": "sensor",
        "interval": 60, "perSecond": 5, "missed": 1}}"#;
    let mut http = world.open::<Http>(details).unwrap();
    let mut round = |world: &World| {
        let mut steps = Vec::new();
        loop {
            let step = http.step().unwrap();
            world.advance(step.wake_after.unwrap());
            let is_last = step.wake_after > Some(Duration::from_secs(1));
            steps.push(step.devices.as_ref().map(Vec::len));
            if is_last {
                return steps;
            }
        }
    };
    assert_eq!(
        round(&world),
        [None, None, Some(2)],
        "six machines, two ports, five at once; the first list is a whole one"
    );
    assert_eq!(calls.borrow().len(), 12);
    present.borrow_mut().clear();
    assert_eq!(round(&world), [Some(2); 3], "missed once");
    assert_eq!(round(&world), [Some(1), Some(0), Some(0)]);
    for (network, what) in [
        ("10.0.0.0", "is no network"),
        ("10.0.0.1/24", "first address"),
        ("10.0.0.0/33", "is no network"),
        ("10.0.0.0/8", "can be asked"),
        ("::/0", "can be asked"),
        ("fd00::/64", "can be asked"),
    ] {
        let error =
            world.open::<Http>(&format!(r#"{{"range": {{"network": "{network}"}}}}"#)).err().unwrap().to_string();
        assert!(error.contains(what), "{network}: {error}");
    }
    let mut six = world.open::<Http>(r#"{"range": {"network": "fd00::10/127"}}"#).unwrap();
    calls.borrow_mut().clear();
    six.step().unwrap();
    let asked: Vec<_> = calls.borrow().iter().map(|call| call.url.clone()).collect();
    assert_eq!(asked, ["http://[fd00::10]:80/", "http://[fd00::11]:80/"]);
}

#[test]
fn what_is_not_granted_is_said() {
    let (world, _) = world(|_| Err(ErrorKind::Denied));
    let mut range = world.open::<Http>(r#"{"range": {"network": "10.0.0.1/32"}}"#).unwrap();
    assert!(range.step().unwrap().note.unwrap().contains("rule `http`"));
    let mut list = world.open::<Http>(r#""http://a.example""#).unwrap();
    assert!(list.step().unwrap_err().to_string().contains("rule `http`"));
}

#[test]
fn a_day_of_it_does_not_grow() {
    let (world, calls) = world(|call| match call.url.contains("10.0.0.3") {
        true => Ok(answer(200, "")),
        false => Err(ErrorKind::Timeout),
    });
    let mut range = world.open::<Http>(r#"{"range": {"network": "10.0.0.0/29"}}"#).unwrap();
    for _ in 0..24 * 60 {
        let step = range.step().unwrap();
        assert_eq!(ids(&step), ["http://10.0.0.3:80/"]);
        world.advance(step.wake_after.unwrap());
    }
    assert_eq!(calls.borrow().len(), 24 * 60 * 6, "six addresses a minute");
    assert!(Http::schema().is_some());
}

#[test]
fn a_day_of_requests_leaves_nothing_behind() {
    let world = World::new();
    let number = Rc::new(std::cell::Cell::new(0_u32));
    let of = number.clone();
    world.web(move |_| {
        of.set(of.get() + 1);
        match of.get() % 5 {
            0 => Err(ErrorKind::Timeout),
            _ => Ok(answer(200, &format!("http://device-{:05}/\nhttp://always/\n", of.get()))),
        }
    });
    for details in
        [r#""http://discovery/list""#, r#"{"range": {"network": "192.0.2.0/28", "interval": 10, "missed": 0}}"#]
    {
        let mut http = world.open::<Http>(details).unwrap();
        let mut ask = || {
            let step = http.step();
            world.advance(step.ok().and_then(|step| step.wake_after).unwrap_or(Duration::from_secs(10)));
        };
        (0..100).for_each(|_| ask());
        let asked = number.get();
        let day = allocation_counter::measure(|| (0..8640).for_each(|_| ask()));
        assert!(number.get() > asked + 1000, "{details}: {} requests", number.get() - asked);
        assert!(day.count_total > 8640 && day.bytes_current < 16_384, "{details}: {day:?}");
    }
}

/// Of real programs; each file says which.
#[test]
fn what_was_recorded_is_said_again() {
    akri_handler::fake::replay_all::<crate::Http>("tests");
}
