//! For authors of discovery handlers: implement [`Handler`], name it to [`handler!`], build for `wasm32-wasip2`.
//!
//! ```
//! use akri_handler::{Device, Error, Handler, Request, Step, Text, handler};
//!
//! #[derive(serde::Deserialize)]
//! struct Details {
//!     descriptions: Vec<Text>,
//! }
//!
//! struct Echo(Vec<Text>);
//!
//! impl Handler for Echo {
//!     const NAME: &'static str = "echo";
//!     const SHARED: bool = true;
//!     type Details = Details;
//!
//!     fn open(request: Request<Details>) -> Result<Self, Error> {
//!         Ok(Self(request.details.descriptions))
//!     }
//!
//!     fn step(&mut self) -> Result<Step, Error> {
//!         let device = |text: &Text| Device::new(&text.0).property("DESCRIPTION", &text.0);
//!         Ok(Step::devices(self.0.iter().map(device).collect()))
//!     }
//! }
//!
//! handler!(Echo);
//! ```
//!
//! # What calls what
//! The node makes one instance for each Discover stream: [`Handler::open`] with the request, then [`Handler::step`] at once, after
//! [`Step::wake_after`], and whenever something has come to a source that the handler opened ([`uevents`], [`multicast`],
//! [`watch`]). Between two steps nothing of the handler runs.
//!
//! # Tests
//! On any other target than Wasm the same handler runs against a faked world: files below a directory of the test, uevents,
//! links and datagrams that the test makes. See [`fake`].

#[cfg(not(target_family = "wasm"))]
pub mod fake;

pub mod fs;
pub mod http;
pub mod links;
pub mod multicast;
pub mod random;
pub mod tcp;
pub mod time;
pub mod udp;
pub mod uevents;
pub mod watch;

mod details;
mod device;
mod filter;
mod logger;
#[cfg(target_family = "wasm")]
mod wait;

/// What the WIT of `proto/wit` generates.
#[doc(hidden)]
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../proto/wit",
        world: "discovery-handler-all",
        pub_export_macro: true,
        default_bindings_module: "akri_handler::bindings",
        generate_all,
    });
}

pub use details::{Properties, Text};
pub use device::{Device, Permissions};
pub use filter::{Action, FilterList};
#[doc(hidden)]
pub use logger::start as start_logger;

use bindings::akri::discovery::types;
use std::fmt;
use std::time::Duration;

/// A discovery handler: one value for each Discover stream.
pub trait Handler: Sized + 'static {
    /// What Configurations call it (`discoveryHandler.name`), unless its pod says another name.
    const NAME: &'static str;
    /// Whether other nodes see the same devices.
    const SHARED: bool;
    /// What Configurations say to it (`discoveryHandler.discoveryDetails`).
    type Details: serde::de::DeserializeOwned;

    /// A JSON Schema of the details, which the node checks before it asks. With the feature `schema` it need not be written by hand:
    /// `schema_of` derives it from their type.
    fn schema() -> Option<String> {
        None
    }

    /// Takes a request. What the user must change is [`Error::InvalidDetails`].
    fn open(request: Request<Self::Details>) -> Result<Self, Error>;

    /// Says what there is now, and when to be asked again.
    fn step(&mut self) -> Result<Step, Error>;
}

/// The JSON Schema of a type that derives `JsonSchema`, for [`Handler::schema`].
///
/// ```
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct Details {
///     ports: Vec<u16>,
/// }
///
/// let schema = akri_handler::schema_of::<Details>().unwrap();
/// assert!(schema.contains(r#""additionalProperties":false"#), "{schema}");
/// ```
#[cfg(feature = "schema")]
pub fn schema_of<D: schemars::JsonSchema>() -> Option<String> {
    serde_json::to_string(&schemars::schema_for!(D)).ok()
}

/// What is asked of a handler.
#[derive(Debug)]
pub struct Request<D> {
    /// What the Configuration says.
    pub details: D,
    /// Values of the Configuration, its Secrets and ConfigMaps (`discoveryProperties`).
    pub properties: Properties,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The user must change the Configuration; says what.
    InvalidDetails(String),
    /// It cannot be found out now; the last list stays.
    Unavailable(String),
    /// The handler has a fault.
    Internal(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::InvalidDetails(text) | Self::Unavailable(text) | Self::Internal(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidDetails(text) => Self::InvalidDetails(text),
            Error::Unavailable(text) => Self::Unavailable(text),
            Error::Internal(text) => Self::Internal(text),
        }
    }
}

/// What a step found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// All devices that there are; `None`: as before.
    pub devices: Option<Vec<Device>>,
    /// The next step comes after that time; without it, when a source has something.
    pub wake_after: Option<Duration>,
    /// What the operator should know, in the pod's condition.
    pub note: Option<String>,
}

