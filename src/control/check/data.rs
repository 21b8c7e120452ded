//! Data that the configuration names for training jobs, read as an upload of them would be.
//!
//! In: a configuration. Out: findings, bad lines with their numbers. May not enter: what is done with
//! the data.

use rlhfd_config::CheckedConfig;
use rlhfd_domain::JobKind;

use super::report::Report;
use crate::examples::{self, Named};

/// Reads all files; tells what each holds, and what is wrong with it.
pub(super) fn files(config: &CheckedConfig, report: &mut Report) {
    for named in examples::named(config) {
        for file in &named.data.files {
            let path = file.place.path.display();
            match examples::examine(named.kind, &file.place.path) {
                Ok(found) => told(&named, &path.to_string(), &found, report),
                Err(error) => {
                    report.bad("data", format!("{path} cannot be read ({error}): put it there"));
                }
            }
        }
    }
}

fn told(
    named: &Named<'_>,
    path: &str,
    found: &crate::listener::intake::Report,
    report: &mut Report,
) {
    let what = examples::data_of(named.kind).label();
    if found.lines == 0 {
        report.bad("data", format!("{path} holds no {what}: one JSON object a line is wanted"));
        return;
    }
    if found.bad == 0 {
        let job = format!("{}/{}", named.kind, named.data.job);
        report.well("data", format!("{path}: {} {what} for {job}", found.lines));
        return;
    }
    let mut text = format!("{path}: {} of {} lines are bad: mend them", found.bad, found.lines);
    for bad in &found.bad_lines {
        text.push_str(&format!("\nline {} {}", bad.line, bad.reason));
    }
    report.bad("data", text);
}

/// Tells what the run begins with, and who trains it.
pub(super) fn start(config: &CheckedConfig, report: &mut Report) {
    if let Some(name) = config.run.start.job() {
        let by = trained_by(config, JobKind::Sft, name);
        report.well("start", format!("the run begins with what sft/{name} makes, {by}"));
    }
}

/// Who makes a training job: the daemon, from data that the configuration names, or a client.
pub(super) fn trained_by(config: &CheckedConfig, kind: JobKind, name: &str) -> String {
    let mut named = examples::named(config);
    match named.find(|named| named.kind == kind && named.data.job == name) {
        Some(_) => format!("which the daemon trains on [{kind}] data"),
        None => format!("and waits for `rlhfctl train {kind} --name {name} --data FILE`"),
    }
}
