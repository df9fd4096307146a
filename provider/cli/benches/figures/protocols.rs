//! Figures of the handlers for real devices, beside Akri's own: `NATIVE_UDEV`, `NATIVE_OPCUA` and `NATIVE_ONVIF` name those. They are
//! taken in a network of their own, with a neighbour in which the devices are: root only.

use crate::discovery::settle;
use crate::fixture::native::NativeAlone;
use crate::fixture::neighbour::Neighbour;
use crate::fixture::peers::{Peer, python};
use crate::fixture::{HandlerPod, Node, component, ids, namespace::ip, next_ids};
use crate::process::{exact_cpu_time_of, memory_of};
use crate::{Row, ms, percentile};
use akri_krustlet_discovery::agent;
use akri_proto::v0::DiscoverRequest;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the namespaces that the figures are taken in.
const INSIDE: &str = "AKRI_KRUSTLET_FIGURES_INSIDE";
const DEVICES: usize = 20;
/// Pods of one protocol, beside one, over which memory is divided.
const MORE: usize = 5;
const CAMERAS: usize = 100;
const SERVERS: usize = 45;
const DEAD: usize = 5;
/// Devices of the large /sys, and rules.
const SYSFS: usize = 3000;
const RULES: usize = 200;

/// A handler, and what it is asked for.
struct Protocol {
    name: &'static str,
    rules: &'static str,
    details: String,
    /// What names Akri's own.
    native: Option<PathBuf>,
}

/// Whether this program is the one in the namespaces, which only prints.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Takes the figures in namespaces of their own: this program once more, whose rows are read from what it prints.
pub fn measure_inside() -> Vec<Row> {
    if is_inside() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(measure());
    }
    let inside = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--bench", "protocols"])
        .env(INSIDE, "1")
        .stderr(Stdio::inherit())
        .output();
    let printed = match inside {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        other => {
            eprintln!("skipped: the protocols' figures need root, unshare and ip: {other:?}");
            return Vec::new();
        }
    };
    let cells = |line: &str| -> Vec<&'static str> {
        line.trim_matches(['|', ' ']).split(" | ").map(|cell| &*cell.trim().to_owned().leak()).collect()
    };
    let row = |line: &str| match cells(line)[..] {
        [figure, ours, native, bar, ref holds @ ..] if !line.starts_with("|---") && figure != "figure" => Some(Row {
            figure,
            ours: ours.to_owned(),
            native: native.to_owned(),
            bar,
            holds: holds.first().and_then(|holds| match *holds {
                "holds" => Some(true),
                "" => None,
                _ => Some(false),
            }),
        }),
        _ => None,
    };
    printed.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

async fn measure() -> Vec<Row> {
    let Some(python) = python() else { return Vec::new() };
    ip("link set lo up");
    let there = Neighbour::behind(("lan0", "10.95.0.1/24"), "10.95.0.2/24");
    ip("route add 224.0.0.0/4 dev lan0");
    let mounted = Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).status();
    assert!(mounted.is_ok_and(|status| status.success()), "/sys of this network can be mounted");
    let peer = |script, arguments: &[&str]| Peer::start(&python, script, arguments, Some(there.pid()));
    let mut rows = Vec::new();
    eprintln!("udev: plugging ...");
    rows.push(plug().await);
    {
        let number = DEVICES.to_string();
        let _servers = peer("opcua_server.py", &["10.95.0.2:4900", "plc", "Server", &number]);
        let _list = peer("list.py", &["10.95.0.2", "8400", &number]);
        let _services = peer("service.py", &["10.95.0.2", "one", "554", &number]);
        addresses(&there, DEVICES);
        let _cameras = peer("cameras.py", &["10.95.0", "10", &number]);
        for protocol in protocols() {
            eprintln!("{} ...", protocol.name);
            rows.extend(pods(&protocol).await);
        }
    }
    eprintln!("opcua: {SERVERS} servers and {DEAD} that are dead ...");
    {
        let _servers = peer("opcua_server.py", &["10.95.0.2:4900", "plc", "Server", &SERVERS.to_string()]);
        rows.push(many_servers().await);
    }
    eprintln!("onvif: {CAMERAS} cameras ...");
    addresses(&there, CAMERAS);
    let _cameras = peer("cameras.py", &["10.95.0", "10", &CAMERAS.to_string()]);
    rows.extend(many_cameras().await);
    eprintln!("udev: {RULES} rules, {SYSFS} devices ...");
    rows.push(many_rules().await);
    rows
}

