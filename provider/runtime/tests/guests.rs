//! Guests under the whole runtime: compiled by a child process, limited, interrupted, logged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

use akri_krustlet_runtime::log::{ContainerLog, LogLimits, LogOptions, Logs};
use akri_krustlet_runtime::{
    CompileError, Compiler, ContainerLimits, GuestSpec, LoadError, Outcome, Preopen, Runtime, RuntimeConfig,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn runtime_in(directory: &Path) -> Arc<Runtime> {
    runtime_with(directory, |_| {})
}

fn runtime_with(directory: &Path, change: impl FnOnce(&mut Compiler)) -> Arc<Runtime> {
    let mut config = RuntimeConfig::new(directory.join("modules"));
    config.compiler = Compiler::new(env!("CARGO_BIN_EXE_compile-module"), Vec::<String>::new());
    change(&mut config.compiler);
    Runtime::new(config).unwrap()
}

fn command(body: &str) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            {body})"#
    ))
    .unwrap()
}

const SPIN: &str = r#"(func (export "_start") (loop $again (br $again)))"#;
/// Sleeps for a day on the monotonic clock, then exits with 7.
const SLEEP: &str = r#"(data (i32.const 16) "\01\00\00\00") (data (i32.const 24) "\00\00\00\00\00\10\4e\00")
    (func (export "_start")
        (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))
        (call $exit (i32.const 7)))"#;

async fn run(body: &str, limits: ContainerLimits) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let program = runtime.load(&command(body)).await.unwrap();
    let guest = runtime.start(&program, GuestSpec::new("test", limits.share())).unwrap();
    guest.outcome().await
}

#[tokio::test]
async fn exit_codes_traps_and_a_full_memory_are_distinct_outcomes() {
    let limits = ContainerLimits::default();
    assert_eq!(run(r#"(func (export "_start"))"#, limits).await, Outcome::Exited(0));
    assert_eq!(run(r#"(func (export "_start") (call $exit (i32.const 3)))"#, limits).await, Outcome::Exited(3));
    let trapped = run(r#"(func $deep unreachable) (func $main (export "_start") (call $deep))"#, limits).await;
    let Outcome::Trapped(report) = trapped else { panic!("{trapped:?}") };
    assert_eq!(report.frames, ["deep", "main"]);
    assert!(report.to_string().contains("unreachable"), "{report}");
    let grow = r#"(func (export "_start")
        (loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable)"#;
    let limit = 8 << 20;
    let full = run(grow, ContainerLimits { memory: limit, ..limits }).await;
    assert_eq!(full, Outcome::OutOfMemory { limit });
    let never_fits = run(r#"(func (export "_start"))"#, ContainerLimits { memory: 1000, ..limits }).await;
    assert_eq!(never_fits, Outcome::OutOfMemory { limit: 1000 });
}

#[tokio::test]
async fn a_spinning_guest_is_interrupted_and_its_memory_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let program = runtime.load(&command(SPIN)).await.unwrap();
    let limits = ContainerLimits::default().share();
    let guest = runtime.start(&program, GuestSpec::new("spin", limits.clone())).unwrap();
    assert_eq!(guest.ended(), None);
    guest.interrupt();
    assert_eq!(guest.outcome().await, Outcome::Interrupted);
    assert_eq!(limits.memory_in_use(), 0);
}

#[tokio::test]
async fn a_sleep_ends_when_the_host_wakes_the_guest_unless_it_opted_out() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let program = runtime.load(&command(SLEEP)).await.unwrap();
    let limits = ContainerLimits::default().share();
    let guest = runtime.start(&program, GuestSpec::new("sleep", limits.clone())).unwrap();
    let mut progress = guest.progress();
    progress.wait_for(|progress| progress.waits == 1).await.unwrap();
    assert_eq!(guest.ended(), None);
    guest.wake();
    assert_eq!(guest.outcome().await, Outcome::Exited(7));

    let spec = GuestSpec { wakeable: false, ..GuestSpec::new("sleep", limits) };
    let guest = runtime.start(&program, spec).unwrap();
    guest.progress().wait_for(|progress| progress.waits == 1).await.unwrap();
    guest.wake();
    tokio::task::yield_now().await;
    assert_eq!(guest.ended(), None);
}

#[tokio::test]
async fn the_second_start_compiles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let module = command(SPIN);
    let first = runtime_in(directory.path());
    assert!(!first.is_compiled(&module));
    let (one, two) = tokio::join!(first.load(&module), first.load(&module));
    assert_eq!(first.modules_compiled(), 1, "two loads at once are one compile");
    assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
    drop(first);
    // A compiler that does not exist: compiling would fail.
    let second = runtime_with(directory.path(), |compiler| {
        *compiler = Compiler::new("/nonexistent/compiler", Vec::<String>::new());
    });
    assert!(second.is_compiled(&module));
    second.load(&module).await.unwrap();
    assert_eq!(second.modules_compiled(), 0);
}

#[tokio::test]
async fn a_damaged_file_in_the_store_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let module = command(SPIN);
    drop(runtime_in(directory.path()).load(&module).await.unwrap());
    for entry in std::fs::read_dir(directory.path().join("modules")).unwrap() {
        std::fs::write(entry.unwrap().path(), "damaged").unwrap();
    }
    let runtime = runtime_in(directory.path());
    runtime.load(&module).await.unwrap();
    assert_eq!(runtime.modules_compiled(), 1);
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_with(directory.path(), |compiler| compiler.limits.module_size = 1 << 20);
    let refused = async |module: &[u8]| runtime.load(module).await.unwrap_err().to_string();

    assert!(refused(b"#!/bin/sh").await.contains("not WebAssembly"));
    assert!(refused(b"").await.contains("empty"));
    let whole = command(SPIN);
    assert!(refused(&whole[..whole.len() - 3]).await.contains("not valid"));
    assert!(refused(&vec![0; (1 << 20) + 1]).await.contains("1048576 at most"));
    let missing = wat::parse_str(
        r#"(module (import "env" "open_door" (func)) (memory (export "memory") 1) (func (export "_start")))"#,
    );
    assert!(refused(&missing.unwrap()).await.contains("env.open_door"));
    let socket = wat::parse_str(
        r#"(module (import "wasi_unstable" "fd_write" (func)) (memory (export "memory") 1) (func (export "_start")))"#,
    );
    assert!(refused(&socket.unwrap()).await.contains("wasi_unstable.fd_write"));
    let library = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "run")))"#).unwrap();
    assert!(matches!(runtime.load(&library).await, Err(LoadError::NoStart)));
    let component = wat::parse_str("(component)").unwrap();
    let component = runtime.load(&component).await.unwrap();
    let limits = ContainerLimits::default().share();
    let error = runtime.start(&component, GuestSpec::new("component", limits)).unwrap_err();
    assert!(error.to_string().contains("it does not export wasi:cli/run"), "{error}");
}

