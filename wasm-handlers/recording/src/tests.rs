//! A text and its parts.

use super::*;

fn every_event() -> Vec<(Duration, Event)> {
    let place: SocketAddr = "239.255.0.1:4000".parse().unwrap();
    let six: SocketAddr = "[fe80::1%0]:5353".replace("%0", "").parse().unwrap();
    let four = IpAddr::from([10, 0, 0, 1]);
    let text = |text: &str| text.to_owned();
    let events = vec![
        Event::Udp { own: four, sent: true, peer: place, payload: b"who is \"there\"?\r\n\\".to_vec() },
        Event::Udp { own: four, sent: false, peer: six, payload: vec![0, 255, 1, 2] },
        Event::Udp { own: four, sent: false, peer: six, payload: Vec::new() },
        Event::Tcp(1, Tcp::Open(place)),
        Event::Tcp(1, Tcp::Wrote(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec())),
        Event::Tcp(1, Tcp::Read("längere Zeile ".repeat(50).into_bytes())),
        Event::Tcp(1, Tcp::Read((0..=255).collect())),
        Event::Tcp(1, Tcp::End),
        Event::Tcp(2, Tcp::Failed(six, text("refused"))),
        Event::Tcp(1, Tcp::Broken),
        Event::Http(1, Http::Asked { method: text("GET"), url: text("http://a.example/x?y=\"z\" #") }),
        Event::Http(1, Http::Header(text("accept"), b"*/*".to_vec())),
        Event::Http(1, Http::Header(text("end"), b"x".to_vec())),
        Event::Http(1, Http::Body(b"{}".to_vec())),
        Event::Http(1, Http::Status(200)),
        Event::Http(1, Http::AnswerHeader(text("content-type"), Vec::new())),
        Event::Http(1, Http::AnswerBody(b"a\nb\n".to_vec())),
        Event::Http(1, Http::End),
        Event::Http(2, Http::Failed(text("timeout"))),
        Event::Name(text("camera.local"), Ok(vec![four, IpAddr::from([0; 16])])),
        Event::Name(text("failed"), Err(text("not-found"))),
        Event::Uevent {
            action: text("add"),
            path: text("/devices/x y"),
            properties: vec![(text("SUBSYSTEM"), text("tty")), (text("ODD"), text("a=\"b\" c"))],
        },
        Event::Group { place, link: text("eth0"), from: six, payload: b"\x1b[2J hello hello hello".to_vec() },
        Event::SentToGroup { place, payload: b"q".to_vec() },
        Event::Lost(text("uevents"), 7),
        Event::Link { name: text("eth0"), addresses: vec![(four, 24)], multicast: true, loopback: false },
        Event::LinkGone(text("gone")),
        Event::File { path: text("/data/a b"), content: b"1\n2\n".to_vec() },
        Event::File { path: text("/data/empty"), content: Vec::new() },
        Event::Directory(text("/data")),
        Event::Symlink { path: text("/sys/class/tty/ttyS0"), to: text("../../devices/ttyS0") },
        Event::Gone(text("/data/x")),
        Event::Symlink { path: text("/data/\u{9b}31m\u{202e}"), to: text("\u{3000}") },
        Event::Changed { directory: text("/data"), name: text("list") },
        Event::Said(Said::List(vec![
            Device {
                id: text("a \"device\"\n"),
                properties: vec![(text("A"), text("")), (text("B"), text("x\ty"))],
                mounts: vec![(text("/dev/x"), text("/dev/y"), true)],
                nodes: vec![(text("/dev/x"), text("/dev/y"), text("rw"))],
            },
            Device { id: text("mount"), ..Device::default() },
        ])),
        Event::Said(Said::List(Vec::new())),
        Event::Said(Said::InvalidDetails(text("no"))),
        Event::Said(Said::Unavailable(text("two\nlines"))),
        Event::Said(Said::Internal(text("fault"))),
    ];
    events.into_iter().enumerate().map(|(at, event)| (Duration::from_millis(at as u64 * 7), event)).collect()
}

