//! `check`: would a module run here? `describe`: what does it say of itself, and what does it need?

use crate::output::spinner;
use akri_krustlet_discovery::{Descriptions, HandlerInfo};
use akri_krustlet_host::one_line;
use akri_krustlet_node::container::image::no_use;
use akri_krustlet_node::grants;
use akri_krustlet_node::manifest::Manifest;
use akri_krustlet_node::needs::{missing, pod_lines};
use akri_krustlet_node::pod::PodObject;
use akri_krustlet_runtime::network::rules::Rule;
use akri_krustlet_runtime::{ContainerLimits, Granted, Item, ModuleKind, Needs, Program, Runtime, RuntimeConfig};
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tell whether a module would run on this node: its kind, its size, how long it takes to compile, what it imports that the
/// node does not have.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    /// The module's file
    module: PathBuf,
    /// A manifest with the module's pod: also tell what the module needs and the pod does not give
    #[arg(long, value_name = "FILE")]
    pod: Option<PathBuf>,
    /// The container of the pod [default: its only one]
    #[arg(long, value_name = "NAME", requires = "pod")]
    container: Option<String>,
}

/// Print what a discovery handler says of itself (name, scope, schema of its details), what it imports and which grants its pod
/// needs.
#[derive(Debug, clap::Args)]
pub(crate) struct DescribeArguments {
    /// The module's file
    module: PathBuf,
    /// Format: `text` or `json`
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Letters of a name that a module gives, as they are shown.
const MOST_NAME: usize = 200;
/// The same, of a line that says what it needs.
const MOST_LINE: usize = 2000;

/// A module that this node can compile, and what there is to know of it.
pub(crate) struct Inspected {
    pub(crate) content: Vec<u8>,
    compiled_in: Duration,
    pub(crate) program: Arc<Program>,
    pub(crate) imports: Vec<Item>,
    pub(crate) exports: Vec<Item>,
    /// What it says of itself, if it is a discovery handler by the component contract.
    pub(crate) info: Option<Arc<HandlerInfo>>,
    /// It is a component that runs to its end.
    is_command: bool,
    /// What compiled it.
    pub(crate) runtime: Arc<Runtime>,
}

impl Inspected {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir().context("no temporary directory to compile in")?;
        Self::by(path, RuntimeConfig::new(scratch.path().join("modules")))
    }

    /// By a runtime that may have it already.
    pub(crate) fn by(path: &Path, config: RuntimeConfig) -> anyhow::Result<Self> {
        let module = std::fs::read(path).with_context(|| path.display().to_string())?;
        let would_not_run = || format!("{} would not run", path.display());
        let runtime = Runtime::new(config)?;
        let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let progress = spinner(format!("compiling {}", path.display()));
        let started = Instant::now();
        let program = threads.block_on(runtime.load(&module));
        let compiled_in = started.elapsed();
        progress.finish_and_clear();
        let program = program.with_context(would_not_run)?;
        let info = threads.block_on(Descriptions::default().of(&runtime, &program));
        let info = info.map_err(anyhow::Error::msg).with_context(would_not_run)?;
        let (imports, exports) = (runtime.imports(&program), runtime.exports(&program));
        let is_command = runtime.is_command(&program);
        Ok(Self { content: module, compiled_in, program, imports, exports, info, is_command, runtime })
    }

