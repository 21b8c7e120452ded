//! Whose the daemon's files are: one group may steer, another may look, nobody else may read.
//!
//! ```text
//! state folder   0751            everybody may pass, nobody may list
//! db/            2750 rlhfd-read side files of the database inherit the group
//! all else       0750, 0640      the daemon's own group
//! ```
//! In: the system's groups, and who we are. Out: groups to give things to, and folders made so. A daemon
//! that a person runs as themselves gives nothing away, even where that person is in those groups. May
//! not enter: who asks by the socket (`listener::peer`).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::Mode;

/// The group that may steer, and which the service's user has for its own.
const STEER: &str = "rlhfd";
/// The group that may look.
const LOOK: &str = "rlhfd-read";
const GROUPS: &str = "/etc/group";

/// How the state folder is made.
pub const STATE_MODE: u32 = 0o751;
/// How the database's own folder is made.
pub const DATABASE_MODE: u32 = 0o2750;

/// The groups that sockets and database are given to; none of them where we run as a person.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Groups {
    /// May steer.
    pub steer: Option<u32>,
    /// May look.
    pub look: Option<u32>,
}

impl Groups {
    /// Those of this process: it is root, or the service.
    #[must_use]
    pub fn ours() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self::of(uid.as_raw(), gid.as_raw())
    }

    /// Those of a daemon of this user and group.
    #[must_use]
    pub fn of(uid: u32, gid: u32) -> Self {
        Self::within(&fs::read_to_string(GROUPS).unwrap_or_default(), uid, gid)
    }

    fn within(groups: &str, uid: u32, gid: u32) -> Self {
        let number = |name: &str| {
            let mut lines = groups.lines().map(|line| line.split(':'));
            lines.find_map(|mut fields| {
                (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
            })
        };
        let steer = number(STEER);
        if uid == 0 || steer == Some(gid) {
            Self { steer, look: number(LOOK) }
        } else {
            Self::default()
        }
    }
}

/// From here on, others may read nothing that this process and its workers make, and the group may
/// write nothing.
pub fn keep_others_out() {
    let narrow = Mode::from_raw_mode(0o027);
    let before = rustix::process::umask(narrow);
    rustix::process::umask(before | narrow);
}

/// Makes the state folder, where it is missing.
///
/// Errors: the system's.
pub fn make_state(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    rlhfd_store::folder::make(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(STATE_MODE))
}

/// Makes the database's folder, where it is missing, and gives it to those who may look.
///
/// Errors: the system's, where it cannot be made. That it cannot be given away is only logged: the
/// daemon itself does not need it.
pub fn make_database(folder: &Path, look: Option<u32>) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o750).create(folder)?;
    // Whatever the mask of the process is.
    fs::set_permissions(folder, Permissions::from_mode(0o750))?;
    if let Some(state) = folder.parent() {
        rlhfd_store::folder::sync(state)?;
    }
    let Some(group) = look else { return Ok(()) };
    // A change of the group takes the bit away again, so the mode comes second.
    let given = chown(folder, None, Some(group))
        .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(DATABASE_MODE)));
    if let Err(error) = given {
        tracing::warn!(
            "{} is not for the group {LOOK} ({error}); as root: systemd-tmpfiles --create",
            folder.display()
        );
    }
    Ok(())
}

/// What keeps those who may look from the database of a state folder; none where nothing does, or where
/// nobody may look in any case.
#[must_use]
pub fn hidden(state: &Path, database: &Path) -> Option<String> {
    let facts = fs::metadata(state).ok()?;
    let look = Groups::of(facts.uid(), facts.gid()).look?;
    hidden_from(look, state, database)
}

fn hidden_from(look: u32, state: &Path, database: &Path) -> Option<String> {
    let folder = database.parent()?;
    let of = |path: &Path| fs::metadata(path).ok().map(|m| (m.gid(), m.mode() & 0o7777));
    if of(state).is_some_and(|(gid, mode)| gid != look && mode & 0o001 == 0) {
        return Some(told(state, &format!("chmod {STATE_MODE:o}")));
    }
    if of(folder).is_some_and(|(gid, mode)| gid != look || mode & 0o2050 != 0o2050) {
        return Some(told(folder, &format!("chgrp {LOOK}, then chmod {DATABASE_MODE:o}")));
    }
    if of(database).is_some_and(|(gid, mode)| gid != look || mode & 0o040 == 0) {
        return Some(told(database, &format!("chgrp {LOOK}, then chmod 640")));
    }
    None
}

fn told(path: &Path, mend: &str) -> String {
    format!("the group {LOOK} cannot read {}: {mend}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "root:x:0:\nrlhfd-read:x:901:rlhfd,eve\nrlhfd:x:900:eve\nusers:x:100:\n";

    #[test]
    fn only_root_and_the_service_give_anything_away() {
        let both = Groups { steer: Some(900), look: Some(901) };
        assert_eq!(Groups::within(TEXT, 0, 0), both);
        assert_eq!(Groups::within(TEXT, 990, 900), both);
        assert_eq!(Groups::within(TEXT, 1_000, 100), Groups::default());
        assert_eq!(Groups::within("rlhfd:x\nroot:x:0:", 0, 0), Groups::default());
    }

    #[test]
    fn folders_are_made_for_those_who_look_and_left_alone_where_they_stand() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let (state, group) = (root.path().join("state"), rustix::process::getegid().as_raw());
        make_state(&state).unwrap();
        assert_eq!(mode(&state), 0o751);
        let (db, file) = (state.join("db"), state.join("db/rlhfd.db"));
        make_database(&db, Some(group)).unwrap();
        assert_eq!(mode(&db), 0o2750);
        fs::write(&file, "").unwrap();
        assert_eq!(hidden_from(group, &state, &file), None);
        for (path, closed) in [(&file, 0o600), (&db, 0o750)] {
            fs::set_permissions(path, Permissions::from_mode(closed)).unwrap();
            let told = hidden_from(group, &state, &file).unwrap();
            assert!(told.contains(&path.display().to_string()), "{told}");
            make_database(&db, Some(group)).unwrap();
            assert_eq!(mode(path), closed);
        }
        let other = state.join("db2");
        make_database(&other, None).unwrap();
        assert_eq!(mode(&other), 0o750);
    }
}