/// Compiling it takes many seconds.
fn bomb(number: u32) -> Vec<u8> {
    let body = "(i64.store (i32.const 8) (i64.mul (i64.load (i32.const 16)) (i64.add (local.get 0) (i64.const 7))))"
        .repeat(20_000);
    let functions = format!("(func (param i64) {body})").repeat(20);
    let module = format!(
        r#"(module (memory (export "memory") 1) (func (export "_start") (drop (i32.const {number}))) {functions})"#
    );
    wat::parse_str(module).unwrap()
}

#[tokio::test]
async fn other_modules_do_not_wait_for_compile_bombs() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_with(directory.path(), |compiler| compiler.limits.ordinary_cpu_seconds = 1);
    let bombs: Vec<_> = (0..3)
        .map(|number| {
            let runtime = runtime.clone();
            tokio::spawn(async move { runtime.load(&bomb(number)).await.map(drop) })
        })
        .collect();
    // They are before it.
    tokio::task::yield_now().await;
    runtime.load(&command(SPIN)).await.unwrap();
    let done = bombs.iter().filter(|bomb| bomb.is_finished()).count();
    assert!(done < 2, "{done} bombs were compiled before an ordinary module");
    bombs.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_compile_bomb_is_stopped_by_the_limits_of_the_compile_child() {
    let directory = tempfile::tempdir().unwrap();
    let bomb = bomb(0);
    let runtime = runtime_with(directory.path(), |compiler| compiler.limits.cpu_seconds = 1);
    let error = runtime.load(&bomb).await.unwrap_err();
    assert!(matches!(error, LoadError::Compile(CompileError::Limit(_))), "{error}");
    let runtime = runtime_with(directory.path(), |compiler| compiler.limits.wall_time = Duration::from_millis(200));
    let error = runtime.load(&bomb).await.unwrap_err();
    assert!(matches!(error, LoadError::Compile(CompileError::Limit(_))), "{error}");
    let runtime = runtime_with(directory.path(), |compiler| compiler.limits.memory = 96 << 20);
    assert!(matches!(runtime.load(&bomb).await, Err(LoadError::Compile(_))));
    assert_eq!(std::fs::read_dir(directory.path().join("modules")).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn output_goes_to_the_log_and_an_unfinished_line_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let body = r#"(data (i32.const 0) "\10\00\00\00\0d\00\00\00") (data (i32.const 16) "one\nunfinished")
        (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 100))))"#;
    let program = runtime.load(&command(body)).await.unwrap();
    let logs = directory.path().join("logs");
    let log = ContainerLog::create(&logs, 0, LogLimits::default()).unwrap();
    let spec = GuestSpec { log: Some(log), ..GuestSpec::new("print", ContainerLimits::default().share()) };
    let guest = runtime.start(&program, spec).unwrap();
    assert_eq!(guest.outcome().await, Outcome::Exited(0));
    let mut reader = Logs::open(&logs, 0, LogOptions::default()).unwrap();
    let mut texts = Vec::new();
    // The store, and with it the unfinished line, is dropped right after the outcome is known.
    for _ in 0..500 {
        texts.extend(reader.read_batch().unwrap().into_iter().map(|part| String::from_utf8(part.text).unwrap()));
        if texts.len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(texts, ["one", "unfinishe"]);
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let program = runtime.load(&command(SPIN)).await.unwrap();
    let preopen = Preopen { read_only: true, ..Preopen::new("/nonexistent/place", "/data") };
    let spec = GuestSpec { preopens: vec![preopen], ..GuestSpec::new("test", ContainerLimits::default().share()) };
    let error = runtime.start(&program, spec).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/place") && error.contains("/data"), "{error}");
}

