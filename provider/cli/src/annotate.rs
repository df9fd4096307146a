//! `annotate`: what a module's author says of it, written into the module, for languages whose tools cannot.

use akri_krustlet_host::file::write_durably;
use akri_krustlet_host::one_line;
use akri_krustlet_runtime::needs::{ABOUT, Metadata, SECTION, VolumeNeed};
use akri_krustlet_runtime::{ModuleKind, Needs};
use anyhow::{Context as _, bail};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use wasm_encoder::{ComponentSection as _, CustomSection, Section as _};
use wasmparser::{Parser, Payload};

/// Write into a module what it needs of its pod and what it is, as custom sections. `describe`, `check`, `manifests`, `push` and the
/// node read them. What is not named here stays as it is in the module.
#[derive(Debug, clap::Args)]
pub(crate) struct AnnotateArguments {
    /// The module's file, which is replaced
    module: PathBuf,
    /// Write another file instead
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// All that it needs, as YAML or JSON: network, uevents, links, volumes, host-paths
    #[arg(long, value_name = "FILE")]
    needs: Option<PathBuf>,
    /// A rule of the network that it needs, as `udp 239.255.255.250:3702`; may be given several times
    #[arg(long, value_name = "RULE", value_parser = rule)]
    network: Vec<String>,
    /// A rule that it can do without; may be given several times
    #[arg(long, value_name = "RULE", value_parser = rule)]
    optional_network: Vec<String>,
    /// Subsystems whose uevents it follows, or `*`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    uevents: Vec<String>,
    /// Network links that it lists, or `*`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    links: Vec<String>,
    /// A directory that it needs, and of which directory of the host it is; `:rw` if it writes there. May be given several times
    #[arg(long = "volume", value_name = "PATH[=SOURCE][:rw]", value_parser = volume)]
    volumes: Vec<VolumeNeed>,
    /// Paths of the host that its devices name
    #[arg(long = "host-path", value_name = "PATHS", value_delimiter = ',')]
    host_paths: Vec<String>,
    /// What it does, in a sentence
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Its version
    #[arg(long, value_name = "TEXT")]
    version: Option<String>,
    /// Its licences, as an SPDX expression
    #[arg(long, value_name = "TEXT")]
    licenses: Option<String>,
    /// Where its source is
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Where its documentation is
    #[arg(long, value_name = "URL")]
    homepage: Option<String>,
    /// Who wrote it
    #[arg(long, value_name = "TEXT")]
    authors: Option<String>,
}

