//! Needs: what a unit needs of a GPU's memory, by the memory plan.
//!
//! In: a unit, its model's folder, its configuration. Out: MiB. An estimate, which the store corrects by
//! what earlier units of the same work measured. May not enter: devices, placement.

use std::path::Path;

use rlhfd_config::{CheckedConfig, TrainSettings, Training};
use rlhfd_domain::split::Demand;
use rlhfd_domain::{JobKind, Stage, WorkKind};
use rlhfd_protocol::worker::{ModelRef, Work};
use rlhfd_store::UnitRow;

use super::generate::{batch_items, responses_per_prompt};
use crate::check::{self, Facts, Needs, Use};
use crate::examples;

/// A number in compute on a GPU: bf16.
const BYTES: u64 = 2;
/// A probe's conversations, and more than any of them is long.
const PROBE_ROWS: u64 = 3;
const PROBE_TOKENS: u64 = 512;

/// What a unit needs by the memory plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Of a single GPU.
    pub whole_mib: u64,
    /// Of several.
    pub demand: Demand,
}

impl From<Needs> for Planned {
    fn from(needs: Needs) -> Self {
        Self { whole_mib: needs.total(), demand: needs.demand }
    }
}

/// What the unit needs; none where it computes with no model, or the folder is not one that fits it. It
/// blocks: it reads config.json and the weights' headers.
#[must_use]
pub fn on_gpus(model: &Path, config: &CheckedConfig, unit: &UnitRow) -> Option<Planned> {
    let wanted = match unit.work {
        WorkKind::Score => Use::Reward,
        WorkKind::Prefer => Use::Preference,
        WorkKind::TrainReward => Use::RewardBase,
        WorkKind::TrainPreference => Use::PreferenceBase,
        _ => Use::Policy,
    };
    let facts = check::facts(model, wanted)?;
    let needs = needs(&facts, config, unit)?;
    Some(needs.into())
}

/// What a probe needs: its models are loaded one after the other. It blocks, as [`on_gpus`].
#[must_use]
pub fn of_a_probe(work: &Work) -> Option<Planned> {
    let Work::Probe { policies, scorers, preference_models, max_new_tokens } = work else {
        return None;
    };
    let of = |model: &ModelRef, wanted| check::facts(&model.path, wanted);
    let write = |model: &Facts| {
        let tokens = PROBE_TOKENS + u64::from(*max_new_tokens);
        check::generating(model, PROBE_ROWS, tokens, BYTES)
    };
    let read = |model: &Facts| check::forwarding(model, PROBE_ROWS * PROBE_TOKENS, BYTES);
    let policies = policies.iter().filter_map(|model| Some(write(&of(model, Use::Policy)?)));
    let scorers = scorers.iter().filter_map(|(model, _)| Some(read(&of(model, Use::Reward)?)));
    let judges = preference_models.iter();
    let judges = judges.filter_map(|model| Some(read(&of(model, Use::Preference)?)));
    let most = policies.chain(scorers).chain(judges).max_by_key(|needs| needs.total())?;
    Some(most.into())
}

fn needs(model: &Facts, config: &CheckedConfig, unit: &UnitRow) -> Option<Needs> {
    let prompts = u64::from(batch_items(unit));
    let rows = prompts * u64::from(responses_per_prompt(config, unit.stage)).max(1);
    let prompt = u64::from(config.prompts.prompt_tokens_max);
    let response = u64::from(match unit.stage {
        Stage::Evaluate => config.evaluate.max_new_tokens,
        _ => config.generate.max_new_tokens,
    });
    let job = |kind| examples::section(config, kind);
    Some(match unit.work {
        WorkKind::Generate => check::generating(model, rows, prompt + response, BYTES),
        WorkKind::Score | WorkKind::Logprobs => {
            check::forwarding(model, rows * (prompt + response), BYTES)
        }
        // Pairs of responses, as many sequences at once as there are responses.
        WorkKind::Prefer => check::forwarding(model, rows * (prompt + 2 * response), BYTES),
        WorkKind::LogprobsPairs => {
            let side = u64::from(config.train.settings.max_length);
            check::forwarding(model, 2 * prompts * side, BYTES)
        }
        WorkKind::TrainDpo => update(model, (Training::Dpo, &config.train.settings), unit),
        WorkKind::TrainSft => update(model, (Training::Sft, &job(JobKind::Sft).settings), unit),
        WorkKind::TrainReward => {
            update(model, (Training::Reward, &job(JobKind::Reward).settings), unit)
        }
        WorkKind::TrainPreference => {
            update(model, (Training::Preference, &job(JobKind::Preference).settings), unit)
        }
        WorkKind::Probe
        | WorkKind::Render
        | WorkKind::Average
        | WorkKind::RenderPairs
        | WorkKind::Pair
        | WorkKind::Checkpoint
        | WorkKind::Summarise => return None,
    })
}

/// An update with the micro-batch of the unit's row.
fn update(
    model: &Facts,
    (training, settings): (Training, &TrainSettings),
    unit: &UnitRow,
) -> Needs {
    let micro_batch = unit.micro_batch.and_then(|examples| u32::try_from(examples).ok());
    let settings = match micro_batch {
        Some(examples) => settings.clone().with_micro_batch(training, examples),
        None => settings.clone(),
    };
    check::updating(model, (training, &settings), BYTES)
}
