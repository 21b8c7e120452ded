//! Whether the state folder can be written: full, failing or read-only disks are a matter of the
//! place, never of a unit.
//!
//! In: errors of writes. Out: a fault that stands until a trial write succeeds and enough is free.
//! While it stands nothing new is begun; what waits to be written is tried again when it ends. May
//! not enter: units.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rlhfd_config::{CheckedConfig, StoreConfig};
use tokio::sync::watch;

use crate::live::LiveBoard;
use crate::room;

/// What the trial writes.
const TRIAL_BYTES: usize = 256 * 1024;

/// The place's state, shared by all who write there.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<PathBuf>,
    fault: Arc<watch::Sender<Option<String>>>,
    /// MiB that what failed needs beyond the floor.
    needed_mib: Arc<AtomicU64>,
    live: LiveBoard,
}

impl Health {
    /// A place that is taken to be well.
    #[must_use]
    pub fn new(state: PathBuf, live: LiveBoard) -> Self {
        Self {
            state: Arc::new(state),
            fault: Arc::new(watch::Sender::new(None)),
            needed_mib: Arc::default(),
            live,
        }
    }

    /// Whether something may be begun.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.fault.borrow().is_none()
    }

    /// Changes when the place falls ill or recovers.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// Tells that something of this size did not fit: the fault stands until it would.
    pub fn tell_for(&self, fault: &str, bytes: u64) {
        self.needed_mib.fetch_max(bytes >> 20, Ordering::Relaxed);
        self.tell(fault);
    }

    /// Tells a fault. The first of several stands.
    pub fn tell(&self, fault: &str) {
        let sentence = format!(
            "the state folder {} cannot be written ({fault}); it goes on by itself when that is mended",
            self.state.display()
        );
        let new = self.fault.send_if_modified(|known| {
            let new = known.is_none();
            if new {
                *known = Some(sentence.clone());
            }
            new
        });
        if new {
            tracing::warn!("{sentence}");
            self.live.change(|live| {
                live.faults.insert("state".into(), sentence);
            });
        }
    }

    /// Waits until the place is well.
    pub async fn until_well(&self) {
        let mut fault = self.fault.subscribe();
        // The sender lives in this very struct, so that waiting cannot fail.
        let _ = fault.wait_for(Option::is_none).await;
    }

    /// Watches for ever: a trial each `[store] disk_probe_ms` while there is a fault, and a look at
    /// the free space while there is none.
    pub async fn keep(self, config: watch::Receiver<Arc<CheckedConfig>>) {
        loop {
            let store = config.borrow().store.clone();
            let probe = Duration::from_millis(store.disk_probe_ms);
            let state = Arc::clone(&self.state);
            let ill = !self.is_well();
            let needed = self.needed_mib.load(Ordering::Relaxed);
            let floor = store.disk_free_min_mib.saturating_add(needed);
            let looked = actix_rt::task::spawn_blocking(move || {
                look(&state, floor, ill)?;
                within_budget(&state, &store, needed)
            });
            let step = self.live.step("the look at the state folder's disk");
            let looked = looked.await;
            drop(step);
            match looked {
                Ok(Ok(())) if ill => self.recovered(),
                Ok(Ok(())) => {}
                Ok(Err(fault)) => self.tell(&fault),
                Err(_) => return,
            }
            // After the first look: nothing is begun on a place that is ill from the start.
            actix_rt::time::sleep(probe).await;
        }
    }

    fn recovered(&self) {
        tracing::info!("the state folder can be written again");
        self.needed_mib.store(0, Ordering::Relaxed);
        self.fault.send_replace(None);
        self.live.change(|live| {
            live.faults.remove("state");
        });
    }
}

/// Whether so much is free and, where `trial`, a write succeeds.
///
/// Errors: what is wrong, in a few words.
pub fn look(state: &Path, free_min_mib: u64, trial: bool) -> Result<(), String> {
    let free = free_mib(state).map_err(|e| e.to_string())?;
    if free < free_min_mib {
        return Err(format!(
            "{free} MiB are free, and {free_min_mib} are needed; see [store] disk_free_min_mib"
        ));
    }
    if trial { try_write(state).map_err(|e| e.to_string()) } else { Ok(()) }
}

/// Whether the state folder, and so much more, is within its budget.
fn within_budget(state: &Path, store: &StoreConfig, needed_mib: u64) -> Result<(), String> {
    let used = room::used_mib(state, store);
    if store.budget_mib > 0 && used.saturating_add(needed_mib) > store.budget_mib {
        return Err(format!(
            "it takes {used} MiB, {needed_mib} more are needed, and [store] budget_mib is {}",
            store.budget_mib
        ));
    }
    Ok(())
}

/// Whether an error says that the disk is full or fails, which passes without anybody changing a setting.
#[must_use]
pub fn may_pass(error: &io::Error) -> bool {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    full || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// MiB that we may still write there.
pub fn free_mib(place: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(place)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

fn try_write(state: &Path) -> io::Result<()> {
    let path = state.join(".trial");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0; TRIAL_BYTES])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_be_written_is_well_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        look(folder.path(), 0, true).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let said = look(folder.path(), u64::MAX, true).unwrap_err();
        assert!(said.contains("disk_free_min_mib"), "{said}");
        look(&folder.path().join("gone"), 0, true).unwrap_err();
    }

    #[actix_rt::test]
    async fn a_fault_stands_until_the_place_recovers() {
        let live = LiveBoard::new();
        let health = Health::new("/nowhere".into(), live.clone());
        assert!(health.is_well());
        health.tell("full");
        health.tell("another");
        assert!(!health.is_well() && live.now().faults["state"].contains("(full)"));
        health.recovered();
        health.until_well().await;
        assert!(live.now().faults.is_empty());
    }
}
