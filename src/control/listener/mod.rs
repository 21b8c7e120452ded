//! The control socket: HTTP/1.1 with JSON on Unix sockets, one for everything and one for reading.
//!
//! In: requests, and the peer's user and groups as the kernel says them. Out: answers of `crate::verbs`, and
//! for every error the same JSON body. A peer is trusted with nothing but these: headers, bodies,
//! lines, connections and waiting all have a ceiling here. May not enter: what a verb means, SQL,
//! paths that a client named.
//!
//! The HTTP layer itself answers a head that it cannot read (over 128 KiB: 431, malformed: 400) with an
//! empty body, before any code of ours runs.

pub mod answer;
mod bind;
mod body;
pub(crate) mod intake;
mod lines;
mod peer;
#[cfg(test)]
mod tests;
mod unread;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, Service};
use actix_web::http::{Method, header};
use actix_web::middleware::DefaultHeaders;
use actix_web::{App, HttpRequest, HttpServer, web};
use rlhfd_protocol::control::VERSION_HEADER;

pub use answer::{Answer, Refusal};
pub use bind::{BindError, Listeners, SocketFiles, bind};
pub use body::{drain, json};
pub(crate) use lines::{Cutter, Pieces};
pub use peer::{Peer, Right};

use self::unread::Unread;
use crate::handles::AppState;
use crate::verbs;

/// What all peers together may take, and how long each may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections at once. More wait in the kernel's queue.
    connections: usize,
    /// How long a peer may take for a request's head.
    head: Duration,
    /// How long an idle connection stays.
    keep_alive: Duration,
    /// KiB of answers that are not read yet.
    unread_kib: u32,
    /// How long a peer may read nothing of its answer.
    unread: Duration,
}

impl Limits {
    const OURS: Self = Self {
        connections: 512,
        head: Duration::from_secs(10),
        keep_alive: Duration::from_secs(75),
        unread_kib: 64 << 10,
        unread: Duration::from_secs(60),
    };
}

/// How long a peer may take to leave, once told.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long running requests may take to end when the daemon stops. Streams end at once by themselves.
pub(crate) const STOP_TIMEOUT_S: u64 = 5;

/// The threads of this room's blocking pool, beyond which reads wait.
const BLOCKING_THREADS_MAX: usize = 16;

/// Serves on the listeners until the server is stopped by its handle. The socket files stay in place
/// until [`SocketFiles`] is dropped.
///
/// Errors: the system's, where a listener cannot be taken over.
pub fn serve(app: AppState, listeners: Listeners) -> io::Result<Server> {
    serve_within(app, listeners, Limits::OURS)
}

pub(crate) fn serve_within(
    app: AppState,
    listeners: Listeners,
    limits: Limits,
) -> io::Result<Server> {
    let unread = Unread::new(limits.unread_kib, limits.unread);
    let readers_path: Option<Arc<std::path::Path>> = listeners.readers_path().map(Arc::from);
    let shared = web::Data::new(verbs::Shared::new(app));
    let mut server = HttpServer::new(move || {
        let (shared, version) = (shared.clone(), env!("CARGO_PKG_VERSION"));
        let unread = unread.clone();
        App::new()
            .app_data(shared)
            .app_data(answer::query_config())
            .app_data(answer::path_config())
            .wrap(DefaultHeaders::new().add((VERSION_HEADER, version)))
            .wrap_fn(move |request, service| {
                let unread = unread.clone();
                let refusal = refuse_early(request.request());
                let answer = match refusal {
                    None => Ok(service.call(request)),
                    Some(refusal) => Err(request.into_response(refusal.into_answer())),
                };
                async move {
                    match answer {
                        Ok(answer) => answer.await.map(|answer| unread.hold(answer)),
                        Err(refused) => Ok(refused),
                    }
                }
            })
            .configure(verbs::routes)
            .default_service(web::route().to(no_such_route))
    })
    .workers(1)
    .worker_max_blocking_threads(BLOCKING_THREADS_MAX)
    .max_connections(limits.connections)
    .keep_alive(limits.keep_alive)
    .client_request_timeout(limits.head)
    .client_disconnect_timeout(LEAVE_TIMEOUT)
    .shutdown_timeout(STOP_TIMEOUT_S)
    .disable_signals()
    .on_connect(move |io, extensions| peer::on_connect(io, extensions, readers_path.as_deref()));
    for listener in listeners.into_inner() {
        server = server.listen_uds(listener)?;
    }
    Ok(server.run())
}

/// What is refused before a verb sees it: a peer without any right, a write on the readers' socket, and
/// bodies in an encoding that nobody here reads.
fn refuse_early(request: &HttpRequest) -> Option<Refusal> {
    let peer = Peer::of(request);
    if peer.right == Right::Nothing {
        return Some(Refusal::new(
            403,
            "this user may not use the daemon",
            peer.uid.map_or("a peer of whom the kernel says nothing".to_owned(), |uid| {
                format!("user {uid}")
            }),
            "become a member of the group that the socket's file has (`ls -l` shows it), and log in anew",
        ));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if peer.right == Right::Look && !reads && request.path() != "/v1/sql" {
        return Some(Refusal::new(
            403,
            "this socket is for reading: it takes GET, and POST of /v1/sql",
            format!("{} {}", request.method(), request.path()),
            "use the daemon's main socket (it needs the right to open it)",
        ));
    }
    let encoding = request.headers().get(header::CONTENT_ENCODING)?;
    if encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
        return None;
    }
    Some(Refusal::new(
        415,
        "the body is compressed, which the daemon does not read",
        "the header Content-Encoding",
        "send it plain; the socket is local",
    ))
}

async fn no_such_route(request: HttpRequest) -> Refusal {
    let shown: String = request.path().chars().take(200).collect();
    Refusal::new(404, "there is no such thing", shown, "`GET /v1` lists what there is")
}
