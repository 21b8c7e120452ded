//! The check before the first step: a few stored responses get their log-probs once more.
//!
//! In: rescore.jsonl of an iteration folder (an offline pair's sides among them, which no policy of the run
//! wrote), the loaded policy, the reference. Out: nothing, or the response
//! and the token where what is stored is not what the models give. It is done by every attempt, before a
//! saved state moves the policy away from what it was loaded as. Where policy and reference are one model
//! no pair may have a margin yet: a reference that was swapped or mixed up shows there. May not enter:
//! mending.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::Kind;

use super::error::TrainError;
use super::job::TrainJob;
use super::start::{self, Origin};
use crate::device::Compute;
use crate::logprob::{Sequence, response_logprobs};
use crate::model::{ModelFolder, Precision, Trainable, Transformer};
use crate::watch::Watch;

/// Nats by which a token's log-prob may differ where everything is f32: the order of sums alone. Of
/// SmolLM2-135M the farthest of 1,092 tokens differs by 3.2e-5.
const TOKEN_MAX: f64 = 1e-4;
/// The same on average over all tokens, where weights or sums are rounded to bf16.
const MEAN_MAX: f64 = 0.05;

/// What is stored of an update's responses, and the reference that it says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// rescore.jsonl.
    pub path: PathBuf,
    /// The reference's folder.
    pub reference: PathBuf,
    /// Its sum.
    pub reference_sha256: String,
}

/// A line of the file; other keys say where it comes from.
#[derive(Debug, Deserialize)]
struct Line {
    prompt_ids: Vec<u32>,
    chosen_ids: Vec<u32>,
    rejected_ids: Vec<u32>,
    reference_logprob_chosen: f64,
    reference_logprob_rejected: f64,
    policy_logprobs_chosen: Option<Vec<f32>>,
    policy_logprobs_rejected: Option<Vec<f32>>,
    reference_logprobs_chosen: Vec<f32>,
    reference_logprobs_rejected: Vec<f32>,
    iteration: u32,
    ordinal: u64,
    sample_chosen: Option<u32>,
    sample_rejected: Option<u32>,
}

/// One side of a pair.
struct Response {
    name: String,
    /// As the other side's name refers to it.
    brief: String,
    sequence: Sequence,
    policy: Option<Vec<f32>>,
    reference: Vec<f32>,
    /// What the update trains with.
    reference_sum: f64,
}

/// A token's log-prob, stored and now.
struct Token<'a> {
    response: &'a Response,
    number: usize,
    stored: f32,
    now: f32,
}

/// How near log-probs must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Near {
    EachToken,
    /// Over all responses: of a short one alone it would be a matter of chance.
    OnAverage,
}

/// Scores the stored responses again, with the loaded policy and with the reference.
///
/// # Errors
/// `Rescored` at the token or pair that differs most; what loading the reference says; `Cancelled`.
pub(super) fn check(
    job: &TrainJob,
    (compute, origin): (Compute, &Origin),
    model: &Transformer,
    watch: &Watch,
) -> Result<(), TrainError> {
    let Some(stored) = &job.stored else { return Ok(()) };
    let responses = read(&stored.path)?;
    if responses.is_empty() {
        return Ok(());
    }
    let near = |exact| if exact { Near::EachToken } else { Near::OnAverage };
    let exact = compute.precision == Precision::Float32;
    let as_published = is_as_published(job, origin);
    model.adapters().draw_none();
    let policy = rescored(model, &responses, watch)?;
    let known = |response: &Response| response.policy.clone();
    compare(&tokens(&responses, &policy, known), "policy", near(exact && as_published))?;
    let reference = by_reference(job, compute, model, (&responses, &policy), watch)?;
    let known = |response: &Response| Some(response.reference.clone());
    compare(&tokens(&responses, &reference, known), "reference", near(exact))?;
    for (response, now) in responses.iter().zip(&reference) {
        compare_sum(response, now)?;
    }
    if is_one(job, &stored.reference_sha256) && as_published {
        compare_margins(&responses, &policy, near(exact))?;
    }
    Ok(())
}

