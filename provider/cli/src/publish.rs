//! `push`, `pull` and `inspect`: modules to registries and back.

use crate::check::{Format, Inspected, as_json, print_description};
use crate::output::spinner;
use akri_krustlet_host::one_line;
use akri_krustlet_images::{
    Artifact, Credentials, CredentialsError, GarbageCollection, Image, ImagePolicy, Images, ImagesConfig,
    NodeCredentials, OciImageManifest, PushOptions, Reference, reference,
};
use akri_krustlet_runtime::needs::ABOUT;
use akri_krustlet_runtime::{Item, ModuleKind};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Letters of an annotation that are shown.
const MOST_SHOWN: usize = 200;
/// Largest module that is pulled, in bytes: as a node's default.
const MOST_MODULE: u64 = 256 << 20;

/// Push a module to a registry, as an image that nodes can pull (CNCF Wasm artifact). The same module makes the same digest.
#[derive(Debug, clap::Args)]
pub(crate) struct PushArguments {
    /// The module's file
    module: PathBuf,
    /// REGISTRY/NAME:TAG
    #[arg(value_name = "IMAGE", value_parser = image)]
    image: Reference,
    /// Another tag for it; may be given several times
    #[arg(long = "tag", value_name = "TAG", value_parser = tag)]
    tags: Vec<String>,
    /// An annotation of the image; may be given several times. Its handler's name and the file's name are there without
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Change no tag that is another image's
    #[arg(long)]
    no_clobber: bool,
    /// Format: `text` or `json`
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    registries: RegistryArguments,
}

/// Pull a module from a registry into a file.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArguments {
    /// REGISTRY/NAME:TAG, or with @DIGEST
    #[arg(value_name = "IMAGE", value_parser = image)]
    image: Reference,
    /// Where to write it [default: the image's name with .wasm, here]
    file: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Take the image only if this policy lets a node run it (`run --image-policy`)
    #[arg(long, env = "KRUSTLET_IMAGE_POLICY", value_name = "FILE")]
    image_policy: Option<PathBuf>,
    #[command(flatten)]
    registries: RegistryArguments,
}

/// Print what an image of a registry is: digest, annotations, and what the module in it says of itself and needs.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArguments {
    /// REGISTRY/NAME:TAG, or with @DIGEST
    #[arg(value_name = "IMAGE", value_parser = image)]
    image: Reference,
    /// Format: `text` or `json`
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Take the image only if this policy lets a node run it (`run --image-policy`)
    #[arg(long, env = "KRUSTLET_IMAGE_POLICY", value_name = "FILE")]
    image_policy: Option<PathBuf>,
    #[command(flatten)]
    registries: RegistryArguments,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArguments {
    /// Docker config.json with credentials [default: REGISTRY_AUTH_FILE, DOCKER_CONFIG/config.json, what `podman login` and
    /// `docker login` have written]
    #[arg(long, env = "KRUSTLET_REGISTRY_CREDENTIALS", value_name = "FILE")]
    registry_credentials: Option<PathBuf>,
    /// Registries (HOST or HOST:PORT) that are spoken to without TLS; those of this machine are if they have none
    #[arg(long, env = "KRUSTLET_INSECURE_REGISTRIES", value_name = "HOSTS", value_delimiter = ',')]
    insecure_registries: Vec<String>,
}

pub(crate) fn image(text: &str) -> Result<Reference, String> {
    let text = text.trim_start_matches("oci://");
    reference::parse(text).map_err(|error| format!("{error}; expected REGISTRY/REPOSITORY:TAG"))
}

