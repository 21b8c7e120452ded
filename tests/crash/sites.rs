//! Which line of the product each sync of a log comes from.
//!
//! Comes in: records. Goes out: a name a sync, by what was synced and what was done before. A sync that is
//! not made does to the log what a record left out does, so a mutant is a name whose records are passed
//! over: no sources are changed and nothing is built anew. May not enter: what is kept of a disk.

use std::collections::HashMap;

use crate::disk::Disk;
use crate::log::Record;

/// Syncs that nothing is lost without, each with the reason.
pub const SPARE: [(&str, &str); 7] = [
    (TRIAL, "a trial of the disk: what it writes is removed at once"),
    (SQLITE, "SQLite's own order of writes, which synchronous = OFF would take out as a whole"),
    (LINK, "the link for readers is made again by every start that misses it"),
    (
        NEW_NAME,
        "SQLite syncs the folder when it first syncs the log there, before any request is acknowledged",
    ),
    (KILLED, "only a daemon that is killed between two calls leaves any, and none is in this run"),
    (TEST, "the test's own"),
    (
        STATE,
        "a training's own state, of which a torn one is passed over, by its sums, for the one before",
    ),
];

const TRIAL: &str = "health.rs: the trial file";
const SQLITE: &str = "SQLite's own";
const LINK: &str = "open.rs: the link for readers";
const NEW_NAME: &str = "open.rs: a new database's name";
const KILLED: &str = "adopt.rs: names that may be left unsynced";
const TEST: &str = "the test: a folder that is planted";
const STATE: &str = "state.rs by checkpoint.rs: a training's state";

/// What was seen of a file or folder since its last sync.
#[derive(Default)]
struct Seen<'a> {
    /// The newest name that was given in this folder by a rename, and the one before.
    renamed: Option<(&'a str, &'a str)>,
    /// Whether the log of the database was given frames.
    frames: bool,
    /// Whether a folder was made in it.
    grew: bool,
    /// Whether its newest name was the last that its giver did.
    orphaned: bool,
}

/// For each record the site of its sync; none for what is no sync.
pub fn sites(records: &[Record<'_>], above: u64) -> Vec<Option<&'static str>> {
    let mut disk = Disk::new(above);
    let mut seen: HashMap<u64, Seen<'_>> = HashMap::new();
    let mut sites = Vec::with_capacity(records.len());
    let mut newest = above;
    for record in records {
        let site = match *record {
            Record::Synced { inode } => {
                let path = disk.path(inode);
                let seen = seen.entry(inode).or_default();
                let site = site(&path, seen);
                *seen = Seen::default();
                Some(site)
            }
            Record::FileMade { inode, .. } => {
                seen.remove(&inode);
                None
            }
            Record::FolderMade { folder, inode, .. } => {
                seen.remove(&inode);
                seen.entry(folder).or_default().grew = true;
                None
            }
            Record::Renamed { folder, name, to, new } => {
                for folder in [folder, to] {
                    seen.entry(folder).or_default().renamed = Some((name, new));
                }
                newest = to;
                None
            }
            Record::Mark(DIED) => {
                seen.entry(newest).or_default().orphaned = true;
                None
            }
            Record::Written { inode, offset, .. } => {
                // The head of the database's log begins it anew; frames follow.
                seen.entry(inode).or_default().frames |= offset > 0;
                None
            }
            _ => None,
        };
        sites.push(site);
        disk.take(record);
    }
    sites
}

fn site(path: &str, seen: &Seen<'_>) -> &'static str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let renamed =
        |end: &str| seen.renamed.is_some_and(|(from, to)| from.ends_with(end) || to.ends_with(end));
    let folder_name = folder.rsplit('/').next().unwrap_or_default();
    let within =
        |end: &str| path.split('/').any(|part| part.starts_with('.') && part.ends_with(end));
    match (path, name) {
        (_, ".trial") => TRIAL,
        _ if path.contains("/stranger") => TEST,
        ("state/db/rlhfd.db-wal", _) if seen.frames => "open.rs: synchronous = FULL",
        ("state/db/new.db", _) => "open.rs: synchronous = FULL of a new database",
        ("state/db", _) if renamed("rlhfd.db") => NEW_NAME,
        (_, name) if name.starts_with("rlhfd.db") && folder_name == "db" => SQLITE,
        ("state/db", _) => SQLITE,
        ("state", _) if renamed("rlhfd.db") => LINK,
        (_, name) if name.ends_with("-journal") => SQLITE,
        (_, name) if folder_name == "backups" && name.ends_with(".part") => {
            // SQLite's own sync and ours after it: either would do.
            "backup.rs: the copy"
        }
        (_, "backups") if renamed(".part") => "backup.rs: the copy's name",
        // For its journal beside the copy.
        (_, "backups") => SQLITE,
        (_, name) if folder_name == "uploads" && name.ends_with(".jsonl") => {
            "examples.rs: an upload"
        }
        (_, "uploads") => "examples.rs: an upload's name",
        _ if folder.starts_with("state/runs/main/state") => STATE,
        _ if path.starts_with("state/runs/main/state/") && renamed(".partial") => STATE,
        (_, MANIFEST) if within(".partial") => "checkpoint.rs: the manifest",
        (_, name) if within(".partial") && (name.ends_with(".partial") || !name.contains('.')) => {
            "checkpoint.rs: a folder aside"
        }
        _ if within(".partial") => "checkpoint.rs: a file",
        _ if renamed(".partial") && seen.orphaned => "checkpoint.rs: a dead worker's folder's name",
        _ if renamed(".partial") => "checkpoint.rs: the folder's name",
        (_, name) if name.ends_with(".part") => "folders.rs: the folder aside",
        _ if within(".part") => "folders.rs: a file",
        _ if renamed(".part") => "folders.rs: the folder's name",
        _ if renamed(".removed") => "tidy.rs: the name aside",
        (_, "checkpoints" | "orphans") if seen.renamed.is_some() => "adopt.rs: where it is moved",
        _ if seen.grew => "folder.rs: a new folder's name",
        ("state" | "state/runs" | "state/runs/main", _) => KILLED,
        _ => {
            println!("sites.rs knows no reason to sync {path}");
            "a sync that sites.rs does not know"
        }
    }
}

/// A process died right after the rename before (`tests/support/disk_log.c`).
const DIED: &str = "died";
const MANIFEST: &str = rlhfd_protocol::manifest::MANIFEST;
