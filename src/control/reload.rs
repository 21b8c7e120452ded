//! SIGHUP: the configuration is read again, and what changed is told, knob by knob, with when it counts.
//!
//! In: the file, the configuration in force. Out: the new one in force, or the old one as it was; an event.
//! May not enter: what the knobs do.

use std::sync::Arc;

use rlhfd_config::{CheckedConfig, ConfigError};
use rlhfd_store::{Level, NewEvent};
use tokio::sync::watch;

use crate::advance::words::changed_knobs;
use crate::handles::with_causes;
use crate::places::Places;

/// Reads the configuration again. One that is wrong changes nothing.
pub fn reload(places: &Places, config: &watch::Sender<Arc<CheckedConfig>>) -> NewEvent {
    match CheckedConfig::load(&places.config) {
        Ok(new) => {
            let told = told(&config.borrow(), &new);
            config.send_replace(Arc::new(new));
            tracing::info!("{told}");
            NewEvent::about("config_reloaded", told)
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &ConfigError) -> NewEvent {
    let told = format!("the configuration stays as it was: {}", with_causes(error));
    tracing::error!("{told}");
    NewEvent { level: Level::Error, ..NewEvent::about("config_refused", told) }
}

/// Each change, and when it counts.
fn told(before: &CheckedConfig, after: &CheckedConfig) -> String {
    let mut changed = changed_knobs(&before.to_machine_toml(), &after.to_machine_toml());
    changed.extend(changed_knobs(&before.to_frozen_toml(), &after.to_frozen_toml()));
    if changed.is_empty() {
        return "the configuration is read again: nothing has changed".to_owned();
    }
    let lines: Vec<String> =
        changed.iter().map(|change| format!("{change} {}", counts(change))).collect();
    format!("the configuration is read again: {}", lines.join("; "))
}

/// When a changed knob counts, by its name.
fn counts(change: &str) -> &'static str {
    let key = change.split(' ').next().unwrap_or_default();
    let (section, name) = key.split_once('.').unwrap_or((key, ""));
    match (section, name) {
        ("control", "readers_socket") => "[needs a restart of the daemon]",
        ("worker", _) => "[for workers that start from now on]",
        ("scheduler", "unit_tokens_cpu" | "unit_tokens_gpu") => "[from the next iteration on]",
        ("scheduler", "step_timeout_s" | "stop_timeout_s")
        | ("control" | "store" | "devices", _) => "[at once]",
        ("scheduler", _) => "[for workers that start from now on]",
        ("run", "policy" | "start" | "reference" | "seed") => {
            "[for a new run only: it needs a new run.name]"
        }
        ("sft" | "reward" | "preference", _) => "[for jobs made from now on]",
        _ => "[from the next iteration on]",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> CheckedConfig {
        let text = format!("[run]\npolicy = 'p'\n{text}");
        CheckedConfig::from_text(&text, Path::new("/x")).unwrap()
    }

    #[test]
    fn every_change_is_told_with_when_it_counts() {
        let before = config("");
        let after = config(
            "seed = 5\n[control]\nreaders_socket = '/run/rlhfd/r.sock'\n[store]\n\
             disk_free_min_mib = 5\n[worker]\nnice = 3\n[scheduler]\nunit_tokens_cpu = 7\n\
             [devices]\nuse = ['cpu']\n[generate]\nmax_new_tokens = 7\n[reward]\nepochs = 7\n",
        );
        let said = told(&before, &after);
        for part in [
            "control.readers_socket = \"/run/rlhfd/r.sock\" [needs a restart of the daemon]",
            "store.disk_free_min_mib = 5 (was 1024) [at once]",
            "devices.use = [\"cpu\"] (was \"auto\") [at once]",
            "scheduler.unit_tokens_cpu = 7 (was 20000) [from the next iteration on]",
            "worker.nice = 3 (was 10) [for workers that start from now on]",
            "run.seed = 5 (was 1) [for a new run only: it needs a new run.name]",
            "generate.max_new_tokens = 7 (was 2048) [from the next iteration on]",
            "reward.epochs = 7 (was 1) [for jobs made from now on]",
        ] {
            assert!(said.contains(part), "{part}\nnot in\n{said}");
        }
        assert!(told(&before, &before).ends_with("nothing has changed"));
    }
}
