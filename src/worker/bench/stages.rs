//! What a run is made of, one stage after the other: prefill, decode, score, log-probs, training.
//!
//! In: a subject, the work. Out: seconds, tokens, operations and memory by stage. Loading is not
//! counted. May not enter: the peer, tables.

use rlhfd_config::TrainSettings;
use rlhfd_protocol::worker::{Arm, Purpose, ScorePosition};
use tch::Tensor;

use super::clock::{Took, timed};
use super::flops::Flops;
use super::report::{Report, Stage};
use super::subject::Subject;
use super::work::Work;
use crate::errors::WorkerError;
use crate::generate::{Generation, PromptTask, Written, generate_batch};
use crate::logprob::{Sequence, response_logprobs};
use crate::model::{Trainable, Transformer};
use crate::rehearsal;
use crate::score::score_batch;
use crate::train::pack::TokenPair;
use crate::train::trunk::Activations;
use crate::watch::Watch;

/// Sequences and tokens of the prefill stage.
const PREFILL: (usize, usize) = (8, 256);
/// Rows of the decode stages.
const DECODE_ROWS: [u32; 3] = [1, 16, 64];
/// New tokens of the decode stages.
const DECODE_TOKENS: u32 = 65;
/// The training: small steps of all pairs, as the peer takes them.
const TRAIN: &str = "learning_rate = 1e-6\nbeta = 0.1\nschedule = \"constant\"\nwarmup_ratio = 0.0\n\
                     max_grad_norm = 1.0\nweight_decay = 0.0\nmax_length = 1280\n";

/// Measures every stage.
///
/// # Errors
/// The subject's, libtorch's.
pub fn measure(
    subject: &Subject,
    work: &Work,
    inference_only: bool,
    report: &mut Report<'_>,
) -> Result<(), WorkerError> {
    let flops = Flops::of(&subject.config);
    let model = subject.policy(Trainable::Nothing)?;
    prefill(&model, flops, report)?;
    for rows in DECODE_ROWS {
        decode(&model, rows, flops, report)?;
    }
    let (_, took) = timed(|| generate(&model, work, 1.0))?;
    let samples = work.prompts.len() * work.samples;
    let prompts = work.prompts.iter().map(|prompt| flops.sequence(0, prompt.len())).sum::<f64>();
    let answers: f64 = work.prompts.iter().map(|p| flops.sequence(p.len(), work.new_tokens)).sum();
    let tokens = samples * work.new_tokens;
    let operations = prompts + answers * work.samples as f64 + flops.logits(tokens);
    report.stage(Stage::new("generate", took, tokens, operations));
    logprobs(&model, work, flops, report)?;
    drop(model);
    let scorer = subject.scorer(&Work::score_head(subject.config.width))?;
    let (_, took) = timed(|| score(&scorer, work))?;
    let tokens = shared_tokens(work);
    report.stage(Stage::new("score", took, tokens, forward(work, flops)));
    drop(scorer);
    if inference_only {
        return Ok(());
    }
    for (name, activations) in
        [("train", Activations::Kept), ("train_recomputed", Activations::Recomputed)]
    {
        train_stage(subject, work, (name, activations), report)?;
    }
    Ok(())
}

/// Training on long prompts.
///
/// # Errors
/// The subject's, libtorch's.
pub fn train_long(
    subject: &Subject,
    work: &Work,
    report: &mut Report<'_>,
) -> Result<(), WorkerError> {
    train_stage(subject, work, ("train_long", Activations::Kept), report)
}