fn native(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

fn protocols() -> [Protocol; 5] {
    let urls: Vec<_> = (0..DEVICES).map(|number| format!("opc.tcp://10.95.0.2:{}/", 4900 + number)).collect();
    let opcua = format!("{{\"opcuaDiscoveryMethod\": {{\"standard\": {{\"discoveryUrls\": {urls:?}}}}}}}");
    let udev =
        r#"{"udevRules": ["SUBSYSTEM==\"tty\", KERNEL==\"tty[0-9]\"", "SUBSYSTEM==\"tty\", KERNEL==\"tty1[0-9]\""]}"#;
    [
        Protocol { name: "udev", rules: "", details: udev.to_owned(), native: native("NATIVE_UDEV") },
        Protocol {
            name: "onvif",
            rules: "udp 239.255.255.250:3702\njoin 239.255.255.250:3702\nhttp http://[10.95.0.0/24]:1-65535/onvif/*",
            details: "{}".to_owned(),
            native: native("NATIVE_ONVIF"),
        },
        Protocol { name: "opcua", rules: "tcp details\ndns *", details: opcua, native: native("NATIVE_OPCUA") },
        Protocol {
            name: "http",
            rules: "http details",
            details: "http://10.95.0.2:8400/discovery".to_owned(),
            native: None,
        },
        Protocol {
            name: "zeroconf",
            rules: "udp 224.0.0.251:5353\njoin 224.0.0.251:5353",
            details: r#"{"kind": "_rtsp._tcp"}"#.to_owned(),
            native: None,
        },
    ]
}

fn addresses(there: &Neighbour, number: usize) {
    for number in 10..10 + number {
        there.ip(&format!("addr replace 10.95.0.{number}/24 dev eth0"));
    }
}

fn pod<'a>(name: &'a str, protocol: &'a Protocol) -> HandlerPod<'a> {
    let mut pod = HandlerPod { exchange: false, ..HandlerPod::typed(name, name, protocol.name) };
    if protocol.name == "udev" {
        pod.annotations = vec![("akri-krustlet/uevents", "*"), ("akri-krustlet/allowed-host-paths", "/dev")];
        pod.host_paths = vec!["/sys"];
        pod.limits = r#"{"memory": "64Mi"}"#;
    } else {
        pod.annotations = vec![("akri-krustlet/network", protocol.rules), ("akri-krustlet/links", "*")];
    }
    pod
}

fn node() -> Node {
    Node::start_with(&["--allowed-host-paths", "/dev"])
}

/// Asks until a list has so many devices; the time from the call.
async fn found(
    socket: PathBuf,
    details: &str,
    number: usize,
) -> (Duration, tonic::Streaming<akri_proto::v0::DiscoverResponse>) {
    let request = DiscoverRequest { discovery_details: details.to_owned(), ..Default::default() };
    let started = Instant::now();
    let mut stream = agent::discover(socket, request).await.unwrap();
    while next_ids(&mut stream).await.len() < number {}
    (started.elapsed(), stream)
}

/// Size, memory and CPU of one handler.
async fn pods(protocol: &Protocol) -> Vec<Row> {
    let label = |what: &str| -> &'static str { format!("{}: {what}", protocol.name).leak() };
    let node = node();
    let mut streams = Vec::new();
    let mut memory = Vec::new();
    let mut cpu = Duration::ZERO;
    for number in 0..=MORE {
        let name = format!("h{number}");
        node.add(&pod(&name, protocol));
        node.wait_for_socket(&name);
        streams.push(found(node.socket(&name), &protocol.details, DEVICES).await.1);
        if number == 0 {
            settle().await;
            memory.push(memory_of(node.pid()).dirty);
            let before = exact_cpu_time_of(node.pid());
            tokio::time::sleep(Duration::from_secs(60)).await;
            cpu = exact_cpu_time_of(node.pid()) - before;
        }
    }
    settle().await;
    memory.push(memory_of(node.pid()).dirty);
    let each = memory[1].saturating_sub(memory[0]) / MORE as u64;
    let theirs = match &protocol.native {
        Some(program) => {
            let (native, _) = NativeAlone::start_named(program, protocol.name).await;
            let _stream = found(native.socket(), &protocol.details, DEVICES).await;
            settle().await;
            let before = exact_cpu_time_of(native.native.pid());
            tokio::time::sleep(Duration::from_secs(60)).await;
            let cpu = exact_cpu_time_of(native.native.pid()) - before;
            Some((memory_of(native.native.pid()).private, cpu))
        }
        None => None,
    };
    let module = std::fs::metadata(component(protocol.name)).unwrap().len();
    let compiled = std::fs::read_dir(node.path("data/modules")).unwrap().flatten();
    let compiled = compiled.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "cwasm"));
    // The other one is the witness's, a small module.
    let compiled = compiled.map(|entry| entry.metadata().unwrap().len()).max().unwrap();
    let kb = |bytes: u64| format!("{:.0} kB", bytes as f64 / 1e3);
    let share = |cpu: Duration| format!("{:.3} %", cpu.as_secs_f64() / 60.0 * 100.0);
    vec![
        Row {
            figure: label("module, compiled"),
            ours: format!("{}, {}", kb(module), kb(compiled)),
            native: protocol
                .native
                .as_ref()
                .map_or("-".to_owned(), |program| kb(std::fs::metadata(program).unwrap().len())),
            bar: "<= 400 kB, <= 1,200 kB",
            holds: Some(module <= 400_000 && compiled <= 1_200_000),
        },
        Row {
            figure: label("one more handler pod with a stream of 20 devices, private (dirty and page tables)"),
            ours: kb(each),
            native: theirs.as_ref().map_or("-".to_owned(), |(memory, _)| kb(*memory)),
            bar: "<= 250 kB",
            holds: Some(each <= 250_000),
        },
        Row {
            figure: label("CPU over 60 s with 20 devices, of a core, the whole node"),
            ours: share(cpu),
            native: theirs.as_ref().map_or("-".to_owned(), |(_, cpu)| share(*cpu)),
            bar: "<= native",
            holds: theirs.as_ref().map(|(_, theirs)| cpu <= *theirs),
        },
    ]
}

