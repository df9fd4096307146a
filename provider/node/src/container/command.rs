//! A container that is a command: it runs to its end.

use super::progress::{End, EndWanted, end_wanted, pre_stop, report_running};
use crate::context::PodContext;
use crate::environment;
use crate::loaded_image::LoadedImage;
use crate::status::ContainerKind;
use akri_krustlet_images::Launch;
use akri_krustlet_runtime::GuestSpec;
use akri_krustlet_runtime::stdin::Stdin;
use k8s_openapi::api::core::v1::Container;

pub async fn run_command(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    restart: u32,
    image: &LoadedImage,
    guest: GuestSpec,
) -> Result<End, String> {
    let stdin = guest.stdin.clone();
    let guest = context.services.runtime.start(&image.program, guest).map_err(|error| error.to_string())?;
    report_running(context, kind, container, restart, image);
    let outcome = guest.outcome();
    tokio::pin!(outcome);
    let listening = stdin.as_ref().map(|_| context.services.shutdown.enter());
    let EndWanted { deadline, replaced } = tokio::select! {
        biased;
        outcome = &mut outcome => return Ok(End { outcome, replaced: None }),
        wanted = end_wanted(context, kind, container, image) => wanted,
        () = context.services.shutdown.requested(), if stdin.is_some() => {
            stdin.iter().for_each(Stdin::close);
            (&mut outcome).await;
            drop(listening);
            // That it ended is the node's doing, and not told: its next start runs it again.
            std::future::pending().await
        }
    };
    tokio::select! {
        outcome = &mut outcome => return Ok(End { outcome, replaced }),
        () = pre_stop(context, container, deadline) => {}
    }
    // All that a guest can notice of its pod's end.
    if let Some(stdin) = stdin {
        stdin.close();
    }
    tokio::select! {
        outcome = &mut outcome => return Ok(End { outcome, replaced }),
        () = tokio::time::sleep_until(deadline) => {}
        () = context.termination.expired() => {}
    }
    guest.interrupt();
    Ok(End { outcome: outcome.await, replaced })
}

/// The container's variables, and those of its image that it does not set itself.
pub fn with_images(launch: &Launch, variables: Vec<(String, String)>) -> Vec<(String, String)> {
    let of_image = launch.env.iter().filter(|(name, _)| variables.iter().all(|(own, _)| own != name));
    of_image.cloned().chain(variables.iter().cloned()).collect()
}

/// The guest's arguments, without the program's name, which the module is: those of the pod's `command` and `args`, and of what
/// the pod does not say, the image's. As everywhere, a `command` replaces both of the image's, `args` its Cmd.
pub fn arguments(container: &Container, launch: &Launch, variables: &[(String, String)]) -> Vec<String> {
    let expanded = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts.iter().flatten().map(|text| environment::expand(text, variables)).collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut all = match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, args_missing) => {
            let entrypoint = launch.program.iter().chain(&launch.entrypoint_args).cloned().collect();
            [entrypoint, if args_missing { launch.cmd.clone() } else { args }].concat()
        }
    };
    // Without an entrypoint, an image's Cmd begins with the module; what a pod says in its place need not.
    let names_program = !command_or_entrypoint_is_missing(container, launch)
        || all.first().is_some_and(|first| launch.cmd.first() == Some(first));
    if names_program && !all.is_empty() {
        all.remove(0);
    }
    all
}

fn command_or_entrypoint_is_missing(container: &Container, launch: &Launch) -> bool {
    container.command.as_ref().is_none_or(Vec::is_empty) && launch.program.is_none()
}
