//! `akri-krustlet`: a Krustlet that runs Akri discovery handlers as WebAssembly guests.

mod annotate;
mod check;
mod config;
mod dev;
mod discover;
mod logs;
mod manifests;
mod new_handler;
mod offer;
mod output;
mod pods;
mod publish;
mod run;
mod step;
mod support_bundle;
mod top;

use akri_krustlet_host::allocations::CountedAllocator;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: CountedAllocator = CountedAllocator;

/// A Krustlet (a kubelet for WebAssembly pods) that serves Akri discovery handlers itself.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  akri-krustlet run --manifests ./manifests               run the pods of a folder on this machine
  akri-krustlet discover debugEcho --details '{\"descriptions\": [\"foo0\"]}'
                                                           ask the handler as Akri's Agent would, and watch
  akri-krustlet pods                                       what runs here
  akri-krustlet top                                        the same, and its devices, live
  akri-krustlet logs debug-echo -f                         what it prints
  akri-krustlet check my-handler.wasm                      would this module run here?
  akri-krustlet push my-handler.wasm registry.example/my-handler:v1
                                                           give it to the nodes of a cluster";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node
    Run(Box<run::RunArguments>),
    /// Ask a discovery handler for devices, as Akri's Agent does, and show what it finds
    Discover(discover::DiscoverArguments),
    /// List the pods of the node on this machine
    Pods(pods::PodsArguments),
    /// Show what the node on this machine is at, live
    Top(top::TopArguments),
    /// Print what a container of a pod has printed
    Logs(logs::LogsArguments),
    /// Write what is needed to look into a problem of this node into one file
    SupportBundle(support_bundle::SupportBundleArguments),
    /// Tell whether a module would run on this node, and as what
    Check(check::CheckArguments),
    /// Print what a discovery handler says of itself, and what it needs
    Describe(check::DescribeArguments),
    /// Work on a discovery handler: build, run and ask it again with every save
    Dev(dev::DevArguments),
    /// Ask a handler's module once, without a node: what it says, and what that takes
    Step(Box<step::StepArguments>),
    /// Write into a module what it needs of its pod, and what it is
    Annotate(annotate::AnnotateArguments),
    /// Print the manifests that a module's handler is run with, from what the module says of itself
    Manifests(manifests::ManifestsArguments),
    /// Make a project of a new discovery handler
    NewHandler(new_handler::NewHandlerArguments),
    /// Push a module to a registry, as an image that nodes can pull
    Push(publish::PushArguments),
    /// Pull a module from a registry into a file
    Pull(publish::PullArguments),
    /// Print what an image of a registry is, and what the module in it needs
    Inspect(publish::InspectArguments),
    /// Print a script that completes this program's commands in a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print this program's manual pages into a directory
    Man {
        /// Where to write them: akri-krustlet.1, and one for each command
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print what of a pod's specification this node honours, ignores and refuses, as Markdown
    PodSupport,
    /// Print all commands with their flags, as Markdown (docs/cli.md)
    #[command(hide = true)]
    Reference,
    /// Compile a module from standard input (used by the node itself)
    #[command(hide = true)]
    CompileModule,
}

/// Where a node keeps its files: what `run` writes and `pods` and `logs` read.
#[derive(Clone, Debug, clap::Args)]
struct DirectoryArguments {
    /// The node's data: pods, statuses, compiled modules
    /// [default: /var/lib/akri-krustlet, for users other than root ~/.local/share/akri-krustlet]
    #[arg(long, env = "KRUSTLET_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Container logs [default: DATA-DIR/logs]
    #[arg(long, env = "KRUSTLET_LOG_DIR", value_name = "DIR")]
    log_dir: Option<PathBuf>,
}

impl DirectoryArguments {
    fn data_directory(&self) -> anyhow::Result<akri_krustlet_node::DataDirectory> {
        let data = match &self.data_dir {
            Some(directory) => std::path::absolute(directory)?,
            None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/akri-krustlet"),
            None => match std::env::home_dir() {
                Some(home) => home.join(".local/share/akri-krustlet"),
                None => anyhow::bail!("there is no home directory for the node's data; name one with --data-dir"),
            },
        };
        let logs = match &self.log_dir {
            Some(directory) => std::path::absolute(directory)?,
            None => data.join("logs"),
        };
        Ok(akri_krustlet_node::DataDirectory::new(data, logs))
    }
}

