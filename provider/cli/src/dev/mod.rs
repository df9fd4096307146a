//! `dev`: a handler's project, built, run and asked while its author writes it.
//!
//! # Flow
//! A save makes a build; a new module is taken by a node that runs beside ([`node`]), whose stream to the handler stays open, as Akri's
//! would. What the stream says is shown as `discover` shows it, and the container's log with it.

mod build;
mod node;
mod project;

use crate::check::container_of;
use crate::discover::{Lists, default_configuration, request_from};
use crate::output::host_name;
use akri_krustlet_discovery::agent::{self, RegistrationSocket};
use akri_krustlet_discovery::settings;
use akri_krustlet_host::one_line;
use akri_krustlet_node::grants::NETWORK;
use akri_krustlet_node::needs::{missing, pod_lines};
use akri_krustlet_runtime::Digest;
use akri_krustlet_runtime::needs::Metadata;
use akri_krustlet_runtime::network::NetworkRules;
use akri_proto::v0::DiscoverResponse;
use anyhow::Context as _;
use build::{Built, build};
use node::{DevNode, PodChange, PodName};
use project::{Project, Saved, Sources};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Work on a discovery handler: builds its module, runs it on a node in a directory of its own, asks it as Akri's Agent does and shows
/// its devices and its log; and again whenever a source or the details are saved, while the stream stays open. Ends with Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct DevArguments {
    /// The project: Cargo.toml, manifests/, details.yaml, as `new-handler` makes it
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// What builds the module, by the shell, in the project [default: cargo, for the target of the path that the pod's image is]
    #[arg(long, value_name = "COMMAND")]
    build: Option<String>,
    /// Folder with the pod's manifest [default: DIR/manifests]
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The container that is worked on, if there are several
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// What the handler is asked, as a Configuration's discoveryDetails [default: DIR/details.yaml]
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
    /// A discovery property; may be given several times
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Write down what the handler sees and says since it was asked last, for `step --replay` and for tests; a recording that is there is
    /// written over
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// With the values of --property, and headers with credentials, in the recording
    #[arg(long, requires = "record")]
    record_secrets: bool,
    /// The handler that is asked, if the pods are several
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
}

/// Letters of a line.
const MOST_LINE: usize = 4000;
/// Pause before a handler that could not be asked is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A list that comes so soon after a module was built is its first one.
const FIRST_LIST: Duration = Duration::from_secs(5);

pub(crate) fn dev(arguments: &DevArguments) -> anyhow::Result<()> {
    let project = Project::read(&arguments.directory, arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut dev = Dev::new(&project, arguments)?;
        let result = tokio::select! {
            result = dev.run() => result,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        dev.end().await;
        result
    })
}

type Asked = Result<Streaming<DiscoverResponse>, Status>;
type Pending<'a, T> = Option<Pin<Box<dyn Future<Output = T> + Send + 'a>>>;

struct Dev<'a> {
    project: &'a Project,
    arguments: &'a DevArguments,
    /// The handler's name, if the pod says it.
    name: Option<String>,
    saves: mpsc::UnboundedReceiver<Saved>,
    /// Until the node has it.
    directory: Option<tempfile::TempDir>,
    began: SystemTime,
    node: Option<DevNode>,
    told: mpsc::UnboundedReceiver<PodChange>,
    tell: mpsc::UnboundedSender<PodChange>,
    registration: RegistrationSocket,
    /// Where the handler is asked.
    socket: Option<PathBuf>,
    lists: Lists,
    /// Of the newest module that was built.
    digest: Option<Digest>,
    /// What is built now was saved then.
    saved: Saving,
    /// The new module that is to run, and when it was built.
    awaited: Option<(Saving, Instant)>,
    /// Rules that were offered.
    offered: BTreeSet<String>,
}

/// Since when something is waited for, in words.
#[derive(Clone, Copy)]
struct Saving {
    at: Instant,
    what: &'static str,
}

impl Saving {
    fn now() -> Self {
        Self { at: Instant::now(), what: "the save" }
    }

