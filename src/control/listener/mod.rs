//! The control socket: HTTP/1.1 with JSON on Unix sockets, one for everything and one for reading.
//!
//! In: requests, and the peer's user id as the kernel says it. Out: answers of `crate::verbs`, and for
//! every error the same JSON body. A peer is trusted with nothing but its user id: headers, bodies,
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
pub use peer::Peer;

use crate::handles::AppState;
use crate::verbs;

/// Connections at once. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;

/// How long a peer may take for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take to leave, once told.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an idle connection stays.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long running requests may take to end when the daemon stops. Streams end at once by themselves.
const STOP_TIMEOUT_S: u64 = 5;

/// The threads of this room's blocking pool, beyond which reads wait.
const BLOCKING_THREADS_MAX: usize = 16;

/// Serves on the listeners until the server is stopped by its handle. The socket files stay in place
/// until [`SocketFiles`] is dropped.
///
/// Errors: the system's, where a listener cannot be taken over.
pub fn serve(app: AppState, listeners: Listeners) -> io::Result<Server> {
    let readers_path: Option<Arc<std::path::Path>> = listeners.readers_path().map(Arc::from);
    let shared = web::Data::new(verbs::Shared::new(app));
    let mut server = HttpServer::new(move || {
        let (shared, version) = (shared.clone(), env!("CARGO_PKG_VERSION"));
        App::new()
            .app_data(shared)
            .app_data(answer::query_config())
            .app_data(answer::path_config())
            .wrap(DefaultHeaders::new().add((VERSION_HEADER, version)))
            .wrap_fn(|request, service| {
                let refusal = refuse_early(request.request());
                let answer = match refusal {
                    None => Ok(service.call(request)),
                    Some(refusal) => Err(request.into_response(refusal.into_answer())),
                };
                async move {
                    match answer {
                        Ok(answer) => answer.await,
                        Err(refused) => Ok(refused),
                    }
                }
            })
            .configure(verbs::routes)
            .default_service(web::route().to(no_such_route))
    })
    .workers(1)
    .worker_max_blocking_threads(BLOCKING_THREADS_MAX)
    .max_connections(CONNECTIONS_MAX)
    .keep_alive(KEEP_ALIVE)
    .client_request_timeout(HEAD_TIMEOUT)
    .client_disconnect_timeout(LEAVE_TIMEOUT)
    .shutdown_timeout(STOP_TIMEOUT_S)
    .disable_signals()
    .on_connect(move |io, extensions| peer::on_connect(io, extensions, readers_path.as_deref()));
    for listener in listeners.into_inner() {
        server = server.listen_uds(listener)?;
    }
    Ok(server.run())
}

/// What is refused before a verb sees it: a write on the readers' socket, and bodies in an encoding
/// that nobody here reads.
fn refuse_early(request: &HttpRequest) -> Option<Refusal> {
    let peer = Peer::of(request);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if peer.reads_only && !reads && request.path() != "/v1/sql" {
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