/// What the data directory remembers, or why that cannot be told.
fn stored_pods(
    data: &akri_krustlet_node::DataDirectory,
) -> anyhow::Result<Vec<akri_krustlet_node::data_directory::StoredPod>> {
    let path = data.path().display();
    data.pods().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow::anyhow!("no node has run with the data directory {path} (choose another with --data-dir)")
        }
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("the data directory {path} belongs to another user: run this as the node's user (sudo?)")
        }
        _ => anyhow::anyhow!("data directory {path}: {error}"),
    })
}

/// The command line as clap knows it.
fn command() -> clap::Command {
    let mut command = Arguments::command();
    command.build();
    command
}

/// What the command line says, and the file that it names. The inner error is clap's own: also what it prints for `--help`.
fn arguments() -> anyhow::Result<Result<Arguments, clap::Error>> {
    let command = command();
    let line = config::with_file(&command, std::env::args_os().collect())?;
    let matches = command.try_get_matches_from(line);
    Ok(matches.and_then(|matches| Arguments::from_arg_matches(&matches)))
}

/// The same of `run`, once more while it runs.
fn run_arguments() -> anyhow::Result<Box<run::RunArguments>> {
    match arguments()??.command {
        Command::Run(arguments) => Ok(arguments),
        _ => anyhow::bail!("this process does not run a node"),
    }
}

/// Letters of a line of the reference.
const WIDTH: usize = 100;

/// All commands that are no secret, with their help.
fn reference(command: clap::Command) -> String {
    let mut page =
        "# Commands\n\nWhat `akri-krustlet COMMAND --help` prints; a test holds this page to it.\n".to_owned();
    let names = command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
    for name in names.map(|one| one.get_name().to_owned()).collect::<Vec<_>>() {
        let Some(one) = command.find_subcommand(&name) else { continue };
        // The values are those of whoever prints it.
        let mut one = one.clone().mut_args(|argument| argument.hide_env_values(true)).term_width(WIDTH);
        let help = one.render_long_help().to_string();
        let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        page.push_str(&format!("\n## akri-krustlet {name}\n\n```text\n{}\n```\n", help.trim()));
    }
    page
}

fn main() -> ExitCode {
    // Before anything else: the compile child starts no threads and reads no environment.
    if std::env::args_os().nth(1).is_some_and(|command| command == "compile-module") {
        akri_krustlet_runtime::compile::child_main(std::env::args_os().skip(2));
    }
    let arguments = match arguments() {
        Ok(arguments) => arguments.unwrap_or_else(|error| error.exit()),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Discover(arguments) => return discover::discover(arguments),
        Command::Pods(arguments) => pods::pods(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::Logs(arguments) => logs::logs(&arguments),
        Command::SupportBundle(arguments) => support_bundle::support_bundle(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Describe(arguments) => check::describe(&arguments),
        Command::Step(arguments) => return step::step(&arguments),
        Command::Dev(arguments) => dev::dev(&arguments),
        Command::Annotate(arguments) => annotate::annotate(&arguments),
        Command::Manifests(arguments) => manifests::manifests(&arguments),
        Command::NewHandler(arguments) => new_handler::new_handler(&arguments),
        Command::Push(arguments) => publish::push(&arguments),
        Command::Pull(arguments) => publish::pull(&arguments),
        Command::Inspect(arguments) => publish::inspect(&arguments),
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "akri-krustlet", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { directory } => clap_mangen::generate_to(Arguments::command(), &directory)
            .map_err(|error| anyhow::anyhow!("{}: {error}", directory.display())),
        Command::PodSupport => {
            print!("{}", akri_krustlet_node::support::page());
            Ok(())
        }
        Command::Reference => {
            print!("{}", reference(command()));
            Ok(())
        }
        Command::CompileModule => unreachable!("handled above"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