impl Step {
    /// Nothing new.
    pub fn unchanged() -> Self {
        Self::default()
    }

    /// All devices that there are. The node takes [`MOST_DEVICES`] with ids of [`MOST_ID`] bytes at most: others are left out, and
    /// the note says so.
    pub fn devices(mut devices: Vec<Device>) -> Self {
        let all = devices.len();
        devices.retain(|device| (1..=MOST_ID).contains(&device.id.len()));
        devices.truncate(MOST_DEVICES);
        let step = Self { devices: Some(devices), ..Self::default() };
        match all - step.devices.as_ref().map_or(0, Vec::len) {
            0 => step,
            left_out => step.note(format!(
                "{left_out} devices are left out: a list has {MOST_DEVICES} at most, with ids of 1 to {MOST_ID} bytes"
            )),
        }
    }

    /// To be asked again after that time.
    #[must_use]
    pub fn wake_after(self, time: Duration) -> Self {
        Self { wake_after: Some(time), ..self }
    }

    /// With something that the operator should know, after what was said before.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        let note = match self.note {
            Some(before) => format!("{before}; {}", note.into()),
            None => note.into(),
        };
        Self { note: Some(note), ..self }
    }

    /// With several troubles, as many as can be read.
    #[must_use]
    pub fn troubles(self, troubles: &[String]) -> Self {
        match troubles.is_empty() {
            true => self,
            false => self.note(summary(troubles)),
        }
    }
}

/// Most devices of a list, and longest id in bytes.
pub const MOST_DEVICES: usize = 1024;
/// See [`MOST_DEVICES`].
pub const MOST_ID: usize = 1024;

