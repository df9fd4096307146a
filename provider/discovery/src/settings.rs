//! What a container's environment and its pod's annotations say about the handler in it.

use crate::contract::component::HandlerInfo;
use crate::host_path::AllowList;
use std::collections::BTreeMap;
use std::time::Duration;

/// Environment: the handler's name. Its presence makes the container a discovery handler. A component that is one by its exports has
/// a name without it.
pub const NAME: &str = "DISCOVERY_HANDLER_NAME";
/// Environment: whether other nodes see the same devices, `true` or `false`; default: what the component says, else `true`.
pub const SHARED: &str = "DISCOVERY_HANDLER_SHARED";
/// Environment: the exchange directory's path in the guest; default [`DEFAULT_EXCHANGE_DIRECTORY`].
pub const EXCHANGE_DIRECTORY: &str = "DISCOVERY_HANDLER_EXCHANGE_DIRECTORY";
/// Environment that the node sets: sleeps end when a file in the exchange directory changes, so polling is not needed.
pub const WAKES: &str = "DISCOVERY_HANDLER_WAKES";
/// Where the modules of 2021 look.
pub const DEFAULT_EXCHANGE_DIRECTORY: &str = "/tmp/wde-dir";
/// Annotation: host paths that the handler's devices may name in `mounts` and `device_specs`, separated by commas.
pub const ALLOWED_HOST_PATHS: &str = "akri-krustlet/allowed-host-paths";
/// Annotation: `false` if the guest's sleeps must not be cut short.
pub const WAKE_ON_CHANGE: &str = "akri-krustlet/wake-on-change";

/// Annotation: how long one step of a component may take, in seconds, as `10s`; default [`DEFAULT_STEP_DEADLINE`].
pub const STEP_DEADLINE: &str = "akri-krustlet/step-deadline";
/// See [`STEP_DEADLINE`].
pub const DEFAULT_STEP_DEADLINE: Duration = Duration::from_secs(10);
/// Longest [`STEP_DEADLINE`].
const MOST_STEP_DEADLINE: u64 = 3600;

/// The settings of one handler container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerSettings {
    /// The name that Configurations use; also the socket's: `<name>.sock`.
    pub name: String,
    /// See [`SHARED`].
    pub shared: bool,
    /// See [`EXCHANGE_DIRECTORY`]; absolute, without a slash at its end.
    pub exchange_directory: String,
    /// See [`ALLOWED_HOST_PATHS`].
    pub allowed_host_paths: AllowList,
    /// See [`WAKE_ON_CHANGE`].
    pub wake_on_change: bool,
    /// See [`STEP_DEADLINE`].
    pub step_deadline: Duration,
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// The name cannot be a file's.
    #[error(
        "{NAME}={0:?}: a discovery handler's name names its socket, so it consists of letters, digits, `-`, `_` and `.`, has at most 63 of them and does not begin with a `.`"
    )]
    Name(String),
    /// The Agent's own socket has this name.
    #[error("{NAME}={0:?} is the name of the Agent's own socket; choose another")]
    Reserved(String),
    /// A variable or annotation is neither `true` nor `false`.
    #[error("{name}={value:?}: expected true or false")]
    Boolean {
        /// The variable or annotation.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// An annotation is no time.
    #[error("{STEP_DEADLINE}={0:?}: expected whole seconds from 1s to {MOST_STEP_DEADLINE}s, as 10s")]
    Deadline(String),
    /// A path is not absolute or goes upward.
    #[error("{name}: {value:?} is not an absolute path without `..`")]
    Path {
        /// The variable or annotation.
        name: &'static str,
        /// Its value.
        value: String,
    },
}

