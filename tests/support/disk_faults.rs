//! A failing disk and a jumping clock for a scene: a small C library that stands before the C library's
//! own calls, driven by a file.
//!
//! Comes in: orders of `disk_faults.c`. Goes out: how many calls failed, and which renames a power cut
//! would undo.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::native;
use crate::scene::Scene;

/// Error numbers of Linux.
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;

/// The orders for the daemons of a scene and their workers.
pub struct DiskFaults {
    orders: PathBuf,
    lines: BTreeMap<&'static str, String>,
}

impl DiskFaults {
    /// For all daemons that `scene` starts from now on; `None`, said aloud, without a C compiler.
    pub fn of(scene: &mut Scene) -> Option<Self> {
        let library = native::library(scene, "disk_faults.c", "disk_faults.so")?;
        fs::create_dir_all(scene.state()).expect("the state folder");
        let root = scene.state().canonicalize().expect("the state folder");
        let orders = scene.path("orders");
        native::variable(scene, "LD_PRELOAD", &library);
        native::variable(scene, "DISK_FAULTS_ROOT", &root);
        native::variable(scene, "DISK_FAULTS_ORDERS", &orders);
        Some(Self { orders, lines: BTreeMap::new() })
    }

    /// From now on calls of these kinds (`write`, `sync`, `create`, `rename`, joined by +) on paths with
    /// `part` in them fail, so many times in all; 0: until [`Self::mend`].
    pub fn fail(&mut self, kinds: &str, errno: i32, times: u32, part: &str) {
        let _none_yet = fs::remove_file(self.beside("hits"));
        self.order("fail", format!("{kinds}:{errno}:{times}:{part}"));
    }

    /// Nothing fails any more.
    pub fn mend(&mut self) {
        self.lines.remove("fail");
        self.write();
    }

    /// How many calls failed since the last [`Self::fail`].
    pub fn hits(&self) -> u64 {
        self.watched().count()
    }

    /// Their count, for one who has no hand on the orders.
    pub fn watched(&self) -> Hits {
        Hits(self.beside("hits"))
    }

    /// From now on calls of each of these kinds (also `open`) on such paths take so many milliseconds.
    pub fn slow(&mut self, kinds: &[(&str, u64)], part: &str) {
        let orders = kinds.iter().map(|(kind, ms)| format!("{kind}:{ms}:{part}"));
        self.order("slow", orders.collect::<Vec<_>>().join(" "));
    }

    /// Nothing is slow any more.
    pub fn quick(&mut self) {
        if self.lines.remove("slow").is_some() {
            self.write();
        }
    }

    /// From now on the clock of the day is so far off.
    pub fn clock(&mut self, off_ms: i64) {
        self.order("clock_ms", off_ms.to_string());
    }

    /// Undoes every rename below `folder` whose folder was not synced after it, as a power cut may; call
    /// it when no process lives. Gives how many.
    pub fn cut_power(&self, folder: &Path) -> io::Result<usize> {
        let names = self.beside("names");
        let told = fs::read_to_string(&names).unwrap_or_default();
        let mut undone = 0;
        for (from, to) in unsynced(&told).into_iter().rev() {
            // What went on its way since (removed, renamed again) cannot come back.
            if to.starts_with(folder) && to.exists() && !from.exists() {
                fs::rename(&to, &from)?;
                undone += 1;
            }
        }
        let _none_yet = fs::remove_file(names);
        Ok(undone)
    }

    fn order(&mut self, key: &'static str, value: String) {
        if self.lines.insert(key, value.clone()) != Some(value) {
            self.write();
        }
    }

    /// A file beside the orders, which the library writes.
    fn beside(&self, end: &str) -> PathBuf {
        self.orders.with_extension(end)
    }

    fn write(&self) {
        if self.lines.is_empty() {
            let _none_yet = fs::remove_file(&self.orders);
            return;
        }
        let lines = self.lines.iter().map(|(key, value)| format!("{key}={value}\n"));
        let aside = self.beside("new");
        // Renamed, so that no call reads half of it.
        let written = fs::write(&aside, lines.collect::<String>());
        written.and_then(|()| fs::rename(&aside, &self.orders)).expect("the orders");
    }
}

/// Calls that failed.
pub struct Hits(PathBuf);

impl Hits {
    /// How many since the last order.
    pub fn count(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |facts| facts.len())
    }
}

/// Renames that no sync of their folder followed, in their order.
fn unsynced(told: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut left: Vec<(PathBuf, PathBuf)> = Vec::new();
    for line in told.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            ["renamed", from, to] => left.push((from.into(), to.into())),
            ["synced", folder] => left.retain(|(_, to)| to.parent() != Some(Path::new(folder))),
            _ => panic!("disk_faults.c told {line:?}"),
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_counts_as_lost_until_its_folder_is_synced() {
        let told = "renamed\t/a/.x\t/a/x\nrenamed\t/b/.y\t/b/y\nsynced\t/a\nrenamed\t/a/.z\t/a/z\n";
        let left: Vec<_> = unsynced(told).into_iter().map(|(_, to)| to).collect();
        assert_eq!(left, [PathBuf::from("/b/y"), PathBuf::from("/a/z")]);
    }
}
