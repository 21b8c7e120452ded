//! What the service manager is told (sd_notify(3)), without ever waiting for it.
//!
//! In: states of its protocol. Out: datagrams to the socket that the environment names. Its queue may
//! be full: what may be lost is dropped then, and what must arrive is sent beside everything else
//! once there is room. May not enter: when something is told.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;

use sd_notify::NotifyState;
use tokio::sync::mpsc;

/// So many messages wait for room. A start, a stop and a few reloads are far below that.
const WAITING_MAX: usize = 64;

/// The way to the service manager. Where the environment names none, nothing is told.
#[derive(Clone)]
pub struct Manager {
    address: Option<SocketAddr>,
    queue: mpsc::Sender<String>,
    /// Messages that are not sent yet, the one that is being sent with them.
    waiting: Rc<Cell<usize>>,
}

impl Manager {
    /// The one of `NOTIFY_SOCKET`. To be called on the thread that polls the system.
    #[must_use]
    pub fn named(place: Option<&OsStr>) -> Self {
        let address = place.and_then(|place| match address(place) {
            Ok(address) => Some(address),
            Err(error) => {
                tracing::warn!(
                    "the service manager is not told: NOTIFY_SOCKET={} is no address: {error}",
                    place.display()
                );
                None
            }
        });
        let (queue, queued) = mpsc::channel(WAITING_MAX);
        let waiting = Rc::new(Cell::new(0));
        if let Some(address) = address.clone() {
            actix_rt::spawn(deliver(address, queued, Rc::clone(&waiting)));
        }
        Self { address, queue, waiting }
    }

    /// Whether there is one.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.address.is_some()
    }

    /// Tells what the next message says again, so that this one may be lost.
    pub fn mention(&self, states: &[NotifyState<'_>]) {
        let Some(address) = &self.address else { return };
        match send_now(address, &text(states)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::debug!("the service manager does not read: a status is dropped");
            }
            Err(error) => untold(&error),
        }
    }

    /// Tells what must arrive, in the order of the calls. Returns at once; while the manager does not
    /// read, the message waits for it in a task of its own.
    pub fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(address) = &self.address else { return };
        let text = text(states);
        if self.waiting.get() == 0 {
            match send_now(address, &text) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return untold(&error),
            }
        }
        match self.queue.try_send(text) {
            Ok(()) => self.waiting.set(self.waiting.get() + 1),
            Err(_) => tracing::warn!(
                "the service manager has not read for {WAITING_MAX} messages: one is dropped"
            ),
        }
    }
}

fn untold(error: &io::Error) {
    tracing::warn!("the service manager is not told: {error}");
}

/// A path, or a name in the abstract namespace behind an `@`.
fn address(place: &OsStr) -> io::Result<SocketAddr> {
    match place.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(place),
    }
}

fn text(states: &[NotifyState<'_>]) -> String {
    states.iter().fold(String::new(), |mut text, state| {
        // Writing to a String does not fail.
        let _never = writeln!(text, "{state}");
        text
    })
}

fn send_now(address: &SocketAddr, text: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), address).map(drop)
}

/// Sends one message after the other, each once there is room for it.
async fn deliver(
    address: SocketAddr,
    mut queued: mpsc::Receiver<String>,
    waiting: Rc<Cell<usize>>,
) {
    while let Some(text) = queued.recv().await {
        if let Err(error) = send_patiently(&address, &text).await {
            untold(&error);
        }
        waiting.set(waiting.get().saturating_sub(1));
    }
}

/// A connected socket is told by the kernel when its peer has read something; one that only sends to
/// an address is not.
async fn send_patiently(address: &SocketAddr, text: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    tokio::net::UnixDatagram::from_std(socket)?.send(text.as_bytes()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Takes a message, however often it has to look; none where none comes for a second.
    async fn read(manager: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 256];
        for _ in 0..100 {
            match manager.recv(&mut bytes) {
                Ok(read) => return Some(String::from_utf8_lossy(&bytes[..read]).into_owned()),
                Err(_) => actix_rt::time::sleep(Duration::from_millis(10)).await,
            }
        }
        None
    }

    fn stuff(place: &std::path::Path) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.send_to(b"STATUS=stuffing", place).is_ok() {}
    }

    #[actix_rt::test]
    async fn what_must_arrive_waits_in_its_order_and_a_status_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("notify");
        let socket = UnixDatagram::bind(&place).unwrap();
        socket.set_nonblocking(true).unwrap();
        stuff(&place);
        let manager = Manager::named(Some(place.as_os_str()));
        assert!(manager.is_there());
        manager.tell(&[NotifyState::Reloading]);
        manager.mention(&[NotifyState::Status("lost")]);
        manager.tell(&[NotifyState::Ready]);
        let mut told = Vec::new();
        while let Some(text) = read(&socket).await {
            if text != "STATUS=stuffing" {
                told.push(text);
            }
        }
        assert_eq!(told, ["RELOADING=1\n", "READY=1\n"]);
        // Nothing waits any more: the next one is there as soon as it is told.
        manager.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(7)]);
        let mut bytes = [0; 256];
        let read = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"STOPPING=1\nEXTEND_TIMEOUT_USEC=7\n");
    }

    #[actix_rt::test]
    async fn an_abstract_name_is_an_address_and_without_one_nothing_is_told() {
        let name = format!("rlhfd-notify-{}", std::process::id());
        let bound = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&bound).unwrap();
        Manager::named(Some(OsStr::new(&format!("@{name}")))).tell(&[NotifyState::Ready]);
        let mut bytes = [0; 256];
        let read = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"READY=1\n");
        let nobody = Manager::named(None);
        nobody.tell(&[NotifyState::Ready]);
        assert!(!nobody.is_there());
    }
}
