//! From a path to a listening socket: the service manager's, or our own.
//!
//! Our own bind takes nothing from a daemon that lives: it looks whether somebody answers, removes a
//! socket file only where nobody does, and never any other file. The mode is 0660 from the first
//! moment on.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rlhfd_protocol::control::SOCKET_PATH_BYTES_MAX;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::exit;
use crate::rights::Groups;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another daemon answers at {path}; stop that one first, or name another socket by --socket"
    )]
    Served {
        /// The path.
        path: PathBuf,
    },
    /// The path is taken by something else.
    #[error("{path} is there and is no socket; move it away, or name another socket by --socket")]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The path is too long for an address.
    #[error(
        "the socket path {path} has {bytes} bytes, and an address holds {SOCKET_PATH_BYTES_MAX}; name a shorter one by --socket"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The folder is not there.
    #[error(
        "the folder of the socket {path} is not there; make it, or name another socket by --socket"
    )]
    NoFolder {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot serve at {path} ({source}); look at the rights of its folder")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// The daemon's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Served { .. } => exit::BUSY,
            _ => exit::CONFIG,
        }
    }
}

/// Sockets that listen.
#[derive(Debug)]
pub struct Listeners {
    main: UnixListener,
    readers: Option<UnixListener>,
}

impl Listeners {
    /// Where the readers' socket is, as the kernel names it.
    #[must_use]
    pub fn readers_path(&self) -> Option<PathBuf> {
        let address = self.readers.as_ref()?.local_addr().ok()?;
        address.as_pathname().map(Path::to_owned)
    }

    pub(super) fn into_inner(self) -> impl Iterator<Item = UnixListener> {
        std::iter::once(self.main).chain(self.readers)
    }
}

/// The socket files that we made. Dropping it removes them, but never a file that somebody else put
/// there since; those of a service manager are its own.
#[derive(Debug, Default)]
pub struct SocketFiles(Vec<SocketFile>);

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for file in &self.0 {
            let ours = fs::symlink_metadata(&file.path)
                .is_ok_and(|data| data.dev() == file.device && data.ino() == file.inode);
            if ours && let Err(error) = fs::remove_file(&file.path) {
                tracing::warn!("the socket file {} stays behind: {error}", file.path.display());
            }
        }
    }
}

/// Takes the service manager's sockets where it passed any, else binds `main` and, where it is named,
/// `readers`, and gives them to their groups. Keep the [`SocketFiles`] until the server has stopped.
///
/// Errors: [`BindError`]; a socket that was bound before the error is taken away again.
pub fn bind(
    main: &Path,
    readers: Option<&Path>,
    groups: Groups,
) -> Result<(Listeners, SocketFiles), BindError> {
    let passed = passed().map_err(|source| BindError::Io { path: main.to_owned(), source })?;
    let mut files = SocketFiles::default();
    let mut listeners = Vec::new();
    let mut reading = None;
    for listener in passed {
        if is_for_readers(&listener, readers) {
            reading = Some(listener);
        } else {
            listeners.push(listener);
        }
    }
    let main = match listeners.into_iter().next() {
        Some(listener) => listener,
        None => own(main, groups.steer, &mut files)?,
    };
    let readers = match (reading, readers) {
        (Some(listener), _) => Some(listener),
        (None, Some(path)) => Some(own(path, groups.look, &mut files)?),
        (None, None) => None,
    };
    Ok((Listeners { main, readers }, files))
}

/// The sockets of a service manager, in its order.
fn passed() -> io::Result<Vec<UnixListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for i in 0..passed.len() {
        listeners.extend(passed.take_unix_listener(i)?);
    }
    Ok(listeners)
}

/// A passed socket is the readers' if it lies where the configuration says, or is called so.
fn is_for_readers(listener: &UnixListener, readers: Option<&Path>) -> bool {
    let Ok(address) = listener.local_addr() else { return false };
    let Some(path) = address.as_pathname() else { return false };
    let called = path.file_stem().is_some_and(|stem| stem.as_bytes().ends_with(b"-read"));
    readers == Some(path) || called
}

fn own(
    path: &Path,
    group: Option<u32>,
    files: &mut SocketFiles,
) -> Result<UnixListener, BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(BindError::TooLong { path: path.to_owned(), bytes });
    }
    make_way(path)?;
    // The mode is right from the first moment, where a chmod afterwards would leave a gap. The mask
    // belongs to the whole process: this runs before anything else makes files.
    let mask = rustix::process::umask(Mode::from_raw_mode(0o117));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BindError::NoFolder { path: path.to_owned() },
        io::ErrorKind::AddrInUse => BindError::Served { path: path.to_owned() },
        _ => io(source),
    })?;
    let data = fs::symlink_metadata(path).map_err(io)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(io)?;
    }
    let file = SocketFile { path: path.to_owned(), device: data.dev(), inode: data.ino() };
    files.0.push(file);
    Ok(listener)
}

/// Removes a socket file that nobody serves.
fn make_way(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    let data = match fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(e)),
    };
    if !data.file_type().is_socket() {
        return Err(BindError::NoSocket { path: path.to_owned() });
    }
    if answers(path).map_err(|e| io(e.into()))? {
        return Err(BindError::Served { path: path.to_owned() });
    }
    tracing::info!("the socket file {} is left over from before, removed", path.display());
    fs::remove_file(path).map_err(io)
}

/// Whether a daemon listens there. It never blocks: a full queue belongs to a daemon that lives, or to
/// one that stands still and must not lose its socket either.
fn answers(path: &Path) -> Result<bool, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_bound_socket_is_for_owner_and_group_and_goes_with_its_guard() {
        let folder = tempfile::tempdir().unwrap();
        let (main, readers) = (folder.path().join("a.sock"), folder.path().join("r.sock"));
        let (listeners, files) = bind(&main, Some(&readers), Groups::default()).unwrap();
        assert_eq!(fs::metadata(&main).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listeners.readers_path().unwrap(), readers);
        drop(listeners);
        drop(files);
        assert!(!main.exists() && !readers.exists());
    }

    #[test]
    fn a_socket_that_is_served_is_left_alone_and_a_stale_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let living = UnixListener::bind(&path).unwrap();
        let error = bind(&path, None, Groups::default()).unwrap_err();
        assert!(matches!(error, BindError::Served { .. }), "{error}");
        assert_eq!(error.exit_code(), 75);
        assert!(path.exists());
        drop(living);
        bind(&path, None, Groups::default()).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "mine").unwrap();
        let error = bind(&path, None, Groups::default()).unwrap_err();
        assert!(matches!(error, BindError::NoSocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            bind(&link, None, Groups::default()).unwrap_err(),
            BindError::NoSocket { .. }
        ));
    }

    #[test]
    fn a_file_that_somebody_else_put_there_since_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let (_listeners, files) = bind(&path, None, Groups::default()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        drop(files);
        assert!(path.exists());
    }

    #[test]
    fn long_paths_and_missing_folders_are_told() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
        assert!(matches!(
            bind(&long, None, Groups::default()).unwrap_err(),
            BindError::TooLong { bytes: 108, .. }
        ));
        let error = bind(Path::new("/nonexistent/a.sock"), None, Groups::default()).unwrap_err();
        assert!(matches!(error, BindError::NoFolder { .. }), "{error}");
    }
}