fn written(recording: &Recording) -> String {
    let lines = recording.events.iter().map(|(at, event)| line(*at, Some(event))).collect::<String>();
    header(recording) + &lines + &line(recording.end, None)
}

#[test]
fn what_is_written_is_read_again() {
    let recording = Recording {
        handler: "my meter".to_owned(),
        clock: Duration::from_millis(1_764_331_200_250),
        random: u64::MAX,
        details: "{\"a\": \"ä\"}".to_owned(),
        properties: vec![("token".to_owned(), None), ("name".to_owned(), Some(b"withheld".to_vec()))],
        volumes: vec!["/sys".to_owned(), "/a b".to_owned()],
        events: every_event(),
        end: Duration::from_secs(3600),
    };
    let text = written(&recording);
    assert_eq!(Recording::read(&text).unwrap(), recording, "{text}");
    assert!(text.lines().all(|line| line.len() < 400 && !line.contains(['\u{1b}', '\u{9b}', '\u{202e}'])), "{text}");
}

#[test]
fn what_is_no_recording_is_told_with_its_line_and_the_way_out() {
    let first = "akri-krustlet recording 1\ndetails \"{}\"\n";
    let cases = [
        ("".to_owned(), "line 1", "it is no recording"),
        ("akri-krustlet recording 2\n".to_owned(), "line 1", "another version"),
        (
            format!("{first}0.5 list\n"),
            "line 3",
            "the recording is cut: its last line is no `end`. Record it again, or end it by hand with the line `0.500 end`",
        ),
        (format!("{first}0.5 udp 0.0.0.0 > 10.0.0.1:1 \"cu"), "line 3", "a quote is not closed"),
        (format!("{first}0.5 udp 0.0.0.0 ? 10.0.0.1:1 \"x\"\n1 end\n"), "line 3", "neither > nor <"),
        (format!("{first}0.5 udp 0.0.0.0 > nobody \"x\"\n1 end\n"), "line 3", "\"nobody\" is not ADDRESS:PORT"),
        (format!("{first}0.5 dance\n1 end\n"), "line 3", "there is no event \"dance\""),
        (format!("{first}2 list\n1 end\n"), "line 4", "before the event above"),
        (format!("{first}2 file ../x \"\"\n3 end\n"), "line 3", "absolute path"),
        (format!("{first}2 file /a/../../x \"\"\n3 end\n"), "line 3", "absolute path"),
        (format!("{first}1 end\n2 list\n"), "line 4", "after `end`"),
        (format!("{first}1 end now\n"), "line 3", "too much"),
        (format!("{first}1 list A=\"b\"\n2 end\n"), "line 3", "begins with its id"),
        (format!("{first}1 file /x \"\\q\"\n2 end\n"), "line 3", "\\q"),
        (format!("{first}1 file /x x\"0g\"\n2 end\n"), "line 3", "0g"),
        (format!("{first}colour red\n1 end\n"), "line 3", "neither a time nor"),
        ("akri-krustlet recording 1\n1 end\n".to_owned(), "line 1", "no line `details`"),
    ];
    for (text, place, what) in cases {
        let error = Recording::read(&text).unwrap_err().to_string();
        assert!(error.starts_with(place) && error.contains(what), "{text}: {error}");
    }
    // Cut at every place, it is told, or whole.
    let whole = written(&Recording {
        details: "{}".to_owned(),
        events: every_event(),
        end: Duration::from_secs(9),
        ..Recording::default()
    });
    for at in (0..whole.len() - 1).filter(|at| whole.is_char_boundary(*at)) {
        assert!(Recording::read(&whole[..at]).is_err(), "{}", &whole[..at]);
    }
}

