//! Room on the disk: what a stage is going to write, held against what is left before it begins.
//!
//! In: the store's limits, the state folder, model folders by their headers. Out: a sentence where there is
//! too little, and nothing is begun. It blocks where it looks at folders. May not enter: the estimates
//! themselves (`rlhfd_domain::room`), what is removed (`advance::tidy`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rlhfd_config::{CheckedConfig, Reference, StoreConfig, TrainSettings};
use rlhfd_domain::room::{Model, rollout_bytes};
use rlhfd_store::Run;

use crate::actors::stage::{StageContext, StageError};
use crate::check::weights::{self, Weights};
use crate::handles::AskError;
use crate::health;

const MIB: u64 = 1 << 20;

/// What the next iteration lacks; none where its rollouts, its update and its checkpoint fit.
pub async fn for_iteration(
    ctx: &StageContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<Option<String>, AskError> {
    let head = run.head;
    let head = ctx.store.read(move |r| r.checkpoint(head)).await?;
    let (folder, state) = (ctx.places.resolve(&head.path), ctx.places.state.clone());
    let (store, settings) = (config.store.clone(), config.train.settings.clone());
    let averages = config.train.reference.which == Reference::Average;
    let responses = config
        .run
        .prompts_per_iteration
        .saturating_mul(u64::from(config.generate.responses_per_prompt()));
    let rollouts = rollout_bytes(responses, u64::from(config.generate.max_new_tokens));
    let look = move || {
        let update = model(&folder, &settings).map_or(0, |model| {
            // A moving average is a checkpoint of its own.
            let average = if averages { model.checkpoint_bytes() } else { 0 };
            model.update_bytes().saturating_add(average)
        });
        lacking(&state, &store, rollouts.saturating_add(update), "the next iteration")
    };
    actix_rt::task::spawn_blocking(look).await.map_err(|_| AskError::Gone)
}

/// Looks whether a training's own state and its checkpoint fit; what an earlier attempt has saved already
/// is taken off.
///
/// Errors: `Place` where they do not: the unit waits until there is room.
pub async fn for_training(
    ctx: &StageContext,
    (base, settings): (&Path, &TrainSettings),
    saved: PathBuf,
) -> Result<(), StageError> {
    let (base, settings) = (base.to_path_buf(), settings.clone());
    let state = ctx.places.state.clone();
    let store = ctx.config.borrow().store.clone();
    let look = move || {
        let bytes = model(&base, &settings).map_or(0, |model| model.update_bytes());
        let bytes = bytes.saturating_sub(folder_bytes(&saved));
        (lacking(&state, &store, bytes, "the training"), bytes)
    };
    let looked = actix_rt::task::spawn_blocking(look).await;
    let (lacking, bytes) = looked
        .map_err(|_| StageError::Input("the disk could not be looked at: a defect".into()))?;
    let Some(sentence) = lacking else { return Ok(()) };
    ctx.health.tell_for(&sentence, bytes);
    let source = io::Error::new(io::ErrorKind::StorageFull, sentence);
    Err(StageError::Place { path: ctx.places.state.clone(), source })
}

/// A model by its weights' headers; none where they cannot be read, which others tell of.
fn model(folder: &Path, settings: &TrainSettings) -> Option<Model> {
    let weights = weights::read(folder).ok()?;
    let learning = learning(&weights, settings);
    Some(Model { bytes: weights.bytes, parameters: weights.parameters, learning })
}

/// Parameters that learn by these settings, but for adapters.
fn learning(weights: &Weights, settings: &TrainSettings) -> u64 {
    match (settings.lora_rank, settings.trainable_layers) {
        (0, None) => weights.parameters,
        (0, Some(top)) => weights.blocks.values().rev().take(top as usize).sum(),
        _ => 0,
    }
}

/// Why so many bytes more do not fit.
fn lacking(state: &Path, store: &StoreConfig, bytes: u64, what: &str) -> Option<String> {
    let needed = bytes.div_ceil(MIB);
    let free = health::free_mib(state).ok()?;
    let floor = store.disk_free_min_mib;
    if free < floor.saturating_add(needed) {
        return Some(format!(
            "{what} is going to write about {needed} MiB, and of {free} MiB that are free {floor} are to \
             stay ([store] disk_free_min_mib): make room, or lower [store] keep_checkpoints"
        ));
    }
    let used = used_mib(state, store);
    (store.budget_mib > 0 && used.saturating_add(needed) > store.budget_mib).then(|| {
        format!(
            "{what} is going to write about {needed} MiB, and the state folder takes {used} of its {} MiB \
             already ([store] budget_mib): raise the budget, or lower [store] keep_checkpoints",
            store.budget_mib
        )
    })
}

/// MiB that the state folder takes; 0 where nobody asks, since it is a walk through all of it.
#[must_use]
pub fn used_mib(state: &Path, store: &StoreConfig) -> u64 {
    if store.budget_mib == 0 { 0 } else { folder_bytes(state).div_ceil(MIB) }
}

/// Bytes of all files below a folder, links not followed; what goes meanwhile counts nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => folder_bytes(&entry.path()),
        Ok(facts) if facts.is_file() => facts.len(),
        Ok(_) | Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(disk_free_min_mib: u64, budget_mib: u64) -> StoreConfig {
        StoreConfig {
            disk_free_min_mib,
            budget_mib,
            keep_checkpoints: 0,
            keep_responses: 0,
            keep_events_days: 0,
            log_max_mib: 1,
            disk_probe_ms: 1000,
        }
    }

    #[test]
    fn only_what_learns_has_a_state() {
        let blocks = [(0, 70), (1, 70), (2, 60), (10, 50)].into();
        let weights = Weights { parameters: 400, blocks, ..Weights::default() };
        let of = |text: &str| {
            let settings = TrainSettings::read(rlhfd_config::Training::Dpo, text, &[]).unwrap();
            learning(&weights, &settings)
        };
        assert_eq!((of(""), of("trainable_layers = 2"), of("lora_rank = 8")), (400, 110, 0));
    }

    #[test]
    fn what_does_not_fit_is_said_with_the_knob_that_decides() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("runs")).unwrap();
        fs::write(state.path().join("runs/x"), vec![0; 3 << 20]).unwrap();
        let say = |store, bytes| lacking(state.path(), &store, bytes, "the training");
        assert_eq!(say(store(0, 0), 1), None);
        let full = say(store(0, 0), u64::MAX).unwrap();
        assert!(full.contains("disk_free_min_mib"), "{full}");
        let floor = say(store(u64::MAX, 0), 0).unwrap();
        assert!(floor.contains("disk_free_min_mib"), "{floor}");
        // 3 MiB are there: 2 more fit into 5, 3 do not.
        assert_eq!(say(store(0, 5), 2 << 20), None);
        let budget = say(store(0, 5), (2 << 20) + 1).unwrap();
        assert!(
            budget.contains("takes 3 of its 5 MiB") && budget.contains("3 MiB, and"),
            "{budget}"
        );
    }
}