/// Whether the loaded policy is the published folder that wrote the responses: masters, and adapters that
/// are merged there in a coarser type, are finer. New adapters are nothing yet.
fn is_as_published(job: &TrainJob, origin: &Origin) -> bool {
    let new_adapters = origin.base.dir == job.base;
    let adapters = origin.lora.is_some() && !new_adapters;
    origin.masters.are_none() && (!adapters || origin.base.stored_kind == Kind::Float)
}

/// Whether the policy is the reference.
fn is_one(job: &TrainJob, reference_sha256: &str) -> bool {
    !reference_sha256.is_empty() && job.base_sha256 == reference_sha256
}

/// The reference's log-probs: by the model at hand where that is the reference, or is it with its adapters
/// off; else by the reference loaded for it.
fn by_reference(
    job: &TrainJob,
    compute: Compute,
    model: &Transformer,
    (responses, policy): (&[Response], &[Vec<f32>]),
    watch: &Watch,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let Some(stored) = &job.stored else { return Ok(Vec::new()) };
    let lora = job.settings.lora_rank > 0;
    let sum = &stored.reference_sha256;
    let base =
        job.adapter_base.as_ref().filter(|base| lora && !sum.is_empty() && base.sha256 == *sum);
    if base.is_some() {
        model.adapters().set(false);
        let now = rescored(model, responses, watch);
        model.adapters().set(true);
        return now;
    }
    if is_one(job, sum) && !lora && !super::publish::has_masters(&job.base) {
        return Ok(policy.to_vec());
    }
    let folder = ModelFolder::open(&stored.reference)?.require_policy()?;
    let reference = Transformer::load(&folder, &start::options(compute, Trainable::Nothing))?;
    rescored(&reference, responses, watch)
}

fn read(path: &Path) -> Result<Vec<Response>, TrainError> {
    let problem = |problem: String| TrainError::Job { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    let mut responses = Vec::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).map_err(|error| problem(error.to_string()))?;
        responses.extend(line.sides());
    }
    let whole = |response: &Response| {
        let tokens = response.sequence.ids.len() - response.sequence.prompt_tokens;
        let policy = response.policy.as_ref().is_none_or(|known| known.len() == tokens);
        tokens > 0
            && response.sequence.prompt_tokens > 0
            && policy
            && response.reference.len() == tokens
    };
    match responses.iter().find(|response| !whole(response)) {
        Some(response) => Err(problem(format!("{}: not one log-prob a token", response.name))),
        None => Ok(responses),
    }
}

impl Line {
    fn sides(self) -> [Response; 2] {
        let (iteration, ordinal) = (self.iteration, self.ordinal);
        let brief = |sample: Option<u32>, side: &str| match sample {
            Some(sample) => format!("sample {sample}"),
            None => format!("its {side} side"),
        };
        let name = |brief: &str| match iteration {
            0 => format!("offline pair {ordinal}, {brief}"),
            _ => format!("the response to prompt {ordinal} of iteration {iteration}, {brief}"),
        };
        let chosen = brief(self.sample_chosen, "chosen");
        let rejected = brief(self.sample_rejected, "rejected");
        let sequence = |response: &[u32]| Sequence {
            ids: [self.prompt_ids.as_slice(), response].concat(),
            prompt_tokens: self.prompt_ids.len(),
        };
        [
            Response {
                name: name(&chosen),
                brief: chosen,
                sequence: sequence(&self.chosen_ids),
                policy: self.policy_logprobs_chosen,
                reference: self.reference_logprobs_chosen,
                reference_sum: self.reference_logprob_chosen,
            },
            Response {
                name: name(&rejected),
                brief: rejected,
                sequence: sequence(&self.rejected_ids),
                policy: self.policy_logprobs_rejected,
                reference: self.reference_logprobs_rejected,
                reference_sum: self.reference_logprob_rejected,
            },
        ]
    }
}

/// Pair by pair, so that memory stays that of one.
fn rescored(
    model: &Transformer,
    responses: &[Response],
    watch: &Watch,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut all = Vec::with_capacity(responses.len());
    for pair in responses.chunks(2) {
        let sequences: Vec<Sequence> = pair.iter().map(|side| side.sequence.clone()).collect();
        all.extend(response_logprobs(model, &sequences, watch)?);
    }
    Ok(all)
}

