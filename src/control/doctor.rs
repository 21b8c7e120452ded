//! `rlhfctl doctor`: what `rlhfd check` tells, and what only a long look finds: the sums of all
//! checkpoints, what lies in the state folder and belongs to nothing, what waits for a person.
//!
//! In: the places and the live state of a daemon that runs. Out: findings, each with what to do. It reads
//! only, and it blocks: whole files are read. May not enter: mending.

use rlhfd_protocol::control::{Doctor, Finding};
use rlhfd_store::{Checkpoint, Reader, Run, StoreError};

use crate::adopt::names;
use crate::check::report::{Level, Report};
use crate::check::{self, Runner};
use crate::live::Live;
use crate::places::{Asked, Places};
use crate::stages::sums::{self, model_sum};

/// Looks at everything.
#[must_use]
pub fn examine(places: &Places, live: &Live) -> Doctor {
    let asked = Asked {
        config: Some(places.config.clone()),
        state: Some(places.state.clone()),
        socket: Some(places.socket.clone()),
    };
    let mut report = check::examine(&asked, Runner::Oneself);
    // That somebody serves it is as it should be.
    report.0.retain(|(_, about, _)| *about != "socket");
    match Reader::open(&places.state) {
        Ok(reader) => {
            if let Err(error) = by_rows(&reader, places, &mut report) {
                report.bad("database", format!("{error}: restore a backup of STATE/backups"));
            }
        }
        Err(error) => report.bad("database", error.to_string()),
    }
    orphans(places, &mut report);
    for fault in live.faults.values() {
        report.bad("daemon", fault.clone());
    }
    let finding = |(level, about, what): (Level, &'static str, String)| Finding {
        level: level.label().to_owned(),
        about: about.to_owned(),
        what,
    };
    Doctor { findings: report.0.into_iter().map(finding).collect() }
}

fn by_rows(reader: &Reader, places: &Places, report: &mut Report) -> Result<(), StoreError> {
    for run in reader.runs()? {
        if let Some(paused) = &run.paused {
            report.warn(
                "run",
                format!(
                    "{} is paused by the {} ({}): `rlhfctl resume` lets it go on",
                    run.name,
                    paused.by.label(),
                    paused.reason
                ),
            );
        }
        let rows = reader.checkpoints(run.id)?;
        let before = reader.removed(run.id)?;
        let standing = rows.iter().filter(|row| !before.contains(&row.id));
        let looked: Vec<_> = standing.map(|row| (row, differs(places, row))).collect();
        // Asked after that long look: a removal that began meanwhile is no fault.
        let begun = reader.removals_begun(run.id)?;
        let removed = reader.removed(run.id)?;
        let gone = |row: &Checkpoint| {
            removed.contains(&row.id) || begun.iter().any(|one| one.id == row.id)
        };
        let mut well = 0_u64;
        for (row, problem) in looked.into_iter().filter(|(row, _)| !gone(row)) {
            match problem {
                None => well += 1,
                Some(problem) => report.bad("checkpoint", told(&run, row, &problem)),
            }
        }
        report.well("checkpoint", format!("{well} of {} are as their sums say", run.name));
        strangers(places, &run, &rows, report);
    }
    Ok(())
}

/// What is wrong with a checkpoint's folder, by every byte of it.
fn differs(places: &Places, row: &Checkpoint) -> Option<String> {
    let folder = places.resolve(&row.path);
    let own = Places::is_published(&row.path);
    let sum =
        if own { sums::verify(&folder).map(|found| found.sha256) } else { model_sum(&folder) };
    match sum {
        Ok(sum) if sum == row.sha256 => None,
        Ok(_) => Some("it is another model than the one that was admitted".to_owned()),
        Err(error) => Some(crate::handles::with_causes(&error)),
    }
}

fn told(run: &Run, row: &Checkpoint, problem: &str) -> String {
    let mend = if row.id == run.head {
        "restore the folder from a backup; else the daemon goes back to its parent as it next loads it or starts"
    } else {
        "restore the folder from a backup; nothing begins with it until then"
    };
    format!("{} of {}: {problem}: {mend}", row.name, run.name)
}

/// Folders among the checkpoints that no row names. One that a training publishes right now is none of
/// them: its name begins with a dot until it is whole.
fn strangers(places: &Places, run: &Run, rows: &[Checkpoint], report: &mut Report) {
    let parent = places.checkpoints(&run.name);
    for name in names(&parent).unwrap_or_default().into_iter().filter(|name| !name.starts_with('.'))
    {
        let path = places.relative(&parent.join(&name));
        if !rows.iter().any(|row| row.path == path) {
            let what = format!(
                "{path} belongs to no checkpoint yet: one that was published a moment ago is admitted by \
                 itself; what stays is moved to orphans/ at the next start"
            );
            report.warn("folder", what);
        }
    }
}

/// What an earlier start moved aside.
fn orphans(places: &Places, report: &mut Report) {
    let names = names(&places.orphans()).unwrap_or_default();
    if names.is_empty() {
        report.well("orphans", "none".to_owned());
        return;
    }
    let what = format!(
        "{} lie in {}: look whether you want them, and remove them",
        names.join(", "),
        places.orphans().display()
    );
    report.warn("orphans", what);
}
