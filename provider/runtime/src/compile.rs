//! Compiling in a child process.
//!
//! Compilation is the one step where a hostile module can make the engine work for as long and with as much memory as it
//! likes, so it runs in a child of the same binary: `<program> <arguments> <output file> <memory> <seconds>`, the module
//! on standard input. The child limits itself before it reads the first byte ([`child_main`]); the parent bounds the
//! wall time. It also keeps Cranelift's memory (about 20 MB) out of the node.

use crate::engine::{self, Counting};
use crate::module::{ModuleKind, NotWasm};
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// The child's last argument, if the code is to count what it does.
const COUNT: &str = "count-fuel";

/// What compiling one module may use.
#[derive(Clone, Copy, Debug)]
pub struct CompileLimits {
    /// Largest module, in bytes. Default 64 MiB.
    pub module_size: u64,
    /// Address space of the child, in bytes. Default 2 GiB.
    pub memory: u64,
    /// CPU time of the child, in whole seconds. Default 60.
    pub cpu_seconds: u64,
    /// The part of it that most modules need; one that needs more begins anew, and then only its like wait for it. Default 5.
    pub ordinary_cpu_seconds: u64,
    /// Wall time of the child. Default 120 seconds.
    pub wall_time: Duration,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            module_size: 64 << 20,
            memory: 2 << 30,
            cpu_seconds: 60,
            ordinary_cpu_seconds: 5,
            wall_time: Duration::from_secs(120),
        }
    }
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The bytes are no WebAssembly.
    #[error(transparent)]
    NotWasm(#[from] NotWasm),
    /// The file is larger than [`CompileLimits::module_size`].
    #[error("the module has {size} bytes, the node takes {limit} at most")]
    TooLarge {
        /// Bytes of the module.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The compiler refused it: truncated, malformed, or using a feature that the engine does not have.
    #[error("the module is not valid: {0}")]
    Invalid(String),
    /// The result could not be kept, or the module not be read.
    #[error("cannot compile the module here: {0}")]
    Host(String),
    /// The child went over one of its limits.
    #[error("compiling the module took more than the node allows ({0}); is it a compile bomb?")]
    Limit(String),
    /// The child could not be run.
    #[error("cannot run the compiler {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// How to run the compile child.
#[derive(Clone, Debug)]
pub struct Compiler {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// What one run may use.
    pub limits: CompileLimits,
    /// What the code does besides.
    pub counting: Counting,
}

/// Exit code of the child for a module that the compiler refused; its message is on standard error.
const EXIT_INVALID: i32 = 65;
/// Exit code of the child for what is not the module's fault.
const EXIT_HOST: i32 = 74;

impl Compiler {
    /// A compiler that runs `program` with `arguments`, whose `main` calls [`child_main`] with what follows them.
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            limits: CompileLimits::default(),
            counting: Counting::default(),
        }
    }

    /// Checks size and header: what can be said without compiling.
    pub fn inspect(&self, module: &[u8]) -> Result<ModuleKind, CompileError> {
        let size = module.len() as u64;
        if size > self.limits.module_size {
            return Err(CompileError::TooLarge { size, limit: self.limits.module_size });
        }
        Ok(ModuleKind::of(module)?)
    }

    /// Compiles `module` into the file `output`.
    pub async fn compile(&self, module: &[u8], output: &Path) -> Result<(), CompileError> {
        self.inspect(module)?;
        let spawn = |source| CompileError::Spawn { program: self.program.clone(), source };
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .arg(output)
            .arg(self.limits.memory.to_string())
            .arg(self.limits.cpu_seconds.to_string())
            .args((self.counting == Counting::Fuel).then_some(COUNT))
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn)?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // The child may stop reading at any time; its exit tells why.
                let _ = stdin.write_all(module).await;
            }
        };
        let run = async { tokio::join!(feed, child.wait_with_output()).1 };
        let Ok(output) = tokio::time::timeout(self.limits.wall_time, run).await else {
            return Err(CompileError::Limit(format!("{} s", self.limits.wall_time.as_secs())));
        };
        let output = output.map_err(spawn)?;
        match output.status.code() {
            Some(0) => Ok(()),
            Some(EXIT_HOST) => Err(CompileError::Host(first_lines(&output.stderr))),
            Some(EXIT_INVALID) => Err(CompileError::Invalid(first_lines(&output.stderr))),
            _ => Err(CompileError::Limit(format!(
                "{} s of CPU time, {} MiB of memory; the compiler ended with {}",
                self.limits.cpu_seconds,
                self.limits.memory >> 20,
                output.status,
            ))),
        }
    }
}

fn first_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(&stderr[..stderr.len().min(2000)]).trim().to_owned();
    if text.is_empty() { "the compiler gave no reason".to_owned() } else { text }
}

/// The child's side: `arguments` are the output file, the memory in bytes and the CPU time in seconds. Never returns.
pub fn child_main(arguments: impl Iterator<Item = OsString>) -> ! {
    let code = match compile_from_stdin(&arguments.collect::<Vec<_>>()) {
        Ok(()) => 0,
        Err((code, message)) => {
            eprintln!("{message}");
            code
        }
    };
    std::process::exit(code)
}

/// An error is an exit code and its reason.
fn compile_from_stdin(arguments: &[OsString]) -> Result<(), (i32, String)> {
    let host = |message: String| (EXIT_HOST, message);
    let invalid = |message: String| (EXIT_INVALID, message);
    let (output, memory, seconds, counting) = match arguments {
        [output, memory, seconds] => (output, memory, seconds, Counting::No),
        [output, memory, seconds, count] if count == COUNT => (output, memory, seconds, Counting::Fuel),
        _ => {
            return Err(host(format!("usage: compile-module OUTPUT MEMORY-BYTES CPU-SECONDS [{COUNT}] < module")));
        }
    };
    let number = |text: &OsString| {
        text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| host(format!("not a number: {text:?}")))
    };
    limit_self(number(memory)?, number(seconds)?)
        .map_err(|error| host(format!("cannot limit the compiler: {error}")))?;
    let mut module = Vec::new();
    std::io::stdin().read_to_end(&mut module).map_err(|error| host(format!("reading the module: {error}")))?;
    let engine = engine::of(counting).map_err(|error| host(format!("{error:#}")))?;
    let compiled = match ModuleKind::of(&module).map_err(|error| invalid(error.to_string()))? {
        ModuleKind::Module => engine.precompile_module(&module),
        ModuleKind::Component => engine.precompile_component(&module),
    }
    .map_err(|error| invalid(format!("{error:#}")))?;
    std::fs::write(output, compiled).map_err(|error| host(format!("writing {}: {error}", Path::new(output).display())))
}

fn limit_self(memory: u64, cpu_seconds: u64) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let both = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::As, both(memory))?;
    setrlimit(Resource::Cpu, both(cpu_seconds))?;
    setrlimit(Resource::Core, both(0))
}
