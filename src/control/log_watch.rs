//! The write-ahead log is looked at every now and then: one that a long reader lets grow is told.
//!
//! In: the store, the configuration. Out: the log folded back where it can be; an event when it is too large,
//! with who may be the reason, and one when it is small again. May not enter: what the log holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rlhfd_config::CheckedConfig;
use rlhfd_store::{Level, NewEvent};
use tokio::sync::watch;

use crate::handles::{StoreHandle, now_ms};

const MIB: u64 = 1 << 20;

/// Looks for ever, each `[store] disk_probe_ms`.
pub async fn keep(
    store: StoreHandle,
    database: PathBuf,
    config: watch::Receiver<Arc<CheckedConfig>>,
) {
    // What was told: twice as much is told again.
    let mut told_mib = None;
    loop {
        let settings = config.borrow().store.clone();
        actix_rt::time::sleep(Duration::from_millis(settings.disk_probe_ms)).await;
        let limit = settings.log_max_mib;
        let looked = store.write(move |s| {
            let bytes = s.log_bytes();
            if bytes / MIB < limit { Ok(bytes) } else { Ok(s.fold_log()?.bytes) }
        });
        // A store that is busy, or a disk that is full, is told elsewhere.
        let Ok(bytes) = looked.await else { continue };
        let mib = bytes / MIB;
        let event = match told_mib {
            None if mib >= limit => grown(&database, mib).await,
            Some(told) if mib >= 2 * told => grown(&database, mib).await,
            Some(_) if mib < limit => {
                told_mib = None;
                let text = "the write-ahead log is folded back into the database";
                keep_event(&store, NewEvent::about("log_folded", text)).await;
                continue;
            }
            None | Some(_) => continue,
        };
        told_mib = Some(mib);
        keep_event(&store, event).await;
    }
}

async fn keep_event(store: &StoreHandle, event: NewEvent) {
    tracing::warn!("{}", event.message);
    if let Err(error) = store.write(move |s| s.append_event(&event, now_ms())).await {
        tracing::warn!("an event is lost: {error}");
    }
}

async fn grown(database: &Path, mib: u64) -> NewEvent {
    let database = database.to_path_buf();
    let readers = actix_rt::task::spawn_blocking(move || readers(&database)).await;
    let readers = readers.unwrap_or_default();
    let who = if readers.is_empty() {
        "no other program that may be looked into has it open: it may be another user's, or a long \
         `rlhfctl sql` or backup"
            .to_owned()
    } else {
        format!("it is open in {}: end that reading", readers.join(", "))
    };
    let text = format!(
        "the write-ahead log has grown to {mib} MiB, since a reader of the database does not end; {who}"
    );
    NewEvent { level: Level::Warn, ..NewEvent::about("log_grown", text) }
}

/// Other programs that have the database open, as far as the kernel lets us see them.
fn readers(database: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = BTreeSet::new();
    for process in processes.filter_map(Result::ok) {
        let pid = process.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        let has = open
            .filter_map(Result::ok)
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target == database));
        if has {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.insert(format!("{} (process {pid})", name.trim()));
        }
    }
    found.into_iter().collect()
}
