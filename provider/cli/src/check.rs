//! `check`: would a module run here?

use crate::output::spinner;
use akri_krustlet_runtime::{ModuleKind, Runtime, RuntimeConfig};
use anyhow::Context as _;
use std::path::PathBuf;
use std::time::Instant;

/// Tell whether a module would run on this node: its kind, its size, how long it takes to compile, what it imports that the
/// node does not have.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    /// The module's file
    module: PathBuf,
}

pub(crate) fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let path = &arguments.module;
    let module = std::fs::read(path).with_context(|| path.display().to_string())?;
    let scratch = tempfile::tempdir().context("no temporary directory to compile in")?;
    let runtime = Runtime::new(RuntimeConfig::new(scratch.path().join("modules")))?;
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = spinner(format!("compiling {}", path.display()));
    let started = Instant::now();
    let program = threads.block_on(runtime.load(&module));
    let elapsed = started.elapsed();
    progress.finish_and_clear();
    let program = program.with_context(|| format!("{} would not run", path.display()))?;
    println!("module        {}", path.display());
    println!("digest        {}", program.digest());
    println!("size          {} bytes", module.len());
    println!("compiled in   {} ms", elapsed.as_millis());
    match program.kind() {
        ModuleKind::Module => {
            println!("kind          module, a WASI preview 1 command");
            println!("imports       all provided");
            println!(
                "runs as       a container; with DISCOVERY_HANDLER_NAME in its environment as a discovery handler"
            );
            println!("              by the exchange contract (request in in.in, answer in out.out)");
            Ok(())
        }
        ModuleKind::Component => {
            if let Err(missing) = akri_krustlet_discovery::check_component(&program) {
                anyhow::bail!(
                    "{} would not run: {missing}; components run as discovery handlers only, a command must be a module (wasm32-wasip1)",
                    path.display()
                );
            }
            println!("kind          component, a discovery handler (akri:discovery/handler@0.1.0)");
            println!("imports       all provided");
            println!("runs as       a container with DISCOVERY_HANDLER_NAME in its environment, without volumes");
            Ok(())
        }
    }
}
