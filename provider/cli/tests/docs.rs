//! What the documentation says: links that lead somewhere, commands and flags that there are, messages that the program has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_akri-krustlet");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The project's files with this ending, without what is built.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if kind.is_file() && name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 1, "{ending}: {found:?}");
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text without its fenced blocks, in which nothing is a heading or a link.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What a heading can be reached by.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = files(".md");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in &pages {
        let text = prose(&read(page));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.contains(char::is_whitespace) {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let is_there = target.exists() && anchor.is_none_or(|anchor| anchors(&read(&target)).contains(anchor));
            if !is_there {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty() && seen > 60, "{seen} links; {wrong:#?}");
    // Every page is found from the list of them.
    let index = read(&root().join("docs/README.md"));
    for page in pages.iter().filter(|page| page.parent().unwrap().ends_with("docs")) {
        let name = page.file_name().unwrap().to_string_lossy();
        assert!(name == "README.md" || index.contains(&format!("({name})")), "docs/README.md does not name {name}");
    }
}

/// The help of a command; none if there is no such command.
fn help(command: &str) -> Option<String> {
    let output = Command::new(PROGRAM).args([command, "--help"]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn commands_and_flags_of_the_documentation_are_those_of_the_program() {
    let mut helps: BTreeMap<String, Option<String>> = BTreeMap::new();
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    let pages = files(".md").into_iter().chain(files(".md.in"));
    for page in pages.filter(|page| !page.ends_with("CHANGELOG.md")) {
        let text = read(&page).replace("\\\n", " ");
        for line in text.lines() {
            // A command's line ends with a comment, a pipe or the code's end.
            for call in line.split("akri-krustlet ").skip(1) {
                let call =
                    call.split([" #", "#", "|", "`", ";", "\""].map(|end| end.chars().next().unwrap())).next().unwrap();
                let mut words = call.split_whitespace();
                let Some(command) =
                    words.next().filter(|word| word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'))
                else {
                    continue;
                };
                let flags: Vec<_> = words.filter(|word| word.starts_with("--")).collect();
                let help = helps.entry(command.to_owned()).or_insert_with(|| help(command));
                let Some(help) = help else {
                    // Prose goes on with any word.
                    if !flags.is_empty() {
                        wrong.push(format!("{}: {line}", page.display()));
                    }
                    continue;
                };
                seen.insert(command.to_owned());
                for flag in flags {
                    let name = flag
                        .split('=')
                        .next()
                        .unwrap()
                        .trim_matches(|letter: char| !letter.is_alphanumeric() && letter != '-');
                    if !help.contains(&format!("{name} ")) && !help.contains(&format!("{name}\n")) {
                        wrong.push(format!("{}: {flag}: {line}", page.display()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for command in ["run", "discover", "dev", "step", "push", "new-handler", "annotate", "manifests"] {
        assert!(seen.contains(command), "no page has an example of {command}: {seen:?}");
    }
}

#[test]
fn the_reference_of_commands_is_what_the_program_prints() {
    let output = Command::new(PROGRAM).arg("reference").output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let page = read(&root().join("docs/cli.md"));
    assert!(printed == page, "docs/cli.md is old: akri-krustlet reference > docs/cli.md");
    for command in ["akri-krustlet run", "akri-krustlet dev", "--image-policy", "--until-input-ends"] {
        assert_eq!(page.contains(command), command != "--until-input-ends", "{command}");
    }
}

#[test]
fn messages_that_are_explained_are_the_programs_own() {
    let sources: Vec<_> =
        files(".rs").into_iter().filter(|path| path.components().any(|part| part.as_os_str() == "src")).collect();
    let sources: String = sources.iter().map(|path| read(path)).collect();
    // As a string literal of Rust has it, over its lines.
    let sources = sources.replace("\\\"", "\"");
    let page = read(&root().join("docs/troubleshoot.md"));
    let messages: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(messages.len() > 30, "{messages:?}");
    for message in messages {
        let parts: Vec<_> = message.split('…').filter(|part| !part.is_empty()).collect();
        assert!(parts.iter().all(|part| sources.contains(part)), "no message has {message:?}");
    }
}

/// Blocks of a page that say `sh run`, as one script.
fn runnable(text: &str) -> Option<String> {
    let blocks: Vec<_> = text.split("```sh run\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    (!blocks.is_empty()).then(|| blocks.concat())
}

#[test]
fn commands_of_the_documentation_that_can_be_run_run() {
    let mut seen = 0;
    for page in files(".md") {
        let Some(script) = runnable(&read(&page)) else { continue };
        seen += script.lines().filter(|line| line.contains("akri-krustlet ") || line.contains("cargo ")).count();
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var("PATH").unwrap();
        let programs = Path::new(PROGRAM).parent().unwrap().display();
        let mut command = Command::new("bash");
        // What it leaves running ends with it.
        command
            .args([
                "-c",
                &format!("set -exuo pipefail; trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}"),
            ])
            .current_dir(directory.path())
            .env("PATH", format!("{programs}:{path}"))
            .env("XDG_CACHE_HOME", directory.path().join("cache"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG")
                || ["CARGO_MANIFEST_DIR", "RUSTFLAGS", "CARGO_TARGET_DIR"].contains(&name.as_str())
            {
                command.env_remove(name);
            }
        }
        let output = command.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}: {}{}", page.display(), said(&output.stdout), said(&output.stderr));
    }
    assert!(seen > 10, "{seen} commands were run");
}
