//! The state folder's disk: a small file system of its own that can be filled, where that may be mounted;
//! else a library that says the disk is full.
//!
//! Comes in: a scene whose state folder is empty. Goes out: a disk that is full, and is not. The file
//! system is seen by this thread and its children alone, and goes with them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rlhfd_tests::disk_faults::{DiskFaults, ENOSPC};

/// Twice what a round needs.
const SIZE: &str = "48m";

/// The disk of a state folder.
pub struct Room {
    mounted: Option<PathBuf>,
}

impl Room {
    /// Over the folder `state`, which is there and empty.
    pub fn over(state: &Path) -> Self {
        let mounted = is_private() && mount(&["-t", "tmpfs", "-o", &size(), "tmpfs"], state);
        Self { mounted: mounted.then(|| state.to_owned()) }
    }

    /// From now on no byte fits.
    pub fn fill(&self, disk: &mut DiskFaults) {
        match &self.mounted {
            Some(state) => fill(&state.join("ballast")),
            None => disk.fail("write+create", ENOSPC, 0, ""),
        }
    }

    /// There is room again.
    pub fn empty(&self, disk: &mut DiskFaults) {
        match &self.mounted {
            Some(state) => fs::remove_file(state.join("ballast")).expect("the ballast"),
            None => disk.mend(),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(state) = &self.mounted {
            // Lazily: a process that a failed round left may have it open.
            let _ = Command::new("umount").arg("-l").arg(state).status();
        }
    }
}

fn size() -> String {
    format!("size={SIZE}")
}

fn mount(words: &[&str], place: &Path) -> bool {
    Command::new("mount").args(words).arg(place).status().is_ok_and(|status| status.success())
}

/// Puts this thread, once, where its mounts are nobody else's.
fn is_private() -> bool {
    static PRIVATE: OnceLock<bool> = OnceLock::new();
    *PRIVATE.get_or_init(|| {
        unsafe extern "C" {
            fn unshare(flags: i32) -> i32;
        }
        const NEW_MOUNTS: i32 = 0x0002_0000;
        // SAFETY: it takes a number and changes only which mounts this thread sees.
        let own = unsafe { unshare(NEW_MOUNTS) } == 0;
        let private = own && mount(&["--make-rprivate"], Path::new("/"));
        if !private {
            eprintln!("no file system can be mounted here: a library says that the disk is full");
        }
        private
    })
}

/// Takes all the room that is left.
fn fill(ballast: &Path) {
    let mut file = fs::File::create(ballast).expect("the ballast");
    let mut bytes = vec![0u8; 1 << 20];
    while !bytes.is_empty() {
        if file.write_all(&bytes).is_err() {
            // Smaller and smaller pieces, until no byte goes in.
            bytes.truncate(bytes.len() / 2);
        }
    }
}
