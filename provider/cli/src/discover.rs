//! `discover`: the Agent's side, for the author of a handler.

use crate::offer::Offers;
use crate::output::{host_name, plain_name, spinner, table, text_of};
use akri_krustlet_devices::offer::OfferError;
use akri_krustlet_discovery::agent::{self, RegistrationSocket};
use akri_krustlet_discovery::instance;
use akri_krustlet_host::one_line;
use akri_krustlet_host::socket::SocketError;
use akri_proto::v0::{ByteData, Device, DiscoverRequest};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Ask a discovery handler for devices, as Akri's Agent does, and show what it finds: every change, with the names of the
/// Instances that Akri would make. Stands in for the Agent: it serves the registration socket until the handler has
/// registered.
///
/// Exit codes: 0 a list came; 2 nobody registered, or no list came, within the timeout; 3 the handler refused; 4 a live Agent
/// owns the registration socket (ask the handler itself with --socket).
#[derive(Debug, clap::Args)]
pub(crate) struct DiscoverArguments {
    /// The handler's name, as in spec.discoveryHandler.name of a Configuration
    name: String,
    /// Discovery details (YAML or JSON): the text itself, or `-` for standard input, or `@FILE`
    #[arg(long, value_name = "TEXT|-|@FILE", default_value = "{}", allow_hyphen_values = true)]
    details: String,
    /// A discovery property; may be given several times
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Ask the handler on this socket, without waiting for it to register
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where discovery handlers and the Agent have their sockets
    #[arg(
        long,
        visible_alias = "discovery-handlers-directory",
        env = "DISCOVERY_HANDLERS_DIRECTORY",
        value_name = "DIR",
        default_value = "/var/lib/akri"
    )]
    directory: PathBuf,
    /// Name of the Configuration that Instances would be named after [default: akri- and the handler's name]
    #[arg(long, value_name = "NAME")]
    configuration: Option<String>,
    /// Name of the node, part of the names of Instances of unshared devices [default: the host's name]
    #[arg(long, env = "KRUSTLET_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Treat the devices as unshared, with --socket, where no registration says it
    #[arg(long, requires = "socket")]
    unshared: bool,
    /// Offer each device to pods, as Akri's Agent does: as resource akri.sh/INSTANCE, by the device plugin interface
    #[arg(long, conflicts_with = "once")]
    offer_devices: bool,
    /// Where the node takes device plugins' registrations
    #[arg(
        long,
        env = "KRUSTLET_DEVICE_PLUGINS_DIR",
        value_name = "DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    device_plugins_directory: PathBuf,
    /// How many pods may have a device at once
    #[arg(long, value_name = "N", default_value_t = 1, requires = "offer_devices")]
    capacity: u32,
    /// End after the first list
    #[arg(long)]
    once: bool,
    /// How long to wait for the handler's registration and its first list, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f64,
    /// How to print lists
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for each change
    Table,
    /// A line of JSON for each change
    Json,
}

/// Letters of a device's id or property that a table shows.
const MOST_CELL: usize = 4096;

/// How a run ends, with its message.
enum End {
    Listed,
    Unusable(String),
    NobodyCame(String),
    Refused(String),
    LiveAgent(String),
}

pub(crate) fn discover(arguments: DiscoverArguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (code, message) = match runtime.block_on(run(&arguments)) {
        End::Listed => return ExitCode::SUCCESS,
        End::Unusable(message) => (1, message),
        End::NobodyCame(message) => (2, message),
        End::Refused(message) => (3, message),
        End::LiveAgent(message) => (4, message),
    };
    eprintln!("error: {message}");
    ExitCode::from(code)
}

async fn run(arguments: &DiscoverArguments) -> End {
    let request = match details_of(&arguments.details).and_then(|details| request_from(details, &arguments.properties))
    {
        Ok(request) => request,
        Err(message) => return End::Unusable(message),
    };
    let Ok(timeout) = Duration::try_from_secs_f64(arguments.timeout) else {
        return End::Unusable(format!("--timeout {}: not a number of seconds", arguments.timeout));
    };
    let deadline = Instant::now() + timeout;
    let (socket, shared, registration) = match &arguments.socket {
        Some(socket) => (socket.clone(), !arguments.unshared, None),
        None => match await_registration(arguments, deadline).await {
            Ok((socket, shared, registration)) => (socket, shared, Some(registration)),
            Err(end) => return end,
        },
    };
    let lists = Lists {
        shared,
        configuration: arguments.configuration.clone().unwrap_or_else(|| default_configuration(&arguments.name)),
        node: arguments.node_name.clone().unwrap_or_else(host_name),
        format: arguments.output,
        known: None,
        offers: arguments
            .offer_devices
            .then(|| Offers::new(arguments.device_plugins_directory.clone(), arguments.capacity)),
    };
    let end = tokio::select! {
        end = follow(arguments, socket, request, lists, deadline) => end,
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => End::Listed,
            Err(error) => End::Unusable(error.to_string()),
        },
    };
    drop(registration);
    end
}