fn tag(text: &str) -> Result<String, String> {
    let of_tag = reference::parse(&format!("registry.example/x:{text}")).map_err(|error| error.to_string())?;
    of_tag.tag().filter(|tag| *tag == text).map(str::to_owned).ok_or_else(|| format!("{text:?} is not a tag"))
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

impl RegistryArguments {
    pub(crate) fn credentials(&self) -> anyhow::Result<Credentials> {
        let named =
            self.registry_credentials.clone().or_else(|| std::env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from));
        let is_named = named.is_some();
        let Some(path) = named.or_else(login_file) else { return Ok(Credentials::default()) };
        let read = || Ok::<_, anyhow::Error>(std::fs::read(&path)?);
        let of_file = || format!("registry credentials {}", path.display());
        match Credentials::from_docker_config(&read().with_context(of_file)?) {
            // Nobody has named it, and what is public needs none.
            Err(error @ CredentialsError::Helper { .. }) if !is_named => {
                eprintln!("{}: {error}; going on without credentials", path.display());
                Ok(Credentials::default())
            }
            read => read.with_context(of_file),
        }
    }

    /// A store in `directory` that pulls as a node does.
    pub(crate) fn images(&self, directory: &Path, policy: Option<PathBuf>) -> anyhow::Result<Images> {
        let config = ImagesConfig {
            directory: directory.join("images"),
            insecure_registries: self.insecure_registries.clone(),
            credentials: NodeCredentials::default(),
            module_size_limit: MOST_MODULE,
            garbage_collection: GarbageCollection::default(),
            policy: policy.map(ImagePolicy::of_file).transpose().context("--image-policy")?.unwrap_or_default(),
        };
        Images::open(config).with_context(|| directory.display().to_string())
    }
}

/// Where tools that log in leave what they got.
fn login_file() -> Option<PathBuf> {
    let of = |name: &str, rest: &str| Some(PathBuf::from(std::env::var_os(name)?).join(rest));
    let of_user = std::env::home_dir().map(|home| home.join(".docker/config.json"));
    let files = [of("DOCKER_CONFIG", "config.json"), of("XDG_RUNTIME_DIR", "containers/auth.json"), of_user];
    files.into_iter().flatten().find(|path| path.exists())
}

pub(crate) fn wait<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

pub(crate) fn push(arguments: &PushArguments) -> anyhow::Result<()> {
    let PushArguments { module: path, image, tags, annotations, no_clobber, output, registries } = arguments;
    let credentials = registries.credentials()?;
    let module = Inspected::read(path)?;
    let names = |items: &[Item]| items.iter().map(|item| item.name.clone()).collect();
    let is_component = module.program.kind() == ModuleKind::Component;
    let artifact = Artifact {
        module: module.content.clone(),
        component: is_component.then(|| (names(&module.exports), names(&module.imports))),
        annotations: all_annotations(path, &module, annotations),
        created: created()?,
    };
    let options = PushOptions {
        tags: tags.clone(),
        insecure_registries: registries.insecure_registries.clone(),
        no_clobber: *no_clobber,
    };
    let progress = spinner(format!("pushing {}", image.whole()));
    let pushed = wait(akri_krustlet_images::push(image, &artifact, &credentials, &options))?;
    progress.finish_and_clear();
    let pushed = pushed.with_context(|| format!("{} is not pushed", path.display()))?;
    let name = format!("{}/{}", image.registry(), image.repository());
    let all: Vec<_> = [image.tag().unwrap_or("latest")].into_iter().chain(tags.iter().map(String::as_str)).collect();
    let id = format!("{name}@{}", pushed.digest);
    match output {
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(
                &json!({"image": id, "digest": pushed.digest, "tags": all, "sentBytes": pushed.sent})
            )?
        ),
        Format::Text => {
            println!("pushed        {}", all.iter().map(|tag| format!("{name}:{tag}")).collect::<Vec<_>>().join(", "));
            println!("image         {id}");
            println!("module        {}, {} bytes, {} sent", module.kind(), module.content.len(), pushed.sent);
        }
    }
    Ok(())
}

/// Those that were given, and what can be said without.
fn all_annotations(path: &Path, module: &Inspected, given: &[(String, String)]) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
        annotations.insert("org.opencontainers.image.title".to_owned(), name.to_owned());
    }
    if let Some(info) = &module.info {
        annotations.insert("akri-krustlet/handler".to_owned(), info.name.clone());
        annotations.insert("akri-krustlet/shared".to_owned(), info.shared.to_string());
    }
    // What its author says in it.
    let about = module.about();
    let said = ABOUT.iter().filter_map(|(name, key)| Some(((*key).to_owned(), about.get(name)?.clone())));
    annotations.extend(said);
    if let Some(needs) = module.needs() {
        annotations.insert("akri-krustlet/needs".to_owned(), json!(needs).to_string());
    }
    annotations.extend(given.iter().cloned());
    annotations
}

