//! The files of components, in the directories that they are given: wasmtime-wasi's, with what it leaves unbounded bounded here.
//!
//! - A listing is read a piece at a time, where wasmtime-wasi's own takes a directory of any size into the host's memory.
//! - What is done on threads that may block is paid by the guest, and its container has a few such calls under way at most. FIFOs,
//!   sockets and devices cannot be opened.

use super::{ComponentState, WASI, returned};
use crate::cpu::thread_cpu_time;
use crate::directories::{self, Entry};
use crate::limits::SharedLimits;
use crate::preopen::descriptor_path;
use crate::wasi::{PaidCall, price_of};
use rustix::fs::FileType;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorType, DirectoryEntry, DirectoryEntryStream, ErrorCode, HostDescriptor, NewTimestamp,
    OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsResult, InputStream, OutputStream, Pollable, StreamError};

type Store<'a> = StoreContextMut<'a, ComponentState>;

/// Puts the functions of this module before wasmtime-wasi's.
pub(super) fn add_to_linker(linker: &mut Linker<ComponentState>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(&format!("wasi:filesystem/types@{WASI}"))?;
    add_listings(&mut types)?;
    add_calls(&mut types)?;
    add_streams(&mut types)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A directory that is being listed. It stands in the guest's table where wasmtime-wasi's iterator would.
struct Listing {
    directory: Arc<OwnedFd>,
    /// Where the next piece begins.
    cookie: u64,
    entries: VecDeque<Entry>,
    is_last: bool,
}

/// What is read of a directory at once, in bytes.
const PIECE: usize = 16 << 10;

fn add_listings(types: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    let listing = ResourceType::host::<DirectoryEntryStream>();
    types.resource("directory-entry-stream", listing, |mut store, number| {
        store.data_mut().table.delete(Resource::<Listing>::new_own(number))?;
        Ok(())
    })?;
    types.func_wrap_async(
        "[method]descriptor.read-directory",
        |mut store: Store<'_>, (directory,): (Resource<Descriptor>,)| {
            Box::new(async move {
                let directory = match store.data_mut().table.get(&directory)? {
                    Descriptor::Dir(directory) => directory.dir.clone(),
                    Descriptor::File(_) => return Ok((Err(ErrorCode::NotDirectory),)),
                };
                if let Some(recorder) = store.data().world.recorder()
                    && let Some(path) = path_of(&*directory)
                {
                    recorder.listed(&path);
                }
                // Of its own, for it has a place in the listing.
                let opened = blocking(&mut store, move || directories::open_again(&directory)).await?;
                let listing = match opened {
                    Ok(directory) => {
                        Listing { directory: Arc::new(directory), cookie: 0, entries: VecDeque::new(), is_last: false }
                    }
                    Err(error) => return Ok((Err(error_code(error)),)),
                };
                let number = store.data_mut().table.push(listing)?.rep();
                Ok((Ok(Resource::<DirectoryEntryStream>::new_own(number)),))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: Store<'_>, (stream,): (Resource<DirectoryEntryStream>,)| {
            Box::new(async move {
                let listing = Resource::<Listing>::new_borrow(stream.rep());
                loop {
                    let of_guest = store.data_mut().table.get_mut(&listing)?;
                    if let Some(entry) = of_guest.entries.pop_front() {
                        return Ok((Ok(Some(as_wit(entry))),));
                    }
                    if of_guest.is_last {
                        return Ok((Ok(None),));
                    }
                    let (directory, cookie) = (of_guest.directory.clone(), of_guest.cookie);
                    let piece = blocking(&mut store, move || directories::entries(&directory, cookie, PIECE)).await?;
                    let piece = match piece {
                        Ok(piece) => piece,
                        Err(error) => return Ok((Err(error_code(error)),)),
                    };
                    let of_guest = store.data_mut().table.get_mut(&listing)?;
                    of_guest.cookie = piece.next;
                    of_guest.is_last = piece.is_last;
                    of_guest.entries.extend(piece.entries.into_iter().filter(|entry| !is_dots(&entry.name)));
                }
            })
        },
    )
}

fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

/// Work on a thread that may block, whose CPU time the guest pays.
async fn blocking<T: Send + 'static>(store: &mut Store<'_>, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let call = paid(store).await;
    let timed = move || {
        let before = thread_cpu_time();
        (work(), thread_cpu_time().saturating_sub(before))
    };
    let (result, time) = tokio::task::spawn_blocking(timed).await?;
    call.took(time);
    Ok(result)
}

fn as_wit(entry: Entry) -> DirectoryEntry {
    let type_ = match entry.kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Unknown => DescriptorType::Unknown,
    };
    DirectoryEntry { type_, name: entry.name }
}

