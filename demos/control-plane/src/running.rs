//! The processes of a cluster.

use crate::cluster::{Cluster, TOKEN};
use crate::linux_node::LinuxNode;
use crate::programs::{self, Programs};
use anyhow::{Context as _, anyhow, bail};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running cluster. Dropping it ends its processes.
#[derive(Debug)]
pub struct Running {
    linux_node: Option<LinuxNode>,
    processes: Vec<Process>,
    kubectl: PathBuf,
    cluster: Cluster,
}

#[derive(Debug)]
struct Process {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    child: Child,
    restarts: u32,
}

/// How long the API may take until it is ready; it takes about 4 s on two idle cores.
const READY: Duration = Duration::from_secs(120);
/// How often each program is started again.
const MOST_RESTARTS: u32 = 5;

impl Running {
    pub(crate) fn start(cluster: &Cluster, programs: &Programs) -> anyhow::Result<Self> {
        let kubectl = programs.path("kubectl")?;
        let mut running = Self { linux_node: None, processes: Vec::new(), kubectl, cluster: cluster.clone() };
        running.spawn("etcd", programs, etcd(cluster))?;
        running.spawn("kube-apiserver", programs, api_server(cluster))?;
        running.wait_until_ready()?;
        running.spawn("kube-controller-manager", programs, controller_manager(cluster))?;
        running.spawn("kube-scheduler", programs, scheduler(cluster))?;
        running.add_bootstrap_token()?;
        running.wait_for_default_account()?;
        Ok(running)
    }

    /// Starts an ordinary Linux node; returns when it is Ready. `programs` are those [with such a
    /// node](Programs::with_linux_node).
    pub fn add_linux_node(&mut self, programs: &Programs, name: &str) -> anyhow::Result<()> {
        if let Some(node) = &self.linux_node {
            bail!("the Linux node {} runs already", node.name());
        }
        self.apply(&bootstrap_roles())?;
        self.linux_node = Some(LinuxNode::start(&self.cluster, programs, name)?);
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        self.wait_for(&format!("the Linux node {name} is not Ready"), |running| {
            let answer = running.kubectl(&["get", "node", name, "-o", ready]).output()?;
            Ok(answer.stdout == b"True")
        })
    }

    /// Starts again what has ended, as a service manager does. Fails if a program keeps ending.
    pub fn keep_up(&mut self) -> anyhow::Result<()> {
        if let Some(node) = &mut self.linux_node {
            node.keep_up()?;
        }
        for process in &mut self.processes {
            let Some(status) = process.child.try_wait()? else { continue };
            if process.restarts == MOST_RESTARTS {
                return Err(ended(&self.cluster, process.name, status));
            }
            eprintln!("{} ended ({status}) and is started again", process.name);
            process.child = start(&self.cluster, process.name, &process.program, &process.arguments)?;
            process.restarts += 1;
        }
        Ok(())
    }

    /// Fails if one of its programs has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(node) = &mut self.linux_node {
            node.keep_up()?;
        }
        for process in &mut self.processes {
            if let Some(status) = process.child.try_wait()? {
                return Err(ended(&self.cluster, process.name, status));
            }
        }
        Ok(())
    }

    fn spawn(&mut self, name: &'static str, programs: &Programs, arguments: Vec<String>) -> anyhow::Result<()> {
        let program = programs.path(name)?;
        let child = start(&self.cluster, name, &program, &arguments)?;
        self.processes.push(Process { name, program, arguments, child, restarts: 0 });
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.cluster.admin()).args(arguments);
        command
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        self.wait_for("the API server is not ready", |running| {
            let answer = running.kubectl(&["get", "--raw", "/readyz"]).output()?;
            Ok(answer.status.success())
        })
    }

    /// Pods are refused as long as their namespace has no service account.
    fn wait_for_default_account(&mut self) -> anyhow::Result<()> {
        self.wait_for("no service account in the default namespace", |running| {
            let answer = running.kubectl(&["get", "serviceaccount", "default", "-n", "default"]).output()?;
            Ok(answer.status.success())
        })
    }

    fn wait_for(&mut self, what: &str, condition: impl Fn(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        while !condition(self)? {
            self.check()?;
            if Instant::now() > deadline {
                bail!("{what} after {} s; see the logs in {}", READY.as_secs(), self.cluster.directory.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn add_bootstrap_token(&self) -> anyhow::Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{}", TOKEN.0), "namespace": "kube-system"},
            "stringData": {
                "token-id": TOKEN.0, "token-secret": TOKEN.1, "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
            },
        });
        self.apply(&secret).context("cannot make the bootstrap token")
    }

    fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let mut kubectl = self.kubectl(&["apply", "-f", "-"]);
        let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        child.stdin.take().context("kubectl has no input")?.write_all(object.to_string().as_bytes())?;
        if !child.wait()?.success() {
            bail!("kubectl apply of {} failed", object["kind"]);
        }
        Ok(())
    }
}

