//! Opening and closing: the state folder's database, its one writer and its readers.
//!
//! In: a state folder. Out: [`Store`] or [`Reader`]. A new database is made aside and renamed, so that
//! whatever stands at its place is whole and ours; anything else there is refused and left untouched.
//! In WAL mode a clean close takes the side files away, which a reader without the right to write the
//! folder cannot make again; so a clean stop turns the journal mode back to DELETE.
//! May not enter: the lock of the state folder (the daemon's), queries.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::{Result, StoreError};
use crate::{folder, migrations, probe};

/// The database's folder within the state folder.
pub const FOLDER: &str = "db";
/// The folder of its copies, beside it.
pub const BACKUPS: &str = "backups";
/// The database's name there, and the name of the link to it in the state folder.
pub const FILE: &str = "rlhfd.db";

pub(crate) const BUSY: Duration = Duration::from_secs(10);
/// Statements that a reader keeps ready, of some ten KiB each; the writer keeps more.
const READER_STATEMENTS: usize = 48;
/// The log is folded back into the file at about so many pages (of 4 KiB).
const WAL_PAGES: i64 = 4_000;

/// A read-only connection.
#[derive(Debug)]
pub struct Reader {
    pub(crate) conn: Connection,
}

/// The one writing connection; it reads as well.
#[derive(Debug)]
pub struct Store {
    reader: Reader,
    path: PathBuf,
    copied: Option<PathBuf>,
}

impl Deref for Store {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

/// The database file of a state folder.
#[must_use]
pub fn database(state: &Path) -> PathBuf {
    state.join(FOLDER).join(FILE)
}

impl Store {
    /// Opens the database of a state folder, or makes it. The caller holds the folder's lock.
    pub fn open(state: &Path) -> Result<Self> {
        let folder = state.join(FOLDER);
        folder::make(&folder).map_err(place("make", &folder))?;
        let path = database(state);
        if path.exists() {
            probe::check(&path)?;
        } else {
            create(&folder, &path)?;
        }
        link(state)?;
        let mut conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
        let version: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > migrations::newest() {
            return Err(StoreError::Newer { path, found: version, known: migrations::newest() });
        }
        let copied = migrations::upgrade(&mut conn, &state.join(BACKUPS))?;
        Ok(Self { reader: Reader { conn }, path, copied })
    }

    /// Leaves a database that can be read without the right to write its folder. Readers must be
    /// closed before; where one is not, the log is folded back as far as it lets us, and false is
    /// returned.
    pub fn close(self) -> Result<bool> {
        let conn = self.reader.conn;
        conn.busy_timeout(Duration::from_millis(500))?;
        let asked = conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0));
        let mode: String = match asked {
            Ok(mode) => mode,
            Err(error) => match StoreError::from(error) {
                StoreError::Busy { .. } => String::new(),
                other => return Err(other),
            },
        };
        let clean = mode.eq_ignore_ascii_case("delete");
        if !clean {
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        conn.close().map_err(|(_, error)| StoreError::from(error))?;
        Ok(clean)
    }

    /// The copy that was made at the opening, where the schema was an older one.
    #[must_use]
    pub fn copied(&self) -> Option<&Path> {
        self.copied.as_deref()
    }

    /// Where the database lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One IMMEDIATE transaction: all of `work`, or nothing of it.
    pub(crate) fn transact<T>(&mut self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let conn = &mut self.reader.conn;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&tx)?;
        tx.commit().map_err(StoreError::at_commit)?;
        Ok(value)
    }
}

#[cfg(test)]
impl Store {
    /// The connection itself, for a check's own counters.
    pub(crate) fn conn_mut(&mut self) -> &mut Connection {
        &mut self.reader.conn
    }
}

impl Reader {
    /// A read-only connection to the database of a state folder, which must be there.
    pub fn open(state: &Path) -> Result<Self> {
        let path = database(state);
        if !path.exists() {
            return Err(StoreError::NotFound {
                what: "database",
                name: path.display().to_string(),
            });
        }
        let conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        conn.pragma_update(None, "query_only", true)?;
        // In KiB. Several readers stay open, and the kernel has the file's pages as well.
        conn.pragma_update(None, "cache_size", -512)?;
        conn.set_prepared_statement_cache_capacity(READER_STATEMENTS);
        Ok(Self { conn })
    }
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection> {
    let conn = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // A statement keeps its plan whatever is bound. Else SQLite makes most of those with a `WHERE` anew each
    // time that they are taken from the cache, since another value might want another plan: that was half
    // of the cost of taking in a prompt. No index of ours is chosen by a bound value.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // Sorting never goes to the system's temporary folder.
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(conn)
}

/// Makes the database under another name and renames it, so that a crash leaves no half of one.
fn create(folder: &Path, path: &Path) -> Result<()> {
    let aside = folder.join("new.db");
    for leftover in ["new.db", "new.db-journal", "new.db-wal", "new.db-shm"] {
        let leftover = folder.join(leftover);
        if leftover.exists() {
            fs::remove_file(&leftover).map_err(place("remove", &leftover))?;
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut conn = connect(&aside, flags)?;
    // Must come before the first page is written.
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    migrations::migrate(&mut conn)?;
    conn.close().map_err(|(_, error)| StoreError::from(error))?;
    fs::rename(&aside, path).map_err(place("make", path))?;
    folder::sync(folder).map_err(place("sync", folder))
}

/// `STATE/rlhfd.db` → `db/rlhfd.db`, for readers, so that the database's side files may lie in a folder with
/// rights of its own; relative, so that the state folder can be moved.
fn link(state: &Path) -> Result<()> {
    let at = state.join(FILE);
    let to = Path::new(FOLDER).join(FILE);
    if fs::read_link(&at).is_ok_and(|target| target == to) {
        return Ok(());
    }
    if fs::symlink_metadata(&at).is_ok_and(|meta| !meta.file_type().is_symlink()) {
        return Err(StoreError::Conflict {
            what: "file",
            name: at.display().to_string(),
            why: format!("stands where a link to {} belongs: move it away", to.display()),
        });
    }
    let aside = state.join(".rlhfd.db.link");
    let _ = fs::remove_file(&aside);
    std::os::unix::fs::symlink(&to, &aside).map_err(place("link", &aside))?;
    fs::rename(&aside, &at).map_err(place("link", &at))?;
    folder::sync(state).map_err(place("sync", state))
}

fn place(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Place { action, path, source }
}
