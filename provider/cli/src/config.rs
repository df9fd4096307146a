//! A file with the settings of `run`: the flags' names as keys of a YAML object.
//!
//! # Rules
//! - What the command line says counts, then the environment, then the file's drop-ins (`FILE.d/*.yaml`, the last name first), then
//!   the file.
//! - A list is what the flag takes with commas; an object (`node-labels: {a: b}`) is a list of `KEY=VALUE`.
//! - A key that is no flag, and a value that the flag does not take, are errors that name the file.

use anyhow::{Context as _, bail};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The subcommand whose flags a file may have.
const COMMAND: &str = "run";
/// The flag that names the file.
const FLAG: &str = "config";

/// The settings of a file and its drop-ins, by flag.
pub(crate) type Settings = BTreeMap<String, Vec<String>>;

/// The command line with what the file that it names says besides.
pub(crate) fn with_file(command: &Command, line: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let given = command.clone().ignore_errors(true).try_get_matches_from(&line);
    let Some(run) = given.as_ref().ok().and_then(|matches| matches.subcommand_matches(COMMAND)) else {
        return Ok(line);
    };
    let Some(file) = run.get_one::<PathBuf>(FLAG) else { return Ok(line) };
    let settings = read(command, file)?;
    let place = line.iter().position(|word| word == COMMAND).map_or(line.len(), |place| place + 1);
    let mut whole = line;
    let mut added = Vec::new();
    for (key, values) in &settings {
        let Some(argument) = argument(command, key) else { continue };
        let source = run.value_source(argument.get_id().as_str());
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            added.extend(words(argument, key, values).into_iter().map(OsString::from));
        }
    }
    whole.splice(place..place, added);
    Ok(whole)
}

/// The settings of a file and its drop-ins.
pub(crate) fn read(command: &Command, file: &Path) -> anyhow::Result<Settings> {
    let mut settings = Settings::new();
    for file in std::iter::once(file.to_owned()).chain(drop_ins(file)?) {
        settings.extend(read_one(command, &file)?);
    }
    Ok(settings)
}

/// `FILE.d/*.yaml`, by name.
fn drop_ins(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let failed = || format!("--config: directory {}", directory.display());
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_one(command: &Command, file: &Path) -> anyhow::Result<Settings> {
    let failed = || format!("--config {}", file.display());
    let text = std::fs::read_to_string(file).with_context(failed)?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Settings::new());
    }
    let object: BTreeMap<String, Value> = serde_saphyr::from_str(&text).with_context(failed)?;
    let mut settings = Settings::new();
    for (key, value) in object {
        let Some(argument) = argument(command, &key) else { bail!("{}: {}", failed(), unknown(command, &key)) };
        let values = values(&value).with_context(|| format!("{}: {key}", failed()))?;
        let takes_none = matches!(argument.get_action(), ArgAction::SetTrue);
        if takes_none && !matches!(value, Value::Bool(_)) {
            bail!("{}: {key}: expected true or false", failed());
        }
        let line = ["akri-krustlet", COMMAND].into_iter().map(str::to_owned).chain(words(argument, &key, &values));
        // Its own words, without the usage that follows them.
        let parsed = command.clone().ignore_errors(false).try_get_matches_from(line);
        // What it needs besides, and what it conflicts with, is seen with all that is said.
        let of_value =
            [ErrorKind::InvalidValue, ErrorKind::ValueValidation, ErrorKind::TooManyValues, ErrorKind::NoEquals];
        if let Err(error) = parsed
            && of_value.contains(&error.kind())
        {
            let words = error.to_string();
            let words = words.lines().next().unwrap_or_default();
            bail!("{}: {}", failed(), words.strip_prefix("error: ").unwrap_or(words));
        }
        settings.insert(key, values);
    }
    Ok(settings)
}

/// A value as the words of a flag.
fn values(value: &Value) -> anyhow::Result<Vec<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Null => bail!("there is no value"),
        Value::Array(_) | Value::Object(_) => bail!("expected a text, a number, true or false in it"),
    };
    match value {
        Value::Array(values) => values.iter().map(scalar).collect(),
        Value::Object(pairs) => pairs.iter().map(|(key, value)| Ok(format!("{key}={}", scalar(value)?))).collect(),
        value => Ok(vec![scalar(value)?]),
    }
}