fn train_stage(
    subject: &Subject,
    work: &Work,
    (name, activations): (&'static str, Activations),
    report: &mut Report<'_>,
) -> Result<(), WorkerError> {
    let model = subject.policy(Trainable::Everything)?;
    let settings = train_settings(work)?;
    let (_, took) = timed(|| train(&model, work, (&settings, activations)))?;
    let flops = Flops::of(&subject.config);
    let pass = pair_pass(work, flops);
    // Forward, and twice that backward, in each epoch; the reference goes forward once.
    let operations = pass * (3.0 * f64::from(work.epochs) + 1.0);
    let tokens: usize = work.pairs.iter().map(pair_tokens).sum();
    let tokens = tokens * work.epochs as usize;
    report.stage(Stage::new(name, took, tokens, operations));
    Ok(())
}

fn pair_tokens(pair: &super::work::Pair) -> usize {
    pair.prompt.len() + pair.chosen.len() + pair.rejected.len()
}

fn pair_pass(work: &Work, flops: Flops) -> f64 {
    let pass = |pair: &super::work::Pair| {
        let (prompt, chosen, rejected) =
            (pair.prompt.len(), pair.chosen.len(), pair.rejected.len());
        flops.sequence(0, prompt)
            + flops.sequence(prompt, chosen)
            + flops.sequence(prompt, rejected)
            + flops.logits(chosen + rejected)
    };
    work.pairs.iter().map(pass).sum()
}

fn shared_tokens(work: &Work) -> usize {
    let answers: usize = work.answers.iter().flatten().map(Vec::len).sum();
    work.prompts.iter().map(Vec::len).sum::<usize>() + answers
}

fn forward(work: &Work, flops: Flops) -> f64 {
    let tree = |(prompt, answers): (&Vec<u32>, &Vec<Vec<u32>>)| {
        let own: f64 = answers.iter().map(|a| flops.sequence(prompt.len(), a.len())).sum();
        flops.sequence(0, prompt.len()) + own
    };
    work.prompts.iter().zip(&work.answers).map(tree).sum()
}

fn prefill(model: &Transformer, flops: Flops, report: &mut Report<'_>) -> Result<(), WorkerError> {
    let _no_grad = tch::no_grad_guard();
    let (sequences, tokens) = PREFILL;
    let ids = crate::synthetic::ids((9, 0), sequences * tokens, model.config.vocabulary);
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let ids = Tensor::from_slice(&ids).to_device(model.device()).unsqueeze(0);
    let pass = || {
        let hidden = model.hidden_packed(&ids, &vec![tokens as i64; sequences]);
        Ok(hidden.select(1, 0).sum(tch::Kind::Double).double_value(&[]))
    };
    pass()?;
    let (_, took) = timed(pass)?;
    let operations = flops.sequence(0, tokens) * sequences as f64;
    report.stage(Stage::new("prefill", took, sequences * tokens, operations));
    Ok(())
}

/// New tokens of `rows` answers to one prompt; the prompt's own time is measured apart and taken off.
fn decode(
    model: &Transformer,
    rows: u32,
    flops: Flops,
    report: &mut Report<'_>,
) -> Result<(), WorkerError> {
    let prompt = crate::synthetic::ids((10, 0), 32, model.config.vocabulary);
    let run = |new_tokens: u32| {
        let task = PromptTask { ids: prompt.clone(), occurrence: 0 };
        write(model, &[task], arm(1.0, rows), new_tokens)
    };
    run(2)?;
    let (_, first) = timed(|| run(1))?;
    let (_, all) = timed(|| run(DECODE_TOKENS))?;
    let took = Took {
        seconds: (all.seconds - first.seconds).max(1e-9),
        cpu_s: (all.cpu_s - first.cpu_s).max(0.0),
        ..all
    };
    let tokens = DECODE_TOKENS as usize - 1;
    let operations = flops.sequence(prompt.len(), tokens) + flops.logits(tokens);
    let name = format!("decode_{rows}");
    let (tokens, operations) = (tokens * rows as usize, operations * f64::from(rows));
    report.stage(Stage::new(&name, took, tokens, operations));
    Ok(())
}

fn logprobs(
    model: &Transformer,
    work: &Work,
    flops: Flops,
    report: &mut Report<'_>,
) -> Result<(), WorkerError> {
    let sequence = |(prompt, answers): (&Vec<u32>, &Vec<Vec<u32>>)| {
        let whole = |answer: &Vec<u32>| Sequence {
            ids: [prompt.as_slice(), answer].concat(),
            prompt_tokens: prompt.len(),
        };
        answers.iter().map(whole).collect::<Vec<_>>()
    };
    let all: Vec<Sequence> = work.prompts.iter().zip(&work.answers).flat_map(sequence).collect();
    let (_, took) = timed(|| response_logprobs(model, &all, &Watch::default()))?;
    let answers: usize = work.answers.iter().flatten().map(Vec::len).sum();
    let operations = forward(work, flops) + flops.logits(answers);
    report.stage(Stage::new("logprobs", took, shared_tokens(work), operations));
    Ok(())
}

fn arm(temperature: f64, n: u32) -> Arm {
    Arm { name: "bench".to_owned(), temperature, top_p: 1.0, top_k: 0, n, first_sample: 0 }
}

/// All answers to all prompts in one batch, each of as many tokens as the work says.
///
/// # Errors
/// Generation's.
pub fn generate(
    model: &Transformer,
    work: &Work,
    temperature: f64,
) -> Result<Vec<Vec<u32>>, WorkerError> {
    let tasks: Vec<PromptTask> =
        work.prompts.iter().map(|ids| PromptTask { ids: ids.clone(), occurrence: 0 }).collect();
    // Greedy answers to one prompt would all be the same.
    let n = if temperature == 0.0 { 1 } else { work.samples as u32 };
    write(model, &tasks, arm(temperature, n), work.new_tokens as u32)
}

fn write(
    model: &Transformer,
    tasks: &[PromptTask],
    arm: Arm,
    max_new_tokens: u32,
) -> Result<Vec<Vec<u32>>, WorkerError> {
    let generation = Generation {
        run_seed: 1,
        purpose: Purpose::Generate,
        iteration: 0,
        arms: vec![arm],
        max_new_tokens,
        stop_ids: Vec::new(),
    };
    let written = generate_batch(model, tasks, &generation, &Watch::default())?;
    let ids = |written| match written {
        Written::Responses(responses) => responses.into_iter().map(|r| r.ids).collect(),
        Written::NonFinite => Vec::new(),
    };
    Ok(written.into_iter().flat_map(ids).collect())
}

/// Scores of all answers, those of one prompt one after the other.
///
/// # Errors
/// Scoring's.
pub fn score(scorer: &Transformer, work: &Work) -> Result<Vec<f32>, WorkerError> {
    score_batch(scorer, &work.conversations(), ScorePosition::Last, &Watch::default())
}

/// The settings of the training: one step an epoch, over all pairs.
///
/// # Errors
/// None that a correct build gives.
pub fn train_settings(work: &Work) -> Result<TrainSettings, WorkerError> {
    let (pairs, epochs) = (work.pairs.len(), work.epochs);
    let text = format!("epochs = {epochs}\nbatch_pairs = {pairs}\nmicro_batch_pairs = 4\n{TRAIN}");
    rehearsal::settings(&text)
}

/// Trains the model in place; the loss of each step.
///
/// # Errors
/// Training's.
pub fn train(
    model: &Transformer,
    work: &Work,
    (settings, activations): (&TrainSettings, Activations),
) -> Result<Vec<f64>, WorkerError> {
    let pair = |pair: &super::work::Pair| TokenPair {
        prompt: pair.prompt.clone(),
        chosen: pair.chosen.clone(),
        rejected: pair.rejected.clone(),
        reference: None,
        weight: 1.0,
    };
    let pairs = work.pairs.iter().map(pair).collect();
    let trained = rehearsal::train(model, pairs, (settings, activations), |_| None)?;
    Ok(trained.rows.iter().map(|row| row.loss).collect())
}