async fn plug() -> Row {
    let node = node();
    let [udev, ..] = protocols();
    node.add(&pod("udev", &udev));
    node.wait_for_socket("udev");
    let details = r#"{"udevRules": ["SUBSYSTEM==\"net\", KERNEL==\"br*\""]}"#;
    let (mut stream, _) = node.first_list("udev", details).await;
    let mut samples = Vec::new();
    for turn in 0..40 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (is_plugged, started) = (turn % 2 == 0, Instant::now());
        ip(if is_plugged { "link add br7 type bridge" } else { "link delete br7" });
        while next_ids(&mut stream).await.is_empty() == is_plugged {}
        samples.push(started.elapsed());
    }
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    Row {
        figure: "udev: a link comes or goes (`ip link`, the command in it) to list at the client, p50 of 40",
        ours: format!("{} (p99 {})", ms(p50), ms(p99)),
        native: "polls every 10 s".to_owned(),
        bar: "<= 50 ms",
        holds: Some(p50 <= Duration::from_millis(50)),
    }
}

async fn many_servers() -> Row {
    let living = (0..SERVERS).map(|number| format!("opc.tcp://10.95.0.2:{}/", 4900 + number));
    // Addresses that nobody has.
    let dead = (0..DEAD).map(|number| format!("opc.tcp://10.95.0.{}:4840/", 200 + number));
    // The dead among the living.
    let urls: Vec<_> = dead.chain(living).collect();
    let details = format!("{{\"opcuaDiscoveryMethod\": {{\"standard\": {{\"discoveryUrls\": {urls:?}}}}}}}");
    let protocols = protocols();
    let opcua = &protocols[2];
    let mut ours = Vec::new();
    for _ in 0..3 {
        let node = node();
        node.add(&pod("opcua", opcua));
        node.wait_for_socket("opcua");
        ours.push(found(node.socket("opcua"), &details, SERVERS).await.0);
    }
    let theirs = match &opcua.native {
        Some(program) => {
            let (native, _) = NativeAlone::start_named(program, "opcua").await;
            format!("{:.1} s (once)", found(native.socket(), &details, SERVERS).await.0.as_secs_f64())
        }
        None => "-".to_owned(),
    };
    let p50 = percentile(&mut ours, 50);
    Row {
        figure: "opcua: Discover to the list of 45 servers, beside 5 that are dead, p50 of 3",
        ours: format!("{:.2} s", p50.as_secs_f64()),
        native: theirs,
        bar: "<= 4 s",
        holds: Some(p50 <= Duration::from_secs(4)),
    }
}

