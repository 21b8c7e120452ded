//! A look at a database file before anything touches it: whose it is, how new, and whether it can be
//! read at all.
//!
//! In: a path. Out: nothing, or why the file is refused. The header is read as plain bytes and the
//! rest through an immutable connection wherever the main file is the whole truth, so that a refused
//! file is left exactly as it was, without even a side file.
//! May not enter: writing.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::error::{Result, StoreError};
use crate::migrations;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Refuses what is not ours, newer, or damaged.
pub(crate) fn check(path: &Path) -> Result<()> {
    let header = read_header(path)?;
    check_header(path, &header)?;
    // A journal left by a crash must be rolled back before the pages mean anything; that is for the
    // writing connection to do.
    if side_file_has_bytes(path, "-journal") {
        return Ok(());
    }
    let wal = side_file_has_bytes(path, "-wal");
    let shm_was_there = side(path, "-shm").exists();
    let checked = check_pages(path, wal);
    if checked.is_err() && wal && !shm_was_there {
        // Our read-only look made the index of the log; nobody else has the file open.
        let _ = std::fs::remove_file(side(path, "-shm"));
    }
    checked
}

/// The URI of a file for SQLite, with all but plain characters escaped.
pub(crate) fn uri(path: &Path, query: &str) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;

    let mut text = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-') {
            text.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text.push_str(query);
    text
}

struct Header {
    page_bytes: u64,
    pages: u64,
    pages_are_sure: bool,
    user_version: u32,
    application_id: u32,
    file_bytes: u64,
}

fn read_header(path: &Path) -> Result<Header> {
    let place = |source| StoreError::Place { action: "read", path: path.to_owned(), source };
    let damaged =
        |detail: &str| StoreError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
    let mut file = File::open(path).map_err(place)?;
    let file_bytes = file.metadata().map_err(place)?.len();
    let mut bytes = Vec::with_capacity(100);
    file.by_ref().take(100).read_to_end(&mut bytes).map_err(place)?;
    if bytes.is_empty() {
        return Err(damaged("it is empty"));
    }
    if !bytes.starts_with(MAGIC) {
        return Err(StoreError::NotADatabase { path: path.to_owned() });
    }
    let word = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        four.map(u32::from_be_bytes).ok_or_else(|| damaged("its header is cut short"))
    };
    let page = bytes.get(16..18).and_then(|b| <[u8; 2]>::try_from(b).ok());
    let page = page.map(u16::from_be_bytes).ok_or_else(|| damaged("its header is cut short"))?;
    Ok(Header {
        page_bytes: if page == 1 { 65_536 } else { u64::from(page) },
        pages: u64::from(word(28)?),
        pages_are_sure: word(24)? == word(92)?,
        user_version: word(60)?,
        application_id: word(68)?,
        file_bytes,
    })
}

fn check_header(path: &Path, header: &Header) -> Result<()> {
    let damaged = |detail: String| StoreError::Damaged { path: path.to_owned(), detail };
    if header.application_id != migrations::APPLICATION_ID {
        let application_id = header.application_id;
        return Err(StoreError::Foreign { path: path.to_owned(), application_id });
    }
    newer(path, header.user_version)?;
    if !header.page_bytes.is_power_of_two() || header.page_bytes < 512 {
        return Err(damaged(format!("its page size is {}", header.page_bytes)));
    }
    // With a log beside it, the main file may lawfully be shorter than the database.
    let whole = header.pages.saturating_mul(header.page_bytes);
    let short = header.pages_are_sure && header.file_bytes < whole;
    if short && !side_file_has_bytes(path, "-wal") && !side_file_has_bytes(path, "-journal") {
        let bytes = header.file_bytes;
        return Err(damaged(format!("{whole} bytes were written, {bytes} are left")));
    }
    Ok(())
}

fn newer(path: &Path, found: u32) -> Result<()> {
    let known = migrations::newest();
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    Ok(())
}

/// Reads the schema and one row of every table: a cheap look at each tree's first pages. The whole
/// check is for `rlhfd check`.
fn check_pages(path: &Path, wal: bool) -> Result<()> {
    let damaged = |source: rusqlite::Error| {
        let detail = source.to_string();
        match StoreError::from(source) {
            // A disk that fails says nothing of the file: its index alone may not be written now.
            ill @ (StoreError::Disk { .. } | StoreError::Busy { .. }) => ill,
            _ => StoreError::Damaged { path: path.to_owned(), detail },
        }
    };
    let query = if wal { "?mode=ro" } else { "?immutable=1" };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(uri(path, query), flags).map_err(damaged)?;
    let version: u32 =
        conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(damaged)?;
    newer(path, version)?;
    let mut tables = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0")
        .map_err(damaged)?;
    let names: Vec<String> =
        tables.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(damaged)?;
    for name in names {
        let quoted = name.replace('"', "\"\"");
        let look = format!("SELECT EXISTS (SELECT * FROM \"{quoted}\")");
        conn.query_row(&look, [], |row| row.get::<_, bool>(0)).map_err(damaged)?;
    }
    Ok(())
}

fn side(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn side_file_has_bytes(path: &Path, suffix: &str) -> bool {
    std::fs::metadata(side(path, suffix)).is_ok_and(|meta| meta.len() > 0)
}