    pub(crate) fn kind(&self) -> &'static str {
        match (self.program.kind(), &self.info) {
            (ModuleKind::Module, _) => "module, a WASI preview 1 command",
            (ModuleKind::Component, Some(_)) => "component, a discovery handler (akri:discovery/handler@0.1.0)",
            (ModuleKind::Component, None) if self.is_command => "component, a command (wasi:cli/command)",
            (ModuleKind::Component, None) => "component",
        }
    }

    /// What its author says that it needs.
    pub(crate) fn needs(&self) -> Option<&Needs> {
        self.program.metadata().needs.as_ref().ok()?.as_ref()
    }

    /// What its author says that it is.
    pub(crate) fn about(&self) -> BTreeMap<&'static str, String> {
        self.program.metadata().about.clone()
    }

    /// What its pod has to say: for what it needs, or else so that it may use what it imports, each once.
    fn grants(&self) -> Vec<String> {
        if let Some(needs) = self.needs() {
            return pod_lines(needs);
        }
        let mut lines = Vec::new();
        for line in self.imports.iter().flat_map(Item::grant_lines) {
            if !lines.iter().any(|known| known == line) {
                lines.push((*line).to_owned());
            }
        }
        lines
    }

    /// What it needs or imports, and a container of a pod is not given: what the pod has to say, a line each.
    pub(crate) fn missing(&self, pod: &PodObject, container: &Container) -> anyhow::Result<Vec<String>> {
        let mut lines = self.needs().map(|needs| pod_lines(&missing(pod, container, needs))).unwrap_or_default();
        let rules = grants::network_of(pod, container)?;
        let joins_groups = rules.0.iter().any(|rule| matches!(rule, Rule::Join { .. }));
        let has_directories = container.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty());
        let granted = Granted::of(&grants::events(pod)?, joins_groups, has_directories);
        // Without which it is not even started.
        if let Err(error) = granted.check(&self.imports)
            && lines.is_empty()
        {
            lines.push(error.to_string());
        }
        Ok(lines)
    }
}

/// The container that a manifest's pod has by this name, or its only one.
pub(crate) fn container_of(path: &Path, name: Option<&str>) -> anyhow::Result<(PodObject, Container)> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let folder = std::path::absolute(path)?;
    let Manifest { pods, errors } = Manifest::parse(&folder, &text);
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }
    let containers = pods.iter().flat_map(|(pod, _)| {
        let all = pod.init_containers().iter().chain(&pod.spec().containers);
        all.map(|container| (pod.clone(), container.clone()))
    });
    let mut found: Vec<_> =
        containers.filter(|(_, container)| name.is_none_or(|name| container.name == name)).collect();
    match (found.len(), name) {
        (1, _) => Ok(found.remove(0)),
        (0, Some(name)) => bail!("{}: no pod in it has a container {name}", path.display()),
        (0, None) => bail!("{}: there is no pod in it", path.display()),
        _ => bail!(
            "{}: it has the containers {}; name one with --container",
            path.display(),
            found.iter().map(|(_, container)| container.name.as_str()).collect::<Vec<_>>().join(", ")
        ),
    }
}

pub(crate) fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let path = &arguments.module;
    let module = Inspected::read(path)?;
    println!("module        {}", path.display());
    println!("digest        {}", module.program.digest());
    println!("size          {} bytes", module.content.len());
    println!("compiled in   {} ms", module.compiled_in.as_millis());
    println!("kind          {}", module.kind());
    if let Some(sizes) = module.program.initial_sizes() {
        let limits = ContainerLimits::default();
        println!(
            "memory        {} KiB at its start; a container may have {} MiB, or what resources.limits.memory says",
            sizes.memory >> 10,
            limits.memory >> 20
        );
        // What its pod may be given is no reason to call it unfit.
        let with_its_memory = ContainerLimits { memory: usize::MAX, ..limits };
        let beyond = sizes.beyond(module.program.kind(), &with_its_memory);
        anyhow::ensure!(beyond.is_empty(), "{} would not run: {}", path.display(), beyond.join("; "));
        for what in sizes.beyond(module.program.kind(), &limits) {
            println!("{:13} {what}", "");
        }
    }
    let provided = "imports       all provided";
    match (module.program.kind(), &module.info) {
        (ModuleKind::Module, _) => {
            println!("{provided}");
            println!(
                "runs as       a container; with DISCOVERY_HANDLER_NAME in its environment as a discovery handler"
            );
            println!("              by the exchange contract (request in in.in, answer in out.out)");
        }
        (ModuleKind::Component, Some(info)) => {
            println!("{provided}");
            println!("runs as       the discovery handler {} (DISCOVERY_HANDLER_NAME names another)", info.name);
            print_details(&module, info);
        }
        (ModuleKind::Component, None) if module.is_command => {
            println!("{provided}");
            println!("runs as       a container");
            print_grants(&module);
        }
        (ModuleKind::Component, None) => {
            anyhow::bail!("{} would not run: {}", path.display(), no_use(&module.exports))
        }
    }
    match &arguments.pod {
        Some(pod) => check_pod(&module, pod, arguments.container.as_deref()),
        None => Ok(()),
    }
}