/// 200 waiting guests take no more threads than one.
#[tokio::test]
async fn waiting_guests_have_no_threads_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let program = runtime.load(&command(SLEEP)).await.unwrap();
    let start = || runtime.start(&program, GuestSpec::new("sleep", ContainerLimits::default().share())).unwrap();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let first = start();
    first.progress().wait_for(|progress| progress.waits == 1).await.unwrap();
    let before = threads();
    let guests: Vec<_> = (0..200).map(|_| start()).collect();
    for guest in &guests {
        guest.progress().wait_for(|progress| progress.waits == 1).await.unwrap();
    }
    // Other tests of this process start threads too, but not two hundred.
    assert!(threads() < before + 100, "{before} threads became {}", threads());
}

#[tokio::test]
async fn a_guest_sees_the_variables_it_was_given_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    // Exits with the number of its variables.
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start")
                (drop (call $sizes (i32.const 0) (i32.const 4))) (call $exit (i32.load (i32.const 0)))))"#,
    );
    let program = runtime.load(&module.unwrap()).await.unwrap();
    assert!(std::env::vars_os().count() > 1, "there is something to inherit");
    let spec = GuestSpec::new("env", ContainerLimits::default().share());
    assert_eq!(runtime.start(&program, spec.clone()).unwrap().outcome().await, Outcome::Exited(0));
    let spec = GuestSpec { env: vec![("A".to_owned(), "1".to_owned())], ..spec };
    assert_eq!(runtime.start(&program, spec).unwrap().outcome().await, Outcome::Exited(1));
}

#[tokio::test]
async fn a_read_only_directory_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    // Creates the file `f` in its first directory and exits with the error number.
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 0) "f")
            (func (export "_start") (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1)
                (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))))"#,
    );
    let program = runtime.load(&module.unwrap()).await.unwrap();
    for read_only in [true, false] {
        let volume = tempfile::tempdir().unwrap();
        let preopen = Preopen { read_only, ..Preopen::new(volume.path(), "/v") };
        let limits = ContainerLimits::default().share();
        let spec = GuestSpec { preopens: vec![preopen], ..GuestSpec::new("volume", limits) };
        let Outcome::Exited(error) = runtime.start(&program, spec).unwrap().outcome().await else { panic!() };
        assert_eq!(error != 0, read_only, "{error}");
        assert_eq!(volume.path().join("f").exists(), !read_only);
    }
}