/// Several troubles in one text: the first eight, and how many more there are.
pub fn summary(troubles: &[String]) -> String {
    const MOST: usize = 8;
    let named = troubles.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join("; ");
    match troubles.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

#[doc(hidden)]
pub fn read_request<D: serde::de::DeserializeOwned>(request: types::Request) -> Result<Request<D>, Error> {
    let details = serde_json::from_str(&request.details).map_err(|error| Error::InvalidDetails(error.to_string()))?;
    Ok(Request { details, properties: request.properties.into_iter().map(|of| (of.name, of.value)).collect() })
}

#[doc(hidden)]
pub fn as_outcome(step: Step) -> types::Outcome {
    types::Outcome {
        devices: step.devices.map(|devices| devices.into_iter().map(Into::into).collect()),
        wake_after_ms: step.wake_after.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
        note: step.note,
    }
}

/// Writes into the component what it needs of its pod, so that whoever runs it is told: `akri-krustlet describe` shows it, `manifests`
/// makes a pod of it, and the node says what a pod does not give.
///
/// ```
/// akri_handler::needs! {
///     network: ["udp 239.255.255.250:3702", "http details"],
///     optional_network: ["dns *"],
///     uevents: ["usb"],
///     links: ["*"],
///     volumes: ["/sys"],
///     optional_volumes: ["/run/udev/data"],
///     host_paths: ["/dev"],
/// }
/// ```
///
/// Each kind may be left out, and `needs!` stands once in a component. `network` has rules as a pod's annotation `akri-krustlet/network`
/// has them, `volumes` paths at which directories of the host are mounted, `host_paths` what the `mounts` and `device_specs` of its devices
/// name; `optional_network` and `optional_volumes` what it can do without. The texts are plain ones, without backslashes.
#[macro_export]
macro_rules! needs {
    ($($kind:ident: [$first:literal $(, $rest:literal)* $(,)?]),+ $(,)?) => {
        const _: () = assert!(
            $crate::is_plain(concat!("{", $crate::needs!(@kinds $($kind [$first $(, $rest)*])+), "}")),
            "needs! takes plain texts, without backslashes"
        );
        $crate::section!("akri:needs", concat!("{", $crate::needs!(@kinds $($kind [$first $(, $rest)*])+), "}"));
    };
    (@kinds $kind:ident [$($text:literal),+]) => { $crate::needs!(@$kind $($text),+) };
    (@kinds $kind:ident [$($text:literal),+] $($more:tt)+) => {
        concat!($crate::needs!(@$kind $($text),+), ",", $crate::needs!(@kinds $($more)+))
    };
    (@network $($text:literal),+) => { concat!("\"network\":", $crate::needs!(@list $($text),+)) };
    (@optional_network $($text:literal),+) => {
        concat!("\"optional-network\":", $crate::needs!(@list $($text),+))
    };
    (@uevents $($text:literal),+) => { concat!("\"uevents\":", $crate::needs!(@list $($text),+)) };
    (@links $($text:literal),+) => { concat!("\"links\":", $crate::needs!(@list $($text),+)) };
    (@host_paths $($text:literal),+) => { concat!("\"host-paths\":", $crate::needs!(@list $($text),+)) };
    (@volumes $first:literal $(, $rest:literal)*) => {
        concat!(
            "\"volumes\":[{\"path\":", stringify!($first), "}",
            $(",{\"path\":", stringify!($rest), "}",)*
            "]"
        )
    };
    (@optional_volumes $($text:literal),+) => {
        concat!("\"optional-volumes\":", $crate::needs!(@list $($text),+))
    };
    (@list $first:literal $(, $rest:literal)*) => { concat!("[", stringify!($first), $(",", stringify!($rest),)* "]") };
}

/// A custom section of the component.
#[doc(hidden)]
#[macro_export]
macro_rules! section {
    ($name:literal, $text:expr) => {
        const _: () = {
            const TEXT: &str = $text;
            #[allow(unsafe_code, reason = "it is no code, and of a name that nothing else has")]
            #[cfg_attr(target_family = "wasm", unsafe(link_section = $name))]
            #[used]
            static SECTION: [u8; TEXT.len()] = $crate::bytes(TEXT);
        };
    };
}

/// Whether a JSON text of `needs!` is one: what `stringify!` makes of a raw or escaped literal is none.
#[doc(hidden)]
pub const fn is_plain(text: &str) -> bool {
    let (text, mut at, mut in_text) = (text.as_bytes(), 0, false);
    while at < text.len() {
        match text[at] {
            b'"' => in_text = !in_text,
            b'\\' | 0..=31 => return false,
            b'{' | b'}' | b'[' | b']' | b':' | b',' => {}
            _ if in_text => {}
            _ => return false,
        }
        at += 1;
    }
    !in_text
}

#[doc(hidden)]
pub const fn or_nothing(text: Option<&'static str>) -> &'static str {
    match text {
        Some(text) => text,
        None => "",
    }
}

#[doc(hidden)]
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let (mut bytes, mut at) = ([0; N], 0);
    while at < N {
        bytes[at] = text.as_bytes()[at];
        at += 1;
    }
    bytes
}

/// Makes a type that implements [`Handler`] the handler of this component. What its Cargo.toml says of it (description, version,
/// licence, repository) is in the component, too.
#[macro_export]
macro_rules! handler {
    ($handler:ty) => {
        $crate::section!("description", $crate::or_nothing(option_env!("CARGO_PKG_DESCRIPTION")));
        $crate::section!("version", $crate::or_nothing(option_env!("CARGO_PKG_VERSION")));
        $crate::section!("licenses", $crate::or_nothing(option_env!("CARGO_PKG_LICENSE")));
        $crate::section!("source", $crate::or_nothing(option_env!("CARGO_PKG_REPOSITORY")));

        const _: () = {
            use $crate::bindings::akri::discovery::types;
            use $crate::bindings::exports::akri::discovery::handler::{Guest, Info};

            struct Exported;

            std::thread_local! {
                static OPENED: std::cell::RefCell<Option<$handler>> = const { std::cell::RefCell::new(None) };
            }

            impl Guest for Exported {
                fn describe() -> Info {
                    Info {
                        name: <$handler as $crate::Handler>::NAME.to_owned(),
                        shared: <$handler as $crate::Handler>::SHARED,
                        details_schema: <$handler as $crate::Handler>::schema(),
                    }
                }

                fn open(request: types::Request) -> Result<(), types::Error> {
                    $crate::start_logger();
                    let opened = $crate::read_request(request).and_then(<$handler as $crate::Handler>::open)?;
                    OPENED.with_borrow_mut(|handler| *handler = Some(opened));
                    Ok(())
                }

                fn step() -> Result<types::Outcome, types::Error> {
                    OPENED.with_borrow_mut(|handler| match handler {
                        Some(handler) => Ok($crate::as_outcome($crate::Handler::step(handler)?)),
                        None => Err(types::Error::Internal("step before open".to_owned())),
                    })
                }
            }

    $crate::bindings::export!(Exported with_types_in $crate::bindings);
        };
    };
}
