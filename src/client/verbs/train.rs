//! `rlhfctl train sft`, `train reward` and `train preference`: send conversations or preferences, and have a model trained
//! on them.

use rlhfd_protocol::control::{JobAdded, check_name};

use super::tell_left_out;
use crate::args::{Train, Training};
use crate::connect::{Daemon, escape};
use crate::errors::ClientError;
use crate::format::counted;
use crate::{mixture, render, upload};

/// Sends the data and prints the job.
pub async fn run(daemon: &Daemon, verb: Train, json: bool) -> Result<(), ClientError> {
    let (kind, example, training) = match verb {
        Train::Sft(training) => ("sft", "conversation", training),
        Train::Reward(training) => ("reward", "preference", training),
        Train::Preference(training) => ("preference", "preference", training),
    };
    let Training { data, name, upload: options } = training;
    check_name("training job", &name).map_err(|e| ClientError::Usage {
        what: format!("{}: {}", e.what, e.place),
        mend: e.mend,
    })?;
    let key = options.client_key.clone().unwrap_or_else(upload::fresh_key);
    let target = format!(
        "/v1/training-jobs/{kind}/{}?skip_bad={}&client_key={}",
        escape(&name),
        options.skip_bad,
        escape(&key)
    );
    let added: JobAdded = mixture::send(daemon, &target, &data).await?;
    tell_left_out(added.bad, &added.bad_lines);
    if json {
        return render::json(&added);
    }
    if added.evaluation_prompts > 0 {
        let left_out = counted(added.evaluation_prompts, example);
        render::warn(&format!("{left_out} left out: their prompt is kept for evaluation"));
    }
    let repeated = if added.repeated { " (by an earlier upload with this client key)" } else { "" };
    render::line(&format!(
        "training job {} queued with {}{repeated}; `rlhfctl wait --job {}` shows its progress",
        added.job,
        counted(added.examples, example),
        added.job
    ))
}