fn error_code(error: rustix::io::Errno) -> ErrorCode {
    match error {
        rustix::io::Errno::NOENT => ErrorCode::NoEntry,
        rustix::io::Errno::ACCESS => ErrorCode::Access,
        rustix::io::Errno::INVAL => ErrorCode::Invalid,
        _ => ErrorCode::Io,
    }
}

/// Functions of a descriptor, done by wasmtime-wasi, that the guest pays.
macro_rules! paid_calls {
    ($types:ident: $($name:literal $method:ident($($argument:ident: $of:ty),*)$( looks at $looked:ident)?;)*) => {$(
        $types.func_wrap_async(
            concat!("[method]descriptor.", $name),
            |mut store: Store<'_>, (descriptor, $($argument,)*): (Resource<Descriptor>, $($of,)*)| {
                Box::new(async move {
                    let call = paid(&store).await;
                    $(looked(&mut store, &descriptor, &$looked, false);)?
                    let mut files = store.data_mut().filesystem();
                    let done = HostDescriptor::$method(&mut files, descriptor, $($argument),*).await;
                    call.ended(0);
                    returned(done)
                })
            },
        )?;
    )*};
}

fn add_calls(types: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    paid_calls! { types:
        "sync-data" sync_data();
        "sync" sync();
        "get-type" get_type();
        "set-size" set_size(size: u64);
        "set-times" set_times(accessed: NewTimestamp, modified: NewTimestamp);
        "stat" stat();
        "stat-at" stat_at(flags: PathFlags, path: String) looks at path;
        "set-times-at" set_times_at(flags: PathFlags, path: String, accessed: NewTimestamp, modified: NewTimestamp);
        "create-directory-at" create_directory_at(path: String);
        "link-at" link_at(flags: PathFlags, path: String, to: Resource<Descriptor>, new_path: String);
        "readlink-at" readlink_at(path: String) looks at path;
        "remove-directory-at" remove_directory_at(path: String);
        "rename-at" rename_at(path: String, to: Resource<Descriptor>, new_path: String);
        "symlink-at" symlink_at(path: String, new_path: String);
        "unlink-file-at" unlink_file_at(path: String);
        "metadata-hash" metadata_hash();
        "metadata-hash-at" metadata_hash_at(flags: PathFlags, path: String);
    }
    types.func_wrap_async(
        "[method]descriptor.read",
        |mut store: Store<'_>, (file, length, offset): (Resource<Descriptor>, u64, u64)| {
            Box::new(async move {
                let call = paid(&store).await;
                let read = HostDescriptor::read(&mut store.data_mut().filesystem(), file, length, offset).await;
                call.ended(read.as_ref().map_or(0, |(bytes, _)| bytes.len()));
                returned(read)
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.write",
        |mut store: Store<'_>, (file, bytes, offset): (Resource<Descriptor>, Vec<u8>, u64)| {
            Box::new(async move {
                let (call, length) = (paid(&store).await, bytes.len());
                let written = HostDescriptor::write(&mut store.data_mut().filesystem(), file, bytes, offset).await;
                call.ended(length);
                returned(written)
            })
        },
    )?;
    type Open = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: Store<'_>, (directory, flags, path, how, mode): Open| {
            Box::new(async move {
                let call = paid(&store).await;
                looked(&mut store, &directory, &path, true);
                let mut files = store.data_mut().filesystem();
                // What waits for somebody else as soon as it is opened is not for guests.
                let above = Resource::new_borrow(directory.rep());
                let stat = HostDescriptor::stat_at(&mut files, above, flags, path.clone()).await;
                let waits = stat.is_ok_and(|stat| !WHOLE.contains(&stat.type_));
                let opened = match waits {
                    true => Err(ErrorCode::NotPermitted.into()),
                    false => HostDescriptor::open_at(&mut files, directory, flags, path, how, mode).await,
                };
                call.ended(0);
                returned(opened)
            })
        },
    )
}

/// Where an open directory is.
fn path_of(directory: &impl AsFd) -> Option<PathBuf> {
    std::fs::read_link(descriptor_path(directory)).ok()
}

/// The guest looks at a path in a directory: whoever records it does, too.
fn looked(store: &mut Store<'_>, directory: &Resource<Descriptor>, path: &str, opened: bool) {
    let Some(recorder) = store.data().world.recorder().cloned() else { return };
    let directory = match store.data_mut().table.get(directory) {
        Ok(Descriptor::Dir(directory)) => path_of(&*directory.dir),
        _ => None,
    };
    if let Some(directory) = directory {
        recorder.looked(&directory.join(path), opened);
    }
}