/// Whoever has a bootstrap token gets a node's certificate, as kubeadm has it.
fn bootstrap_roles() -> Value {
    let binding = |name: &str, role: &str| {
        let group = "rbac.authorization.k8s.io";
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:bootstrappers"}],
        })
    };
    let approval = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        binding("linux-node-bootstrap", "system:node-bootstrapper"),
        binding("linux-node-approve-bootstrap", approval),
    ]})
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.linux_node.take());
        // The API server would serve on for some seconds after SIGTERM; nothing of it is to be kept.
        for process in self.processes.iter_mut().rev() {
            let _ = process.child.kill();
        }
        for process in &mut self.processes {
            let _ = process.child.wait();
        }
    }
}

fn start(cluster: &Cluster, name: &str, program: &Path, arguments: &[String]) -> anyhow::Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(cluster.log(name))?;
    // Where there is setpriv, the kernel ends the program with this process, however that ends.
    let mut command = match programs::on_path("setpriv") {
        Some(setpriv) => Command::new(setpriv),
        None => Command::new("env"),
    };
    if command.get_program() != "env" {
        command.args(["--pdeathsig", "KILL"]);
    }
    let child = command
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| name.to_owned())?;
    let pid = cluster.pid(name);
    std::fs::write(pid.with_extension("new"), child.id().to_string())?;
    std::fs::rename(pid.with_extension("new"), pid)?;
    Ok(child)
}

fn ended(cluster: &Cluster, name: &str, status: ExitStatus) -> anyhow::Error {
    anyhow!("{name} ended ({status}); see {}", cluster.log(name).display())
}

fn etcd(cluster: &Cluster) -> Vec<String> {
    let (client, peer) = (cluster.ports.etcd, cluster.ports.etcd_peer);
    vec![
        format!("--data-dir={}", cluster.directory.join("etcd").display()),
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server(cluster: &Cluster) -> Vec<String> {
    let pki = |name: &str| cluster.pki(name).display().to_string();
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", cluster.ports.etcd),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", cluster.ports.api),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-kubelet.key")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--enable-bootstrap-token-auth".to_owned(),
        "--allow-privileged".to_owned(),
        // Nobody here resolves the names of nodes.
        "--kubelet-preferred-address-types=InternalIP,Hostname".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki("service-accounts.crt")),
        format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--audit-policy-file={}", cluster.audit_policy().display()),
        format!("--audit-log-path={}", cluster.audit_log().display()),
    ];
    // A cluster that an earlier version made has none of these.
    if cluster.pki("front-proxy-ca.crt").exists() {
        arguments.extend([
            format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
        ]);
    }
    arguments
}

fn controller_manager(cluster: &Cluster) -> Vec<String> {
    let pki = |name: &str| cluster.pki(name).display().to_string();
    vec![
        format!("--kubeconfig={}", cluster.directory.join("controller-manager.conf").display()),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", cluster.ports.controller_manager),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        format!("--cluster-signing-duration={}", cluster.signing_duration),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--service-account-private-key-file={}", pki("service-accounts.key")),
        "--use-service-account-credentials".to_owned(),
        "--controllers=*,bootstrap-signer-controller,token-cleaner-controller".to_owned(),
        "--leader-elect=false".to_owned(),
    ]
}

fn scheduler(cluster: &Cluster) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", cluster.directory.join("scheduler.conf").display()),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", cluster.ports.scheduler),
        "--leader-elect=false".to_owned(),
    ]
}
