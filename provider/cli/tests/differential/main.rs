//! The same pods on a real Linux node (kubelet, containerd, runc) and on this one, in one cluster at the same time: what is seen of
//! them from outside is the same, or the difference is a row of docs/differences.md. Needs root; `make differential` runs it alone.
//!
//! `SPECS=init-*,logs` takes only those specs, and does not hold the file's rows against them. `SEED` repeats the random ones.
//! `AS_COMPONENT=1` has this node run the program as a component instead of a module: what differs then are exit codes, of which
//! WASI 0.2 has two.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod differences;
#[path = "../fixture/mod.rs"]
mod fixture;
mod observation;
mod side;
mod spec;
mod specs;

use differences::{Difference, Known, compare};
use futures::StreamExt as _;
use observation::Recorder;
use side::Kind;
use spec::Spec;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// Specs under way at a time: two cores start some containers a second.
const CONCURRENT: usize = 24;

/// All of it, several times over: 11 minutes on two cores.
const AT_MOST: Duration = Duration::from_secs(40 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_of_node_do_the_same_but_for_what_is_written_down() {
    let compared = tokio::time::timeout(AT_MOST, compare_nodes()).await;
    assert!(compared.is_ok(), "not done after {} s; the last spec that was done is above", AT_MOST.as_secs());
}

async fn compare_nodes() {
    let Some(scene) = side::scene().await else { return };
    let scene = Arc::new(scene);
    let recorder = Recorder::start(&scene.client);
    let wanted = std::env::var("SPECS").ok();
    let is_wanted = |spec: &Spec| {
        let globs = wanted.as_deref().unwrap_or("*");
        globs.split(',').any(|glob| differences::matches(glob, &spec.name))
    };
    let mut count = 0;
    // Those of the second group concern all pods of a node: one after the other.
    let groups = [(specs::of_pods(), CONCURRENT), (specs::of_nodes(), 1)];
    let names: Vec<_> = groups.iter().flat_map(|(specs, _)| specs).map(|spec| &spec.name).collect();
    for name in &names {
        // A spec deletes the pods that are named after it.
        let named: Vec<_> = names.iter().filter(|other| observation::belongs(other, name)).collect();
        assert_eq!(named.len(), 1, "{named:?}");
    }
    let mut known = Known::read();
    let (mut number, mut unknown) = (0, Vec::new());
    for (specs, concurrent) in groups {
        let specs: Vec<_> = specs.into_iter().filter(is_wanted).collect();
        let (scene, recorder) = (&scene, &recorder);
        let runs = specs.iter().map(|spec| async move { (spec, run(spec, scene, recorder, &spec.name).await) });
        let seen: Vec<_> = futures::stream::iter(runs).buffer_unordered(concurrent).collect().await;
        count += specs.len();
        for (spec, (differences, _)) in seen {
            number += differences.len();
            let news: Vec<_> = differences.into_iter().filter(|difference| !known.take(difference)).collect();
            if news.is_empty() {
                continue;
            }
            let (again, wasm) = run(spec, scene, recorder, &format!("{}-again", spec.name)).await;
            let again: Vec<_> = again.into_iter().filter(|difference| !known.take(difference)).collect();
            let is_again = |news: &Difference| differences::holds(news, &again, &wasm);
            let (news, passing): (Vec<_>, Vec<_>) = news.into_iter().partition(is_again);
            passing.iter().for_each(|difference| println!("seen once only: {difference}"));
            unknown.extend(news);
        }
    }
    if wanted.is_none() {
        // So does what it says of a row that was not seen.
        let doubted: Vec<_> = specs::of_pods().into_iter().filter(|spec| known.is_doubted(&spec.name)).collect();
        for spec in doubted {
            let (differences, _) = run(&spec, &scene, &recorder, &format!("{}-later", spec.name)).await;
            for difference in &differences {
                known.take(difference);
            }
        }
    }
    unknown.sort();
    println!("{count} specs, {number} differences, {} of them not in docs/differences.md", unknown.len());
    for difference in &unknown {
        println!("{difference}");
    }
    if wanted.is_none() {
        let missing: Vec<_> = honoured().into_iter().filter(|field| !recorder.has_seen(field)).collect();
        assert!(missing.is_empty(), "honoured by docs/pod-support.md, and in no spec: {missing:?}");
    }
    let untrue = if wanted.is_none() { known.untrue() } else { Vec::new() };
    assert!(unknown.is_empty(), "differences that docs/differences.md does not have, see above");
    assert!(untrue.is_empty(), "rows of docs/differences.md that are not true any more, by their lines: {untrue:?}");
}

/// Fields of a pod that docs/pod-support.md calls honoured, as paths from the pod.
fn honoured() -> Vec<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pod-support.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut of = "";
    let mut fields = Vec::new();
    for line in text.lines() {
        match line {
            "## Fields of `spec`" => of = "spec",
            "## Fields of each container" => of = "spec.containers[]",
            "## Of the other containers besides" => of = "spec.containers[]",
            // Sidecars are some of them.
            _ if line.starts_with("## Of init containers") || line.starts_with("## Of sidecars") => {
                of = "spec.initContainers[]";
            }
            _ => {}
        }
        if let Some((field, "honoured")) = line.strip_prefix("| `").and_then(|line| {
            let (field, rest) = line.split_once("` | ")?;
            Some((field, rest.split(' ').next()?))
        }) {
            fields.push(format!("{of}.{field}"));
        }
    }
    assert!(fields.len() > 20, "{fields:?}");
    fields
}

/// The differences, and all facts of this node.
async fn run(
    spec: &Spec,
    scene: &Arc<side::Scene>,
    recorder: &Recorder,
    name: &str,
) -> (Vec<Difference>, observation::Facts) {
    let started = std::time::Instant::now();
    let (linux, wasm) =
        futures::join!(spec.run(scene, recorder, Kind::Linux, name), spec.run(scene, recorder, Kind::Wasm, name));
    let differences = compare(&spec.name, &linux, &wasm);
    let took = started.elapsed().as_secs_f64();
    let facts = linux.len().max(wasm.len());
    // Not by a macro, whose output is kept until the test has ended: where it hangs, this says after what.
    let _ = writeln!(std::io::stderr(), "{name}: {facts} facts, {} differences, {took:.1} s", differences.len());
    (differences, wasm)
}