impl HandlerSettings {
    /// The settings, or `None` if the container is no discovery handler. What its image says of the handler in it counts where the
    /// environment says nothing.
    pub fn read(
        environment: &[(String, String)],
        annotations: &BTreeMap<String, String>,
        image: Option<&HandlerInfo>,
    ) -> Result<Option<Self>, SettingsError> {
        // The last one wins, as in a container's environment.
        let variable = |name| environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let Some(name) = variable(NAME).or(image.map(|info| info.name.as_str())) else { return Ok(None) };
        check_name(name)?;
        let exchange_directory = variable(EXCHANGE_DIRECTORY).unwrap_or(DEFAULT_EXCHANGE_DIRECTORY);
        if !is_plain_absolute(exchange_directory) {
            return Err(SettingsError::Path { name: EXCHANGE_DIRECTORY, value: exchange_directory.to_owned() });
        }
        let annotation = |name| annotations.get(name).map(String::as_str);
        Ok(Some(Self {
            name: name.to_owned(),
            shared: boolean(SHARED, variable(SHARED), image.is_none_or(|info| info.shared))?,
            exchange_directory: exchange_directory.trim_end_matches('/').to_owned(),
            allowed_host_paths: AllowList::parse(annotation(ALLOWED_HOST_PATHS).unwrap_or_default())
                .map_err(|value| SettingsError::Path { name: ALLOWED_HOST_PATHS, value })?,
            wake_on_change: boolean(WAKE_ON_CHANGE, annotation(WAKE_ON_CHANGE), true)?,
            step_deadline: annotation(STEP_DEADLINE).map_or(Ok(DEFAULT_STEP_DEADLINE), seconds)?,
        }))
    }
}

/// Whether a handler can have this name.
pub fn check_name(name: &str) -> Result<(), SettingsError> {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 63 || name.starts_with('.') || !name.bytes().all(letters) {
        return Err(SettingsError::Name(name.to_owned()));
    }
    if name == "agent-registration" {
        return Err(SettingsError::Reserved(name.to_owned()));
    }
    Ok(())
}

fn seconds(value: &str) -> Result<Duration, SettingsError> {
    let seconds = value.trim().strip_suffix('s').and_then(|number| number.parse().ok());
    let seconds = seconds.filter(|seconds| (1..=MOST_STEP_DEADLINE).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| SettingsError::Deadline(value.to_owned()))
}

fn boolean(name: &'static str, value: Option<&str>, default: bool) -> Result<bool, SettingsError> {
    match value {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(value) => Err(SettingsError::Boolean { name, value: value.to_owned() }),
    }
}

/// True for `/a/b`, false for `a`, `/`, `/a/../b` and paths with a NUL.
pub(crate) fn is_plain_absolute(path: &str) -> bool {
    path.len() > 1
        && path.starts_with('/')
        && !path.contains('\0')
        && !path.split('/').any(|component| component == ".." || component == ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(environment: &[(&str, &str)]) -> Result<Option<HandlerSettings>, SettingsError> {
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        HandlerSettings::read(&environment, &BTreeMap::new(), None)
    }

    #[test]
    fn the_name_makes_a_container_a_handler() {
        assert_eq!(read(&[("OTHER", "x")]), Ok(None));
        let settings = read(&[(NAME, "debugEcho")]).unwrap().unwrap();
        assert!(settings.shared && settings.wake_on_change);
        assert_eq!(settings.exchange_directory, "/tmp/wde-dir");
        assert!(!read(&[(NAME, "debugEcho"), (SHARED, "false")]).unwrap().unwrap().shared);
    }

    #[test]
    fn what_an_image_says_of_its_handler_counts_where_the_environment_says_nothing() {
        let info = HandlerInfo { name: "meter".to_owned(), shared: false, schema: None };
        let read = |environment: &[(&str, &str)]| {
            let owned = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let environment: Vec<_> = owned.collect();
            let settings = HandlerSettings::read(&environment, &BTreeMap::new(), Some(&info)).unwrap().unwrap();
            (settings.name, settings.shared)
        };
        assert_eq!(read(&[]), ("meter".to_owned(), false));
        assert_eq!(read(&[(NAME, "gauge"), (SHARED, "true")]), ("gauge".to_owned(), true));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for name in ["", "a/b", "..", ".hidden", "a b", &"x".repeat(64)] {
            assert!(matches!(read(&[(NAME, name)]), Err(SettingsError::Name(_))), "{name:?}");
        }
        assert!(matches!(read(&[(NAME, "agent-registration")]), Err(SettingsError::Reserved(_))));
        assert!(matches!(read(&[(NAME, "a"), (SHARED, "yes")]), Err(SettingsError::Boolean { .. })));
        assert!(matches!(read(&[(NAME, "a"), (EXCHANGE_DIRECTORY, "x/y")]), Err(SettingsError::Path { .. })));
    }
}
