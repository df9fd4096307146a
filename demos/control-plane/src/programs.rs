//! Where the programs of a control plane and of a Linux node come from.

use anyhow::{Context as _, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The version that is built; go.mod names it too.
pub const KUBERNETES: &str = "v1.36.3";
/// The version of containerd that is built; containers/go.mod names it too.
pub const CONTAINERD: &str = "v2.4.2";

/// Of what people use with a cluster: cluster-tools/go.mod names the programs' versions.
const CLUSTER_TOOLS_VERSION: &str = "helm4.2.4-metrics0.9.0-oras1.3.6";

/// Programs that are built from one Go module.
struct Module {
    /// Of `go.mod`, beside this package's Cargo.toml.
    directory: &'static str,
    /// In the cache, outside the checkout.
    cache: &'static str,
    version: &'static str,
    tags: &'static str,
    /// Program, and the Go package that it is built from.
    sources: &'static [(&'static str, &'static str)],
}

const CONTROL_PLANE: Module = Module {
    directory: ".",
    cache: "kubernetes",
    version: KUBERNETES,
    tags: "",
    sources: &[
        ("etcd", "go.etcd.io/etcd/server/v3"),
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ],
};

const KUBELET: Module = Module { sources: &[("kubelet", "k8s.io/kubernetes/cmd/kubelet")], ..CONTROL_PLANE };

const CONTAINERS: Module = Module {
    directory: "containers",
    cache: "containerd",
    version: CONTAINERD,
    tags: "no_btrfs no_devmapper no_zfs",
    sources: &[
        ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
        ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
        ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
        ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
        ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
    ],
};

/// What people use with a cluster, and tests of what they install there. Metrics-server names its own version by its module's.
const CLUSTER_TOOLS: Module = Module {
    directory: "cluster-tools",
    cache: "cluster-tools",
    version: CLUSTER_TOOLS_VERSION,
    tags: "",
    sources: &[
        ("helm", "helm.sh/helm/v4/cmd/helm"),
        ("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server"),
        ("oras", "oras.land/oras/cmd/oras"),
    ],
};

/// What holds a pod's namespaces: it waits until it is killed.
const PAUSE: &str = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";

/// The programs of a control plane, and kubectl; and those of a Linux node, if they were asked for.
#[derive(Clone, Debug)]
pub struct Programs {
    /// In the order in which they are looked for.
    directories: Vec<PathBuf>,
    /// Of the Go compiler, while these are built.
    go_cache: Arc<GoCache>,
}

impl Programs {
    /// Finds each program in `$KUBEBUILDER_ASSETS` or in the cache, and builds with Go what neither has.
    ///
    /// The cache is `$XDG_CACHE_HOME/akri-krustlet`, outside the checkout; a build of all takes some minutes and is made once.
    pub fn find_or_build() -> anyhow::Result<Self> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let directories = assets.into_iter().chain([CONTROL_PLANE.cached()?]).collect();
        let programs = Self { directories, go_cache: Arc::new(GoCache::new()?) };
        programs.build_missing(&CONTROL_PLANE, "no Kubernetes control plane to test against")?;
        Ok(programs)
    }

    /// Those of a Linux node besides: kubelet, containerd with its shim and `ctr`, CNI plugins, and a pause program. runc is the
    /// machine's, or what `RUNC` names.
    pub fn with_linux_node(mut self) -> anyhow::Result<Self> {
        let containers = CONTAINERS.cached()?;
        self.directories.push(containers.clone());
        for module in [&KUBELET, &CONTAINERS] {
            self.build_missing(module, "no Linux node")?;
        }
        if self.find("pause").is_none() {
            build_pause(&containers.join("pause"))?;
        }
        runc()?;
        Ok(self)
    }

    /// Those of people who use a cluster besides: helm, metrics-server, oras.
    pub fn with_cluster_tools(mut self) -> anyhow::Result<Self> {
        self.directories.push(CLUSTER_TOOLS.cached()?);
        self.build_missing(&CLUSTER_TOOLS, "no helm and no metrics-server")?;
        Ok(self)
    }

    /// The path of a program.
    pub fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.find(name).with_context(|| format!("{name} is not there any more"))
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    }

    fn build_missing(&self, module: &Module, consequence: &str) -> anyhow::Result<()> {
        // Whoever else wants them waits, and finds them.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _turn = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<_> = module.sources.iter().filter(|(name, _)| self.find(name).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Command::new("go").arg("version").output().is_err() {
            let names = missing.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            bail!(
                "{consequence}: {names} missing. Install Go 1.26 or newer, with which they are built (once, about six minutes on \
                 two cores), or set KUBEBUILDER_ASSETS to a directory that has them"
            );
        }
        let built = module.cached()?;
        std::fs::create_dir_all(&built).with_context(|| built.display().to_string())?;
        for (name, package) in missing {
            eprintln!("building {name} {} (once) ...", module.version);
            module.build(package, &built.join(name), &self.go_cache.0)?;
        }
        Ok(())
    }
}