/// `debugEcho` becomes `akri-debug-echo`, as Akri's own manifests name their Configurations.
pub(crate) fn default_configuration(handler: &str) -> String {
    format!("akri-{}", plain_name(handler))
}

/// What `--details` says: the text itself, `-` for standard input, or `@FILE`.
pub(crate) fn details_of(details: &str) -> Result<String, String> {
    if details == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| format!("--details -: {error}"))?;
        return Ok(text);
    }
    match details.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).map_err(|error| format!("--details {details}: {error}")),
        None => Ok(details.to_owned()),
    }
}

/// A request with these details and properties (`NAME=VALUE`).
pub(crate) fn request_from(discovery_details: String, properties: &[String]) -> Result<DiscoverRequest, String> {
    let mut discovery_properties = BTreeMap::new();
    for text in properties {
        let (name, value) = property(text)?;
        discovery_properties.insert(name, ByteData { vec: Some(value) });
    }
    Ok(DiscoverRequest { discovery_details, discovery_properties })
}

/// One value of `--property`.
pub(crate) fn property(text: &str) -> Result<(String, Vec<u8>), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    pair.ok_or_else(|| format!("--property {text}: expected NAME=VALUE"))
}

async fn await_registration(
    arguments: &DiscoverArguments,
    deadline: Instant,
) -> Result<(PathBuf, bool, RegistrationSocket), End> {
    let directory = std::path::absolute(&arguments.directory).unwrap_or_else(|_| arguments.directory.clone());
    let mut registration = match RegistrationSocket::serve(&directory) {
        Ok(registration) => registration,
        Err(error @ SocketError::Live { .. }) => {
            let socket = directory.join(format!("{}.sock", arguments.name));
            return Err(End::LiveAgent(format!(
                "{error}\nIt is Akri's Agent, or another `discover`. Ask the handler itself: --socket {}",
                socket.display()
            )));
        }
        Err(error) => return Err(End::Unusable(error.to_string())),
    };
    let waiting = spinner(format!("waiting for {} to register in {}", arguments.name, directory.display()));
    let mut others = Vec::new();
    let registered = loop {
        match tokio::time::timeout_at(deadline, registration.next()).await {
            Ok(Some(handler)) if handler.name == arguments.name => break Some(handler),
            Ok(Some(other)) => others.push(other.name),
            Ok(None) | Err(_) => break None,
        }
    };
    waiting.finish_and_clear();
    match registered {
        Some(handler) => Ok((PathBuf::from(handler.endpoint), handler.shared, registration)),
        None => {
            let came = match others.as_slice() {
                [] => "nobody registered".to_owned(),
                others => format!("only {} registered", others.join(", ")),
            };
            Err(End::NobodyCame(format!(
                "{came} in {} within {} s, {} was expected; does a node run with this --discovery-handlers-directory and a pod of that handler? `akri-krustlet pods` lists its pods",
                directory.display(),
                arguments.timeout,
                arguments.name,
            )))
        }
    }
}

async fn follow(
    arguments: &DiscoverArguments,
    socket: PathBuf,
    request: DiscoverRequest,
    mut lists: Lists,
    deadline: Instant,
) -> End {
    let refused = |status: tonic::Status| {
        End::Refused(format!("{} refused: {:?}: {}", arguments.name, status.code(), status.message()))
    };
    let waiting = spinner(format!("waiting for the first list of {}", arguments.name));
    let no_list = || {
        End::NobodyCame(format!(
            "{} sent no list within {} s; `akri-krustlet pods` and `akri-krustlet logs POD` tell what its guest does",
            arguments.name, arguments.timeout
        ))
    };
    let mut stream = match tokio::time::timeout_at(deadline, agent::discover(socket, request)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(status)) => {
            waiting.finish_and_clear();
            return refused(status);
        }
        Err(_) => return no_list(),
    };
    loop {
        let message = match lists.known {
            Some(_) => stream.message().await,
            None => match tokio::time::timeout_at(deadline, stream.message()).await {
                Ok(message) => message,
                Err(_) => return no_list(),
            },
        };
        waiting.finish_and_clear();
        match message {
            Ok(Some(list)) => {
                if let Err(error) = lists.show(list.devices) {
                    // Nobody reads on: `discover ... | head`.
                    return if error.kind() == std::io::ErrorKind::BrokenPipe {
                        End::Listed
                    } else {
                        End::Unusable(error.to_string())
                    };
                }
                if let Err(error) = lists.offer().await {
                    return End::Unusable(error.to_string());
                }
                if arguments.once {
                    return End::Listed;
                }
            }
            Ok(None) => {
                eprintln!("{} ended the stream: its last pod is gone", arguments.name);
                return if lists.known.is_some() { End::Listed } else { no_list() };
            }
            Err(status) if lists.known.is_none() => return refused(status),
            Err(status) => {
                return End::Refused(format!("the stream broke off (did the node stop?): {}", status.message()));
            }
        }
    }
}

