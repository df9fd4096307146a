//! Where the programs of a control plane come from.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that is built; go.mod names it too.
pub const KUBERNETES: &str = "v1.36.3";

/// Program, and the Go package that it is built from.
const SOURCES: [(&str, &str); 5] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];

/// The programs of a control plane, and kubectl.
#[derive(Clone, Debug)]
pub struct Programs {
    /// In the order in which they are looked for.
    directories: Vec<PathBuf>,
}

impl Programs {
    /// Finds each program in `$KUBEBUILDER_ASSETS` or in the cache, and builds with Go what neither has.
    ///
    /// The cache is `$XDG_CACHE_HOME/akri-krustlet`, outside the checkout; a build of all takes some minutes and is made once.
    pub fn find_or_build() -> anyhow::Result<Self> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let cache = match std::env::var_os("XDG_CACHE_HOME") {
            Some(cache) => PathBuf::from(cache),
            None => std::env::home_dir().context("there is no home directory for the cache")?.join(".cache"),
        };
        let built = cache.join(format!("akri-krustlet/kubernetes-{KUBERNETES}"));
        let programs = Self { directories: assets.into_iter().chain([built.clone()]).collect() };
        let missing: Vec<_> = SOURCES.iter().filter(|(name, _)| programs.find(name).is_none()).collect();
        if missing.is_empty() {
            return Ok(programs);
        }
        if Command::new("go").arg("version").output().is_err() {
            let names = missing.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            bail!(
                "no Kubernetes control plane to test against: {names} missing. Install Go 1.26 or newer, with which they are \
                 built (once, about five minutes on two cores), or set KUBEBUILDER_ASSETS to a directory that has them"
            );
        }
        std::fs::create_dir_all(&built).with_context(|| built.display().to_string())?;
        for (name, package) in missing {
            eprintln!("building {name} {KUBERNETES} (once) ...");
            build(package, &built.join(name))?;
        }
        Ok(programs)
    }

    /// The path of a program.
    pub fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.find(name).with_context(|| format!("{name} is not there any more"))
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    }
}

fn build(package: &str, program: &Path) -> anyhow::Result<()> {
    // Another build of the same may run; whoever is last wins, with the same content.
    let staged = program.with_extension(format!("{}", std::process::id()));
    let version = "k8s.io/component-base/version";
    let status = Command::new("go")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags"])
        .arg(format!("-s -w -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor=36"))
        .args(["-o".as_ref(), staged.as_os_str(), package.as_ref()])
        .env("CGO_ENABLED", "0")
        .status()
        .context("go")?;
    if !status.success() {
        bail!("go build {package} failed ({status})");
    }
    std::fs::rename(&staged, program).with_context(|| program.display().to_string())
}