    fn ago(&self) -> String {
        format!("{} after {}", seconds(self.at.elapsed()), self.what)
    }
}

/// What is waited for.
enum Next {
    Saved(Saved),
    Built(anyhow::Result<Built>),
    Registered(PathBuf, bool, String),
    Asked(Asked),
    List(Result<Option<DiscoverResponse>, Status>),
    PodChange(PodChange),
    NodeEnded(String),
}

impl<'a> Dev<'a> {
    fn new(project: &'a Project, arguments: &'a DevArguments) -> anyhow::Result<Self> {
        let directory = DevNode::directory().context("no directory for the node")?;
        let registration = RegistrationSocket::serve(&node::handlers(directory.path()))?;
        let of_pod = project.container.env.iter().flatten().rfind(|variable| variable.name == settings::NAME);
        let name = arguments.handler.clone().or_else(|| of_pod.and_then(|variable| variable.value.clone()));
        let mut sources = Sources::follow(project)?;
        let (saver, saves) = mpsc::unbounded_channel();
        tokio::spawn(async move { while saver.send(sources.saved().await).is_ok() {} });
        let (tell, told) = mpsc::unbounded_channel();
        let configuration = default_configuration(name.as_deref().unwrap_or(project.pod.name()));
        Ok(Self {
            project,
            arguments,
            name,
            saves,
            directory: Some(directory),
            began: SystemTime::now(),
            node: None,
            told,
            tell,
            registration,
            socket: None,
            lists: Lists::new(true, configuration, host_name()),
            digest: None,
            saved: Saving { what: "the start", ..Saving::now() },
            awaited: None,
            offered: BTreeSet::new(),
        })
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        print_line("project", &self.project.directory.display().to_string());
        let project = self.project;
        let mut building: Pending<'_, anyhow::Result<Built>> = Some(Box::pin(build(project)));
        let mut again = false;
        let mut asking: Pending<'_, Asked> = None;
        let mut stream: Option<Streaming<DiscoverResponse>> = None;
        loop {
            match self.next(&mut building, &mut asking, &mut stream).await {
                Next::Saved(Saved { sources, details }) => {
                    if sources && building.is_some() {
                        again = true;
                    } else if sources {
                        self.saved = Saving::now();
                        building = Some(Box::pin(build(project)));
                    }
                    if details {
                        let what = format!("{} was saved: the handler is asked anew", self.project.details.display());
                        print_line("details", &what);
                        stream = None;
                        asking = self.ask(Duration::ZERO);
                    }
                }
                Next::Built(built) => {
                    building = None;
                    self.built(built?)?;
                    if std::mem::take(&mut again) {
                        self.saved = Saving::now();
                        building = Some(Box::pin(build(project)));
                    }
                }
                Next::Registered(socket, shared, name) => {
                    if self.socket.as_ref() != Some(&socket) {
                        print_line("handler", &format!("{name} has registered"));
                        stream = None;
                    }
                    self.socket = Some(socket);
                    self.lists.set_shared(shared);
                    if stream.is_none() {
                        asking = self.ask(Duration::ZERO);
                    }
                }
                Next::Asked(Ok(opened)) => {
                    asking = None;
                    stream = Some(opened);
                }
                Next::Asked(Err(status)) => {
                    print_line("handler", &format!("it refused: {:?}: {}", status.code(), status.message()));
                    // Details are not right by waiting.
                    asking = match status.code() {
                        tonic::Code::InvalidArgument => None,
                        _ => self.ask(ASK_AGAIN),
                    };
                }
                Next::List(Ok(Some(list))) => self.list(list)?,
                Next::List(Ok(None) | Err(_)) => {
                    stream = None;
                    print_line("handler", "its stream has ended");
                    asking = self.ask(ASK_AGAIN);
                }
                Next::PodChange(PodChange::Printed(text)) => self.printed(&text),
                Next::PodChange(PodChange::Trouble(trouble)) => {
                    trouble.iter().for_each(|trouble| print_line("pod", trouble))
                }
                Next::PodChange(PodChange::Runs) => {
                    let after = self.awaited.as_ref().map(|(saved, _)| format!(", {}", saved.ago()));
                    print_line("pod", &format!("the module runs{}", after.unwrap_or_default()));
                    if stream.is_none() && asking.is_none() {
                        asking = self.ask(Duration::ZERO);
                    }
                }
                Next::NodeEnded(words) => anyhow::bail!(words),
            }
        }
    }

