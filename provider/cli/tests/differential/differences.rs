//! docs/differences.md: the differences that are known, one a row, held against those that were seen.

use crate::observation::Facts;
use std::fmt;
use std::path::PathBuf;

/// What stands for a fact that one of the nodes does not have.
const ABSENT: &str = "(absent)";

/// The fact that a step of a spec failed.
pub const NOT_DONE: &str = "what did not happen";

/// How often an event was told.
pub const ONCE: &str = "once";
pub const REPEATED: &str = "repeated";

/// Reasons of events that are told with each try.
const OF_TRIES: [&str; 8] = [
    "BackOff",
    "Failed",
    "FailedMount",
    "FailedToRetrieveImagePullSecret",
    "InspectFailed",
    "Pulled",
    "Pulling",
    "Unhealthy",
];

/// A fact of a spec that is not the same on both nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    pub spec: String,
    pub fact: String,
    pub linux: String,
    pub wasm: String,
}

impl fmt::Display for Difference {
    /// A row, as the file has it, up to what a person has to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let Self { spec, fact, linux, wasm } = self;
        write!(f, "| {spec} | {fact} | {} | {} | ", cell(linux), cell(wasm))
    }
}

/// Whether what was seen beside other specs still counts when the spec was alone. A kubelet that is busy with many pods tells some
/// things late, or not at all, so that what it says alone counts; what this node says is to be the same in both. Not so for how
/// often something was told that is told with each try: that is a matter of how many tries there were until somebody looked.
pub fn holds(before: &Difference, alone: &[Difference], wasm_alone: &Facts) -> bool {
    let is_of_tries = OF_TRIES.iter().any(|reason| before.fact.ends_with(&format!(" {reason}")));
    let is_count =
        is_of_tries && [&before.linux, &before.wasm].iter().all(|value| [ONCE, REPEATED].contains(&value.as_str()));
    alone.iter().any(|difference| difference.fact == before.fact)
        || (!is_count && before.wasm != of(wasm_alone, &before.fact))
}

/// The fact of this name.
pub fn of(facts: &Facts, name: &str) -> String {
    facts.get(name).cloned().unwrap_or_else(|| ABSENT.to_owned())
}

/// The facts that are not the same. A step that fails is one, even on both nodes: nothing was compared then.
pub fn compare(spec: &str, linux: &Facts, wasm: &Facts) -> Vec<Difference> {
    let names: std::collections::BTreeSet<_> = linux.keys().chain(wasm.keys()).collect();
    let differences = names.into_iter().map(|name| Difference {
        spec: spec.to_owned(),
        fact: name.clone(),
        linux: of(linux, name),
        wasm: of(wasm, name),
    });
    differences.filter(|difference| difference.linux != difference.wasm || difference.fact == NOT_DONE).collect()
}

/// The rows of the file.
#[derive(Debug)]
pub struct Known {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    line: usize,
    specs: Vec<String>,
    facts: Vec<String>,
    linux: String,
    wasm: String,
    used: bool,
}

