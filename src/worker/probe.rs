//! The probe: what would silently spoil a run, looked for before anything is generated or trained.
//!
//! In: the policies, reward and preference models of a run. Out: findings, one sentence each; none is well. A few
//! built-in conversations are rendered, tokenised and decoded with each model, a few tokens are
//! generated, a score is taken alone and beside longer texts. May not enter: the run's own data.

use rlhfd_protocol::worker::{Arm, Message, ModelRef, Purpose, ScorePosition};
use tch::Tensor;

use crate::device::Compute;
use crate::errors::{TextError, WorkerError};
use crate::generate::{Generation, PromptTask, Written, generate_batch};
use crate::logprob::host_floats;
use crate::model::{LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use crate::prefer::{Preference, Questions, prefer_batch};
use crate::render::{PairText, RenderRule, Renderer};
use crate::score::{score_batch, scored_position};
use crate::tokenizer::AddSpecial;
use crate::watch::Watch;

/// Conversations that end in a user's turn, each with an answer.
const CONVERSATIONS: [(&[(&str, &str)], &str); 3] = [
    (&[("user", "What colour is the sky?")], "It is blue."),
    (&[("user", "Add 27 and 15.")], "27 + 15 = 42"),
    (
        &[("user", "Grüße, 你好! 🙂"), ("assistant", "Hello!"), ("user", "Say it\n  again.")],
        "Grüße, 你好! 🙂",
    ),
];

/// Probes every model.
///
/// Errors: only what ends the unit itself (cancelled, libtorch); all else is a finding.
pub fn run(
    (policies, scorers, preference_models): (
        &[ModelRef],
        &[(ModelRef, ScorePosition)],
        &[ModelRef],
    ),
    max_new_tokens: u32,
    (compute, watch): (Compute, &Watch),
) -> Result<Vec<String>, WorkerError> {
    let mut findings = Vec::new();
    for policy in policies {
        let found = probe_policy(policy, max_new_tokens, compute, watch);
        collect(&mut findings, policy, found)?;
    }
    for (scorer, position) in scorers {
        let found = probe_scorer(scorer, *position, compute, watch);
        collect(&mut findings, scorer, found)?;
    }
    for model in preference_models {
        let found = probe_preference_model(model, compute, watch);
        collect(&mut findings, model, found)?;
    }
    Ok(findings)
}

fn collect(
    findings: &mut Vec<String>,
    model: &ModelRef,
    found: Result<Vec<String>, WorkerError>,
) -> Result<(), WorkerError> {
    let place = model.path.display();
    match found {
        Ok(found) => findings.extend(found.into_iter().map(|what| format!("{place}: {what}"))),
        Err(error @ (WorkerError::Model(_) | WorkerError::Text(_) | WorkerError::Input(_))) => {
            findings.push(format!("{place}: {}", crate::errors::first_line(&error.to_string())));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

fn load(folder: &ModelFolder, compute: Compute) -> Result<Transformer, WorkerError> {
    let options = LoadOptions {
        devices: compute.devices,
        precision: compute.precision,
        trainable: Trainable::Nothing,
    };
    Ok(Transformer::load(folder, &options)?)
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    let message = |(role, content): &(&str, &str)| Message {
        role: (*role).to_owned(),
        content: (*content).to_owned(),
    };
    turns.iter().map(message).collect()
}

fn probe_policy(
    policy: &ModelRef,
    max_new_tokens: u32,
    compute: Compute,
    watch: &Watch,
) -> Result<Vec<String>, WorkerError> {
    let folder = ModelFolder::open(&policy.path)?.require_policy()?;
    let renderer = Renderer::open(&folder)?;
    let mut findings = Vec::new();
    if renderer.tokenizer.stop_ids.is_empty() {
        findings.push("it has no stop id, so no response would ever end".to_owned());
    }
    if !renderer.opens_the_answer()? {
        findings.push(
            "its template has no generation prompt, so a response would begin with the header of its \
             own turn"
                .to_owned(),
        );
    }
    let mut prompts = Vec::new();
    for (turns, answer) in CONVERSATIONS {
        let turns = messages(turns);
        let ids = renderer.prompt(&turns)?;
        findings.extend(text_findings(&renderer, &ids)?);
        findings.extend(stop_finding(&renderer, &turns, answer)?);
        prompts.push(PromptTask { ids, occurrence: 0 });
    }
    let arm =
        Arm { name: "probe".into(), temperature: 1.0, top_p: 1.0, top_k: 0, n: 1, first_sample: 0 };
    let generation = Generation {
        run_seed: 0,
        purpose: Purpose::Generate,
        iteration: 0,
        arms: vec![arm],
        max_new_tokens: max_new_tokens.clamp(1, 16),
        stop_ids: renderer.tokenizer.stop_ids.clone(),
    };
    let model = load(&folder, compute)?;
    for written in generate_batch(&model, &prompts, &generation, watch)? {
        match written {
            Written::Responses(responses) => {
                for response in responses {
                    renderer.tokenizer.decode(response.text_ids())?;
                }
            }
            Written::NonFinite => findings.push("its logits are not finite".to_owned()),
        }
    }
    findings.dedup();
    Ok(findings)
}

/// A missing BOS; a doubled one was refused where the ids were made.
fn text_findings(renderer: &Renderer, ids: &[u32]) -> Result<Vec<String>, TextError> {
    let tokenizer = &renderer.tokenizer;
    let mut findings = Vec::new();
    if let Some(bos) = tokenizer.bos_id {
        let added = tokenizer.encode_with("a", AddSpecial::Yes)?.first() == Some(&bos);
        if added && ids.first() != Some(&bos) {
            findings.push(
                "its tokenizer puts a BOS before plain text, but its template writes none"
                    .to_owned(),
            );
        }
    }
    // Some sound tokenizers lose a leading space here, so this is no reason to refuse a model.
    let text = tokenizer.decode_whole(ids)?;
    if tokenizer.encode(&text)? != ids {
        tracing::warn!("{text:?} gives other tokens than those that it was decoded from");
    }
    Ok(findings)
}

/// Whether an answer, rendered as training would see it, ends in a stop id.
fn stop_finding(
    renderer: &Renderer,
    prompt: &[Message],
    answer: &str,
) -> Result<Option<String>, TextError> {
    let answer = messages(&[("assistant", answer)]);
    let pair =
        PairText::Messages { prompt: prompt.to_vec(), chosen: answer.clone(), rejected: answer };
    match renderer.pair(&pair, RenderRule::Conversation) {
        Ok(pair) if pair.chosen.iter().any(|id| renderer.tokenizer.is_stop(*id)) => Ok(None),
        Ok(_) => Ok(Some(
            "its template ends an answer without a stop id, so training would never show one"
                .to_owned(),
        )),
        // The loop trains on the ids that were generated, so this matters for pairs of messages
        // alone, which are refused one by one where they are read.
        Err(TextError::PromptChanges { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn probe_scorer(
    scorer: &ModelRef,
    position: ScorePosition,
    compute: Compute,
    watch: &Watch,
) -> Result<Vec<String>, WorkerError> {
    let folder = ModelFolder::open(&scorer.path)?.require_reward_model()?;
    let renderer = Renderer::open(&folder)?;
    let model = load(&folder, compute)?;
    let mut findings = Vec::new();
    let mut sequences = Vec::new();
    for (turns, answer) in CONVERSATIONS {
        let mut turns = messages(turns);
        turns.extend(messages(&[("assistant", answer)]));
        let ids = renderer.conversation(&turns)?;
        findings.extend(text_findings(&renderer, &ids)?);
        sequences.push(ids);
    }
    let alone: Vec<f32> = sequences
        .iter()
        .map(|ids| score_batch(&model, std::slice::from_ref(ids), position, watch))
        .collect::<Result<Vec<_>, _>>()?
        .concat();
    if alone.iter().any(|score| !score.is_finite()) {
        findings.push("its scores are not finite".to_owned());
    }
    let together = score_batch(&model, &sequences, position, watch)?;
    let padded = padded_scores(&model, &sequences, position);
    let tolerance = match compute.precision {
        Precision::Float32 => 1e-3,
        Precision::Bfloat16 => 0.1,
    };
    let apart = |other: &[f32]| {
        alone.iter().zip(other).any(|(a, b)| (a - b).abs() > tolerance * (1.0 + a.abs()))
    };
    if apart(&together) || apart(&padded) {
        findings.push(format!(
            "a score depends on padding or on its neighbours: alone {alone:?}, together \
             {together:?}, padded {padded:?}"
        ));
    }
    findings.dedup();
    Ok(findings)
}

/// Each answer is compared with one to another question: alone, beside others and exchanged.
fn probe_preference_model(
    model: &ModelRef,
    compute: Compute,
    watch: &Watch,
) -> Result<Vec<String>, WorkerError> {
    let folder = ModelFolder::open(&model.path)?;
    let labels = folder.preference_labels()?;
    let renderer = Renderer::open(&folder)?;
    renderer.require_labels(labels)?;
    let loaded = load(&folder, compute)?;
    let mut findings = Vec::new();
    let (mut pairs, mut exchanged) = (Vec::new(), Vec::new());
    for (turns, answer) in CONVERSATIONS {
        let (turns, other) = (messages(turns), "No.");
        pairs.push(Questions::of(&renderer, &turns, [answer, other])?);
        exchanged.push(Questions::of(&renderer, &turns, [other, answer])?);
        if let Some(pair) = pairs.last() {
            findings.extend(text_findings(&renderer, &pair.first_as_a)?);
        }
    }
    let means = |pairs: &[Questions]| -> Result<Vec<f64>, WorkerError> {
        let preferences = prefer_batch(&loaded, labels, pairs, watch)?;
        Ok(preferences.into_iter().map(Preference::mean).collect())
    };
    let alone: Vec<f64> = pairs
        .iter()
        .map(|pair| means(std::slice::from_ref(pair)))
        .collect::<Result<Vec<_>, _>>()?
        .concat();
    if alone.iter().any(|preference| !preference.is_finite()) {
        findings.push("its preferences are not finite".to_owned());
    }
    let (together, turned) = (means(&pairs)?, means(&exchanged)?);
    let tolerance = match compute.precision {
        Precision::Float32 => 1e-3,
        Precision::Bfloat16 => 0.1,
    };
    let apart = |other: &[f64]| alone.iter().zip(other).any(|(a, b)| (a - b).abs() > tolerance);
    let rest: Vec<f64> = turned.iter().map(|preference| 1.0 - preference).collect();
    if apart(&together) || apart(&rest) {
        findings.push(format!(
            "a preference depends on its neighbours or on the order: alone {alone:?}, together \
             {together:?}, exchanged {turned:?}"
        ));
    }
    findings.dedup();
    Ok(findings)
}

/// The same scores from one right-padded batch.
fn padded_scores(model: &Transformer, sequences: &[Vec<u32>], rule: ScorePosition) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let pad = model.config.pad_id.unwrap_or(0);
    let (mut ids, mut positions) = (Vec::new(), Vec::new());
    for (row, sequence) in sequences.iter().enumerate() {
        positions
            .push((row * longest + scored_position(sequence, model.config.pad_id, rule)) as i64);
        ids.extend(sequence.iter().map(|id| i64::from(*id)));
        ids.extend(std::iter::repeat_n(i64::from(pad), longest - sequence.len()));
    }
    let tensor = |values: &[i64], device| Tensor::from_slice(values).to_device(device);
    let ids = tensor(&ids, model.device());
    let rows = sequences.len() as i64;
    let hidden = model.hidden(&ids.reshape([rows, longest as i64])).flatten(0, 1);
    host_floats(&model.scores(&hidden.index_select(0, &tensor(&positions, model.head_device()))))
}
