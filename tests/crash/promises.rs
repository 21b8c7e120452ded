//! What must hold of a state folder, whenever the power failed.
//!
//! Comes in: a state folder that nobody works on, and what was acknowledged. Goes out: what is broken, one
//! sentence each. May not enter: daemons.

use std::fs;
use std::path::{Path, PathBuf};

use rlhfd_protocol::manifest::{MANIFEST, Manifest};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};

use crate::story::Step;

/// Opens the database as the daemon would, and leaves the log where it is at the end.
pub fn open(state: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(state.join("db/rlhfd.db"), flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(connection)
}

/// All that is broken.
pub fn broken(state: &Path, acknowledged: &[&Step]) -> Vec<String> {
    let mut broken = Vec::new();
    for step in acknowledged {
        if !(step.holds)(state) {
            broken.push(format!("`{}` was acknowledged and is lost", step.name));
        }
    }
    if !state.join("db/rlhfd.db").exists() {
        // A daemon makes one; whether something was lost with it was asked above.
        return broken;
    }
    match open(state) {
        Ok(connection) => {
            let told = database(&connection).and_then(|mut found| {
                found.extend(checkpoints(state, &connection)?);
                found.extend(trained(state, &connection)?);
                found.extend(jobs(state, &connection)?);
                found.extend(orphans(state, &connection)?);
                Ok(found)
            });
            broken.extend(told.unwrap_or_else(|error| vec![format!("the database: {error}")]));
        }
        Err(error) => broken.push(format!("the database cannot be opened: {error}")),
    }
    broken
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    row: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare(sql)?.query_map([], row)?.collect()
}

fn database(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = rows(connection, "PRAGMA integrity_check", |row| row.get::<_, String>(0))?;
    found.retain(|finding| finding != "ok");
    let keys = "SELECT count(*) FROM pragma_foreign_key_check";
    let loose: i64 = connection.query_row(keys, [], |row| row.get(0))?;
    found.extend((loose > 0).then(|| format!("{loose} rows point at nothing")));
    Ok(found)
}

/// Each checkpoint's folder is what its row says; of one that is gone nothing stands.
fn checkpoints(state: &Path, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT path, sha256, sound, removal_ms IS NOT NULL, removed_ms IS NOT NULL
               FROM checkpoints WHERE path NOT LIKE '/%'";
    let rows = rows(connection, sql, |row| {
        let flags: (bool, bool, bool) = (row.get(2)?, row.get(3)?, row.get(4)?);
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, flags))
    })?;
    let mut found = Vec::new();
    for (path, sha256, (sound, removal, removed)) in rows {
        let folder = state.join(&path);
        if removed && folder.exists() {
            found.push(format!("{path} is removed, and stands"));
        }
        if removal {
            continue;
        }
        match verified(&folder) {
            Ok(sum) if sum == sha256 && sound => {}
            Ok(sum) => found.push(format!("{path}: sum {sum}, sound {sound}")),
            Err(why) => found.push(format!("{path}: {why}")),
        }
    }
    Ok(found)
}

/// A training that is done has its checkpoint's folder, and the input that it was made from.
fn trained(state: &Path, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT u.iteration FROM units u WHERE u.work = 'train_dpo' AND u.state = 'done'
        AND NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.run_id = u.run_id
                        AND c.iteration = u.iteration)";
    let mut found = Vec::new();
    for iteration in rows(connection, sql, |row| row.get::<_, u32>(0))? {
        for folder in ["checkpoints/iteration-", "iterations/"] {
            let folder = state.join(format!("runs/main/{folder}{iteration:04}"));
            found.extend(verified(&folder).err().map(|why| format!("{}: {why}", folder.display())));
        }
    }
    let newest = "SELECT coalesce(max(iteration), 0) FROM units
                  WHERE work = 'train_dpo' AND state = 'done'";
    let newest: u32 = connection.query_row(newest, [], |row| row.get(0))?;
    if newest > 0 {
        let folder = state.join(format!("runs/main/iterations/{newest:04}"));
        found.extend(verified(&folder).err().map(|why| format!("{}: {why}", folder.display())));
    }
    Ok(found)
}

/// A training job has its examples, uploaded still or in its folder.
fn jobs(state: &Path, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT u.id, u.kept, j.kind || '-' || j.name FROM training_jobs j
               JOIN uploads u ON u.id = j.upload_id";
    let rows = rows(connection, sql, |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, String>(2)?))
    })?;
    let mut found = Vec::new();
    for (upload, kept, job) in rows {
        let lines = fs::read_to_string(state.join(format!("uploads/{upload}.jsonl")));
        let uploaded = lines.is_ok_and(|lines| {
            let whole = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
            lines.lines().count() == kept as usize && lines.lines().all(whole)
        });
        let folder = verified(&state.join(format!("runs/main/jobs/{job}")));
        if let (false, Err(why)) = (uploaded, folder) {
            found.push(format!("the examples of {job} are in no upload, and their folder: {why}"));
        }
    }
    Ok(found)
}

/// A folder that was told to be moved away is there.
fn orphans(state: &Path, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT message FROM events WHERE kind = 'folder_orphaned'";
    let messages = rows(connection, sql, |row| row.get::<_, String>(0))?;
    let stands = |message: &String| {
        let place = message.split(" is moved to ").nth(1).and_then(|rest| rest.split(':').next());
        place.is_some_and(|place| state.join(place).join("README").exists())
    };
    let lost = messages.into_iter().filter(|message| !stands(message));
    Ok(lost.map(|message| format!("it is not so that {message}")).collect())
}

/// The sum of a folder's manifest, once every file is as that says.
fn verified(folder: &Path) -> Result<String, String> {
    let read = |path: PathBuf| fs::read(&path).map_err(|e| format!("{}: {e}", path.display()));
    let text = read(folder.join(MANIFEST))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("{MANIFEST}: {error}"))?;
    for file in &manifest.files {
        if sum(&read(folder.join(&file.path))?) != file.sha256 {
            return Err(format!("{} is another", file.path));
        }
    }
    Ok(sum(&text))
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The training job has its row.
pub fn has_job(state: &Path) -> bool {
    let sql = "SELECT count(*) FROM training_jobs WHERE name = 'talk'";
    open(state).and_then(|open| open.query_row(sql, [], |row| row.get::<_, i64>(0))) == Ok(1)
}

/// A whole copy of the database lies where copies lie.
pub fn has_backup(state: &Path) -> bool {
    let whole = |path: &Path| -> rusqlite::Result<bool> {
        let copy = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let said: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        let runs: i64 = copy.query_row("SELECT count(*) FROM runs", [], |row| row.get(0))?;
        Ok(said == "ok" && runs == 1)
    };
    let paths = fs::read_dir(state.join("backups")).into_iter().flatten().flatten();
    let mut copies =
        paths.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "db"));
    copies.any(|path| whole(&path).unwrap_or(false))
}
