//! Real uevents, real multicast and real links, in a network namespace that each test makes for itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

#[path = "../../cli/tests/fixture/namespace.rs"]
mod namespace;

use akri_krustlet_events::{EventSources, Inbox, LinkNames, MulticastError, MulticastListener, Subsystems, links};
use namespace::{group_sender, in_namespace, ip, link_pair};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
fn wait_for(condition: impl FnMut() -> bool) -> bool {
    let mut condition = condition;
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

const GROUP: &str = "239.255.255.250:3702";

fn join(
    sources: &EventSources,
    links: LinkNames,
    inbox: &Arc<Inbox>,
) -> Result<Arc<MulticastListener>, MulticastError> {
    sources.join(GROUP.parse().unwrap(), links, Arc::new(|_| true), inbox.clone())
}

#[test]
fn a_link_that_is_made_is_told_to_who_follows_its_subsystem() {
    if !in_namespace("a_link_that_is_made_is_told_to_who_follows_its_subsystem") {
        return;
    }
    let sources = EventSources::new();
    let (inbox, other_inbox) = (Inbox::new(), Inbox::new());
    let net = sources.uevents(Subsystems::Named(["net".to_owned()].into()), inbox).unwrap();
    let usb = sources.uevents(Subsystems::Named(["usb".to_owned()].into()), other_inbox).unwrap();
    ip("link add br9 type bridge");
    let mut seen = Vec::new();
    assert!(wait_for(|| {
        seen.extend(net.take().0);
        seen.iter().any(|uevent| uevent.action == "add" && uevent.devpath == "/devices/virtual/net/br9")
    }));
    ip("link delete br9");
    assert!(wait_for(|| {
        seen.extend(net.take().0);
        seen.iter().any(|uevent| uevent.action == "remove" && uevent.devpath == "/devices/virtual/net/br9")
    }));
    assert!(seen.iter().all(|uevent| uevent.subsystem == "net"), "{seen:#?}");
    assert_eq!(usb.take(), (vec![], 0));
}

#[test]
fn a_burst_of_uevents_is_bounded_and_what_was_lost_is_counted() {
    const WRITTEN: u32 = 20_000;
    if !in_namespace("a_burst_of_uevents_is_bounded_and_what_was_lost_is_counted") {
        return;
    }
    let sources = EventSources::new();
    let (inbox, quick_inbox) = (Inbox::new(), Inbox::new());
    let slow = sources.uevents(Subsystems::All, inbox).unwrap();
    let quick = sources.uevents(Subsystems::All, quick_inbox).unwrap();
    ip("link add br9 type bridge");
    assert!(wait_for(|| !quick.take().0.is_empty()));
    // The files of this namespace's links.
    let mounted = Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).status();
    let file = "/sys/class/net/br9/uevent";
    if let Err(error) = std::fs::write(file, "change") {
        println!("skipped: {file} cannot be written here: {error} (mount: {mounted:?})");
        return;
    }
    for _ in 0..WRITTEN {
        std::fs::write(file, "change").unwrap();
    }
    // The last one, or the word that it was lost.
    ip("link add br8 type bridge");
    assert!(wait_for(|| {
        let (events, lost) = quick.take();
        lost > 0 || events.iter().any(|uevent| uevent.devpath == "/devices/virtual/net/br8")
    }));
    let (events, lost) = slow.take();
    assert_eq!(events.len(), akri_krustlet_events::MOST_EVENTS);
    assert!(lost > 0);
}

