//! Answers that look like a model's and are pure functions of the same keys as the real worker's.
//!
//! Token ids are bytes, 256 ends a text. A response depends on (policy, run seed, purpose,
//! iteration, prompt ids, occurrence, sample) and on nothing else; a score only on the text; a
//! log-prob only on the model and the ids.

use rlhfd_domain::label::compare::{Compare, Known};
use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Arm, Finish, ItemResult, Message, ModelRef, Purpose, Reason};
use sha2::{Digest, Sha256};

/// The id that ends a text.
pub const STOP_ID: u32 = 256;

/// A stream of numbers that a key determines.
pub struct Numbers {
    key: [u8; 32],
    counter: u64,
}

impl Numbers {
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut sum = Sha256::new();
        for part in parts {
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part);
        }
        Self { key: sum.finalize().into(), counter: 0 }
    }

    pub fn draw(&mut self) -> u64 {
        let mut sum = Sha256::new();
        sum.update(self.key);
        sum.update(self.counter.to_le_bytes());
        self.counter += 1;
        let out: [u8; 32] = sum.finalize().into();
        out.iter().take(8).fold(0, |n, byte| (n << 8) | u64::from(*byte))
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n.max(1)
    }
}

/// The template: one line a turn.
pub fn render(messages: &[Message], tokens_max: u32) -> Result<Vec<u32>, (Reason, String)> {
    if messages.is_empty() {
        return Err((Reason::Template, "the conversation is empty".into()));
    }
    let mut text = String::new();
    for message in messages {
        if !["system", "user", "assistant"].contains(&message.role.as_str()) {
            return Err((Reason::Template, format!("no role is called {}", message.role)));
        }
        text.push_str(&format!("{}: {}\n", message.role, message.content));
    }
    text.push_str("assistant: ");
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    if ids.len() > tokens_max as usize {
        return Err((Reason::OverLong, format!("{} ids, the limit is {tokens_max}", ids.len())));
    }
    Ok(ids)
}

/// A prompt and two answers to it, each ended by the id that ends a text.
pub fn render_pair(
    messages: &[Message],
    sides: [&str; 2],
    tokens_max: u32,
) -> (ItemResult, Vec<u8>) {
    let refused = |reason, message| (ItemResult::Refused { reason, message }, Vec::new());
    let prompt = match render(messages, tokens_max) {
        Ok(prompt) => prompt,
        Err((reason, message)) => return refused(reason, message),
    };
    let ids = |text: &str| -> Vec<u32> {
        text.bytes().map(u32::from).chain(std::iter::once(STOP_ID)).collect()
    };
    let [chosen, rejected] = sides.map(ids);
    let longest = prompt.len() + chosen.len().max(rejected.len());
    if longest > tokens_max as usize {
        return refused(Reason::OverLong, format!("{longest} ids, the limit is {tokens_max}"));
    }
    let result = ItemResult::RenderedPair {
        prompt_tokens: prompt.len() as u32,
        chosen_tokens: chosen.len() as u32,
        rejected_tokens: rejected.len() as u32,
    };
    (result, frame::ids_to_bytes(&[prompt, chosen, rejected].concat()))
}

/// The text that ids stand for, without the one that ends it.
pub fn decode(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What names a response's random numbers, beside the sample.
pub struct ResponseKey<'a> {
    pub policy: &'a str,
    pub run_seed: u64,
    pub purpose: Purpose,
    pub iteration: u32,
    pub prompt: &'a [u32],
    pub occurrence: u32,
}

/// All responses of one prompt, arm by arm: result and payload.
pub fn generate(
    key: &ResponseKey,
    arms: &[Arm],
    max_new_tokens: u32,
) -> Vec<(ItemResult, Vec<u8>)> {
    let mut answers = Vec::new();
    for (index, arm) in arms.iter().enumerate() {
        for sample in arm.first_sample..arm.first_sample + arm.n {
            answers.push(response(key, index as u32, arm, sample, max_new_tokens));
        }
    }
    answers
}

