//! The run that the configuration names, held against the one that the database knows.
//!
//! In: a configuration and the state folder. Out: findings. Reads only. May not enter: whether
//! configuration or database are sound by themselves (`system`).

use std::path::Path;

use rlhfd_config::{ArmPolicy, CheckedConfig};
use rlhfd_store::{Reader, Run};

use super::report::Report;
use crate::advance::{NOTHING_KEPT, arms};
use crate::places::Places;
use crate::stages::sums::model_sum;

/// Tells where a known run was begun with another seed, start, policy or reference. A database that cannot
/// be read was told of already.
pub(super) fn identity(config: &CheckedConfig, state: &Path, report: &mut Report) {
    let Ok(reader) = Reader::open(state) else { return };
    let Ok(Some(run)) = reader.run_by_name(&config.run.name) else { return };
    let differing = differing(config, &reader, &run);
    for difference in &differing {
        let mend = "give the run a new name in [run], or what it began with back";
        report.bad("run", format!("{} was begun with {difference}: {mend}", run.name));
    }
    if differing.is_empty() {
        report.well("run", format!("{} goes on as it was begun", run.name));
    }
}

fn differing(config: &CheckedConfig, reader: &Reader, run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    if run.seed != config.run.seed {
        found.push(format!("the seed {}, and the configuration has {}", run.seed, config.run.seed));
    }
    let word = |job: Option<&str>| job.map_or("policy".to_owned(), |job| format!("sft/{job}"));
    let (was, is) = (word(run.start_job.as_deref()), word(config.run.start.job()));
    if was != is {
        found.push(format!("the start {was}, and the configuration has {is}"));
    }
    let named = run.named_reference();
    if was == is && run.start_job.is_some() && named.is_some() != config.run.reference.is_some() {
        found.push("another reference".to_owned());
    }
    let models = [
        ("policy", run.base, config.run.policy.path.as_path()),
        ("reference", named.unwrap_or(run.base), config.reference_path()),
    ];
    for (what, row, folder) in models {
        // A folder that cannot be read was told of already.
        let (Ok(row), Ok(sum)) = (reader.checkpoint(row), model_sum(folder)) else { continue };
        if row.sha256 != sum {
            let folder = folder.display();
            found.push(format!("another {what} ({}) than what {folder} holds", row.path));
        }
    }
    found.dedup();
    found
}

/// Tells which checkpoints `[[generate.arms]]` name, and which of them the run does not have.
pub(super) fn arms(config: &CheckedConfig, places: &Places, report: &mut Report) {
    let reader = Reader::open(&places.state).ok();
    let known = reader.as_ref().and_then(|reader| {
        let run = reader.run_by_name(&config.run.name).ok().flatten()?;
        Some((reader, run))
    });
    for (arm, given) in arms::of(config).iter().zip(&config.generate.arms) {
        let found = match (&known, &given.policy) {
            (Some((reader, run)), _) => arms::policy(reader, run, arm, places),
            (None, ArmPolicy::Named(name)) => Err(format!(
                "the arm {} is to sample from {name}, and run {} has not begun: write \"current\", \
                 \"previous\" or \"initial\"",
                given.name, config.run.name
            )),
            (None, _) => continue,
        };
        match found {
            Ok(policy) if given.policy != ArmPolicy::Current => {
                report.well("arm", format!("{} samples from {}", given.name, policy.name));
            }
            Ok(_) => {}
            Err(sentence) => report.bad("arm", sentence),
        }
    }
}

/// Tells where `[gate]` would reject every checkpoint, because no prompt is kept for evaluation: the
/// loop waits for one.
pub(super) fn gate(config: &CheckedConfig, state: &Path, report: &mut Report) {
    if !config.gate.asks_evaluation() {
        return;
    }
    let sets = Reader::open(state).ok().and_then(|reader| reader.prompt_sets(None).ok());
    match sets.unwrap_or_default().iter().map(|set| set.reserved).sum::<u64>() {
        0 => report.warn("gate", format!("the loop waits: {NOTHING_KEPT}")),
        kept => report.well("gate", format!("it looks at {kept} prompts kept for evaluation")),
    }
}

/// Tells which preference sets `[train] offline` names, and which of them are missing: the loop waits
/// for those.
pub(super) fn offline(config: &CheckedConfig, state: &Path, report: &mut Report) {
    let reader = Reader::open(state).ok();
    for name in &config.train.offline {
        let known = reader.as_ref().and_then(|reader| reader.preference_set(name).ok().flatten());
        match known {
            Some(set) => {
                report.well("offline", format!("{name}: {} preferences", set.preferences));
            }
            None => report.warn(
                "offline",
                format!(
                    "{name} is not there yet: the loop waits for \
                     `rlhfctl preferences add FILE --set {name}`"
                ),
            ),
        }
    }
}