/// One rule of a network.
pub(crate) fn rule(text: &str) -> Result<String, String> {
    let needs = Needs { network: vec![text.to_owned()], ..Needs::default() };
    needs.check().map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// Where a guest looks for a directory, and of which one of this machine it is.
pub(crate) fn volume(text: &str) -> Result<VolumeNeed, String> {
    let (text, writable) = match text.strip_suffix(":rw") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (path, source) = match text.split_once('=') {
        Some((path, source)) => (path, Some(source.to_owned())),
        None => (text, None),
    };
    match path.starts_with('/') {
        true => Ok(VolumeNeed { path: path.to_owned(), source, writable }),
        false => Err("expected an absolute path, as /sys or /sys=/sys or /data=/var/lib/x:rw".to_owned()),
    }
}

pub(crate) fn annotate(arguments: &AnnotateArguments) -> anyhow::Result<()> {
    let path = &arguments.module;
    let of_module = || path.display().to_string();
    let module = std::fs::read(path).with_context(of_module)?;
    let kind = ModuleKind::of(&module).with_context(of_module)?;
    let sections = arguments.sections(&module)?;
    if sections.is_empty() {
        bail!("nothing to write: name what the module needs or is (akri-krustlet annotate --help)");
    }
    let annotated = with_sections(&module, kind, &sections).with_context(of_module)?;
    let Metadata { needs, about } = Metadata::read(&annotated);
    let needs = needs.map_err(anyhow::Error::msg).with_context(of_module)?;
    let output = arguments.output.as_ref().unwrap_or(path);
    write_durably(output, &annotated, 0o644).with_context(|| output.display().to_string())?;
    for (name, text) in &about {
        println!("{name:13} {}", one_line(text, 2000));
    }
    if let Some(needs) = &needs {
        println!("{:13} {}", "needs", serde_json::to_string(needs)?);
    }
    println!("{:13} {}, {} bytes", "module", output.display(), annotated.len());
    Ok(())
}

impl AnnotateArguments {
    /// The sections to write, with their texts.
    fn sections(&self, module: &[u8]) -> anyhow::Result<BTreeMap<&'static str, String>> {
        let Self { description, version, licenses, source, homepage, authors, .. } = self;
        // In the order of `ABOUT`.
        let about = [description, version, licenses, source, homepage, authors];
        let named = ABOUT.iter().zip(about).filter_map(|((name, _), text)| Some((*name, text.clone()?)));
        let mut sections: BTreeMap<_, _> = named.collect();
        if let Some(needs) = self.all_needs(module)? {
            sections.insert(SECTION, serde_json::to_string(&needs)?);
        }
        Ok(sections)
    }

    /// What it needs: the file's, or else the module's, each kind replaced by what is named here.
    fn all_needs(&self, module: &[u8]) -> anyhow::Result<Option<Needs>> {
        let Self { network, optional_network, uevents, links, volumes, host_paths, .. } = self;
        let is_named = [network, optional_network, uevents, links].iter().any(|texts| !texts.is_empty());
        if !is_named && volumes.is_empty() && host_paths.is_empty() && self.needs.is_none() {
            return Ok(None);
        }
        let mut needs = match &self.needs {
            Some(file) => read_needs(file)?,
            // What cannot be read is what is replaced.
            None => Metadata::read(module).needs.ok().flatten().unwrap_or_default(),
        };
        let replace = |old: &mut Vec<String>, new: &Vec<String>| {
            if !new.is_empty() {
                old.clone_from(new);
            }
        };
        replace(&mut needs.network, network);
        replace(&mut needs.optional_network, optional_network);
        replace(&mut needs.uevents, uevents);
        replace(&mut needs.links, links);
        replace(&mut needs.host_paths, host_paths);
        if !volumes.is_empty() {
            needs.volumes.clone_from(volumes);
        }
        needs.check()?;
        Ok(Some(needs))
    }
}

fn read_needs(file: &Path) -> anyhow::Result<Needs> {
    let of_file = || file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(of_file)?;
    serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}", error.without_snippet())).with_context(of_file)
}

/// The module with these sections at its end, and none of their names before that on the outermost level.
fn with_sections(module: &[u8], kind: ModuleKind, sections: &BTreeMap<&str, String>) -> anyhow::Result<Vec<u8>> {
    let mut annotated = Vec::with_capacity(module.len());
    let mut kept = 0;
    for Range { start, end } in places(module, sections)? {
        annotated.extend_from_slice(&module[kept..start]);
        kept = end;
    }
    annotated.extend_from_slice(&module[kept..]);
    for (name, text) in sections {
        let section = CustomSection { name: Cow::Borrowed(name), data: Cow::Borrowed(text.as_bytes()) };
        match kind {
            ModuleKind::Module => section.append_to(&mut annotated),
            ModuleKind::Component => section.append_to_component(&mut annotated),
        }
    }
    Ok(annotated)
}

/// Where sections of these names are, with their heads.
fn places(module: &[u8], sections: &BTreeMap<&str, String>) -> anyhow::Result<Vec<Range<usize>>> {
    let mut places = Vec::new();
    let (mut depth, mut end_of_last) = (0_usize, 8);
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.context("it cannot be read as a module")?;
        match &payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth > 0 => depth -= 1,
            Payload::CustomSection(section) if depth == 0 && sections.contains_key(section.name()) => {
                places.push(end_of_last..section.range().end);
            }
            _ => {}
        }
        if depth == 0 {
            end_of_last = match &payload {
                Payload::End(end) => *end,
                other => other.as_section().map_or(end_of_last, |(_, range)| range.end),
            };
        }
    }
    Ok(places)
}
