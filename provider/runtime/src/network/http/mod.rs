//! Requests by `wasi:http`: wasmtime-wasi-http has the resources; here they are held to a [`NetworkAccess`], bounded, and sent.

mod body;
mod pace;
mod send;
mod tls;
mod worlds;

use super::access::NetworkAccess;
use super::sockets::{SOCKETS, Store};
use crate::component::{ComponentState, WASI};
use crate::world::World;
use ::http::Request;
use std::io::{Error as IoError, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::Result;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Method, Scheme};
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks, WasiHttpView,
};

/// Longest part of a request's URL, in bytes, and longest name of a method or a scheme: a guest keeps 256 of each.
const MOST_URL: usize = 8 << 10;
const MOST_WORD: usize = 64;
/// Bytes of one header or trailer section that a guest writes.
const FIELDS: usize = 16 << 10;
/// Bytes of a request's body that a guest may write at once, and how often before some of it has been sent.
const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 4;
/// How long a request waits for its turn.
const TURN: Duration = Duration::from_millis(200);
/// Headers by which some servers take a request for one of another URL than the one that was checked.
const OTHER_URLS: [&str; 2] = ["x-original-url", "x-rewrite-url"];

/// The requests of one guest.
pub(crate) struct Requests {
    ctx: WasiHttpCtx,
    hooks: Hooks,
}

impl Requests {
    pub(crate) fn new(access: Option<Arc<NetworkAccess>>, world: World) -> Self {
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(FIELDS);
        Self { ctx, hooks: Hooks { access, open: Arc::new(Semaphore::new(SOCKETS)), world } }
    }

    pub(crate) fn view<'a>(&'a mut self, table: &'a mut ResourceTable) -> WasiHttpCtxView<'a> {
        WasiHttpCtxView { hooks: &mut self.hooks, table, ctx: &mut self.ctx }
    }
}

struct Hooks {
    access: Option<Arc<NetworkAccess>>,
    /// Connections that it may have yet.
    open: Arc<Semaphore>,
    world: World,
}

/// What goes on while a response is read.
type Rest = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(::http::Response<WasiBody>, Rest), Error>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _body_is_read: Rest,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let access = self.access.clone();
        let open = self.open.clone();
        let recorder = match &self.world {
            World::Machine => None,
            World::Recorded(recorder) => Some(recorder.clone()),
            World::Replayed(replay) => return Box::new(worlds::replayed(replay.clone(), request)),
        };
        Box::new(async move {
            let (request, recording) = match recorder {
                Some(recorder) => worlds::asked(recorder, request),
                None => (request, None),
            };
            worlds::answered(recording, async move {
                // Without an access there are no grants, as for a component that describes itself.
                let access = access.ok_or(Error::HttpRequestDenied)?;
                // A request that was given up a moment ago may not have left its place yet.
                let turn = tokio::time::timeout(TURN, open.acquire_owned()).await;
                let turn = turn.ok().and_then(Result::ok).ok_or(Error::ConnectionLimitReached)?;
                send::send(access, Arc::new(turn), request, options.unwrap_or_default()).await
            })
            .await
        })
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name) || OTHER_URLS.contains(&name.as_str()))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        CHUNKS
    }

    // What fails is the guest's affair: nothing is written into the node's log.
    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        match error {
            error if error.is_parse() => ErrorCode::HttpProtocolError,
            error if error.is_timeout() => ErrorCode::HttpResponseTimeout,
            error if error.is_incomplete_message() => ErrorCode::HttpResponseIncomplete,
            _ => ErrorCode::ConnectionTerminated,
        }
    }

    fn p2_error_from_connect(&mut self, error: &IoError) -> ErrorCode {
        match error.kind() {
            ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
            ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => ErrorCode::ConnectionTerminated,
            _ => ErrorCode::DestinationUnavailable,
        }
    }

    fn p2_error_from_tls(&mut self, error: &IoError) -> ErrorCode {
        match tls::is_about_certificates(error) {
            true => ErrorCode::TlsCertificateError,
            false => ErrorCode::TlsProtocolError,
        }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.requests()
    }
}

/// `wasi:http`, with bounds where it has none.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    let mut types = linker.instance(&format!("wasi:http/types@{WASI}"))?;
    type Of = Resource<HostOutgoingRequest>;
    type Set = std::result::Result<(), ()>;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: Store<'_>, (request, method): (Of, Method)| {
            let set: Set = match &method {
                Method::Other(name)
                    if name.len() > MOST_WORD || ::http::Method::from_bytes(name.as_bytes()).is_err() =>
                {
                    Err(())
                }
                _ => {
                    store.data_mut().table().get_mut(&request)?.method = method;
                    Ok(())
                }
            };
            Ok((set,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-scheme",
        |mut store: Store<'_>, (request, scheme): (Of, Option<Scheme>)| {
            let set: Set = match &scheme {
                // The node sends http and https.
                Some(Scheme::Other(_)) => Err(()),
                _ => {
                    store.data_mut().table().get_mut(&request)?.scheme = scheme;
                    Ok(())
                }
            };
            Ok((set,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: Store<'_>, (request, authority): (Of, Option<String>)| {
            let is_authority = |text: &String| text.len() <= MOST_URL && text.parse::<::http::uri::Authority>().is_ok();
            let set: Set = if authority.as_ref().is_none_or(is_authority) {
                store.data_mut().table().get_mut(&request)?.authority = authority;
                Ok(())
            } else {
                Err(())
            };
            Ok((set,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: Store<'_>, (request, path): (Of, Option<String>)| {
            let is_path = |text: &String| {
                text.is_empty() || text.len() <= MOST_URL && text.parse::<::http::uri::PathAndQuery>().is_ok()
            };
            let set: Set = if path.as_ref().is_none_or(is_path) {
                store.data_mut().table().get_mut(&request)?.path_with_query = path;
                Ok(())
            } else {
                Err(())
            };
            Ok((set,))
        },
    )?;
    let mut handler = linker.instance(&format!("wasi:http/outgoing-handler@{WASI}"))?;
    type Asked = (Of, Option<Resource<RequestOptions>>);
    handler.func_wrap("handle", |mut store: Store<'_>, (request, options): Asked| {
        // A URL without a path means this one.
        let path = &mut store.data_mut().table().get_mut(&request)?.path_with_query;
        if path.as_deref().is_none_or(str::is_empty) {
            *path = Some("/".to_owned());
        }
        // The crate reads the options and leaves them in the table, though they are given away.
        let options = options.map(|options| options.rep());
        let borrowed = options.map(Resource::new_borrow);
        let handled = outgoing_handler::Host::handle(&mut store.data_mut().requests(), request, borrowed);
        if let Some(rep) = options {
            store.data_mut().table().delete(Resource::<RequestOptions>::new_own(rep))?;
        }
        Ok((match handled {
            Ok(answer) => Ok(answer),
            Err(error) => Err(error.downcast()?),
        },))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}