/// What would be written on a command line.
fn words(argument: &Arg, key: &str, values: &[String]) -> Vec<String> {
    match argument.get_action() {
        ArgAction::SetTrue if values == ["true"] => vec![format!("--{key}")],
        ArgAction::SetTrue => Vec::new(),
        _ => vec![format!("--{key}={}", values.join(","))],
    }
}

/// The flag of `run` that a key names. The file does not name another one.
fn argument<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    flags(command).find(|argument| argument.get_long() == Some(key))
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let run = command.find_subcommand(COMMAND);
    run.into_iter()
        .flat_map(Command::get_arguments)
        .filter(|argument| argument.get_long().is_some_and(|long| !matches!(long, FLAG | "help" | "version")))
}

fn unknown(command: &Command, key: &str) -> String {
    let flags: Vec<_> = flags(command).filter_map(Arg::get_long).collect();
    match akri_krustlet_node::manifest::likely(key, &flags) {
        Some(long) => format!("unknown setting {key:?}; did you mean {long:?}?"),
        None => format!("unknown setting {key:?}; settings are the flags of `akri-krustlet run --help`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that follow `run` when a file says `text` and the command line `given`.
    fn merged(text: &str, drop_in: &str, given: &[&str]) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        std::fs::create_dir(directory.path().join("config.yaml.d")).unwrap();
        std::fs::write(directory.path().join("config.yaml.d/10.yaml"), drop_in).unwrap();
        let mut line = vec!["akri-krustlet".to_owned(), "run".to_owned(), format!("--config={}", file.display())];
        line.extend(given.iter().map(|word| (*word).to_owned()));
        let whole = with_file(&crate::command(), line.iter().map(OsString::from).collect());
        let whole = whole.map_err(|error| format!("{error:#}").replace(&directory.path().display().to_string(), ""))?;
        let words = whole.into_iter().map(|word| word.into_string().unwrap());
        Ok(words.filter(|word| !line.contains(word)).collect())
    }

    #[test]
    fn a_file_says_what_neither_the_command_line_nor_a_drop_in_says() {
        let text = "# of this machine\nmax-pods: 20\nport: 3001\nnode-labels:\n  site: one\n  rack: '2'\n\
            insecure-registries: [a:5000, b:5000]\nallow-local-modules: true\nanonymous-healthz: false\n";
        let found = merged(text, "port: 3002\n", &["--max-pods=30"]).unwrap();
        let expected = [
            "--allow-local-modules",
            "--insecure-registries=a:5000,b:5000",
            "--node-labels=site=one,rack=2",
            "--port=3002",
        ];
        assert_eq!(found, expected);
        let needs_another = merged("manifests: /m\nstatus-config-map: a/b\n", "", &[]).unwrap();
        assert_eq!(needs_another, ["--manifests=/m", "--status-config-map=a/b"]);
        assert_eq!(merged("# nothing\n", "", &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn what_cannot_be_is_named_with_its_file() {
        for (text, words) in [
            ("maxPods: 3\n", "--config /config.yaml: unknown setting \"maxPods\"; did you mean \"max-pods\"?"),
            ("frobnicate: 3\n", "unknown setting \"frobnicate\"; settings are the flags of"),
            ("config: other.yaml\n", "unknown setting \"config\""),
            ("max-pods: many\n", "--config /config.yaml: invalid value 'many' for '--max-pods <N>'"),
            ("max-pods:\n", "max-pods: there is no value"),
            ("allow-local-modules: 3\n", "allow-local-modules: expected true or false"),
            ("node-labels: {a: [b]}\n", "node-labels: expected a text"),
            ("- a\n", "--config /config.yaml"),
        ] {
            let error = merged(text, "", &[]).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        assert!(merged("", "port: x\n", &[]).unwrap_err().contains("/config.yaml.d/10.yaml: invalid value 'x'"));
    }
}