/// Whether a pod gives the module what it needs.
fn check_pod(module: &Inspected, manifest: &Path, container: Option<&str>) -> anyhow::Result<()> {
    let (pod, container) = container_of(manifest, container)?;
    let missing = module.missing(&pod, &container).with_context(|| manifest.display().to_string())?;
    if missing.is_empty() {
        println!("pod           {} gives what it needs", pod.key());
        return Ok(());
    }
    bail!(
        "{}: container {} of pod {} does not have what the module needs; add to the pod: {}",
        manifest.display(),
        container.name,
        pod.key(),
        missing.join("; ")
    )
}

fn print_grants(module: &Inspected) {
    if let Err(error) = &module.program.metadata().needs {
        println!("{:13} {error}", "needs");
    }
    for rule in module.needs().iter().flat_map(|needs| &needs.optional_network) {
        println!("{:13} {}", "may use", one_line(rule, MOST_LINE));
    }
    for path in module.needs().iter().flat_map(|needs| &needs.optional_volumes) {
        println!("{:13} a volume mounted at {}", "may use", one_line(path, MOST_LINE));
    }
    for (number, line) in module.grants().into_iter().enumerate() {
        let of_author = if module.needs().is_some() { "needs" } else { "granted by" };
        println!("{:13} {}", if number == 0 { of_author } else { "" }, one_line(&line, MOST_LINE));
    }
}

fn print_details(module: &Inspected, info: &HandlerInfo) {
    print_grants(module);
    match &info.schema {
        Some(schema) => println!("details       {}", indented(&pretty(schema.text()))),
        None => println!("details       whatever the guest takes: it has no schema of them"),
    }
}

pub(crate) fn describe(arguments: &DescribeArguments) -> anyhow::Result<()> {
    let module = Inspected::read(&arguments.module)?;
    match arguments.output {
        Format::Json => {
            println!("{}", serde_json::to_string_pretty(&as_json(&module))?);
        }
        Format::Text => print_description(&module),
    }
    Ok(())
}

/// What a module is, and what it needs.
pub(crate) fn print_description(module: &Inspected) {
    println!("kind          {}", module.kind());
    for (name, text) in module.about() {
        println!("{name:13} {}", one_line(&text, MOST_NAME));
    }
    match &module.info {
        Some(info) => {
            println!("name          {}", one_line(&info.name, MOST_NAME));
            println!("shared        {}", info.shared);
            print_imports(module);
            print_details(module, info);
        }
        None => {
            print_imports(module);
            print_grants(module);
        }
    }
}

fn print_imports(module: &Inspected) {
    for (number, import) in module.imports.iter().enumerate() {
        let name = one_line(&import.name, MOST_NAME);
        println!("{:13} {name}", if number == 0 { "imports" } else { "" });
    }
}

pub(crate) fn as_json(module: &Inspected) -> Value {
    let names = |items: &[Item]| items.iter().map(|item| item.name.clone()).collect::<Vec<_>>();
    let mut described = json!({
        "kind": match module.program.kind() { ModuleKind::Module => "module", ModuleKind::Component => "component" },
        "digest": module.program.digest().to_string(),
        "imports": names(&module.imports),
        "exports": names(&module.exports),
        "grants": module.grants(),
        "needs": module.needs(),
        "about": module.about(),
    });
    if let Some(info) = &module.info {
        let schema = info.schema.as_ref().and_then(|schema| serde_json::from_str(schema.text()).ok());
        described["handler"] =
            json!({"name": info.name, "shared": info.shared, "detailsSchema": schema.unwrap_or(Value::Null)});
    }
    described
}

fn pretty(json: &str) -> String {
    let parsed = serde_json::from_str::<Value>(json).and_then(|json| serde_json::to_string_pretty(&json));
    parsed.unwrap_or_else(|_| json.to_owned())
}

fn indented(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("\n              ")
}
