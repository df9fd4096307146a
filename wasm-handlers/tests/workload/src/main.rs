//! One program for both kinds of node: built as a WebAssembly module and as a static Linux program, so that the same pod can be
//! watched on each. Each argument is a step, `NAME` or `NAME:WHAT`, and the steps are taken in order.
//!
//! ```text
//! print:TEXT        a line on the standard output         error:TEXT      ... on the standard error
//! lines:N           N numbered lines                      bytes:N         N bytes of one line, no newline
//! binary            bytes that are no UTF-8               arguments       all arguments
//! variable:NAME     the variable, or that it is unset     names:PREFIX    the names of variables with a prefix, sorted
//! read:PATH         a file's content, or the error        list:PATH       a directory's entries, sorted
//! mode:PATH         a file's permissions                  write:PATH=TEXT writes a file, or prints the error
//! follow:PATH       prints a file whenever it is another  runs:PATH=N     goes on from the Nth run on; ends with 7 before
//! connect:ADDRESS=TEXT sends TEXT, prints the answer's line  serve:PORT   answers each line that is sent by it
//! sleep:MS          waits                                 input           reads the standard input to its end
//! wait              until the pod is asked to end         forever         waits, and does not hear that
//! spin              computes without an end               memory:MIB      takes memory and keeps it
//! abort             ends as by an assertion               fault           reads memory that it does not have
//! exit:CODE         ends
//! ```

use std::io::{BufRead as _, Read as _, Write as _};
use std::time::Duration;

fn main() {
    let mut kept = Vec::new();
    for step in std::env::args().skip(1) {
        let (name, what) = step.split_once(':').unwrap_or((&step, ""));
        if !take(name, what, &mut kept) {
            eprintln!("unknown step {step}");
            std::process::exit(64);
        }
    }
}

fn take(name: &str, what: &str, kept: &mut Vec<Vec<u8>>) -> bool {
    match name {
        "print" => println!("{what}"),
        "error" => eprintln!("{what}"),
        "lines" => (0..number(what)).for_each(|line| println!("line {line}")),
        "bytes" => write_output(&vec![b'x'; number(what)]),
        "binary" => write_output(&[0xff, 0xfe, b'a', 0, 0x80, b'b', b'\n', 0xe2, 0x82, b'\n']),
        "arguments" => println!("{:?}", std::env::args().skip(1).collect::<Vec<_>>()),
        "variable" => println!("{what}={}", std::env::var(what).unwrap_or_else(|_| "(unset)".to_owned())),
        "names" => {
            let mut names: Vec<_> = std::env::vars().map(|(name, _)| name).collect();
            names.retain(|name| name.starts_with(what));
            names.sort();
            println!("{names:?}");
        }
        "read" => match std::fs::read_to_string(what) {
            Ok(content) => println!("{what}: {content:?}"),
            Err(error) => println!("{what}: {:?}", error.kind()),
        },
        "list" => match std::fs::read_dir(what) {
            Ok(entries) => {
                let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
                let mut names: Vec<_> = names.filter(|name| !name.starts_with("..")).collect();
                names.sort();
                println!("{what}: {names:?}");
            }
            Err(error) => println!("{what}: {:?}", error.kind()),
        },
        "mode" => mode(what),
        "write" => {
            let (path, text) = what.split_once('=').unwrap_or((what, ""));
            match std::fs::write(path, text) {
                Ok(()) => println!("{path}: written"),
                Err(error) => println!("{path}: {:?}", error.kind()),
            }
        }
        "follow" => follow(what),
        "runs" => {
            let (path, wanted) = what.split_once('=').unwrap_or((what, "1"));
            let runs = std::fs::read_to_string(path).map_or(0, |text| number(&text)) + 1;
            let _ = std::fs::write(path, runs.to_string());
            println!("run {runs}");
            if runs < number(wanted) {
                std::process::exit(7);
            }
        }
        "connect" => {
            let (address, text) = what.split_once('=').unwrap_or((what, ""));
            match connect(address, text) {
                Ok(answer) => println!("{address}: {answer}"),
                Err(error) => println!("{address}: {:?}", error.kind()),
            }
        }
        "serve" => {
            if let Err(error) = serve(number(what)) {
                println!("{what}: {:?}", error.kind());
            }
        }
        "sleep" => std::thread::sleep(Duration::from_millis(number(what) as u64)),
        "input" => {
            let mut input = Vec::new();
            let result = std::io::stdin().read_to_end(&mut input);
            println!("input: {} bytes, {}", input.len(), if result.is_ok() { "end" } else { "error" });
        }
        "wait" => wait(),
        "forever" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "spin" => loop {
            std::hint::spin_loop();
        },
        "memory" => {
            // Written to, so that the system has to find it.
            let mut memory = vec![0u8; number(what) << 20];
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            kept.push(std::hint::black_box(memory));
        }
        "abort" => std::process::abort(),
        // SAFETY: there is none; that is what this step is for. No such address is mapped.
        "fault" => drop(unsafe { std::ptr::read_volatile((usize::MAX - 64) as *const u8) }),
        "exit" => std::process::exit(what.parse().unwrap_or(64)),
        _ => return false,
    }
    true
}

fn connect(address: &str, text: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    std::io::BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

fn serve(port: usize) -> std::io::Result<()> {
    let port = u16::try_from(port).map_err(std::io::Error::other)?;
    let listener = std::net::TcpListener::bind(("0.0.0.0", port))?;
    println!("serving");
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut line = String::new();
        std::io::BufReader::new(&mut stream).read_line(&mut line)?;
        stream.write_all(line.as_bytes())?;
    }
}

fn number(text: &str) -> usize {
    text.trim().parse().unwrap_or(0)
}

fn write_output(bytes: &[u8]) {
    let mut output = std::io::stdout();
    let _ = output.write_all(bytes).and_then(|()| output.flush());
}

fn follow(path: &str) {
    let mut last = None;
    loop {
        let content = std::fs::read_to_string(path).map_err(|error| error.kind());
        if last.as_ref() != Some(&content) {
            match &content {
                Ok(content) => println!("{path}: {content:?}"),
                Err(error) => println!("{path}: {error:?}"),
            }
            last = Some(content);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(unix)]
fn mode(path: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::metadata(path) {
        Ok(metadata) => println!("{path}: {:o}", metadata.permissions().mode() & 0o777),
        Err(error) => println!("{path}: {:?}", error.kind()),
    }
}

/// WASI tells no permissions.
#[cfg(not(unix))]
fn mode(path: &str) {
    match std::fs::metadata(path) {
        Ok(_) => println!("{path}: -"),
        Err(error) => println!("{path}: {:?}", error.kind()),
    }
}

/// A Linux container is sent SIGTERM.
#[cfg(unix)]
fn wait() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let asked = Arc::new(AtomicBool::new(false));
    if signal_hook::flag::register(signal_hook::consts::SIGTERM, asked.clone()).is_ok() {
        while !asked.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A guest has no signals: its standard input ends.
#[cfg(not(unix))]
fn wait() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
