//! The directory of one cluster: keys, ports, kubeconfigs.

use crate::pki::{Authority, Identity, write_private};
use crate::port;
use crate::programs::Programs;
use crate::running::Running;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::{Path, PathBuf};

/// A cluster that may run.
///
/// ```text
/// DIR/admin.conf        kubeconfig of an administrator
/// DIR/bootstrap.conf    kubeconfig with a bootstrap token, as a new node gets it
/// DIR/pki/              ca.{crt,key} and all that it signed
/// DIR/ports.json        the ports, kept when the cluster is started again
/// DIR/*.log             what the programs say
/// DIR/*.pid             their process ids
/// DIR/audit.log         each request of a node to the API server
/// ```
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) directory: PathBuf,
    pub(crate) ports: Ports,
    /// Life of the certificates that the controller manager signs, as Go writes it: `8760h`.
    pub signing_duration: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    pub(crate) etcd_peer: u16,
    pub(crate) api: u16,
    pub(crate) controller_manager: u16,
    pub(crate) scheduler: u16,
}

/// The bootstrap token of every such cluster: it is reachable on loopback only.
pub(crate) const TOKEN: (&str, &str) = ("edge00", "0123456789abcdef");

impl Cluster {
    /// The cluster in `directory`: a new one, or the one that was there before.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory.join("pki")).with_context(|| directory.display().to_string())?;
        let directory = directory.canonicalize()?;
        let ports_file = directory.join("ports.json");
        let ports = match std::fs::read_to_string(&ports_file) {
            Ok(text) => Ports::read(&text).with_context(|| ports_file.display().to_string())?,
            Err(_) => Ports::free()?,
        };
        let cluster = Self { directory, ports, signing_duration: "8760h".to_owned() };
        if !ports_file.exists() {
            cluster.make_keys()?;
            std::fs::write(&ports_file, cluster.ports.write())?;
        }
        Ok(cluster)
    }

    /// Starts it and waits until the API is ready.
    pub fn start(&self, programs: &Programs) -> anyhow::Result<Running> {
        Running::start(self, programs)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The API server's address.
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api)
    }

    /// Kubeconfig of an administrator.
    pub fn admin(&self) -> PathBuf {
        self.directory.join("admin.conf")
    }

    /// Kubeconfig that a new node joins with.
    pub fn bootstrap(&self) -> PathBuf {
        self.directory.join("bootstrap.conf")
    }

    /// Each request of a node to the API server: a JSON object per line.
    pub fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }

    /// What one of its programs says.
    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.log"))
    }

    /// The process id of one of its programs.
    pub(crate) fn pid(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.pid"))
    }

    pub(crate) fn audit_policy(&self) -> PathBuf {
        self.pki("audit-policy.json")
    }

    pub(crate) fn pki(&self, name: &str) -> PathBuf {
        self.directory.join("pki").join(name)
    }

    fn make_keys(&self) -> anyhow::Result<()> {
        let pki = self.directory.join("pki");
        let authority = Authority::new("kubernetes")?;
        let ca = authority.identity();
        ca.write(&pki, "ca")?;
        // Nodes only, and each request once: when its answer, or the first event of a watch, goes out.
        let policy = serde_json::json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                // What they tell of pods with what they say.
                {"level": "Request", "userGroups": ["system:nodes"], "verbs": ["patch"],
                    "resources": [{"group": "", "resources": ["pods/status"]}]},
                {"level": "Metadata", "userGroups": ["system:nodes"]},
                {"level": "None"},
            ],
        });
        std::fs::write(self.audit_policy(), policy.to_string())?;
        let names = ["127.0.0.1", "::1", "localhost", "10.96.0.1", "kubernetes", "kubernetes.default.svc"];
        authority.server("kube-apiserver", &names)?.write(&pki, "apiserver")?;
        authority.client("kube-apiserver-kubelet-client", Some("system:masters"))?.write(&pki, "apiserver-kubelet")?;
        Authority::new("service-accounts")?.identity().write(&pki, "service-accounts")?;
        // How API servers that extend this one know that a request comes from it.
        let front = Authority::new("front-proxy")?;
        front.identity().write(&pki, "front-proxy-ca")?;
        front.client("front-proxy-client", None)?.write(&pki, "front-proxy-client")?;
        for (file, user, group) in [
            ("admin.conf", "kubernetes-admin", Some("system:masters")),
            ("controller-manager.conf", "system:kube-controller-manager", None),
            ("scheduler.conf", "system:kube-scheduler", None),
        ] {
            let identity = authority.client(user, group)?;
            let credentials = format!(
                "client-certificate-data: {}, client-key-data: {}",
                STANDARD.encode(&identity.certificate),
                STANDARD.encode(&identity.key)
            );
            self.write_kubeconfig(file, &ca, &credentials)?;
        }
        self.write_kubeconfig("bootstrap.conf", &ca, &format!("token: {}.{}", TOKEN.0, TOKEN.1))
    }

    fn write_kubeconfig(&self, file: &str, ca: &Identity, credentials: &str) -> anyhow::Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters:\n- name: local\n  cluster: {{server: '{}', certificate-authority-data: {}}}\n\
             users:\n- name: user\n  user: {{{credentials}}}\n\
             contexts:\n- name: local\n  context: {{cluster: local, user: user}}\n\
             current-context: local\n",
            self.server(),
            STANDARD.encode(&ca.certificate)
        );
        write_private(&self.directory.join(file), &text)
    }
}

impl Ports {
    fn free() -> anyhow::Result<Self> {
        Ok(Self {
            etcd: port::free()?,
            etcd_peer: port::free()?,
            api: port::free()?,
            controller_manager: port::free()?,
            scheduler: port::free()?,
        })
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let [etcd, etcd_peer, api, controller_manager, scheduler] = serde_json::from_str(text)?;
        Ok(Self { etcd, etcd_peer, api, controller_manager, scheduler })
    }

    fn write(&self) -> String {
        let Self { etcd, etcd_peer, api, controller_manager, scheduler } = self;
        serde_json::json!([etcd, etcd_peer, api, controller_manager, scheduler]).to_string()
    }
}
