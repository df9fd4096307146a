//! Starts guests that run to their end: modules (`_start`), and components that are commands (`wasi:cli/command`).

use crate::component::ComponentSpec;
use crate::guest::{Guest, GuestSpec, StartError, module_life};
use crate::module::ModuleKind;
use crate::outcome::{Outcome, classify, unless_host_panics};
use crate::program::Program;
use crate::runtime::Runtime;
use crate::wasi::Signals;
use crate::world::World;
use futures::FutureExt as _;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi::p2::bindings::CommandPre;

/// The interface that makes a component a command.
const COMMAND: &str = "wasi:cli/run";

impl Runtime {
    /// Starts a guest: a module, or a component that is a command.
    pub fn start(&self, program: &Arc<Program>, spec: GuestSpec) -> Result<Guest, StartError> {
        let signals = Arc::new(Signals::new(spec.wakeable));
        let run = match program.kind() {
            ModuleKind::Module => module_life(self.engine(), program, &spec, signals.clone())?.boxed(),
            ModuleKind::Component => self.command_life(program, &spec)?.boxed(),
        };
        let interrupt = CancellationToken::new();
        let (ended, outcome) = watch::channel(None);
        let metered = unless_host_panics(spec.name, self.threads().meter(spec.limits, run));
        let interrupted = interrupt.clone();
        self.threads().spawn(async move {
            let outcome = tokio::select! {
                biased;
                () = interrupted.cancelled() => Outcome::Interrupted,
                outcome = metered => outcome,
            };
            ended.send_replace(Some(outcome));
        });
        Ok(Guest::new(signals, interrupt, outcome))
    }

    /// Whether a component is a command.
    pub fn is_command(&self, program: &Program) -> bool {
        self.exports(program).iter().any(|export| export.interface() == COMMAND)
    }

    /// All of a command's life, ready to be polled on the guest threads.
    fn command_life(
        &self,
        program: &Program,
        spec: &GuestSpec,
    ) -> Result<impl Future<Output = Outcome> + Send + 'static + use<>, StartError> {
        spec.granted().check(&self.imports(program))?;
        let command =
            CommandPre::new(self.link(program)?).map_err(|error| StartError::NoCommand(format!("{error:#}")))?;
        let component = ComponentSpec {
            name: spec.name.clone(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            log: spec.log.clone(),
            preopens: spec.preopens.clone(),
            events: spec.events.clone(),
            stdin: spec.stdin.clone(),
            limits: spec.limits.clone(),
        };
        let mut store = self.component_store(&component, spec.network.clone(), World::Machine)?;
        Ok(async move {
            let result = async {
                let command = command.instantiate_async(&mut store).await?;
                command.wasi_cli_run().call_run(&mut store).await
            };
            match result.await {
                Ok(Ok(())) => Outcome::Exited(0),
                // What WASI 0.2 has for a failure.
                Ok(Err(())) => Outcome::Exited(1),
                Err(error) => classify(Err(error), &store.data().limiter),
            }
        })
    }
}