    async fn next(
        &mut self,
        building: &mut Pending<'_, anyhow::Result<Built>>,
        asking: &mut Pending<'_, Asked>,
        stream: &mut Option<Streaming<DiscoverResponse>>,
    ) -> Next {
        loop {
            tokio::select! {
                Some(saved) = self.saves.recv() => return Next::Saved(saved),
                built = some(building) => return Next::Built(built),
                asked = some(asking) => return Next::Asked(asked),
                list = message(stream) => return Next::List(list),
                Some(told) = self.told.recv() => return Next::PodChange(told),
                words = ended(&mut self.node) => return Next::NodeEnded(words),
                Some(handler) = self.registration.next() => {
                    if self.name.as_ref().is_none_or(|name| *name == handler.name) {
                        return Next::Registered(PathBuf::from(handler.endpoint), handler.shared, handler.name);
                    }
                }
            }
        }
    }

    /// Asks the handler after a pause, if it is there.
    fn ask(&self, pause: Duration) -> Pending<'static, Asked> {
        let socket = self.socket.clone()?;
        let details = self.project.read_details();
        let request =
            details.and_then(|details| request_from(details, &self.arguments.properties).map_err(anyhow::Error::msg));
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                print_line("details", &format!("{error:#}"));
                return None;
            }
        };
        Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            agent::discover(socket, request).await
        }))
    }

    fn built(&mut self, built: Built) -> anyhow::Result<()> {
        let took = match built {
            Built::Yes(took) => took,
            Built::No(text) => {
                println!("{text}");
                print_line("build", "it failed; the next save tries again");
                return Ok(());
            }
        };
        let module = std::fs::read(&self.project.module).with_context(|| self.project.module.display().to_string())?;
        let digest = Digest::of(&module);
        // What was saved may have nothing to do with it.
        if self.digest.replace(digest) != Some(digest) {
            self.awaited = Some((self.saved, Instant::now()));
            print_line("build", &format!("{}; the module has {} bytes", seconds(took), module.len()));
            self.tell_missing(&module);
        }
        if self.node.is_none()
            && let Some(directory) = self.directory.take()
        {
            let node = DevNode::start(self.project, directory, self.arguments)?;
            let subject = PodName {
                namespace: self.project.pod.namespace().to_owned(),
                pod: self.project.pod.name().to_owned(),
                container: self.project.container.name.clone(),
            };
            tokio::spawn(node::follow(node.data(), subject, self.tell.clone()));
            self.node = Some(node);
        }
        Ok(())
    }

    /// What the module needs, and the pod as it is now does not give.
    fn tell_missing(&self, module: &[u8]) {
        let manifest = &self.project.manifest;
        let needs = match Metadata::read(module).needs {
            Ok(needs) => needs,
            Err(error) => return print_line("grant", &error.to_string()),
        };
        let pod = container_of(manifest, Some(&self.project.container.name));
        let (Some(needs), Ok((pod, container))) = (needs, pod) else { return };
        let missing = missing(&pod, &container, &needs);
        if !missing.is_empty() {
            print_line(
                "grant",
                &format!("the module needs what its pod does not give; add to {}:", manifest.display()),
            );
            pod_lines(&missing).iter().for_each(|line| print_line("", line));
        }
    }

    fn list(&mut self, list: DiscoverResponse) -> anyhow::Result<()> {
        if !self.lists.show(list.devices)? {
            return Ok(());
        }
        if let Some((saved, _)) = self.awaited.take().filter(|(_, built)| built.elapsed() < FIRST_LIST) {
            print_line("list", &saved.ago());
        }
        Ok(())
    }

    /// Shows what the container has printed, and which rule would give what was denied.
    fn printed(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            print_line("log", line);
            if let Some(rule) = rule_for(line).filter(|rule| self.offered.insert(rule.clone())) {
                let manifest = self.project.manifest.display();
                print_line("grant", &format!("to allow it, add to the annotation {NETWORK} in {manifest}: {rule}"));
            }
        }
    }

    async fn end(self) {
        if let Some(node) = self.node {
            node.end().await;
        }
        if let Some(path) = self
            .arguments
            .record
            .as_ref()
            .filter(|path| path.metadata().and_then(|of| of.modified()).is_ok_and(|at| at >= self.began))
        {
            print_line(
                "recorded",
                &format!("{}; akri-krustlet step {} --replay {0}", path.display(), self.project.module.display()),
            );
        }
    }
}

