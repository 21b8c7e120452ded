//! Who is at the other end: the kernel's word on user and groups, which socket was used, and what that
//! gives a right to.
//!
//! In: a connection. Out: its [`Peer`]. The mode of a socket's file says who may open it, and where it
//! says so too freely (a unit without `SocketMode=` is for everybody, and an abstract address has no mode
//! at all) the daemon does not follow: root, the daemon's own user, and the file's owner and group may come
//! in, and nobody else. May not enter: what a verb does.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::UnixStream;

/// Groups of a peer that are asked for at first; the kernel says where there are more.
const GROUPS_AT_FIRST: usize = 64;

/// What a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// All there is.
    Steer,
    /// GET, and `sql`.
    Look,
    /// Nothing.
    Nothing,
}

/// A connection's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user id; none where the kernel would not say.
    pub uid: Option<u32>,
    /// What it may do.
    pub right: Right,
}

impl Peer {
    /// The peer of a request. One of whom nothing is known may do nothing.
    pub fn of(request: &HttpRequest) -> Self {
        let known = request.conn_data::<Self>().copied();
        known.unwrap_or(Self { uid: None, right: Right::Nothing })
    }
}

/// Notes the peer of a new connection.
pub(super) fn on_connect(io: &dyn Any, extensions: &mut Extensions, readers: Option<&Path>) {
    let Some(stream) = io.downcast_ref::<UnixStream>() else { return };
    extensions.insert(met(stream, readers));
}

fn met(stream: &UnixStream, readers: Option<&Path>) -> Peer {
    let Ok(credentials) = Credentials::of(stream) else {
        return Peer { uid: None, right: Right::Nothing };
    };
    // The socket that the peer connected to is told by its address, which the kernel keeps with the
    // connection. Where it cannot be read, the peer may look at most.
    let address = stream.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    let looks = address.is_none() || readers.is_some() && path == readers;
    let right = match (credentials.may_enter(Owner::of(path)), looks) {
        (false, _) => Right::Nothing,
        (true, true) => Right::Look,
        (true, false) => Right::Steer,
    };
    Peer { uid: Some(credentials.uid), right }
}

/// Whose a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Of the socket's file as it stands now, else ourselves.
    fn of(path: Option<&Path>) -> Self {
        match path.and_then(|path| std::fs::metadata(path).ok()) {
            Some(file) => Self { uid: file.uid(), gid: file.gid() },
            None => Self {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
        }
    }
}

/// Who a peer was when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    gid: u32,
    /// The supplementary groups.
    groups: Vec<u32>,
}

impl Credentials {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(stream.as_fd())?;
        // A kernel that does not know them (before 4.13) leaves the peer with its first group.
        let groups = peer_groups(stream.as_fd()).unwrap_or_default();
        Ok(Self { uid: peer.uid.as_raw(), gid: peer.gid.as_raw(), groups })
    }

    fn may_enter(&self, owner: Owner) -> bool {
        let own = rustix::process::geteuid().as_raw();
        [0, own, owner.uid].contains(&self.uid)
            || self.gid == owner.gid
            || self.groups.contains(&owner.gid)
    }
}

/// The supplementary groups of a socket's peer, by SO_PEERGROUPS.
fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; GROUPS_AT_FIRST];
    loop {
        let bytes = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, the kernel writes at most `length` bytes, which the vector
        // holds, and any bytes are numbers.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let error = io::Error::last_os_error();
        let count = length as usize / size_of::<u32>();
        if answer == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        // It says how many there are, which is 65,536 at most.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_group_and_root_may_enter_and_a_stranger_may_not() {
        let door = Owner { uid: 70_001, gid: 70_010 };
        let who = |uid, gid, groups: &[u32]| Credentials { uid, gid, groups: groups.to_vec() };
        assert!(who(0, 70_000, &[]).may_enter(door));
        assert!(who(70_001, 70_000, &[]).may_enter(door));
        assert!(who(70_002, 70_010, &[]).may_enter(door));
        assert!(who(70_002, 70_000, &[1, 70_010]).may_enter(door));
        assert!(!who(70_002, 70_000, &[1, 70_011]).may_enter(door));
    }

    #[actix_rt::test]
    async fn the_kernel_tells_our_own_groups() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut told = Credentials::of(&one).unwrap();
        let mut ours: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
        told.groups.sort_unstable();
        ours.sort_unstable();
        assert_eq!((told.uid, told.groups), (rustix::process::geteuid().as_raw(), ours));
    }
}
