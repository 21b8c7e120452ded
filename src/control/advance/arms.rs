//! The arms of an iteration that may start, and whether the policies that they name are there.
//!
//! In: the configuration, a run. Out: arms to freeze, or a sentence. May not enter: the iteration's
//! start itself.

use std::sync::Arc;

use rlhfd_config::{ArmPolicy, CheckedConfig};
use rlhfd_domain::checkpoint::PolicyChoice;
use rlhfd_store::{Checkpoint, NewArm, Reader, Run, StoreError};

use crate::actors::stage::StageContext;
use crate::handles::AskError;
use crate::places::Places;

/// The configuration's arms, as an iteration freezes them.
#[must_use]
pub fn of(config: &CheckedConfig) -> Vec<NewArm> {
    let arm = |arm: &rlhfd_config::ArmConfig| NewArm {
        name: arm.name.clone(),
        policy: match &arm.policy {
            ArmPolicy::Current => PolicyChoice::Current,
            ArmPolicy::Previous => PolicyChoice::Previous,
            ArmPolicy::Initial => PolicyChoice::Initial,
            ArmPolicy::Named(name) => PolicyChoice::Named(name.clone()),
        },
        temperature: arm.temperature,
        top_p: arm.top_p,
        top_k: arm.top_k,
        n: arm.n,
    };
    config.generate.arms.iter().map(arm).collect()
}

/// Why an arm's policy cannot be sampled from now; none where all of them can.
pub(super) async fn missing(
    ctx: &StageContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
) -> Result<Option<String>, AskError> {
    let (arms, run, places) = (of(config), run.clone(), Arc::clone(&ctx.places));
    ctx.store.read(move |r| Ok(first_missing(r, &run, &arms, &places))).await
}

fn first_missing(reader: &Reader, run: &Run, arms: &[NewArm], places: &Places) -> Option<String> {
    arms.iter().find_map(|arm| policy(reader, run, arm, places).err())
}

/// The policy that an arm would sample from, if an iteration began now; else a sentence.
pub fn policy(
    reader: &Reader,
    run: &Run,
    arm: &NewArm,
    places: &Places,
) -> Result<Checkpoint, String> {
    let found = reader.arm_policy(run, arm).map_err(|error: StoreError| error.to_string())?;
    let folder = places.resolve(&found.path);
    if folder.join("config.json").is_file() {
        return Ok(found);
    }
    Err(format!(
        "the arm {} is to sample from {}, and {} holds no model: restore the folder, or name another \
         policy in [[generate.arms]]",
        arm.name,
        found.name,
        folder.display()
    ))
}
