//! `rlhfctl preferences add` and `rlhfctl preferences list`.

use std::path::Path;

use rlhfd_protocol::control::{PreferenceSets, PreferencesAdded, check_name};

use super::tell_left_out;
use crate::args::{Preferences, Upload};
use crate::connect::{Daemon, escape};
use crate::errors::ClientError;
use crate::format::counted;
use crate::{format, render, upload};

/// Carries out one of the two.
pub async fn run(daemon: &Daemon, verb: Preferences, json: bool) -> Result<(), ClientError> {
    match verb {
        Preferences::Add { file, set, upload } => {
            let added = add(daemon, &file, &set, &upload).await?;
            tell_left_out(added.bad, &added.bad_lines);
            if json { render::json(&added) } else { render::line(&sentence(&added)) }
        }
        Preferences::List => list(daemon, json).await,
    }
}

async fn add(
    daemon: &Daemon,
    file: &Path,
    set: &str,
    options: &Upload,
) -> Result<PreferencesAdded, ClientError> {
    // Told here, before a large file is on its way; the daemon looks again.
    check_name("preference set", set).map_err(|e| ClientError::Usage {
        what: format!("{}: {}", e.what, e.place),
        mend: e.mend,
    })?;
    let key = options.client_key.clone().unwrap_or_else(upload::fresh_key);
    let target = format!(
        "/v1/preference-sets/{}/preferences?skip_bad={}&client_key={}",
        escape(set),
        options.skip_bad,
        escape(&key)
    );
    upload::send(daemon, &target, file).await
}

fn sentence(added: &PreferencesAdded) -> String {
    let mut text = format!("{} added to {}", counted(added.added, "preference"), added.set);
    if added.duplicates > 0 {
        text.push_str(&format!("; {} not added again", counted(added.duplicates, "duplicate")));
    }
    if added.bad > 0 {
        text.push_str(&format!("; {} left out", counted(added.bad, "bad line")));
    }
    if added.evaluation_prompts > 0 {
        let left_out = counted(added.evaluation_prompts, "preference");
        text.push_str(&format!("; {left_out} left out: their prompt is kept for evaluation"));
    }
    if added.repeated {
        text.push_str(" (by an earlier upload with this client key; nothing was added now)");
    }
    text
}

async fn list(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    let sets: PreferenceSets = daemon.get("/v1/preference-sets").await?;
    if json {
        return render::json(&sets);
    }
    let rows: Vec<Vec<String>> = sets
        .preference_sets
        .iter()
        .map(|set| {
            vec![
                set.name.clone(),
                format::count(set.preferences),
                if set.used { "yes" } else { "no" }.to_owned(),
                format::time(set.created_ms),
            ]
        })
        .collect();
    render::table(
        &["set", "preferences", "in [train] offline", "made (UTC)"],
        &rows,
        "no preference set yet: `rlhfctl preferences add FILE --set NAME`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_was_kept_and_what_was_not() {
        let added = PreferencesAdded {
            set: "own".to_owned(),
            lines: 15,
            added: 9,
            duplicates: 1,
            bad: 2,
            bad_lines: Vec::new(),
            evaluation_prompts: 3,
            repeated: false,
        };
        assert_eq!(
            sentence(&added),
            "9 preferences added to own; 1 duplicate not added again; 2 bad lines left out; \
             3 preferences left out: their prompt is kept for evaluation"
        );
    }
}
