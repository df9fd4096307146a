//! `new-handler`: a project of a discovery handler that builds, tests and runs as it stands.

macro_rules! template {
    ($file:literal) => {
        include_str!(concat!("../../../../wasm-handlers/templates/", $file))
    };
}

mod project;
mod templates;

use anyhow::{Context as _, bail};
use project::project;
use std::path::{Path, PathBuf};

/// Make a project of a new discovery handler, which builds, tests and runs as it stands.
#[derive(Debug, clap::Args)]
pub(crate) struct NewHandlerArguments {
    /// The handler's name, as in spec.discoveryHandler.name of a Configuration
    #[arg(value_parser = handler_name)]
    name: String,
    /// What it is written in
    #[arg(long, value_enum, default_value_t)]
    language: Language,
    /// How it finds its devices; the project begins with something that works by it [default: file; in JavaScript the details name them, and there are udp, tcp and uevents]
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// Where to make it [default: NAME, here]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Language {
    #[default]
    Rust,
    /// JavaScript; needs npm
    #[value(alias = "javascript")]
    Js,
    /// Python; needs python3
    Python,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// A file of a volume
    File,
    /// A web server
    Http,
    /// Datagrams
    Udp,
    /// A connection
    Tcp,
    /// The kernel's events
    Uevents,
}

/// Longest name: it is a pod's and a crate's, too.
const MOST_NAME: usize = 40;

fn handler_name(text: &str) -> Result<String, String> {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=MOST_NAME).contains(&text.len())
        && text.bytes().all(is_letter)
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
        && !text.ends_with('-')
        && !text.contains("--")
        && !RESERVED.contains(&text);
    if fits {
        return Ok(text.to_owned());
    }
    Err(format!(
        "a handler's name has at most {MOST_NAME} lower-case letters, digits and `-`, begins with a letter, and is no word of Rust or name of its library"
    ))
}

/// What cargo takes for no package, and names that the project's libraries have.
const RESERVED: [&str; 67] = [
    "abstract",
    "akri",
    "akri-handler",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "log",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "n",
    "no",
    "null",
    "off",
    "on",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "schemars",
    "self",
    "serde",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "y",
    "yes",
    "yield",
];

pub(crate) fn new_handler(arguments: &NewHandlerArguments) -> anyhow::Result<()> {
    let NewHandlerArguments { name, language, protocol, directory } = arguments;
    let files = project(name, *language, *protocol)?;
    let directory = directory.clone().unwrap_or_else(|| PathBuf::from(name));
    if directory.symlink_metadata().is_ok() {
        bail!("{} is there already and is not touched; name another directory", directory.display());
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("{} cannot be made", directory.display());
    // In whole, or not at all.
    let staged = tempfile::Builder::new().prefix(".new-handler-").tempdir_in(parent).with_context(failed)?;
    for (path, content) in files {
        let path = staged.path().join(path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        written.and_then(|()| std::fs::write(&path, content)).with_context(failed)?;
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(staged.path(), std::fs::Permissions::from_mode(0o755)).with_context(failed)?;
    std::fs::rename(staged.path(), &directory).with_context(failed)?;
    let _ = staged.keep();
    println!("{} is a handler that works; its README.md says how it is built, tested and run:", directory.display());
    let test = if matches!(language, Language::Rust) { "cargo test" } else { "make test" };
    println!("  cd {} && {test} && akri-krustlet dev", directory.display());
    for missing in missing_tools(*language) {
        println!("{missing}");
    }
    Ok(())
}

/// What cannot be built here yet, and the way out.
fn missing_tools(language: Language) -> Vec<&'static str> {
    let output = |program: &str, arguments: &[&str]| {
        std::process::Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())
    };
    let needed = match language {
        Language::Rust => None,
        Language::Js => Some([("npm", "npm is missing (Debian: apt-get install npm)"), ("make", "make is missing")]),
        Language::Python => Some([
            ("python3", "python3 is missing, or its venv (Debian: apt-get install python3-venv)"),
            ("make", "make is missing"),
        ]),
    };
    if let Some(needed) = needed {
        let is_missing = |(program, _): &(&str, &str)| output(program, &["--version"]).is_none();
        return needed.into_iter().filter(is_missing).map(|(_, words)| words).collect();
    }
    if output("cargo", &["--version"]).is_none() {
        return vec!["cargo is missing: https://rustup.rs installs it"];
    }
    let target = output("rustc", &["--print", "target-libdir", "--target", "wasm32-wasip2"]);
    let there = target.is_some_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).exists());
    if there { Vec::new() } else { vec!["the target is missing: rustup target add wasm32-wasip2"] }
}

#[cfg(test)]
mod tests {
    use super::templates::{RECORDING, SDK};
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn names_are_those_of_pods_and_crates() {
        for name in ["meter", "a", "my-meter2"] {
            assert_eq!(handler_name(name), Ok(name.to_owned()));
        }
        for name in ["", "Meter", "2meter", "me_ter", "meter-", "a--b", "../meter", "serde", "true", &"x".repeat(41)] {
            assert!(handler_name(name).unwrap_err().contains("lower-case"), "{name}");
        }
    }

    #[test]
    fn all_of_the_sdk_is_in_a_project_and_no_placeholder_is() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-handlers/sdk/src");
        let mut here = 0;
        for directory in [sources.clone(), sources.join("fake")] {
            for entry in std::fs::read_dir(directory).unwrap() {
                here += usize::from(entry.unwrap().path().is_file());
            }
        }
        assert_eq!(SDK.len(), here);
        let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-handlers/recording/src");
        assert_eq!(RECORDING.len(), std::fs::read_dir(recording).unwrap().count());
        let protocols = || Protocol::value_variants().iter().map(|protocol| Some(*protocol));
        let in_rust = protocols().map(|protocol| (Language::Rust, protocol));
        let in_python = protocols().map(|protocol| (Language::Python, protocol));
        let in_javascript = [None, Some(Protocol::Udp), Some(Protocol::Tcp), Some(Protocol::Uevents)];
        let in_javascript = in_javascript.map(|protocol| (Language::Js, protocol));
        for (language, protocol) in in_rust.chain(in_python).chain(in_javascript) {
            for (path, content) in project("my-meter", language, protocol).unwrap() {
                let is_ours = !path.starts_with("akri-handler/");
                assert!(!is_ours || !content.contains("{{"), "{path}: {content}");
                assert!(!path.ends_with("Cargo.toml") || !content.contains("workspace = true"), "{path}: {content}");
            }
        }
    }
}
