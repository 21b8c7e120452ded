//! A worker process of our own: spawned, given its frame socket at descriptor 3, and reaped.
//!
//! In: a [`Launch`]. Out: a [`Spawned`]: both ends that control needs. The process dies with the
//! daemon (PR_SET_PDEATHSIG, which follows the spawning *thread*: spawn from the main thread only),
//! runs nice and stands first in line for the out-of-memory killer. May not enter: what is said on
//! the socket.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use rlhfd_protocol::FRAME_FD;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::death::OomCounter;

/// First in line: the worker, never the daemon, makes room for the rest of the machine.
const OOM_SCORE: &CStr = c"1000";

/// What a lease needs of its process.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program; it is called with `serve`.
    pub program: PathBuf,
    /// The folder with libtorch's libraries; none for a program that needs none.
    pub libraries: Option<PathBuf>,
    /// UUIDs of the GPUs that the child may see; empty: the CPU.
    pub gpus: Vec<String>,
    /// Added to the daemon's own niceness.
    pub nice: i32,
}

/// Why no process came to be.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No socket pair.
    #[error("no socket pair for a worker; the limit of open files may be too low (LimitNOFILE)")]
    Socket(#[source] io::Error),
    /// The program could not be started.
    #[error(
        "the worker {program} could not be started; install it beside rlhfd, or set [worker] program"
    )]
    Program {
        /// What was to be started.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A process that runs, and what belongs to it.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id; also that of its group.
    pub pid: u32,
    /// The daemon's end of the frame socket.
    pub socket: UnixStream,
    /// The process; killed when this is dropped.
    pub process: Child,
    /// Log lines.
    pub stdout: Option<ChildStdout>,
    /// Log lines.
    pub stderr: Option<ChildStderr>,
    /// The counter that tells a kill for want of memory from any other.
    pub oom: OomCounter,
    /// Its reading at the start.
    pub oom_kills: u64,
}

/// Starts a worker. Call it on the main thread only (see the room's header).
pub fn spawn(launch: &Launch) -> Result<Spawned, SpawnError> {
    let (ours, theirs) = StdUnixStream::pair().map_err(SpawnError::Socket)?;
    ours.set_nonblocking(true).map_err(SpawnError::Socket)?;
    let mut process = command(launch, theirs.into())
        .spawn()
        .map_err(|source| SpawnError::Program { program: launch.program.clone(), source })?;
    let pid = process.id().unwrap_or_default();
    let oom = OomCounter::of(pid);
    Ok(Spawned {
        pid,
        socket: UnixStream::from_std(ours).map_err(SpawnError::Socket)?,
        stdout: process.stdout.take(),
        stderr: process.stderr.take(),
        process,
        oom_kills: oom.read(),
        oom,
    })
}

fn command(launch: &Launch, socket: OwnedFd) -> Command {
    let mut command = Command::new(&launch.program);
    command
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .env("CUDA_VISIBLE_DEVICES", launch.gpus.join(","))
        // What the service manager told the daemon is not for its children.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .process_group(0)
        .kill_on_drop(true);
    if let Some(folder) = &launch.libraries {
        command.env("LD_LIBRARY_PATH", library_path(folder));
    }
    let daemon = rustix::process::getpid();
    let nice = launch.nice;
    // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(daemon) {
                // The daemon died between fork and the line above; nobody would ever read us.
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            // A daemon without the right to change them still works.
            let _ = rustix::process::nice(nice);
            let _ = offer_to_oom_killer();
            place_at_frame_fd(&socket)
        });
    }
    command
}

/// The library path of a child: libtorch's folder before what the daemon itself was given.
fn library_path(folder: &std::path::Path) -> OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(own) = std::env::var_os("LD_LIBRARY_PATH").filter(|own| !own.is_empty()) {
        path.push(":");
        path.push(own);
    }
    path
}

fn offer_to_oom_killer() -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(&file, OOM_SCORE.to_bytes()).map(|_| ())
}

/// Moves the socket to the fixed descriptor, where it outlives the exec.
fn place_at_frame_fd(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is this process's own from here on: whatever stood there was the
    // daemon's, closes at exec anyway, and is never used between here and exec. `forget` below
    // keeps it open.
    let mut fixed = unsafe { OwnedFd::from_raw_fd(FRAME_FD) };
    let placed = rustix::io::dup2(socket, &mut fixed)
        // Where the socket had that number already, dup2 leaves close-on-exec set.
        .and_then(|()| rustix::io::fcntl_setfd(&fixed, rustix::io::FdFlags::empty()));
    std::mem::forget(fixed);
    placed.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Launch) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("worker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let launch = Launch { program, libraries: None, gpus: Vec::new(), nice: 5 };
        (folder, launch)
    }

    #[actix_rt::test]
    async fn a_child_has_its_socket_at_the_fixed_descriptor_and_nothing_on_stdin() {
        let (_folder, launch) =
            shell("read line; echo \"$1|$line|$CUDA_VISIBLE_DEVICES|$(nice)\" >&3");
        let mut spawned = spawn(&launch).unwrap();
        let mut said = String::new();
        spawned.socket.read_to_string(&mut said).await.unwrap();
        let own = rustix::process::nice(0).unwrap();
        assert_eq!(said, format!("serve|||{}\n", (own + 5).min(19)));
        assert!(spawned.process.wait().await.unwrap().success());
    }

    #[actix_rt::test]
    async fn a_missing_program_is_a_typed_error() {
        let (_folder, mut launch) = shell("true");
        launch.program = "/nowhere/worker".into();
        assert!(matches!(spawn(&launch), Err(SpawnError::Program { .. })));
    }
}