/// Resolves with what is pending, once; never without it.
async fn some<T>(pending: &mut Pending<'_, T>) -> T {
    match pending {
        Some(future) => {
            let done = future.as_mut().await;
            *pending = None;
            done
        }
        None => std::future::pending().await,
    }
}

async fn message(stream: &mut Option<Streaming<DiscoverResponse>>) -> Result<Option<DiscoverResponse>, Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}

async fn ended(node: &mut Option<DevNode>) -> String {
    match node {
        Some(node) => node.ended().await,
        None => std::future::pending().await,
    }
}

/// A line of this program's own, beside the lists.
fn print_line(about: &str, what: &str) {
    use std::io::Write as _;
    // Whoever does not read on ends it by the next list.
    // Much of it is a guest's words.
    let _ = writeln!(std::io::stdout(), "{about:9} {}", one_line(what, MOST_LINE));
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The rule that gives what the log says was denied.
fn rule_for(line: &str) -> Option<String> {
    let (what, why) = line.strip_prefix("[akri-krustlet] network: ")?.split_once(" denied: ")?;
    // What the operator has taken away is not the pod's to give.
    if why.contains("operator") {
        return None;
    }
    let rules = [
        ("tcp connection to ", "tcp "),
        ("udp datagram to ", "udp "),
        ("multicast group ", "join "),
        ("request to ", "http "),
        ("look-up of ", "dns "),
    ];
    let (start, rule) = rules.iter().find(|(start, _)| what.starts_with(start))?;
    let place = what[start.len()..].split_whitespace().next()?.trim_matches('"');
    let rule = format!("{rule}{place}");
    // A guest can print such a line, too: only one place and one port is ever offered.
    let is_narrow = !place.contains(['*', ',']) && !place.contains("/0") && !place.rsplit(':').next()?.contains('-');
    (is_narrow && rule.parse::<NetworkRules>().is_ok()).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_denied_says_its_rule() {
        let of = |what: &str| rule_for(&format!("[akri-krustlet] network: {what} denied: no rule of its pod gives it"));
        assert_eq!(of("tcp connection to 10.0.0.1:80").as_deref(), Some("tcp 10.0.0.1:80"));
        assert_eq!(of("udp datagram to 239.255.255.250:3702").as_deref(), Some("udp 239.255.255.250:3702"));
        assert_eq!(of("look-up of \"a.example\"").as_deref(), Some("dns a.example"));
        assert_eq!(of("request to http://a.example:8080/list").as_deref(), Some("http http://a.example:8080/list"));
        assert_eq!(of("multicast group 239.255.255.250:3703").as_deref(), Some("join 239.255.255.250:3703"));
        assert_eq!(of("a socket"), None);
        for wide in ["tcp connection to 0.0.0.0/0:80", "tcp connection to 10.0.0.1:1-65535", "look-up of \"*\""] {
            assert_eq!(of(wide), None, "{wide}");
        }
        assert_eq!(rule_for("INFO 3 devices"), None);
    }
}