/// What stock wasmtime runs, runs here: deep stacks, large tables, large reads and much randomness.
#[tokio::test]
async fn sizes_that_other_hosts_take_are_taken() {
    let limits = ContainerLimits::default();
    // 4,000 frames of 64 bytes or more.
    let deep = r#"(func $deep (param i32) (result i32) (if (result i32) (i32.eqz (local.get 0))
            (then (i32.const 0)) (else (i32.add (local.get 0) (call $deep (i32.sub (local.get 0) (i32.const 1)))))))
        (func (export "_start") (drop (call $deep (i32.const 4000))))"#;
    assert_eq!(run(deep, limits).await, Outcome::Exited(0));
    let table = r#"(table 25000 funcref) (func (export "_start"))"#;
    assert_eq!(run(table, limits).await, Outcome::Exited(0));
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let random = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (memory (export "memory") 20)
            (func (export "_start") (call $exit (call $random (i32.const 0) (i32.const 1000000)))))"#,
    );
    let program = runtime.load(&random.unwrap()).await.unwrap();
    let guest = runtime.start(&program, GuestSpec::new("random", limits.share())).unwrap();
    assert_eq!(guest.outcome().await, Outcome::Exited(0));
    // One read of 9 MiB; exits with 0 if it has them all.
    let read = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 160) (data (i32.const 0) "f")
            (func (export "_start")
                (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i64.const 2)
                    (i64.const 0) (i32.const 0) (i32.const 16)))
                (i32.store (i32.const 32) (i32.const 1024)) (i32.store (i32.const 36) (i32.const 9437184))
                (if (call $read (i32.load (i32.const 16)) (i32.const 32) (i32.const 1) (i32.const 48))
                    (then (call $exit (i32.const 1))))
                (call $exit (i32.ne (i32.load (i32.const 48)) (i32.const 9437184)))))"#,
    );
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("f"), vec![1; 9 << 20]).unwrap();
    let program = runtime.load(&read.unwrap()).await.unwrap();
    let spec =
        GuestSpec { preopens: vec![Preopen::new(volume.path(), "/v")], ..GuestSpec::new("read", limits.share()) };
    assert_eq!(runtime.start(&program, spec).unwrap().outcome().await, Outcome::Exited(0));
}

#[tokio::test]
async fn an_import_of_the_wrong_type_is_named_and_compiled_once() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let module = wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i64)))
            (memory (export "memory") 1) (func (export "_start")))"#,
    );
    let module = module.unwrap();
    for _ in 0..3 {
        let error = runtime.load(&module).await.unwrap_err().to_string();
        assert!(error.contains("fd_write") && error.contains("type"), "{error}");
    }
    assert_eq!(runtime.modules_compiled(), 1);
}

#[tokio::test]
async fn what_the_compiler_refused_is_compiled_once_however_often_it_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let runs = directory.path().join("runs");
    let runtime = runtime_with(directory.path(), |compiler| {
        let refuse = format!("echo run >> {}; exit 65", runs.display());
        *compiler = Compiler::new("/bin/sh", ["-c".to_owned(), refuse]);
    });
    let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
    for _ in 0..10 {
        assert!(matches!(runtime.load(&command(SPIN)).await, Err(LoadError::Compile(CompileError::Invalid(_)))));
    }
    assert_eq!(count(), 1);
    assert!(runtime.load(&command(SLEEP)).await.is_err());
    assert_eq!(count(), 2, "another module is another one");
}

/// Waits for standard input or, with a clock, for a day; exits with the number of events and the type of the first.
fn waits_for_stdin(clock: bool) -> Vec<u8> {
    let count = if clock { 2 } else { 1 };
    command(&format!(
        r#"(data (i32.const 8) "\01") (data (i32.const 64) "\01\00\00\00") (data (i32.const 72) "\00\00\00\00\00\10\4e\00")
        (func (export "_start")
            (i32.store8 (i32.const 8) (i32.const 1)) (i32.store (i32.const 64) (i32.const 1))
            (drop (call $poll (i32.const 0) (i32.const 200) (i32.const {count}) (i32.const 400)))
            (call $exit (i32.add (i32.mul (i32.load (i32.const 400)) (i32.const 10)) (i32.load8_u (i32.const 210)))))"#
    ))
}