#[test]
fn an_edited_text_is_read() {
    let text = "akri-krustlet recording 1\n# by hand\nhandler meter\ndetails \"{}\"\n\n\
        0 uevent add /devices/x SUBSYSTEM=tty DEVNAME=ttyS9\n\n# later\n1.5 file /data/x\n  \"a\\n\"\n\t\"b\\n\"\n2 end\n";
    let recording = Recording::read(text).unwrap();
    let file = Event::File { path: "/data/x".to_owned(), content: b"a\nb\n".to_vec() };
    assert_eq!(recording.events[1], (Duration::from_millis(1500), file));
    let Event::Uevent { properties, .. } = &recording.events[0].1 else { panic!() };
    assert_eq!(properties[1], ("DEVNAME".to_owned(), "ttyS9".to_owned()));
}

#[test]
fn secrets_are_left_out() {
    let secrets = Secrets::of([
        b"hunter22\n".as_slice(),
        br#"{"username": "admin", "password": "geheim-99"}"#,
        b"abc",
        b"pa$$w\"d<1",
    ]);
    let without = |text: &str| secrets.without_text(text);
    assert_eq!(without("pw=hunter22;"), "pw=withheld;");
    assert_eq!(without("geheim-99 and aHVudGVyMjI="), "withheld and withheldI=");
    // In base64 at each place, padded or not; in URLs, XML, JSON and as hexadecimal digits.
    for text in [
        "YTpodW50ZXIyMg==",
        "YWI6aHVudGVyMjI",
        "YWJjOmh1bnRlcjIy",
        "68756e7465723232",
        "pa%24%24w%22d%3C1",
        "pa$$w&quot;d&lt;1",
        "pa$$w\\\"d<1",
    ] {
        assert!(without(&format!("x={text};")).contains("withheld"), "{text}: {}", without(text));
        assert!(!without(text).contains("HVudGVy") && !without(text).contains("2d%3C1"), "{text}: {}", without(text));
    }
    assert_eq!(
        without(r#"{"name": "a", "access_token" : "e\"yJ", "n": 1, "x": "token"}"#),
        r#"{"name": "a", "access_token" : "withheld", "n": 1, "x": "token"}"#
    );
    assert_eq!(without(r#"["token","key" "a:b"]"#), r#"["token","key" "a:b"]"#);
    assert_eq!(secrets.without_url("http://a/x?a=1&sas_token=abc#y"), "http://a/x?a=1&sas_token=withheld#y");
    assert!(secrets.is_header("X-Auth-Token") && secrets.is_header("private-token"));
    assert_eq!(without("abc is too short"), "abc is too short");
    assert_eq!(
        without("GET / HTTP/1.1\r\nAuthorization: Digest x\r\nhost: a\r\n\r\n"),
        "GET / HTTP/1.1\r\nAuthorization: withheld\r\nhost: a\r\n\r\n"
    );
    assert_eq!(
        without("<w:Username>u</w:Username><w:Password Type=\"d\">SGFzaA==</w:Password><Passwords/>"),
        "<w:Username>u</w:Username><w:Password Type=\"d\">withheld</w:Password><Passwords/>"
    );
    assert_eq!(secrets.without_url("http://me:pw@a.example/x@y"), "http://withheld@a.example/x@y");
    assert!(secrets.is_header("Cookie") && !secrets.is_header("accept"));
    let none = Secrets::none();
    assert_eq!(none.without(b"Authorization: x"), b"Authorization: x");
    assert!(!none.is_header("Authorization"));
}

#[test]
fn the_nth_question_has_the_nth_answer_and_a_later_one_the_last() {
    let text = "akri-krustlet recording 1\ndetails \"{}\"\n\
        0 udp 0.0.0.0 > 239.0.0.1:1 \"q1\"\n\
        0.1 udp 0.0.0.0 < 10.0.0.1:1 \"a1\"\n\
        0.2 udp 0.0.0.0 < 10.0.0.2:1 \"b1\"\n\
        5 udp 0.0.0.0 > 239.0.0.1:1 \"q2\"\n\
        5.3 udp 0.0.0.0 < 10.0.0.1:1 \"a2\"\n\
        6 tcp 1 open 10.0.0.1:80\n6 tcp 1 > \"one \"\n6 tcp 1 > \"question\"\n6.2 tcp 1 < \"answer\"\n6.3 tcp 1 < \" more\"\n\
        6.3 tcp 1 > \"bye\"\n6.3 tcp 1 end\n\
        7 http 1 GET http://a/\n7.5 http 1 status 200\n7.5 http 1 < \"x\"\n7.5 http 1 end\n\
        8 http 2 GET http://a/\n8.1 http 2 failed refused\n\
        9 name a 10.0.0.1\n9.5 file /d/f \"1\"\n9.6 file /d/f \"2\"\n10 end\n";
    let mut script = Script::of(&Recording::read(text).unwrap());
    let (any, group) = (IpAddr::from([0, 0, 0, 0]), "239.0.0.1:1".parse().unwrap());
    let of =
        |answers: Datagrams| answers.into_iter().map(|(after, _, what)| (after.as_millis(), what)).collect::<Vec<_>>();
    assert_eq!(of(script.datagrams(any, group)), [(100, b"a1".to_vec()), (200, b"b1".to_vec())]);
    for _ in 0..3 {
        assert_eq!(of(script.datagrams(any, group)), [(300, b"a2".to_vec())]);
    }
    let mut connection = script.connection("10.0.0.1:80".parse().unwrap()).unwrap();
    assert_eq!(connection.turn(), Turn::Asks);
    connection.wrote();
    assert_eq!(connection.turn(), Turn::Says(Duration::from_millis(200), b"answer".to_vec()));
    connection.taken();
    assert_eq!(connection.turn(), Turn::Says(Duration::from_millis(100), b" more".to_vec()));
    connection.taken();
    assert_eq!(connection.turn(), Turn::Asks);
    connection.wrote();
    assert_eq!(connection.turn(), Turn::Ends);
    let answer = script.request("GET", "HTTP://A#part").unwrap();
    assert_eq!((answer.status, answer.after.as_millis(), answer.body), (200, 500, b"x".to_vec()));
    assert_eq!(script.request("GET", "http://a/").unwrap().failed.as_deref(), Some("refused"));
    assert_eq!(script.request("GET", "http://a/").unwrap().failed.as_deref(), Some("refused"));
    assert_eq!(script.request("GET", "http://b/"), None);
    assert_eq!(script.name("a"), Ok(vec![IpAddr::from([10, 0, 0, 1])]));
    assert_eq!(script.name("b"), Err("not-found".to_owned()));
    assert_eq!(script.missing().iter().map(String::as_str).collect::<Vec<_>>(), ["GET http://b/", "a look-up of b"]);
    // Seen at 9.5, there from the start.
    assert_eq!(script.changes_until(Duration::ZERO).len(), 1);
    assert_eq!(script.next_change(), Some(Duration::from_millis(9600)));
}

#[test]
fn nothing_is_made_behind_a_link() {
    let text = |events: &str| format!("akri-krustlet recording 1\ndetails \"{{}}\"\n{events}1 end\n");
    for event in ["file /d/l/x \"\"", "gone /d/l/x", "directory /d/l/x", "symlink /d/l/x y", "file /d//l//x \"\""] {
        let error = Recording::read(&text(&format!("0 symlink /d/l /etc\n0 {event}\n"))).unwrap_err();
        assert!(error.what.contains("behind the link /d/l"), "{event}: {error}");
    }
    for (volume, link) in [("/d", "/d"), ("/d/e", "/d"), ("/d", "/D"), ("/d", "/d/")] {
        let text =
            format!("akri-krustlet recording 1\ndetails \"{{}}\"\nvolume {volume}\n0 symlink {link} /etc\n1 end\n");
        assert!(Recording::read(&text).unwrap_err().what.contains("is behind the link"), "{volume} {link}");
    }
    assert!(Recording::read(&text("0 symlink /d/l /etc\n0 file /d/lx/x \"\"\n")).is_ok());
}
