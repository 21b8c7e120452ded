//! `rlhfctl prompts add`, `rlhfctl prompts set` and `rlhfctl prompts list`.

use std::path::Path;

use rlhfd_protocol::control::{
    Done, ErrorDetail, PromptSetOrder, PromptSets, PromptsAdded, check_name,
};

use super::tell_left_out;
use crate::args::{Prompts, SetOrder, Upload};
use crate::connect::{Daemon, escape};
use crate::errors::ClientError;
use crate::format::counted;
use crate::{format, render, upload};

/// Carries out one of the three.
pub async fn run(daemon: &Daemon, verb: Prompts, json: bool) -> Result<(), ClientError> {
    match verb {
        Prompts::Add { file, set, reserve, order, upload } => {
            let added = add(daemon, &file, &set, (reserve, order), &upload).await?;
            tell_left_out(added.bad, &added.bad_lines);
            if json { render::json(&added) } else { render::line(&sentence(&added)) }
        }
        Prompts::Set { name, order } => put_in_order(daemon, &name, order, json).await,
        Prompts::List => list(daemon, json).await,
    }
}

async fn add(
    daemon: &Daemon,
    file: &Path,
    set: &str,
    (reserve, order): (Option<f64>, SetOrder),
    options: &Upload,
) -> Result<PromptsAdded, ClientError> {
    // Told here, before a large file is on its way; the daemon looks again.
    check_name("prompt set", set).map_err(|e| usage(&e))?;
    asked(order).check().map_err(|e| usage(&e))?;
    if let Some(share) = reserve.filter(|share| !(0.0..1.0).contains(share)) {
        return Err(ClientError::Usage {
            what: format!("a share of {share} cannot be reserved"),
            mend: "--reserve takes a number from 0 to below 1, such as 0.1".to_owned(),
        });
    }
    let key = options.client_key.clone().unwrap_or_else(upload::fresh_key);
    let mut target = format!(
        "/v1/prompt-sets/{}/prompts?skip_bad={}&client_key={}",
        escape(set),
        options.skip_bad,
        escape(&key)
    );
    if let Some(share) = reserve {
        target.push_str(&format!("&reserve={share}"));
    }
    if let Some(priority) = order.priority {
        target.push_str(&format!("&priority={priority}"));
    }
    if let Some(weight) = order.weight {
        target.push_str(&format!("&weight={weight}"));
    }
    upload::send(daemon, &target, file).await
}

fn usage(detail: &ErrorDetail) -> ClientError {
    ClientError::Usage {
        what: format!("{}: {}", detail.what, detail.place),
        mend: detail.mend.clone(),
    }
}

const fn asked(order: SetOrder) -> PromptSetOrder {
    PromptSetOrder { priority: order.priority, weight: order.weight }
}

async fn put_in_order(
    daemon: &Daemon,
    name: &str,
    order: SetOrder,
    json: bool,
) -> Result<(), ClientError> {
    check_name("prompt set", name).map_err(|e| usage(&e))?;
    asked(order).check().map_err(|e| usage(&e))?;
    let target = format!("/v1/prompt-sets/{}", escape(name));
    let done: Done = daemon.post(&target, &asked(order)).await?;
    if json { render::json(&done) } else { render::line(&done.message) }
}

fn sentence(added: &PromptsAdded) -> String {
    let mut text = format!("{} added to {}", counted(added.added, "prompt"), added.set);
    if added.reserved > 0 {
        text.push_str(&format!(", {} of them kept for evaluation", format::count(added.reserved)));
    }
    if added.duplicates > 0 {
        text.push_str(&format!("; {} not added again", counted(added.duplicates, "duplicate")));
    }
    if added.bad > 0 {
        text.push_str(&format!("; {} left out", counted(added.bad, "bad line")));
    }
    if added.repeated {
        text.push_str(" (by an earlier upload with this client key; nothing was added now)");
    }
    text
}

async fn list(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    let sets: PromptSets = daemon.get("/v1/prompt-sets").await?;
    if json {
        return render::json(&sets);
    }
    let rows: Vec<Vec<String>> = sets
        .prompt_sets
        .iter()
        .map(|set| {
            vec![
                set.name.clone(),
                format::count(set.prompts),
                format::count(set.fresh),
                format::count(set.drawn),
                format::count(set.reserved),
                set.reserve_share.to_string(),
                set.priority.to_string(),
                set.weight.to_string(),
            ]
        })
        .collect();
    render::table(
        &["set", "prompts", "fresh", "drawn", "reserved", "reserve_share", "priority", "weight"],
        &rows,
        "no prompt set yet: `rlhfctl prompts add FILE --set NAME`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_was_kept_and_what_was_not() {
        let added = PromptsAdded {
            set: "own".to_owned(),
            lines: 12,
            added: 9,
            reserved: 2,
            duplicates: 1,
            bad: 2,
            bad_lines: Vec::new(),
            repeated: false,
        };
        assert_eq!(
            sentence(&added),
            "9 prompts added to own, 2 of them kept for evaluation; 1 duplicate not added again; \
             2 bad lines left out"
        );
    }
}