#[tokio::test]
async fn an_open_standard_input_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    for clock in [true, false] {
        let program = runtime.load(&waits_for_stdin(clock)).await.unwrap();
        let stdin = akri_krustlet_runtime::stdin::Stdin::default();
        let spec =
            GuestSpec { stdin: Some(stdin.clone()), ..GuestSpec::new("stdin", ContainerLimits::default().share()) };
        let guest = runtime.start(&program, spec).unwrap();
        guest.progress().wait_for(|progress| progress.waits == 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(guest.ended(), None, "nothing has happened yet");
        stdin.close();
        assert_eq!(guest.outcome().await, Outcome::Exited(11), "one event, of reading");
    }
}

#[tokio::test]
async fn writes_to_numbers_that_are_no_files_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let body = r#"(func (export "_start") (local $fd i32)
        (loop $again
            (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
            (drop (call $write (i32.add (local.get $fd) (i32.const 3)) (i32.const 0) (i32.const 1) (i32.const 100)))
            (br_if $again (i32.lt_u (local.get $fd) (i32.const 2000000)))))"#;
    let program = runtime.load(&command(body)).await.unwrap();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    let guest = runtime.start(&program, GuestSpec::new("write", ContainerLimits::default().share())).unwrap();
    assert_eq!(guest.outcome().await, Outcome::Exited(0));
    let grown = resident().saturating_sub(before);
    // Other tests of this process have memory, too, but not fifty bytes for each write.
    assert!(grown < 64 << 20, "{grown} bytes for 2,000,000 writes");
}

#[tokio::test]
async fn exceptions_are_caught_and_a_flood_of_them_stays_in_the_guests_memory() {
    let thrown = r#"(tag $oops (param i32))
        (func (export "_start") (call $exit (block $caught (result i32)
            (try_table (catch $oops $caught) (throw $oops (i32.const 7))) (i32.const 1))))"#;
    assert_eq!(run(thrown, ContainerLimits::default()).await, Outcome::Exited(7));
    // Each stays reachable from the one after it, in a table.
    let flood = r#"(tag $oops) (table $kept 100000 exnref)
        (func (export "_start") (local $at i32)
            (loop $again
                (table.set $kept (local.get $at) (block $caught (result exnref)
                    (try_table (catch_all_ref $caught) (throw $oops)) (unreachable)))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const 100000)))))"#;
    let small = ContainerLimits { memory: 3 << 20, ..ContainerLimits::default() };
    assert!(matches!(run(flood, small).await, Outcome::OutOfMemory { .. }));
    let large = ContainerLimits { memory: 64 << 20, ..ContainerLimits::default() };
    assert_eq!(run(flood, large).await, Outcome::Exited(0));
}

/// Lists descriptor 3 in whole, 200 times.
const LISTS: &str = r#"(import "wasi_snapshot_preview1" "fd_readdir" (func $list (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 10)
    (func (export "_start") (local $round i32)
        (loop $again
            (if (call $list (i32.const 3) (i32.const 1024) (i32.const 600000) (i64.const 0) (i32.const 0))
                (then (call $exit (i32.const 1))))
            (if (i32.lt_u (i32.load (i32.const 0)) (i32.const 50000)) (then (call $exit (i32.const 2))))
            (local.set $round (i32.add (local.get $round) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $round) (i32.const 200)))))"#;

#[tokio::test]
async fn what_threads_that_block_do_for_a_guest_is_paid_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime_in(directory.path());
    let listed = directory.path().join("listed");
    std::fs::create_dir(&listed).unwrap();
    (0..2000).for_each(|number| std::fs::write(listed.join(format!("{number:020}")), "").unwrap());
    let program = runtime.load(&wat::parse_str(format!("(module {LISTS})")).unwrap()).await.unwrap();
    let cpu_time = async |private: bool| {
        let limits = ContainerLimits { cpu_millis: Some(1000), ..ContainerLimits::default() }.share();
        let preopens = vec![Preopen { private, ..Preopen::new(&listed, "/listed") }];
        let spec = GuestSpec { preopens, ..GuestSpec::new("lists", limits.clone()) };
        assert_eq!(runtime.start(&program, spec).unwrap().outcome().await, Outcome::Exited(0));
        limits.cpu_time()
    };
    // In a private directory the guest's own thread does it.
    let (own, others) = (cpu_time(true).await, cpu_time(false).await);
    assert!(others > own / 3, "{others:?} of about {own:?}");
}
