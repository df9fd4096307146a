//! Devices as /sys and udevd's database have them, read as far as somebody looks.

use akri_handler::fs;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// A device.
pub(crate) struct Device {
    /// Its path below /sys.
    pub(crate) devpath: String,
    about: OnceCell<About>,
    subsystem: OnceCell<Option<String>>,
    driver: OnceCell<Option<String>>,
    attributes: RefCell<BTreeMap<String, Option<String>>>,
}

/// What its `uevent` file and udevd's database say.
#[derive(Default)]
struct About {
    properties: BTreeMap<String, String>,
    tags: Vec<String>,
}

/// Attributes that are links have the name of what they lead to.
const LINKS: [&str; 3] = ["driver", "subsystem", "module"];

impl Device {
    fn new(devpath: String) -> Self {
        let (about, subsystem, driver, attributes) = Default::default();
        Self { devpath, about, subsystem, driver, attributes }
    }

    fn file(&self, name: &str) -> String {
        format!("/sys{}/{name}", self.devpath)
    }

    /// Its name; the kernel writes a slash in it as `!`.
    pub(crate) fn kernel(&self) -> String {
        self.devpath.rsplit('/').next().unwrap_or_default().replace('!', "/")
    }

    pub(crate) fn subsystem(&self) -> Option<&str> {
        self.subsystem.get_or_init(|| link_name(&self.file("subsystem"))).as_deref()
    }

    pub(crate) fn driver(&self) -> Option<&str> {
        self.driver.get_or_init(|| link_name(&self.file("driver"))).as_deref()
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        let mut attributes = self.attributes.borrow_mut();
        attributes.entry(name.to_owned()).or_insert_with(|| self.read_attribute(name)).clone()
    }

    fn read_attribute(&self, name: &str) -> Option<String> {
        if LINKS.contains(&name) {
            return link_name(&self.file(name));
        }
        let text = fs::read(self.file(name)).ok()?;
        Some(text.trim_end_matches(['\n', '\r']).to_owned())
    }

    /// Properties, by name.
    pub(crate) fn properties(&self) -> &BTreeMap<String, String> {
        &self.about().properties
    }

    pub(crate) fn tags(&self) -> &[String] {
        &self.about().tags
    }

    /// Its file in /dev.
    pub(crate) fn devnode(&self) -> Option<&str> {
        self.properties().get("DEVNAME").map(String::as_str)
    }

    fn about(&self) -> &About {
        self.about.get_or_init(|| {
            let mut about = About::default();
            let lines = fs::read(self.file("uevent")).unwrap_or_default();
            let fields = lines.lines().filter_map(|line| line.split_once('='));
            about.properties.extend(fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
            if let Some(name) = about.properties.get_mut("DEVNAME").filter(|name| !name.starts_with('/')) {
                name.insert_str(0, "/dev/");
            }
            let devpath = self.devpath.clone();
            about.properties.insert("DEVPATH".to_owned(), devpath);
            let subsystem = self.subsystem().map(str::to_owned);
            about.properties.extend(subsystem.map(|subsystem| ("SUBSYSTEM".to_owned(), subsystem)));
            if let Some(entry) = self.database_entry(&about.properties) {
                read_database(&entry, &mut about);
            }
            about
        })
    }

    /// What udevd knows of it.
    fn database_entry(&self, properties: &BTreeMap<String, String>) -> Option<String> {
        let subsystem = self.subsystem();
        let name = match (properties.get("MAJOR"), properties.get("MINOR"), properties.get("IFINDEX"), subsystem) {
            (Some(major), Some(minor), _, Some("block")) => format!("b{major}:{minor}"),
            (Some(major), Some(minor), ..) => format!("c{major}:{minor}"),
            (_, _, Some(index), _) => format!("n{index}"),
            (.., Some(subsystem)) => {
                format!("+{subsystem}:{}", self.devpath.rsplit('/').next().unwrap_or_default())
            }
            _ => return None,
        };
        fs::read(format!("{}/{name}", crate::DATABASE)).ok()
    }
}

/// Lines with a letter and a colon before what they say: `E:` a property, `G:` a tag, `S:` a link in /dev.
fn read_database(entry: &str, about: &mut About) {
    let mut links = Vec::new();
    for line in entry.lines() {
        match line.split_once(':') {
            Some(("E", property)) => {
                let field = property.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                about.properties.extend(field);
            }
            Some(("G", tag)) => about.tags.push(tag.to_owned()),
            Some(("S", link)) => links.push(format!("/dev/{link}")),
            _ => {}
        }
    }
    if !links.is_empty() {
        about.properties.insert("DEVLINKS".to_owned(), links.join(" "));
    }
    if !about.tags.is_empty() {
        about.properties.insert("TAGS".to_owned(), format!(":{}:", about.tags.join(":")));
    }
}

/// The names in a directory; a subsystem that is not there has none.
fn there(directory: &str) -> io::Result<Vec<String>> {
    match fs::list(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{directory}: {error}"))),
        listed => listed,
    }
}

fn link_name(path: &str) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// The devices that one scan has looked at.
#[derive(Default)]
pub(crate) struct Devices(RefCell<BTreeMap<String, Option<Rc<Device>>>>);

impl Devices {
    /// The devices of a subsystem, or of all.
    pub(crate) fn of(&self, subsystem: Option<&str>) -> io::Result<Vec<Rc<Device>>> {
        let mut directories = Vec::new();
        match subsystem {
            Some(name) => directories.extend([format!("/sys/bus/{name}/devices"), format!("/sys/class/{name}")]),
            None => {
                directories.extend(there("/sys/bus")?.iter().map(|bus| format!("/sys/bus/{bus}/devices")));
                directories.extend(there("/sys/class")?.iter().map(|class| format!("/sys/class/{class}")));
            }
        }
        let mut devices = Vec::new();
        for directory in directories {
            for name in there(&directory)? {
                devices.extend(self.at_entry(&directory, &name));
            }
        }
        Ok(devices)
    }

    /// The device that an entry of such a directory leads to.
    fn at_entry(&self, directory: &str, name: &str) -> Option<Rc<Device>> {
        let entry = format!("{directory}/{name}");
        let path = match fs::read_link(&entry) {
            Ok(target) => lexically(&Path::new(directory).join(target)),
            Err(_) => entry.into(),
        };
        self.get(path.to_str()?.strip_prefix("/sys")?)
    }

    /// A device, if there is one at that path.
    pub(crate) fn get(&self, devpath: &str) -> Option<Rc<Device>> {
        if let Some(known) = self.0.borrow().get(devpath) {
            return known.clone();
        }
        let found = fs::exists(format!("/sys{devpath}/uevent")).then(|| Rc::new(Device::new(devpath.to_owned())));
        self.0.borrow_mut().insert(devpath.to_owned(), found.clone());
        found
    }

    /// The nearest device above.
    pub(crate) fn parent(&self, device: &Device) -> Option<Rc<Device>> {
        let mut path = device.devpath.as_str();
        while let Some((above, _)) = path.rsplit_once('/') {
            // /sys/devices itself is none.
            if above.matches('/').count() < 2 {
                return None;
            }
            if let Some(device) = self.get(above) {
                return Some(device);
            }
            path = above;
        }
        None
    }
}

/// Without `..`, as links below /sys can be taken.
fn lexically(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}