async fn many_cameras() -> Vec<Row> {
    let protocols = protocols();
    let onvif = &protocols[1];
    let sent = || -> u64 {
        std::fs::read_to_string("/sys/class/net/lan0/statistics/tx_bytes").unwrap().trim().parse().unwrap()
    };
    let minute = async |socket: PathBuf| {
        let request = DiscoverRequest { discovery_details: "{}".to_owned(), ..Default::default() };
        let started = Instant::now();
        let mut stream = agent::discover(socket, request).await.unwrap();
        let first = ids(stream.message().await.unwrap().unwrap()).len();
        let elapsed = started.elapsed();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = sent();
        tokio::time::sleep(Duration::from_secs(60)).await;
        (first, elapsed, sent() - before)
    };
    let (ours, first_after, bytes) = {
        let node = node();
        node.add(&pod("onvif", onvif));
        node.wait_for_socket("onvif");
        minute(node.socket("onvif")).await
    };
    let theirs = match &onvif.native {
        Some(program) => Some(minute(NativeAlone::start_named(program, "onvif").await.0.socket()).await),
        None => None,
    };
    let text =
        |(found, after, _): &(usize, Duration, u64)| format!("{found} of 100 after {:.2} s", after.as_secs_f64());
    vec![
        Row {
            figure: "onvif: 100 cameras, those in the first list",
            ours: text(&(ours, first_after, bytes)),
            native: theirs.as_ref().map_or("-".to_owned(), text),
            bar: "100 of 100",
            holds: Some(ours == CAMERAS),
        },
        Row {
            figure: "... bytes sent in a minute after that",
            ours: format!("{:.0} kB", bytes as f64 / 1e3),
            native: theirs.as_ref().map_or("-".to_owned(), |(.., bytes)| format!("{:.0} kB", *bytes as f64 / 1e3)),
            bar: "<= native",
            holds: theirs.as_ref().map(|(.., theirs)| bytes <= *theirs),
        },
    ]
}

/// A directory in the place of /sys with 3,000 devices of three kinds.
fn large_sys(root: &Path) {
    let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
    for (directory, subsystem) in [("bus/usb", "usb"), ("bus/pci", "pci"), ("class/tty", "tty")] {
        let listed =
            if directory.starts_with("bus") { root.join(directory).join("devices") } else { root.join(directory) };
        std::fs::create_dir_all(&listed).unwrap();
        for number in 0..SYSFS / 3 {
            let name = format!("{subsystem}{number}");
            let path = format!("devices/platform/{subsystem}.0/{name}");
            let device = root.join(&path);
            std::fs::create_dir_all(&device).unwrap();
            let devname = if subsystem == "tty" { &name } else { &format!("bus/{subsystem}/{number}") };
            write(
                device.join("uevent"),
                &format!("MAJOR={}\nMINOR={number}\nDEVNAME={devname}\n", 180 + subsystem.len()),
            );
            write(device.join("serial"), &format!("S{number}\n"));
            write(device.join("vendor"), "0x10c4\n");
            std::os::unix::fs::symlink(format!("../../../../{directory}"), device.join("subsystem")).unwrap();
            let up = if directory.starts_with("bus") { "../../.." } else { "../.." };
            std::os::unix::fs::symlink(format!("{up}/{path}"), listed.join(&name)).unwrap();
        }
    }
}

async fn many_rules() -> Row {
    let directory = tempfile::tempdir().unwrap();
    large_sys(directory.path());
    let mounted = Command::new("mount").args(["--bind"]).arg(directory.path()).arg("/sys").status().unwrap();
    assert!(mounted.success(), "{mounted}");
    let rules: Vec<_> = (0..RULES)
        .map(|number| format!(r#"SUBSYSTEM=="{}", ATTR{{serial}}=="S{number}""#, ["usb", "pci", "tty"][number % 3]))
        .collect();
    let details = serde_json::json!({ "udevRules": rules }).to_string();
    let protocols = protocols();
    let udev = &protocols[0];
    let node = node();
    node.add(&pod("udev", udev));
    node.wait_for_socket("udev");
    // libudev takes a directory that is no sysfs for /sys if it is told to.
    let environment = [("SYSTEMD_DEVICE_VERIFY_SYSFS", PathBuf::from("0"))];
    let native = match &udev.native {
        Some(program) => Some(NativeAlone::start_with(program, "udev", &environment).await.0),
        None => None,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        ours.push(found(node.socket("udev"), &details, RULES).await.0);
        if let Some(native) = &native {
            theirs.push(found(native.socket(), &details, RULES).await.0);
        }
    }
    let p50 = percentile(&mut ours, 50);
    let native_p50 = (!theirs.is_empty()).then(|| percentile(&mut theirs, 50));
    Row {
        figure: "udev: 200 rules on a /sys of 3,000 devices, Discover to first list, p50 of 10",
        ours: ms(p50),
        native: native_p50.map_or("-".to_owned(), ms),
        bar: "<= native",
        holds: native_p50.map(|native| p50 <= native),
    }
}