/// Shows lists, each compared with the one before.
pub(crate) struct Lists {
    shared: bool,
    configuration: String,
    node: String,
    format: Format,
    known: Option<BTreeMap<String, Device>>,
    offers: Option<Offers>,
}

impl Lists {
    /// In tables.
    pub(crate) fn new(shared: bool, configuration: String, node: String) -> Self {
        Self { shared, configuration, node, format: Format::Table, known: None, offers: None }
    }

    pub(crate) fn set_shared(&mut self, shared: bool) {
        self.shared = shared;
    }

    /// Shows a list if it is another one than the last; whether it is.
    pub(crate) fn show(&mut self, devices: Vec<Device>) -> std::io::Result<bool> {
        let new: BTreeMap<_, _> = devices.into_iter().map(|device| (device.id.clone(), device)).collect();
        if self.known.as_ref() == Some(&new) {
            return Ok(false);
        }
        let old = self.known.take().unwrap_or_default();
        let text = match self.format {
            Format::Table => self.table(&old, &new),
            Format::Json => self.json(&old, &new),
        };
        self.known = Some(new);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()?;
        Ok(true)
    }

    /// Offers the devices of the last list, if that is wanted.
    async fn offer(&mut self) -> Result<(), OfferError> {
        let devices = self.known.iter().flatten();
        let devices = devices.map(|(id, device)| (self.instance(id), device.clone())).collect();
        match &mut self.offers {
            Some(offers) => offers.update(devices).await,
            None => Ok(()),
        }
    }

    fn instance(&self, id: &str) -> String {
        instance::name(&self.configuration, id, self.shared, &self.node)
    }

    fn table(&self, old: &BTreeMap<String, Device>, new: &BTreeMap<String, Device>) -> String {
        let time = jiff::Zoned::now().strftime("%H:%M:%S%.3f");
        let added = new.keys().filter(|id| !old.contains_key(*id)).count();
        let removed = old.keys().filter(|id| !new.contains_key(*id)).count();
        let mut text = format!("{time}  {} device(s)  +{added} -{removed}", new.len());
        if old.is_empty() && new.is_empty() {
            return text;
        }
        let mut table = table(&["", "INSTANCE", "ID", "PROPERTIES"]);
        let rows = new.values().map(|device| (change(old.get(&device.id), device), device));
        let gone = old.values().filter(|device| !new.contains_key(&device.id)).map(|device| ("-", device));
        for (mark, device) in rows.chain(gone) {
            let mut properties: Vec<_> =
                device.properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
            properties.extend(device.mounts.iter().map(|mount| format!("mount {}", mount.host_path)));
            properties.extend(device.device_specs.iter().map(|spec| format!("device {}", spec.host_path)));
            // A guest's words, and a terminal that takes some for orders.
            let properties = properties.iter().map(|text| one_line(text, MOST_CELL)).collect::<Vec<_>>().join("\n");
            table.add_row([mark.to_owned(), self.instance(&device.id), one_line(&device.id, MOST_CELL), properties]);
        }
        text.push('\n');
        text.push_str(&text_of(&table));
        text
    }

    fn json(&self, old: &BTreeMap<String, Device>, new: &BTreeMap<String, Device>) -> String {
        let devices: Vec<_> = new
            .values()
            .map(|device| {
                let mut json = as_json(device);
                json["instance"] = self.instance(&device.id).into();
                json
            })
            .collect();
        let added: Vec<_> = new.keys().filter(|id| !old.contains_key(*id)).collect();
        let removed: Vec<_> = old.keys().filter(|id| !new.contains_key(*id)).collect();
        serde_json::json!({
            "time": jiff::Timestamp::now().to_string(),
            "devices": devices,
            "added": added,
            "removed": removed,
        })
        .to_string()
    }
}

/// A device in Akri's own terms.
pub(crate) fn as_json(device: &Device) -> serde_json::Value {
    serde_json::json!({
        "id": device.id,
        "properties": device.properties,
        "mounts": device.mounts.iter().map(|mount| serde_json::json!({
            "container_path": mount.container_path,
            "host_path": mount.host_path,
            "read_only": mount.read_only,
        })).collect::<Vec<_>>(),
        "device_specs": device.device_specs.iter().map(|spec| serde_json::json!({
            "container_path": spec.container_path,
            "host_path": spec.host_path,
            "permissions": spec.permissions,
        })).collect::<Vec<_>>(),
    })
}

fn change(old: Option<&Device>, new: &Device) -> &'static str {
    match old {
        None => "+",
        Some(old) if old != new => "~",
        Some(_) => "",
    }
}