#[test]
fn a_group_is_heard_on_the_links_that_were_asked_for_and_on_those_that_come_back() {
    if !in_namespace("a_group_is_heard_on_the_links_that_were_asked_for_and_on_those_that_come_back") {
        return;
    }
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    link_pair(("lan0", "10.8.0.1/24"), ("out0", "10.8.0.2/24"));
    let sources = EventSources::new();
    let inbox = Inbox::new();
    let camera_links = LinkNames::Named(vec!["cam*".to_owned()]);
    let listener = join(&sources, camera_links.clone(), &inbox).unwrap();
    let everywhere = join(&sources, LinkNames::All, &Inbox::new()).unwrap();
    let nowhere = join(&sources, LinkNames::Named(vec!["no".to_owned()]), &Inbox::new());
    assert!(matches!(nowhere, Err(MulticastError::NoSuchLink)));
    assert_eq!(listener.links(), 1);

    let heard = |listener: &MulticastListener, from: &str, payload: &str| {
        let sender = group_sender(from);
        wait_for(|| {
            sender.send_to(payload.as_bytes(), GROUP).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            let (datagrams, _) = listener.take(100);
            datagrams.iter().any(|datagram| {
                &*datagram.payload == payload.as_bytes()
                    && datagram.from.ip().to_string() == from
                    && &*datagram.link == "cam0"
            })
        })
    };
    assert!(heard(&listener, "10.9.0.2", "hello"));
    group_sender("10.8.0.2").send_to(b"elsewhere", GROUP).unwrap();
    let at = |listener: &MulticastListener, link: &str| {
        let (datagrams, _) = listener.take(100);
        datagrams.iter().any(|datagram| &*datagram.link == link && &*datagram.payload == b"elsewhere")
    };
    assert!(wait_for(|| at(&everywhere, "lan0")));
    assert!(!at(&listener, "lan0"));

    // The link goes, and comes back under another number.
    ip("link delete cam0");
    assert!(wait_for(|| listener.links() == 0));
    assert!(matches!(listener.send(b"x"), Err(MulticastError::NoSuchLink)));
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    assert!(wait_for(|| listener.links() == 1));
    assert!(heard(&listener, "10.9.0.2", "again"));

    // What it sends comes from the group's port.
    let other = join(&sources, LinkNames::Named(vec!["far0".to_owned()]), &Inbox::new()).unwrap();
    let mut from = None;
    assert!(wait_for(|| {
        listener.send(b"announced").unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let (datagrams, _) = other.take(100);
        from = datagrams.iter().find(|datagram| &*datagram.payload == b"announced").map(|datagram| datagram.from);
        from.is_some()
    }));
    assert_eq!(from, Some("10.9.0.1:3702".parse::<SocketAddr>().unwrap()));
}

#[test]
fn who_is_not_wanted_is_not_heard_and_a_flood_is_bounded() {
    if !in_namespace("who_is_not_wanted_is_not_heard_and_a_flood_is_bounded") {
        return;
    }
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    let sources = EventSources::new();
    let only: SocketAddr = "10.9.0.77:1".parse().unwrap();
    let filtered = sources.join(
        GROUP.parse().unwrap(),
        LinkNames::All,
        Arc::new(move |from| from.ip() == only.ip()),
        Inbox::new(),
    );
    let (filtered, flooded) = (filtered.unwrap(), join(&sources, LinkNames::All, &Inbox::new()).unwrap());
    // Loops back on the link that it is sent on.
    let sender = group_sender("10.9.0.1");
    let (mut seen, mut has_lost) = (0, false);
    assert!(wait_for(|| {
        for _ in 0..2000 {
            sender.send_to(&[7; 1000], GROUP).unwrap();
        }
        let (datagrams, lost) = flooded.take(1000);
        seen += datagrams.len();
        has_lost |= lost > 0;
        has_lost
    }));
    assert!(seen >= akri_krustlet_events::MOST_EVENTS, "{seen}");
    assert_eq!(filtered.take(100), (vec![], 0));
    let not_multicast = sources.join("10.9.0.9:1".parse().unwrap(), LinkNames::All, Arc::new(|_| true), Inbox::new());
    assert!(matches!(not_multicast, Err(MulticastError::NotMulticast(_))));
}

#[test]
fn links_are_listed_as_they_are() {
    if !in_namespace("links_are_listed_as_they_are") {
        return;
    }
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    ip("link add idle0 type bridge");
    let links = links::list().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["cam0", "far0", "lo"], "those that are up");
    assert!(links[0].addresses.contains(&("10.9.0.1".parse().unwrap(), 24)));
    assert!(links[0].multicast && !links[0].loopback && links[2].loopback);
}

#[tokio::test]
async fn a_directory_tells_what_has_changed_in_it_and_that_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let watched = directory.path().join("watched");
    std::fs::create_dir(&watched).unwrap();
    let sources = EventSources::new();
    let inbox = Inbox::new();
    let changes = sources.directory(&watched, inbox.clone()).unwrap();
    std::fs::write(watched.join("a"), "1").unwrap();
    std::fs::write(watched.join("b"), "1").unwrap();
    let mut names = std::collections::BTreeSet::new();
    while names.len() < 2 {
        tokio::time::timeout(DEADLINE, inbox.arrived()).await.unwrap();
        names.extend(changes.take().0);
    }
    assert_eq!(changes.take(), (vec![], false));
    std::fs::remove_dir_all(&watched).unwrap();
    while !changes.take().1 {
        tokio::time::timeout(DEADLINE, inbox.arrived()).await.unwrap();
    }
    assert!(sources.directory(&watched, inbox).is_err());
}