/// Every token of the responses whose log-probs are known.
fn tokens<'a>(
    responses: &'a [Response],
    now: &[Vec<f32>],
    known: impl Fn(&Response) -> Option<Vec<f32>>,
) -> Vec<Token<'a>> {
    let mut tokens = Vec::new();
    for (response, now) in responses.iter().zip(now) {
        let each = known(response).unwrap_or_default();
        tokens.extend(each.iter().zip(now).enumerate().map(|(number, (stored, now))| Token {
            response,
            number,
            stored: *stored,
            now: *now,
        }));
    }
    tokens
}

fn compare(tokens: &[Token<'_>], under: &'static str, near: Near) -> Result<(), TrainError> {
    let Some(farthest) = tokens.iter().max_by(|a, b| a.apart().total_cmp(&b.apart())) else {
        return Ok(());
    };
    let whole: f64 = tokens.iter().map(Token::apart).sum();
    let fits = match near {
        Near::EachToken => farthest.apart() <= TOKEN_MAX,
        Near::OnAverage => whole <= MEAN_MAX * float(tokens.len()),
    };
    if fits {
        return Ok(());
    }
    Err(TrainError::Rescored {
        response: farthest.response.name.clone(),
        under,
        what: format!("the log-prob of token {} is {}", farthest.number, farthest.stored),
        now: f64::from(farthest.now),
        limit: near.words(),
    })
}

/// The sum that the update trains with is that of the stored tokens, which the reference has given again.
fn compare_sum(response: &Response, now: &[f32]) -> Result<(), TrainError> {
    let apart = (response.reference_sum - sum(&response.reference)).abs();
    if apart <= TOKEN_MAX * float(now.len()) {
        return Ok(());
    }
    Err(TrainError::Rescored {
        response: response.name.clone(),
        under: "reference",
        what: format!("the sum of its log-probs is {}", response.reference_sum),
        now: sum(now),
        limit: Near::EachToken.words(),
    })
}

/// No pair has a margin where policy and reference are one.
fn compare_margins(responses: &[Response], now: &[Vec<f32>], near: Near) -> Result<(), TrainError> {
    let mut margins = Vec::new();
    for (pair, now) in responses.chunks_exact(2).zip(now.chunks_exact(2)) {
        let ahead = |side: usize| sum(&now[side]) - pair[side].reference_sum;
        let tokens = float(now[0].len() + now[1].len());
        margins.push((pair, ahead(0) - ahead(1), tokens));
    }
    let (mut whole, mut tokens) = (0.0, 0.0);
    for (_, margin, own) in &margins {
        whole += margin.abs();
        tokens += own;
    }
    let fits = |margin: f64, own: f64| match near {
        Near::EachToken => margin.abs() <= TOKEN_MAX * own,
        Near::OnAverage => whole <= MEAN_MAX * tokens,
    };
    match margins.into_iter().find(|(_, margin, own)| !fits(*margin, *own)) {
        None => Ok(()),
        Some((pair, margin, _)) => Err(TrainError::Rescored {
            response: format!("{} against {}", pair[0].name, pair[1].brief),
            under: "reference, which is the policy,",
            what: "the margin is 0".to_owned(),
            now: margin,
            limit: near.words(),
        }),
    }
}

impl Token<'_> {
    /// What is not finite is farthest of all.
    fn apart(&self) -> f64 {
        let apart = (f64::from(self.stored) - f64::from(self.now)).abs();
        if apart.is_nan() { f64::INFINITY } else { apart }
    }
}

impl Near {
    fn words(self) -> String {
        match self {
            Self::EachToken => format!("{TOKEN_MAX} a token"),
            Self::OnAverage => format!("{MEAN_MAX} a token on average"),
        }
    }
}

fn sum(logprobs: &[f32]) -> f64 {
    logprobs.iter().map(|logprob| f64::from(*logprob)).sum()
}

fn float(count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "responses are far below 2^52 tokens")]
    let count = count as f64;
    count
}
