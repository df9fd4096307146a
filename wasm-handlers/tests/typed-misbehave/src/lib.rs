//! A discovery handler as a component that does what `fault` in its details says.

use crate::akri::discovery::types::{Device, DeviceSpec, Error, Outcome, Permissions, Request};
use crate::akri::host::log::{Level, log};
use exports::akri::discovery::handler::{Guest, Info};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

wit_bindgen::generate!({ path: "../../../proto/wit", world: "discovery-handler", generate_all });

static FAULT: Mutex<String> = Mutex::new(String::new());
static STEPS: AtomicU32 = AtomicU32::new(0);

struct Misbehave;

fn device(id: impl Into<String>) -> Device {
    let properties = vec![("KEY".to_owned(), "value".to_owned())];
    Device { id: id.into(), properties, mounts: Vec::new(), device_specs: Vec::new() }
}

fn found(devices: Vec<Device>) -> Result<Outcome, Error> {
    Ok(Outcome { devices: Some(devices), wake_after_ms: None, note: None })
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// How it describes itself, by its last word.
static DESCRIBED: &str = "typed-misbehave describes itself well";

impl Guest for Misbehave {
    fn describe() -> Info {
        let info = |name: &str, details_schema: Option<&str>| Info {
            name: name.to_owned(),
            shared: true,
            details_schema: details_schema.map(str::to_owned),
        };
        // Whoever wants another one puts another word into the module's file.
        let described = std::hint::black_box(DESCRIBED);
        match described.rsplit(' ').next().unwrap_or_default() {
            "trap" => panic!("as asked"),
            "exit" => std::process::exit(3),
            "loop" => loop {
                std::hint::black_box(());
            },
            "sock" => {
                let refused = std::net::TcpStream::connect("127.0.0.1:1").unwrap_err();
                info(
                    if refused.kind() == std::io::ErrorKind::PermissionDenied { "no-network" } else { "network" },
                    None,
                )
            }
            "name" => info("a/b", None),
            "json" => info("misbehave", Some("{")),
            "type" => info("misbehave", Some(r#"{"type": "strnig"}"#)),
            "self" => info("misbehave", Some(r##"{"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}"##)),
            "rule" => info("misbehave", Some(r#"{"properties": {"fault": {"enum": ["count", "steps"]}}}"#)),
            _ => info("misbehave", None),
        }
    }

    fn open(request: Request) -> Result<(), Error> {
        let details: serde_json::Value = serde_json::from_str(&request.details).unwrap_or_default();
        let fault = details["fault"].as_str().unwrap_or_default().to_owned();
        match fault.as_str() {
            "trap-in-open" => panic!("as asked"),
            "loop-in-open" => spin(),
            "invalid" => return Err(Error::InvalidDetails("as asked: invalid".to_owned())),
            "unavailable-in-open" => return Err(Error::Unavailable("the network is away".to_owned())),
            _ => {}
        }
        let tries = details["tries"].as_array().into_iter().flatten();
        *TRIES.lock().unwrap() = tries.filter_map(|text| text.as_str().map(str::to_owned)).collect();
        *FAULT.lock().unwrap() = fault;
        Ok(())
    }

    fn step() -> Result<Outcome, Error> {
        let step = STEPS.fetch_add(1, Ordering::Relaxed);
        let fault = FAULT.lock().unwrap().clone();
        let wakes = |devices, note: Option<&str>| {
            Ok(Outcome { devices, wake_after_ms: Some(0), note: note.map(str::to_owned) })
        };
        let first = || found(vec![device("first")]).map(|outcome| Outcome { wake_after_ms: Some(0), ..outcome });
        match fault.as_str() {
            "trap" => panic!("as asked"),
            "exit" => std::process::exit(3),
            "loop" => spin(),
            // Once it has a list.
            "trap-later" if step > 0 => panic!("as asked"),
            "loop-later" if step > 0 => spin(),
            "invalid-later" if step > 0 => Err(Error::InvalidDetails("as asked: late".to_owned())),
            "unavailable-later" if step > 0 => Err(Error::Unavailable("the network is away".to_owned())),
            "internal-later" if step > 0 => Err(Error::Internal("a bug".to_owned())),
            "note-later" if step > 0 => wakes(None, Some("one camera wants a password")),
            "trap-later" | "loop-later" | "invalid-later" | "unavailable-later" | "internal-later" | "note-later" => {
                first()
            }
            "healed" => match step {
                0 => first(),
                1 => Err(Error::Unavailable("the network is away".to_owned())),
                _ => found(vec![device("first"), device("second")]),
            },
            "count" => wakes(Some(vec![device(format!("step-{step}"))]), None),
            "steps" => {
                log(Level::Info, &format!("step {step}"));
                wakes(if step == 0 { Some(vec![device("first")]) } else { None }, None)
            }
            "many-devices" => found((0..300_000).map(|number| device(number.to_string())).collect()),
            "long-string" => found(vec![device("x".repeat(32 << 20))]),
            "long-id" => found(vec![device("x".repeat(2000))]),
            "duplicates" => found(vec![device("a"), device("a"), device("")]),
            "bad-name" => {
                let properties = vec![("a b=c".to_owned(), "v".to_owned())];
                found(vec![Device { properties, ..device("a") }])
            }
            // What is said after a list that is refused is not that all is well.
            "bad-then-quiet" if step > 0 => wakes(None, None),
            "bad-then-quiet" => {
                let properties = vec![("a b=c".to_owned(), "v".to_owned())];
                wakes(Some(vec![Device { properties, ..device("a") }]), None)
            }
            "large-list" => {
                let properties = vec![("KEY".to_owned(), "x".repeat(60 << 10))];
                found(
                    (0..100)
                        .map(|number| Device { properties: properties.clone(), ..device(number.to_string()) })
                        .collect(),
                )
            }
            "host-path" => {
                let spec = DeviceSpec {
                    container_path: "/dev/mem".to_owned(),
                    host_path: "/dev/mem".to_owned(),
                    permissions: Permissions::READ,
                };
                found(vec![Device { device_specs: vec![spec], ..device("a") }])
            }
            "memory" => {
                let mut kept = Vec::new();
                loop {
                    kept.push(vec![1u8; 1 << 20]);
                    std::hint::black_box(&kept);
                }
            }
            "sockets" => {
                for _ in 0..100_000 {
                    std::mem::forget(std::net::UdpSocket::bind("0.0.0.0:0"));
                }
                found(vec![device("first")])
            }
            "network" => {
                let udp = std::net::UdpSocket::bind("0.0.0.0:0").map(drop);
                let tcp = std::net::TcpStream::connect("127.0.0.1:22").map(drop);
                let name = std::net::ToSocketAddrs::to_socket_addrs("localhost:80").map(drop);
                let refused = |result: std::io::Result<()>| if result.is_err() { "refused" } else { "allowed" };
                found(vec![device(format!("{} {} {}", refused(udp), refused(tcp), refused(name)))])
            }
            "reach" => {
                let tries = TRIES.lock().unwrap().clone();
                found(tries.iter().map(|what| device(format!("{what}: {}", reach(what)))).collect())
            }
            "files" => {
                let opened = ["/", ".", "/etc/passwd", "/tmp/wde-dir"].map(|path| std::fs::read_dir(path).is_ok());
                found(vec![device(format!("{opened:?}"))])
            }
            "flood-log" => {
                for _ in 0..100_000 {
                    log(Level::Error, &"x".repeat(1 << 20));
                }
                found(vec![device("first")])
            }
            _ => found(vec![device("first")]),
        }
    }
}

/// What the details ask for, one after the other.
static TRIES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What becomes of an attempt to use the network.
fn reach(what: &str) -> String {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
    let words: Vec<_> = what.split(' ').collect();
    let result: std::io::Result<String> = (|| match words[..] {
        ["tcp", place] => {
            let address = place.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
            let mut stream = TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300))?;
            stream.write_all(b"ping")?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }
        ["udp", place] => {
            let place: SocketAddr = place.parse().unwrap();
            let any = if place.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let sent = UdpSocket::bind(any)?.send_to(b"ping", place)?;
            Ok(format!("sent {sent}"))
        }
        ["name", name] => {
            let addresses: Vec<_> = (name, 0).to_socket_addrs()?.map(|address| address.ip().to_string()).collect();
            Ok(addresses.join(","))
        }
        ["http", url] => Ok(ask(url)),
        ["follow", url] => {
            let answer = akri_handler::http::Call::get(url).send();
            Ok(match answer.as_ref().ok().and_then(|answer| answer.header("location")) {
                Some(location) => ask(location),
                None => format!("{answer:?}"),
            })
        }
        ["many-requests", number, url] => {
            let calls = (0..number.parse::<usize>().unwrap()).map(|_| akri_handler::http::Call::get(url)).collect();
            let answers = akri_handler::http::send_all(calls);
            Ok(format!("{} answered", answers.iter().filter(|answer| answer.is_ok()).count()))
        }
        ["keep-requests", number, url] => Ok(keep_requests(number.parse().unwrap(), url)),
        ["long-words"] => Ok(long_words()),
        ["listen", place] => TcpListener::bind(place).map(|_| "listens".to_owned()),
        ["sockets", number] => {
            let (mut sockets, mut refused) = (Vec::new(), 0);
            for _ in 0..number.parse::<u32>().unwrap() {
                match UdpSocket::bind("0.0.0.0:0") {
                    Ok(socket) => sockets.push(socket),
                    Err(_) => refused += 1,
                }
            }
            Ok(format!("{} made, {refused} refused", sockets.len()))
        }
        ["flood", place] => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            loop {
                socket.send_to(&[0; 8192], place)?;
            }
        }
        _ => Ok("what?".to_owned()),
    })();
    match result {
        Ok(text) => text,
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// What is answered to a request: its status and what it says, or why there is none.
fn ask(url: &str) -> String {
    let call = akri_handler::http::Call::get(url).timeout(std::time::Duration::from_secs(2));
    match call.send() {
        Ok(answer) if answer.body.len() > 100 => format!("{} {} bytes", answer.status, answer.body.len()),
        Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
        Err(error) => format!("{:?}", error.kind),
    }
}

/// Begins requests and lets none of them go.
fn keep_requests(number: u32, url: &str) -> String {
    use wasip2::http::types::{ErrorCode, Fields, OutgoingRequest, Scheme};
    let authority = url.strip_prefix("http://").unwrap();
    let mut answers = Vec::new();
    for _ in 0..number {
        let request = OutgoingRequest::new(Fields::new());
        request.set_scheme(Some(&Scheme::Http)).unwrap();
        request.set_authority(Some(authority)).unwrap();
        answers.push(wasip2::http::outgoing_handler::handle(request, None).unwrap());
    }
    // Those that are refused are answered soon, the others by nobody.
    wasip2::clocks::monotonic_clock::subscribe_duration(2_000_000_000).block();
    let mut refused = 0;
    for answer in &answers {
        // Nothing is there before it was asked for.
        if !answer.subscribe().ready() {
            continue;
        }
        match answer.get() {
            Some(Ok(Err(ErrorCode::ConnectionLimitReached))) => refused += 1,
            None => {}
            other => return format!("{other:?}"),
        }
    }
    format!("{} kept, {refused} refused", answers.len() - refused)
}

/// Gives requests words that nobody needs; says what was taken.
fn long_words() -> String {
    use wasip2::http::types::{Fields, Method, OutgoingRequest, Scheme};
    let request = OutgoingRequest::new(Fields::new());
    let long = "x".repeat(1 << 20);
    let taken = [
        request.set_method(&Method::Other(long.clone())).is_ok(),
        request.set_scheme(Some(&Scheme::Other("ftp".to_owned()))).is_ok(),
        request.set_authority(Some(&long)).is_ok(),
        request.set_path_with_query(Some(&format!("/{long}"))).is_ok(),
    ];
    format!("{taken:?}")
}

export!(Misbehave);