/// When images say that they were made: never, so that the same module is the same image, or when `SOURCE_DATE_EPOCH` says.
fn created() -> anyhow::Result<i64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text}: expected seconds since 1970")),
        Err(_) => Ok(0),
    }
}

/// Pulls an image into `images`: what it is, and its module's file.
pub(crate) async fn pulled(
    images: &Images,
    image: &Reference,
    credentials: &Credentials,
) -> anyhow::Result<(Image, PathBuf)> {
    images.pull(image, credentials).await.with_context(|| format!("image {}", image.whole()))
}

pub(crate) fn pull(arguments: &PullArguments) -> anyhow::Result<()> {
    let PullArguments { image, file, force, image_policy, registries } = arguments;
    let own_name = || image.repository().rsplit('/').next().unwrap_or("module").to_owned();
    let file = file.clone().unwrap_or_else(|| PathBuf::from(format!("{}.wasm", own_name())));
    if file.exists() && !force {
        bail!("{} is there already; name another file, or replace it with --force", file.display());
    }
    let credentials = registries.credentials()?;
    let scratch = tempfile::tempdir().context("no temporary directory to pull into")?;
    let images = registries.images(scratch.path(), image_policy.clone())?;
    let progress = spinner(format!("pulling {}", image.whole()));
    let pulled = wait(pulled(&images, image, &credentials))?;
    progress.finish_and_clear();
    let (found, module) = pulled?;
    // In whole, or not at all.
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || -> std::io::Result<u64> {
        let mut staged = tempfile::NamedTempFile::new_in(directory)?;
        let bytes = std::io::copy(&mut std::fs::File::open(&module)?, &mut staged)?;
        use std::os::unix::fs::PermissionsExt as _;
        staged.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        staged.as_file().sync_all()?;
        staged.persist(&file)?;
        Ok(bytes)
    };
    let bytes = written().with_context(|| file.display().to_string())?;
    println!("image         {}", found.id);
    println!("module        {}, {bytes} bytes, in {}", found.module, file.display());
    Ok(())
}

pub(crate) fn inspect(arguments: &InspectArguments) -> anyhow::Result<()> {
    let InspectArguments { image, output, image_policy, registries } = arguments;
    let credentials = registries.credentials()?;
    let scratch = tempfile::tempdir().context("no temporary directory to pull into")?;
    let images = registries.images(scratch.path(), image_policy.clone())?;
    let progress = spinner(format!("pulling {}", image.whole()));
    let found = wait(async {
        // By the name that pods have.
        images.check_name(image).await.with_context(|| format!("image {}", image.whole()))?;
        let (digest, manifest) =
            images.manifest(image, &credentials).await.with_context(|| format!("image {}", image.whole()))?;
        // The same one, whatever the tag is meanwhile.
        let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
        let same = Reference::with_digest(registry, repository, digest);
        Ok::<_, anyhow::Error>((manifest, pulled(&images, &same, &credentials).await?))
    })?;
    progress.finish_and_clear();
    let (manifest, (found, file)) = found?;
    let module = Inspected::read(&file).map_err(|error| anyhow::anyhow!("the module of {}: {error:#}", found.id))?;
    match output {
        Format::Json => {
            let mut described = as_json(&module);
            described["image"] = json!(found.id);
            described["annotations"] = json!(manifest.annotations.clone().unwrap_or_default());
            described["layers"] = layers(&manifest);
            println!("{}", serde_json::to_string_pretty(&described)?);
        }
        Format::Text => {
            println!("image         {}", found.id);
            for (number, (key, value)) in manifest.annotations.iter().flatten().enumerate() {
                let line = one_line(&format!("{key}={value}"), MOST_SHOWN);
                println!("{:13} {line}", if number == 0 { "annotations" } else { "" });
            }
            println!("module        {}, {} bytes", module.program.digest(), module.content.len());
            print_description(&module);
        }
    }
    Ok(())
}

fn layers(manifest: &OciImageManifest) -> Value {
    let layer = |layer: &akri_krustlet_images::OciDescriptor| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size});
    manifest.layers.iter().map(layer).collect()
}