impl Known {
    pub fn read() -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/differences.md");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::parse(&text)
    }

    /// Rows are those of tables of six columns; their headings and rulers are left out.
    fn parse(text: &str) -> Self {
        let rows = text.lines().enumerate().filter_map(|(index, line)| {
            let line_text = line.strip_prefix('|')?.strip_suffix('|')?.replace("\\|", "\u{1}");
            let cells: Vec<_> = line_text.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect();
            let [specs, facts, linux, wasm, meant, why] = &cells[..] else { return None };
            if specs == "spec" || specs.starts_with("--") {
                return None;
            }
            assert!(["yes", "no"].contains(&meant.as_str()), "line {}: meant is yes or no", index + 1);
            assert!(!why.is_empty(), "line {}: why?", index + 1);
            let list = |cell: &str| cell.split(',').map(|part| part.trim().to_owned()).collect();
            let (specs, facts) = (list(specs), list(facts));
            Some(Row { line: index + 1, specs, facts, linux: linux.clone(), wasm: wasm.clone(), used: false })
        });
        Self { rows: rows.collect() }
    }

    /// True if a row has the difference.
    pub fn take(&mut self, difference: &Difference) -> bool {
        let Difference { spec, fact, linux, wasm } = difference;
        let (linux, wasm) = (linux.replace('\n', " "), wasm.replace('\n', " "));
        let mut known = false;
        for row in &mut self.rows {
            let matches = row.specs.iter().any(|glob| matches(glob, spec))
                && row.facts.iter().any(|glob| matches(glob, fact))
                && matches(&row.linux, &linux)
                && matches(&row.wasm, &wasm);
            row.used |= matches;
            known |= matches;
        }
        known
    }

    /// Whether a row that names the spec has not been seen.
    pub fn is_doubted(&self, spec: &str) -> bool {
        let names = |row: &Row| row.specs.iter().any(|glob| glob != "*" && matches(glob, spec));
        self.rows.iter().any(|row| !row.used && names(row))
    }

    /// Numbers of the lines that no difference was taken by.
    pub fn untrue(&self) -> Vec<usize> {
        self.rows.iter().filter(|row| !row.used).map(|row| row.line).collect()
    }
}

/// `*` stands for any text.
pub fn matches(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[test]
fn a_difference_is_known_by_its_row_and_a_row_without_one_is_untrue() {
    let text = "| spec | fact | Linux node | this node | meant | why |\n|---|---|---|---|---|---|\n\
                | a*, b | event * | once | (absent) | yes | x |\n| c | d | * | 1 \\| 2 | no | y |\n";
    let mut known = Known::parse(text);
    let facts = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Facts>()
    };
    let differences = compare("abc", &facts(&[("event X", "once"), ("same", "1")]), &facts(&[("same", "1")]));
    assert_eq!(differences.len(), 1);
    assert!(known.take(&differences[0]));
    assert_eq!(known.untrue(), [4]);
    assert!(known.is_doubted("c") && !known.is_doubted("abc"));
    let other = compare("c", &facts(&[("d", "")]), &facts(&[("d", "1 | 2")]));
    assert!(known.take(&other[0]) && known.untrue().is_empty());
    assert_eq!(compare("b", &facts(&[(NOT_DONE, "Ready")]), &facts(&[(NOT_DONE, "Ready")])).len(), 1);
    assert!(!known.take(&compare("b", &facts(&[("event X", "once")]), &facts(&[("event X", "repeated")]))[0]));
}

#[test]
fn what_differs_beside_others_only_counts_by_what_this_node_says_alone() {
    let facts = |value: &str| Facts::from([("event Warning FailedMount".to_owned(), value.to_owned())]);
    let seen = |linux: &str, wasm: &str| compare("abc", &facts(linux), &facts(wasm)).remove(0);
    // A kubelet that was late; then this node, which says something else each time.
    assert!(!holds(&seen("a", "b"), &[], &facts("b")));
    assert!(holds(&seen("a", "b"), &[], &facts("a")));
    assert!(holds(&seen("a", "b"), &[seen("a", "b")], &facts("b")));
    // One try more before somebody looked; but a node that repeats it where a kubelet does not is seen alone.
    assert!(!holds(&seen(ONCE, REPEATED), &[], &facts(ONCE)));
    assert!(holds(&seen(ONCE, REPEATED), &[seen(ONCE, REPEATED)], &facts(REPEATED)));
    // A container that is started twice is no matter of tries, and an event that is there or not is none.
    let started = |value: &str| Facts::from([("event Normal Started".to_owned(), value.to_owned())]);
    let twice = compare("abc", &started(ONCE), &started(REPEATED)).remove(0);
    assert!(holds(&twice, &[], &started(ONCE)));
    let there = compare("abc", &Facts::new(), &facts(ONCE)).remove(0);
    assert!(holds(&there, &[], &Facts::new()));
}
