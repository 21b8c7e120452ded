//! What may never be, whatever befell a run.
//!
//! Comes in: a scene whose daemon has ended in order. Goes out: a sentence for each thing that is wrong.

use std::fs;
use std::path::Path;

use rlhfd_tests::dump;
use rlhfd_tests::scene::Scene;

/// Everything that is wrong with what a round left.
pub fn broken(scene: &Scene) -> Vec<String> {
    let mut broken = Vec::new();
    let Ok(connection) = dump::try_open(&scene.database()) else {
        return vec!["the database cannot be opened".to_owned()];
    };
    let text = |sql: &str| -> String {
        let row = connection.query_row(sql, [], |row| row.get::<_, String>(0));
        row.unwrap_or_else(|error| error.to_string())
    };
    let integrity = text("PRAGMA integrity_check");
    if integrity != "ok" {
        broken.push(format!("integrity_check: {integrity}"));
    }
    let counts = [
        ("rows point at nothing", "SELECT count(*) FROM pragma_foreign_key_check"),
        (
            "units have two finished attempts",
            "SELECT count(*) FROM (SELECT 1 FROM attempts WHERE outcome = 'finished'
             GROUP BY unit_id HAVING count(*) > 1)",
        ),
        ("deaths were counted", "SELECT count(*) FROM attempts WHERE counted = 1"),
        ("attempts are open", "SELECT count(*) FROM attempts WHERE ended_ms IS NULL"),
    ];
    for (what, sql) in counts {
        let found = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        match found {
            Ok(0) => {}
            Ok(count) => broken.push(format!("{count} {what}")),
            Err(error) => broken.push(format!("{what}: {error}")),
        }
    }
    let mut left = Vec::new();
    temporary(&scene.state(), &mut left);
    broken.extend(left.into_iter().map(|path| format!("{path} was left behind")));
    broken
}

/// Files and folders that only stand while something is written: behind a dot, the states of trainings,
/// uploads.
fn temporary(folder: &Path, found: &mut Vec<String>) {
    let within = folder.file_name().is_some_and(|name| name == "state" || name == "uploads");
    let of_run = within && !folder.join("db").is_dir();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let aside = [".partial", ".part", ".tmp", ".new", ".removed"];
        if of_run || name.starts_with('.') || aside.iter().any(|end| name.ends_with(end)) {
            found.push(path.display().to_string());
        } else if path.is_dir() {
            temporary(&path, found);
        }
    }
}