/// What can be opened; links are for who does not follow them, which is refused then as ever.
const WHOLE: [DescriptorType; 3] =
    [DescriptorType::RegularFile, DescriptorType::Directory, DescriptorType::SymbolicLink];

fn paid(store: &Store<'_>) -> impl Future<Output = PaidCall> + Send + use<> {
    PaidCall::begin(store.data().limiter.container().clone())
}

fn add_streams(types: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    types.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut store: Store<'_>, (file, offset): (Resource<Descriptor>, u64)| {
            let opened = HostDescriptor::read_via_stream(&mut store.data_mut().filesystem(), file, offset);
            returned(opened.and_then(|stream| -> FsResult<Resource<DynInputStream>> {
                let limits = store.data().limiter.container().clone();
                let inner = store.data_mut().table.get_mut(&stream)?;
                let file = std::mem::replace(inner, Box::new(wasmtime_wasi::p2::pipe::ClosedInputStream));
                *inner = Box::new(PaidStream { inner: file, limits, call: None });
                Ok(stream)
            }))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store: Store<'_>, (file, offset): (Resource<Descriptor>, u64)| {
            let opened = HostDescriptor::write_via_stream(&mut store.data_mut().filesystem(), file, offset);
            returned(opened.and_then(|stream| paid_output(&mut store, stream)))
        },
    )?;
    types.func_wrap("[method]descriptor.append-via-stream", |mut store: Store<'_>, (file,): (Resource<Descriptor>,)| {
        let opened = HostDescriptor::append_via_stream(&mut store.data_mut().filesystem(), file);
        returned(opened.and_then(|stream| paid_output(&mut store, stream)))
    })
}

fn paid_output(store: &mut Store<'_>, stream: Resource<DynOutputStream>) -> FsResult<Resource<DynOutputStream>> {
    let limits = store.data().limiter.container().clone();
    let inner = store.data_mut().table.get_mut(&stream)?;
    let file = std::mem::replace(inner, Box::new(wasmtime_wasi::p2::pipe::SinkOutputStream));
    *inner = Box::new(PaidStream { inner: file, limits, call: None });
    Ok(stream)
}

/// A stream of a file, whose guest pays for what is read and written. wasmtime-wasi has one read or write of it under way, for
/// which its container has to have a place.
struct PaidStream<S> {
    inner: S,
    limits: Arc<SharedLimits>,
    call: Option<PaidCall>,
}

impl<S> PaidStream<S> {
    /// Whether there is a place.
    fn begin(&mut self) -> bool {
        if self.call.is_none() {
            self.call = PaidCall::try_begin(self.limits.clone());
        }
        self.call.is_some()
    }

    fn ended(&mut self, bytes: usize) {
        if let Some(call) = self.call.take() {
            call.ended(bytes);
        }
    }
}

#[async_trait::async_trait]
impl Pollable for PaidStream<DynInputStream> {
    async fn ready(&mut self) {
        if self.call.is_none() {
            self.call = Some(PaidCall::begin(self.limits.clone()).await);
        }
        self.inner.ready().await;
        self.ended(0);
    }
}

#[async_trait::async_trait]
impl InputStream for PaidStream<DynInputStream> {
    fn read(&mut self, size: usize) -> std::result::Result<bytes::Bytes, StreamError> {
        if !self.begin() {
            return Ok(bytes::Bytes::new());
        }
        let read = self.inner.read(size);
        // Without anything it goes on.
        match &read {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => self.ended(bytes.len()),
            Err(_) => self.ended(0),
        }
        read
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
        self.ended(0);
    }
}

#[async_trait::async_trait]
impl Pollable for PaidStream<DynOutputStream> {
    async fn ready(&mut self) {
        self.inner.ready().await;
        self.ended(0);
    }
}

#[async_trait::async_trait]
impl OutputStream for PaidStream<DynOutputStream> {
    fn write(&mut self, bytes: bytes::Bytes) -> std::result::Result<(), StreamError> {
        self.begin();
        self.limits.owe(price_of(bytes.len()));
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> std::result::Result<(), StreamError> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> std::result::Result<usize, StreamError> {
        let free = self.inner.check_write();
        if !matches!(free, Ok(0)) {
            // What was written before is.
            self.ended(0);
        }
        free
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
        self.ended(0);
    }
}
