//! What the node is delivered in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{linux_program, output};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn build(program: &Path, archive: &Path, authorities: &Path) -> Output {
    let mut command = Command::new(root().join("manifests/image/build"));
    command.arg(program).arg(archive).arg("registry.example/akri-krustlet:v1").env("AUTHORITIES", authorities);
    output(&mut command)
}

fn files(archive: impl std::io::Read) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().trim_start_matches("./").trim_end_matches('/').to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(path, (entry.header().mode().unwrap(), content));
    }
    files
}

#[test]
fn an_image_of_a_static_program_is_the_same_each_time_and_what_its_digests_say() {
    let directory = tempfile::tempdir().unwrap();
    let authorities = directory.path().join("authorities.pem");
    std::fs::write(&authorities, "the world's").unwrap();
    let program = linux_program("workload");
    let archives = ["one.tar", "other.tar"].map(|name| directory.path().join(name));
    for archive in &archives {
        let built = build(&program, archive, &authorities);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    }
    let [one, other] = archives.map(|archive| std::fs::read(archive).unwrap());
    assert!(one == other, "two images of one program differ");

    let layout = files(&one[..]);
    let json = |name: &str| -> serde_json::Value { serde_json::from_slice(&layout[name].1).unwrap() };
    let blob = |digest: &serde_json::Value| {
        let digest = digest.as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let content = &layout[&format!("blobs/sha256/{digest}")].1;
        let sum: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum, digest);
        content.clone()
    };
    let manifest: serde_json::Value =
        serde_json::from_slice(&blob(&json("index.json")["manifests"][0]["digest"])).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"][0], "/akri-krustlet");
    let layer = blob(&manifest["layers"][0]["digest"]);
    let root = files(flate2::read::GzDecoder::new(&layer[..]));
    assert_eq!(root["akri-krustlet"], (0o755, std::fs::read(&program).unwrap()));
    assert_eq!(root["etc/ssl/certs/ca-certificates.crt"].1, b"the world's");
    // Docker's own list names the same blobs.
    let docker = json("manifest.json");
    assert_eq!(docker[0]["RepoTags"][0], "registry.example/akri-krustlet:v1");
    assert!(layout.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
}

#[test]
fn a_program_that_an_image_of_it_alone_would_not_run_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, none) = (directory.path().join("a.tar"), Path::new("/nowhere"));
    let refused = |program: &Path| {
        let built = build(program, &archive, none);
        assert!(!built.status.success() && !archive.exists());
        String::from_utf8_lossy(&built.stderr).into_owned()
    };
    assert!(refused(Path::new(env!("CARGO_BIN_EXE_akri-krustlet"))).contains("needs shared libraries"));
    assert!(refused(&root().join("README.md")).contains("no program for x86-64 or arm64"));
}

#[test]
fn manual_pages_and_completions_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_akri-krustlet");
    let written = output(Command::new(program).arg("man").arg(directory.path()));
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let page = std::fs::read_to_string(directory.path().join("akri-krustlet-run.1")).unwrap();
    assert!(page.contains("metrics\\-address") && page.contains(".TH"), "{page}");
    assert!(directory.path().join("akri-krustlet.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let printed = output(Command::new(program).args(["completion", shell]));
        assert!(String::from_utf8_lossy(&printed.stdout).contains("support-bundle"), "{shell}");
    }
}

/// On this machine, but in a view of it that goes with the test: what is installed is written over it, not into it.
#[test]
fn the_debian_package_is_installed_and_removed() {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has("cargo-deb") || !has("dpkg") {
        println!("skipped: there is no cargo-deb or no dpkg here (cargo install cargo-deb --locked)");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can install a package");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("package.deb");
    let built = output(Command::new(root().join("manifests/deb/build")).arg("dev").arg(&package));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let script = r#"
        set -eux
        work=$1 package=$2
        mount -t tmpfs tmpfs "$work"
        mkdir "$work/upper" "$work/work" "$work/view"
        mount -t overlay overlay -o lowerdir=/,upperdir="$work/upper",workdir="$work/work" "$work/view"
        mount --rbind /proc "$work/view/proc"
        cp "$package" "$work/view/root/package.deb"
        inside() { chroot "$work/view" "$@"; }
        inside dpkg --force-depends -i /root/package.deb
        inside /usr/bin/akri-krustlet --version
        test -s "$work/view/usr/share/man/man1/akri-krustlet-run.1.gz"
        grep -q 'complete' "$work/view/usr/share/bash-completion/completions/akri-krustlet"
        grep -q '^ExecStart=/usr/bin/akri-krustlet run' "$work/view/usr/lib/systemd/system/akri-krustlet.service"
        if command -v systemd-analyze; then inside systemd-analyze verify /usr/lib/systemd/system/akri-krustlet.service; fi
        # The settings are the operator's: what was written there stays, also over a removal.
        echo 'log-level: debug' > "$work/view/etc/akri-krustlet/config.yaml"
        mkdir -p "$work/view/var/lib/akri-krustlet/pods"
        inside dpkg --force-depends -i /root/package.deb
        grep -q debug "$work/view/etc/akri-krustlet/config.yaml"
        inside dpkg -r akri-krustlet
        test ! -e "$work/view/usr/bin/akri-krustlet"
        test -e "$work/view/etc/akri-krustlet/config.yaml"
        inside dpkg -P akri-krustlet
        # Nothing is left.
        left=$(find "$work/view/usr" "$work/view/etc" "$work/view/var/lib" -name '*akri-krustlet*' -newer "$package" || true)
        test -z "$left"
    "#;
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&work).arg(&package);
    let done = output(&mut command);
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("systemctl enable --now akri-krustlet"), "{said}");
}
