//! A test guest that does what no guest should. `FAULT` names the deed; as a discovery handler it is done when a request
//! comes, with `FAULT_AT=start` at once.

use serde_json::json;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "/tmp/wde-dir";

fn main() {
    let fault = std::env::var("FAULT").unwrap_or_default();
    println!("misbehave: {fault}");
    if std::env::var("FAULT_AT").as_deref() == Ok("start") {
        do_fault(&fault);
    }
    let mut seen = String::new();
    loop {
        if let Ok(request) = fs::read_to_string(path("in.in"))
            && request != seen
        {
            seen = request;
            do_fault(&fault);
        }
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

fn answer(text: impl AsRef<[u8]>) {
    // Some faults make this impossible; the test looks at what the host says of it.
    if let Err(error) = fs::write(path("out.out"), text) {
        eprintln!("misbehave: out.out: {error}");
    }
}

fn device(id: &str) -> serde_json::Value {
    json!({ "id": id, "properties": { "KEY": "value" }, "mounts": [], "device_specs": [] })
}

fn do_fault(fault: &str) {
    match fault {
        "trap" => innermost_function(),
        "exit0" => std::process::exit(0),
        "exit3" => std::process::exit(3),
        // As a program that ends when it is asked to.
        "read-input" => {
            let read = std::io::read_to_string(std::io::stdin());
            println!("misbehave: input ended: {read:?}");
            std::process::exit(0);
        }
        "print" => {
            for number in 0..100 {
                println!("line {number}");
            }
            eprintln!("line on stderr");
        }
        "sleep" => {}
        "environment" => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        // What it sees of a file that a device brings.
        "use-file" => {
            let file = std::env::var("FAULT_FILE").unwrap_or_default();
            println!("read: {:?}", fs::read_to_string(&file).map_err(|error| error.kind()));
            println!("write: {:?}", fs::write(&file, "of the guest").map_err(|error| error.kind()));
        }
        // All files below a directory, again whenever they have changed.
        "watch-files" => {
            let mut last = String::new();
            loop {
                let mut seen = Vec::new();
                for directory in std::env::var("FAULT_FILE").unwrap_or_default().split(',') {
                    list_files(directory, &mut seen);
                }
                seen.sort();
                let seen = seen.join(" ");
                if seen != last {
                    println!("files: {seen}");
                    last = seen;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // Ends well when there is a file.
        "await-file" => {
            let file = std::env::var("FAULT_FILE").unwrap_or_default();
            while fs::metadata(&file).is_err() {
                std::thread::sleep(Duration::from_millis(50));
            }
            std::process::exit(0);
        }
        // A line in a file for each time that it is started, then for each that it ends.
        "count-runs" => {
            let line = |word: &str| {
                let file = std::env::var("FAULT_FILE").unwrap_or_default();
                let mut file = fs::OpenOptions::new().create(true).append(true).open(file).expect("a volume");
                let _ = file.write_all(format!("{word}\n").as_bytes());
            };
            line("started");
            let time = std::env::var("FAULT_MILLIS").ok().and_then(|millis| millis.parse().ok());
            std::thread::sleep(Duration::from_millis(time.unwrap_or(0)));
            line("ended");
            let code = std::env::var("FAULT_CODE").ok().and_then(|code| code.parse().ok());
            std::process::exit(code.unwrap_or(0));
        }
        // A megabyte more each tenth of a second.
        "fill-volume" => {
            let mut file = fs::File::create(std::env::var("FAULT_FILE").unwrap_or_default()).expect("a volume");
            loop {
                if let Err(error) = file.write_all(&vec![7u8; 1 << 20]) {
                    println!("full: {error}");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        "spin" => loop {
            std::hint::spin_loop();
        },
        "grow" => {
            let mut kept = Vec::new();
            loop {
                kept.push(vec![1u8; 1 << 20]);
                std::hint::black_box(&kept);
            }
        }
        "open-files" => open_files(),
        "flood" => {
            let line = [b'y'; 1023];
            loop {
                let _ = std::io::stdout().write_all(&line);
                println!();
            }
        }
        "fill-disk" => fill_disk(),
        "torn" => answer(r#"{"devices":[{"id":"foo0","prop"#),
        "large" => {
            let properties = json!({ "KEY": "x".repeat(60 << 10) });
            let devices: Vec<_> = (0..85)
                .map(|n| json!({ "id": format!("d{n}"), "properties": properties, "mounts": [], "device_specs": [] }))
                .collect();
            answer(json!({ "devices": devices }).to_string());
        }
        "many" => {
            let devices: Vec<_> = (0..1025).map(|n| device(&format!("d{n}"))).collect();
            answer(json!({ "devices": devices }).to_string());
        }
        "wrong-types" => answer(r#"{"devices":[{"id":7,"properties":[],"mounts":{}}]}"#),
        "bad-property" => {
            answer(r#"{"devices":[{"id":"a","properties":{"1 bad":"v"},"mounts":[],"device_specs":[]}]}"#)
        }
        "duplicate-ids" => {
            answer(json!({ "devices": [device("a"), device("a"), device(""), device("b")] }).to_string());
        }
        "privileged" => answer(
            r#"{"devices":[{"id":"a","properties":{},"mounts":[{"container_path":"/x","host_path":"/etc","read_only":true}],
                "device_specs":[{"container_path":"/dev/mem","host_path":"/dev/mem","permissions":"rwm"}]}]}"#,
        ),
        "answer-symlink" => {
            // An absolute target is refused by the runtime, a relative one is not.
            symlink("../../../../../../../../../../etc/passwd", "out.out");
        }
        "answer-directory" => {
            let made = fs::create_dir(path("out.out"));
            println!("misbehave: {made:?}");
            // Tells the host that something was written.
            let _ = fs::rename(path("out.out"), path("out.dir"))
                .and_then(|()| fs::rename(path("out.dir"), path("out.out")));
        }
        "request-symlink" => {
            let _ = fs::remove_file(path("in.in"));
            symlink("victim", "in.in");
            answer(json!({ "devices": [device("a")] }).to_string());
        }
        // Good once, then bad: what was good must stay.
        "good-then-torn" => {
            answer(json!({ "devices": [device("good")] }).to_string());
            std::thread::sleep(Duration::from_secs(60));
            answer(r#"{"devices":["#);
        }
        // Later than a call waits for it.
        "late-refusal" => {
            // The host may end a sleep.
            let until = Instant::now() + Duration::from_millis(1500);
            while Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
            answer(json!({ "error": { "invalid_details": "no such thing" } }).to_string());
        }
        // The host looks when the answer's first part is there, and once more when it is whole.
        "slow-answer" => {
            let mut file = fs::File::create(path("out.out")).expect("the exchange directory is writable");
            let text = json!({ "devices": [device("good")] }).to_string();
            let (first, second) = text.split_at(1);
            file.write_all(first.as_bytes()).expect("written");
            // Closed, this one makes the host look.
            let again = fs::OpenOptions::new().append(true).open(path("out.out"));
            again.and_then(|mut again| again.write_all(b" ")).expect("the answer can be opened twice");
            std::thread::sleep(Duration::from_millis(300));
            file.seek(std::io::SeekFrom::End(0)).expect("sought");
            file.write_all(second.as_bytes()).expect("written");
        }
        "good-then-trap" => {
            answer(json!({ "devices": [device("good")] }).to_string());
            std::thread::sleep(Duration::from_secs(60));
            innermost_function();
        }
        _ => answer(json!({ "devices": [device("good")] }).to_string()),
    }
}

/// `path=content` of each file that has an ordinary name.
fn list_files(directory: &str, seen: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.file_name().to_string_lossy().starts_with("..") {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => list_files(&path, seen),
            Ok(_) => seen.push(format!("{path}={:?}", fs::read_to_string(&path).unwrap_or_default())),
            Err(error) => seen.push(format!("{path}: {error}")),
        }
    }
}

fn symlink(target: &str, name: &str) {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn path_symlink(old: *const u8, old_length: usize, fd: i32, new: *const u8, new_length: usize) -> i32;
    }
    // SAFETY: both slices outlive the call. 3 is the first preopened directory.
    let error = unsafe { path_symlink(target.as_ptr(), target.len(), 3, name.as_ptr(), name.len()) };
    println!("misbehave: symlink {name}: {error}");
}

#[inline(never)]
fn innermost_function() {
    let numbers: Vec<u32> = Vec::new();
    let index = std::hint::black_box(3);
    println!("{}", numbers[index]);
}

fn open_files() {
    let _ = fs::write(path("many"), "x");
    let mut kept = Vec::new();
    for _ in 0..100_000 {
        match fs::File::open(path("many")) {
            Ok(file) => kept.push(file),
            Err(error) => {
                let id = format!("opened {} then {:?}", kept.len(), error.raw_os_error());
                kept.clear();
                answer(json!({ "devices": [device(&id)] }).to_string());
                return;
            }
        }
    }
    answer(json!({ "devices": [device("opened all")] }).to_string());
}

fn fill_disk() {
    let chunk = vec![7u8; 64 << 10];
    let mut written = 0usize;
    let result = fs::File::create(path("big")).and_then(|mut file| {
        while written < 1 << 30 {
            file.write_all(&chunk)?;
            written += chunk.len();
        }
        Ok(())
    });
    let _ = fs::remove_file(path("big"));
    let id = format!("wrote {} MiB then {:?}", written >> 20, result.err().and_then(|error| error.raw_os_error()));
    answer(json!({ "devices": [device(&id)] }).to_string());
}
