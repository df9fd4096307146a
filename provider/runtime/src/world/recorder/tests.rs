//! What is written of a guest's steps.

use super::*;
use akri_recording::Device;

fn recorder(directory: &Path, to: &Path) -> Recorder {
    let to = RecordTo { path: to.to_owned(), secrets: false };
    Recorder::begin(&to, "test", "{}", &[], &[], &[Preopen::new(directory, "/data")]).unwrap()
}

fn said(id: &str) -> Option<Said> {
    Some(Said::List(vec![Device { id: id.to_owned(), ..Device::default() }]))
}

#[test]
fn files_are_in_a_replay_as_they_were_at_each_step() {
    let directory = tempfile::tempdir().unwrap();
    let (data, to) = (directory.path().join("data"), directory.path().join("x.rec"));
    std::fs::create_dir(&data).unwrap();
    for name in ["a", "b", "unread"] {
        std::fs::write(data.join(name), "first\n").unwrap();
    }
    std::os::unix::fs::symlink("a", data.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", data.join("out")).unwrap();
    let recorder = recorder(&data, &to);
    recorder.listed(&data);
    recorder.looked(&data.join("link"), true);
    recorder.looked(&data.join("out"), true);
    recorder.looked(&data.join("missing"), true);
    recorder.said(said("1"));
    let cut = std::fs::read_to_string(&to).unwrap();
    // Times are in milliseconds.
    while recorder.started.elapsed() < recorder.state().step_ended + Duration::from_millis(2) {
        std::thread::yield_now();
    }
    std::fs::write(data.join("b"), "second\n").unwrap();
    std::fs::write(data.join("new"), "new\n").unwrap();
    std::fs::remove_file(data.join("unread")).unwrap();
    recorder.step();
    recorder.listed(&data);
    recorder.looked(&data.join("b"), true);
    recorder.looked(&data.join("new"), true);
    recorder.said(said("1"));
    recorder.step();
    recorder.said(said("2"));
    drop(recorder);
    // A process that was killed leaves a whole one, too.
    assert_eq!(Recording::read(&cut).unwrap().said().len(), 1);
    let recording = Recording::read(&std::fs::read_to_string(&to).unwrap()).unwrap();
    assert_eq!(recording.said().len(), 2, "a list that is repeated is one");
    let mut script = akri_recording::Script::of(&recording);
    let mut seen = BTreeMap::new();
    let mut take = |now: Duration| {
        for event in script.changes_until(now) {
            match event {
                Event::File { path, content } => seen.insert(path, String::from_utf8(content).unwrap()),
                Event::Symlink { path, to } => seen.insert(path, format!("-> {to}")),
                Event::Gone(path) => seen.remove(&path),
                Event::Directory(_) => None,
                other => panic!("{other:?}"),
            };
        }
        seen.iter().map(|(path, what)| format!("{path} {}", what.trim())).collect::<Vec<_>>()
    };
    let (link, out) = ("/data/link -> a", "/data/out -> /etc/passwd");
    // What was not read before it changed was never seen otherwise.
    assert_eq!(take(Duration::ZERO), ["/data/a first", "/data/b second", link, out, "/data/unread "]);
    assert_eq!(take(Duration::from_secs(60)), ["/data/a first", "/data/b second", link, "/data/new new", out]);
}

#[test]
fn a_recording_that_becomes_too_long_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("x.rec");
    let recorder = recorder(directory.path(), &to);
    for number in 0..20 {
        let payload = vec![b'x'; 1 << 20];
        recorder.note(Event::Tcp(number, Tcp::Read(payload)));
        recorder.said(said(&number.to_string()));
    }
    drop(recorder);
    let text = std::fs::read_to_string(&to).unwrap();
    assert!(text.len() < 18 << 20 && text.contains("# The recording ends here"), "{}", text.len());
    let recording = Recording::read(&text).unwrap();
    assert!((10..20).contains(&recording.said().len()), "{}", recording.said().len());
}