fn response(
    key: &ResponseKey,
    arm_index: u32,
    arm: &Arm,
    sample: u32,
    max_new_tokens: u32,
) -> (ItemResult, Vec<u8>) {
    // Greedy answers know no sample; evaluation is made on common random numbers.
    let sample_key = if arm.temperature == 0.0 { 0 } else { sample };
    let iteration = if key.purpose == Purpose::Evaluate { 0 } else { key.iteration };
    let mut numbers = Numbers::new(&[
        b"response",
        key.policy.as_bytes(),
        &key.run_seed.to_le_bytes(),
        &[u8::from(key.purpose == Purpose::Evaluate)],
        &iteration.to_le_bytes(),
        &frame::ids_to_bytes(key.prompt),
        &key.occurrence.to_le_bytes(),
        &sample_key.to_le_bytes(),
    ]);
    let wanted = 1 + numbers.below(12) as usize;
    let limit = max_new_tokens.max(1) as usize;
    let letters = wanted.min(limit.saturating_sub(usize::from(wanted < limit)).max(1));
    let mut ids: Vec<u32> =
        (0..letters).map(|_| u32::from(b"abcdeeez "[numbers.below(9) as usize])).collect();
    let finish = if wanted < limit {
        ids.push(STOP_ID);
        Finish::Stop
    } else {
        Finish::Length
    };
    let logprobs = logprobs(key.policy, key.prompt, &ids);
    let mut payload = frame::ids_to_bytes(&ids);
    payload.extend(frame::floats_to_bytes(&logprobs));
    let result = ItemResult::Response {
        arm: arm_index,
        sample,
        finish,
        tokens: ids.len() as u32,
        logprob: sum(&logprobs),
        text: decode(&ids),
    };
    (result, payload)
}

/// The score of a conversation: how often its last turn has an `e`, less its `z`. A model in a folder
/// called `brief` likes short turns instead.
pub fn score(scorer: &ModelRef, messages: &[Message]) -> f64 {
    let text = messages.last().map(|m| m.content.as_str()).unwrap_or_default();
    let count = |letter| text.matches(letter).count() as f64;
    if scorer.path.ends_with("brief") {
        -(text.chars().count() as f64)
    } else {
        count('e') - 2.0 * count('z')
    }
}

/// P(first is better than second): who has more `e`, and of texts that have as many the one with the
/// larger number of its own.
pub fn preference(first: &str, second: &str) -> f64 {
    let strength = |text: &str| {
        let own = Numbers::new(&[b"strength", text.as_bytes()]).below(1 << 40) as f64;
        text.matches('e').count() as f64 + own / (1_u64 << 41) as f64
    };
    1.0 / (1.0 + (strength(second) - strength(first)).exp())
}

/// All comparisons of an item, asked in the order of the real worker.
pub fn compare_all(
    compare: Compare,
    messages: &[Message],
    responses: &[String],
) -> Vec<(ItemResult, Vec<u8>)> {
    let mut known = Known::new();
    let mut answers = Vec::new();
    let context: usize = messages.iter().map(|m| m.content.len()).sum();
    loop {
        let wanted = compare.wanted(responses.len(), &known);
        if wanted.is_empty() {
            return answers;
        }
        for (first, second) in wanted {
            let preference = preference(&responses[first], &responses[second]);
            known.insert((first, second), Some(preference));
            let tokens = (context + responses[first].len() + responses[second].len()) as u32;
            let (first, second) = (first as u32, second as u32);
            answers
                .push((ItemResult::Preference { first, second, preference, tokens }, Vec::new()));
        }
    }
}

/// Log-probs of response ids after prompt ids: negative, and a function of model and ids alone.
pub fn logprobs(model: &str, prompt: &[u32], response: &[u32]) -> Vec<f32> {
    let mut numbers = Numbers::new(&[
        b"logprobs",
        model.as_bytes(),
        &frame::ids_to_bytes(prompt),
        &frame::ids_to_bytes(response),
    ]);
    response.iter().map(|_| -0.01 - numbers.below(3000) as f32 / 1000.0).collect()
}

/// The sum in f64, in order.
pub fn sum(logprobs: &[f32]) -> f64 {
    logprobs.iter().map(|value| f64::from(*value)).sum()
}
