//! Who is at the other end: the kernel's word on the user, and which socket was used.

use std::any::Any;
use std::os::fd::AsFd;
use std::path::Path;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::UnixStream;

/// A connection's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user id; none where the kernel would not say.
    pub uid: Option<u32>,
    /// Whether it came by the readers' socket.
    pub reads_only: bool,
}

impl Peer {
    /// The peer of a request. A connection of which nothing is known may only read.
    pub fn of(request: &HttpRequest) -> Self {
        request.conn_data::<Self>().copied().unwrap_or(Self { uid: None, reads_only: true })
    }
}

/// Notes the peer of a new connection.
pub(super) fn on_connect(io: &dyn Any, extensions: &mut Extensions, readers: Option<&Path>) {
    let Some(stream) = io.downcast_ref::<UnixStream>() else { return };
    let uid = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok().map(|c| c.uid.as_raw());
    // The socket that the peer connected to is told by its address, which the kernel keeps with the
    // connection. Where it cannot be read, the peer may only read.
    let reads_only = match stream.local_addr() {
        Ok(address) => readers.is_some() && address.as_pathname() == readers,
        Err(_) => true,
    };
    extensions.insert(Peer { uid, reads_only });
}
