//! What each kind of work answers to an item, and what the answers are worth.

use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Item, ItemResult, Message, Reason, Work};

use super::compute;

/// The name of a work, as the protocol spells it.
pub(super) fn work_name(work: &Work) -> &'static str {
    match work {
        Work::Probe { .. } => "probe",
        Work::Render { .. } => "render",
        Work::RenderPairs { .. } => "render_pairs",
        Work::Generate { .. } => "generate",
        Work::Score { .. } => "score",
        Work::Prefer { .. } => "prefer",
        Work::Logprobs { .. } => "logprobs",
        Work::Average { .. } => "average",
        Work::TrainDpo { .. } => "train_dpo",
        Work::TrainSft { .. } => "train_sft",
        Work::TrainReward { .. } => "train_reward",
        Work::TrainPreference { .. } => "train_preference",
    }
}

pub(super) fn text_of(item: &Item, payload: &[u8]) -> String {
    match item {
        Item::Prompt { messages } | Item::Conversation { messages } => {
            messages.iter().map(|m: &Message| m.content.as_str()).collect::<Vec<_>>().join("\n")
        }
        Item::Responses { messages, responses } => {
            let last = messages.last().map_or("", |m| m.content.as_str());
            [&[last.to_owned()], responses.as_slice()].concat().join("\n")
        }
        Item::Pair { messages, chosen, rejected } => {
            let last = messages.last().map_or("", |m| m.content.as_str());
            [last, chosen, rejected].join("\n")
        }
        Item::PromptIds { .. } | Item::ResponseIds { .. } => {
            frame::ids_from_bytes(payload).map(|ids| compute::decode(&ids)).unwrap_or_default()
        }
    }
}

pub(super) fn refused(reason: Reason, message: &str) -> (ItemResult, Vec<u8>) {
    (ItemResult::Refused { reason, message: message.into() }, Vec::new())
}

pub(super) fn answers(work: &Work, item: Item, payload: &[u8]) -> Vec<(ItemResult, Vec<u8>)> {
    let ids = match frame::ids_from_bytes(payload) {
        Ok(ids) => ids,
        Err(e) => return vec![refused(Reason::Template, &e.to_string())],
    };
    match (work, item) {
        (Work::Render { prompt_tokens_max, .. }, Item::Prompt { messages }) => {
            match compute::render(&messages, *prompt_tokens_max) {
                Ok(ids) => vec![(
                    ItemResult::Rendered { tokens: ids.len() as u32 },
                    frame::ids_to_bytes(&ids),
                )],
                Err((reason, message)) => vec![refused(reason, &message)],
            }
        }
        (Work::RenderPairs { pair_tokens_max, .. }, Item::Pair { messages, chosen, rejected }) => {
            vec![compute::render_pair(&messages, [&chosen, &rejected], *pair_tokens_max)]
        }
        (
            Work::Generate { policy, run_seed, purpose, iteration, arms, max_new_tokens, .. },
            Item::PromptIds { occurrence },
        ) => {
            let key = compute::ResponseKey {
                policy: &policy.sha256,
                run_seed: *run_seed,
                purpose: *purpose,
                iteration: *iteration,
                prompt: &ids,
                occurrence,
            };
            compute::generate(&key, arms, *max_new_tokens)
        }
        (Work::Score { scorer, .. }, Item::Conversation { messages }) => {
            let tokens = messages.iter().map(|m| m.content.len() as u32).sum();
            let score = compute::score(scorer, &messages);
            vec![(ItemResult::Score { score, tokens }, Vec::new())]
        }
        (Work::Prefer { compare, .. }, Item::Responses { messages, responses }) => {
            compute::compare_all((*compare).into(), &messages, &responses)
        }
        (Work::Logprobs { model, .. }, Item::ResponseIds { prompt_tokens }) => {
            let Some((prompt, response)) = ids.split_at_checked(prompt_tokens as usize) else {
                return vec![refused(Reason::Empty, "prompt_tokens passes the ids")];
            };
            let logprobs = compute::logprobs(&model.sha256, prompt, response);
            let result = ItemResult::Logprobs {
                logprob: compute::sum(&logprobs),
                tokens: response.len() as u32,
            };
            vec![(result, frame::floats_to_bytes(&logprobs))]
        }
        (_, item) => vec![refused(Reason::Empty, &format!("{item:?} does not fit this work"))],
    }
}

pub(super) fn tokens_of(result: &ItemResult) -> u64 {
    match result {
        ItemResult::Rendered { tokens }
        | ItemResult::Response { tokens, .. }
        | ItemResult::Score { tokens, .. }
        | ItemResult::Preference { tokens, .. }
        | ItemResult::Logprobs { tokens, .. } => u64::from(*tokens),
        ItemResult::RenderedPair { prompt_tokens, chosen_tokens, rejected_tokens } => {
            u64::from(prompt_tokens + chosen_tokens + rejected_tokens)
        }
        ItemResult::Refused { .. } | ItemResult::NotCompared { .. } => 0,
    }
}

// JSON has no NaN, so the nearest that a broken peer can send is null.
pub(super) fn make_non_finite(result: &mut ItemResult) {
    match result {
        ItemResult::Score { score, .. } => *score = f64::NAN,
        ItemResult::Preference { first, second, .. } => {
            // As the worker itself says of a preference that is no number.
            *result = ItemResult::NotCompared {
                first: *first,
                second: *second,
                reason: Reason::NonFinite,
                message: "the preference is NaN".into(),
            };
        }
        ItemResult::Logprobs { logprob, .. } | ItemResult::Response { logprob, .. } => {
            *logprob = f64::NAN;
        }
        ItemResult::Rendered { .. }
        | ItemResult::RenderedPair { .. }
        | ItemResult::NotCompared { .. }
        | ItemResult::Refused { .. } => {}
    }
}