impl Module {
    fn cached(&self) -> anyhow::Result<PathBuf> {
        Ok(cache()?.join(format!("{}-{}", self.cache, self.version)))
    }

    fn build(&self, package: &str, program: &Path, go_cache: &Path) -> anyhow::Result<()> {
        let staged = staged(program);
        let version = self.version;
        let (kubernetes, containerd) = ("k8s.io/component-base/version", "github.com/containerd/containerd/v2/version");
        let status = Command::new("go")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(self.directory))
            .args(["build", "-trimpath", "-buildvcs=false", "-tags", self.tags, "-ldflags"])
            .arg(format!(
                "-s -w -X {kubernetes}.gitVersion={KUBERNETES} -X {kubernetes}.gitMajor=1 -X {kubernetes}.gitMinor=36 \
                 -X {containerd}.Version={version}"
            ))
            .args(["-o".as_ref(), staged.as_os_str(), package.as_ref()])
            .env("CGO_ENABLED", "0")
            .env("GOCACHE", go_cache)
            .status()
            .context("go")?;
        if !status.success() {
            bail!("go build {package} failed ({status})");
        }
        std::fs::rename(&staged, program).with_context(|| program.display().to_string())
    }
}

/// Outside the checkout.
fn cache() -> anyhow::Result<PathBuf> {
    let caches = match std::env::var_os("XDG_CACHE_HOME") {
        Some(caches) => PathBuf::from(caches),
        None => std::env::home_dir().context("there is no home directory for the cache")?.join(".cache"),
    };
    Ok(caches.join("akri-krustlet"))
}

/// What Go keeps of a build, 2 GB for these programs: nobody builds them a second time, so it goes with the build.
#[derive(Debug)]
struct GoCache(PathBuf);

impl GoCache {
    const PREFIX: &'static str = "go-build-";

    /// Made by Go when it builds. What killed builds left goes.
    fn new() -> anyhow::Result<Self> {
        let cache = cache()?;
        for entry in std::fs::read_dir(&cache).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(Self::PREFIX)?.split('-').next());
            if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self(cache.join(format!("{}{}-{number}", Self::PREFIX, std::process::id()))))
    }
}

impl Drop for GoCache {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Another build of the same may run; whoever is last wins, with the same content.
fn staged(program: &Path) -> PathBuf {
    program.with_extension(format!("{}", std::process::id()))
}

fn build_pause(program: &Path) -> anyhow::Result<()> {
    let (staged, source) = (staged(program), program.with_extension(format!("{}.c", std::process::id())));
    std::fs::write(&source, PAUSE).with_context(|| source.display().to_string())?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(&compiler).args(["-static", "-Os", "-s", "-o"]).args([&staged, &source]).status();
    let _ = std::fs::remove_file(&source);
    let compiler = compiler.display();
    let status = status.with_context(|| format!("no Linux node: the C compiler {compiler} (CC names another one)"))?;
    if !status.success() {
        bail!(
            "no Linux node: {compiler} cannot link a static program ({status}); it needs the C library's archive, libc.a"
        );
    }
    std::fs::rename(&staged, program).with_context(|| program.display().to_string())
}

/// The program that makes containers.
pub fn runc() -> anyhow::Result<PathBuf> {
    if let Some(runc) = std::env::var_os("RUNC").map(PathBuf::from) {
        return runc.canonicalize().with_context(|| format!("RUNC={}", runc.display()));
    }
    on_path("runc")
        .context("no Linux node: runc is missing. Install it (Debian: apt-get install runc), or name it with RUNC")
}

/// A program of the machine.
pub fn on_path(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not everybody's PATH has the administrator's programs.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|directory: PathBuf| directory.join(name.as_ref())).find(|path| path.is_file())
}
