//! Writes responses: one prefill a prompt, then all its samples step by step in one batch.
//!
//! In: a policy, the prompts of one batch as ids, [`Generation`]. Out: responses with ids, log-probs
//! and how they ended. What a response holds depends on its prompt, its sample and the batch plan,
//! never on time or worker. May not enter: text, frames, files.
//!
//! ```text
//! columns   0 ───────────── column_end ───────── column_end + max_new_tokens
//! row 0     ·····[prompt A ]|new new new …          rows of one prompt share its keys and values;
//! row 1     ·····[prompt A ]|new new STOP           shorter prompts begin later, so that all rows
//! row 2     [longer prompt B]|new …                 write the same column in the same step
//! ```

use rlhfd_protocol::worker::{Arm, Finish, Purpose};
use tch::{Kind, Tensor};

use crate::device::check_host_memory;
use crate::draw::{Draw, draw_ids};
use crate::errors::WorkerError;
use crate::model::kv_cache::Place;
use crate::model::{KvCache, Transformer};
use crate::philox::{Stream, StreamKey};
use crate::sample::Sampling;
use crate::watch::Watch;

/// One prompt of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTask {
    /// Its rendered ids; not empty.
    pub ids: Vec<u32>,
    /// Which of the equal prompts of the input it is, from 0.
    pub occurrence: u32,
}

/// What is the same for all prompts.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The run's seed.
    pub run_seed: u64,
    /// For training or for evaluation.
    pub purpose: Purpose,
    /// The iteration; 0 in file mode and in evaluation.
    pub iteration: u32,
    /// How to sample, and how often each way.
    pub arms: Vec<Arm>,
    /// The most ids of a response.
    pub max_new_tokens: u32,
    /// Ids that end a response, ascending.
    pub stop_ids: Vec<u32>,
}

/// One response.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Which arm wrote it.
    pub arm: u32,
    /// Counted over all arms.
    pub sample: u32,
    /// Its ids, the stop id included.
    pub ids: Vec<u32>,
    /// Log-prob of each id at temperature 1, untruncated.
    pub logprobs: Vec<f32>,
    /// How it ended.
    pub finish: Finish,
}

impl Response {
    /// The ids that its text is made of: all but the stop id.
    #[must_use]
    pub fn text_ids(&self) -> &[u32] {
        match (self.finish, self.ids.split_last()) {
            (Finish::Stop, Some((_, text))) => text,
            _ => &self.ids,
        }
    }

    /// The summed log-prob, added in f64.
    #[must_use]
    pub fn logprob(&self) -> f64 {
        self.logprobs.iter().map(|logprob| f64::from(*logprob)).sum()
    }
}

/// What a prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// All its responses, in the order of their samples.
    Responses(Vec<Response>),
    /// The model's logits were NaN or infinite.
    NonFinite,
}

/// A response that is being written.
struct Row {
    prompt: usize,
    sampling: Sampling,
    stream: Stream,
    response: Response,
}

/// Writes all responses to the prompts of one batch.
///
/// Errors: `Cancelled`; libtorch's own errors are panics, which the caller catches.
pub fn generate_batch(
    model: &Transformer,
    prompts: &[PromptTask],
    generation: &Generation,
    watch: &Watch,
) -> Result<Vec<Written>, WorkerError> {
    let _guard = tch::no_grad_guard();
    let samplings: Vec<Sampling> =
        generation.arms.iter().map(Sampling::checked).collect::<Result<_, _>>()?;
    let mut rows = rows(prompts, generation, &samplings);
    let mut batch = Batch::prefill(model, prompts, &rows, generation, watch)?;
    let mut done: Vec<Vec<Response>> = prompts.iter().map(|_| Vec::new()).collect();
    let mut broken = vec![false; prompts.len()];
    let mut logits = batch.first_logits();
    for position in 0..generation.max_new_tokens {
        let draw = |(index, row): (usize, &Row)| Draw {
            logits_row: if position == 0 { row.prompt } else { index },
            sampling: row.sampling,
            uniform: if row.sampling.is_greedy() { 0.0 } else { row.stream.uniform(position) },
        };
        let draws: Vec<Draw> = rows.iter().enumerate().map(draw).collect();
        let choices = draw_ids(&logits, &draws);
        // From the last row down, so that a row which takes another's place was looked at already.
        for index in (0..rows.len()).rev() {
            let row = &mut rows[index];
            let stopped = match choices[index] {
                Some((id, logprob)) => {
                    row.response.ids.push(id);
                    row.response.logprobs.push(logprob);
                    let stopped = generation.stop_ids.binary_search(&id).is_ok();
                    if stopped {
                        row.response.finish = Finish::Stop;
                    }
                    stopped
                }
                None => {
                    broken[row.prompt] = true;
                    true
                }
            };
            if stopped || position + 1 == generation.max_new_tokens || broken[row.prompt] {
                let row = rows.swap_remove(index);
                done[row.prompt].push(row.response);
                batch.remove_row(index);
            }
        }
        watch.tick(choices.len() as u64)?;
        if rows.is_empty() {
            break;
        }
        logits = batch.step(&rows);
    }
    Ok(done
        .into_iter()
        .zip(broken)
        .map(|(mut responses, broken)| {
            responses.sort_by_key(|response| response.sample);
            if broken { Written::NonFinite } else { Written::Responses(responses) }
        })
        .collect())
}

fn rows(prompts: &[PromptTask], generation: &Generation, samplings: &[Sampling]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let arms = generation.arms.iter().zip(samplings).enumerate();
        let ways = arms.flat_map(|(arm, (settings, sampling))| {
            let samples = settings.first_sample..settings.first_sample.saturating_add(settings.n);
            samples.map(move |sample| (sample, arm as u32, *sampling))
        });
        for (sample, arm, sampling) in ways {
            let stream = Stream::new(StreamKey {
                run_seed: generation.run_seed,
                purpose: generation.purpose,
                iteration: generation.iteration,
                prompt: &prompt.ids,
                occurrence: prompt.occurrence,
                sample,
            });
            let response = Response {
                arm,
                sample,
                ids: Vec::new(),
                logprobs: Vec::new(),
                finish: Finish::Length,
            };
            rows.push(Row { prompt: index, sampling, stream, response });
        }
    }
    rows
}

/// The tensors of a batch that is being written.
struct Batch<'a> {
    model: &'a Transformer,
    cache: KvCache,
    /// By row: the column of its first id.
    starts: Vec<i64>,
    /// `[rows, 1, 1, columns]`, where rows begin at different columns.
    mask: Option<Tensor>,
    /// The column that the next step writes.
    column: i64,
    /// `[prompts, width]`.
    last_hidden: Tensor,
}

impl<'a> Batch<'a> {
    /// Computes every prompt once and gives its keys and values to all of its rows.
    fn prefill(
        model: &'a Transformer,
        prompts: &[PromptTask],
        rows: &[Row],
        generation: &Generation,
        watch: &Watch,
    ) -> Result<Self, WorkerError> {
        let (kind, device) = (model.precision().kind(), model.device());
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0) as i64;
        // The last id of a response is never fed back.
        let columns = longest + i64::from(generation.max_new_tokens.max(1)) - 1;
        let count = rows.len() as i64;
        if device == tch::Device::Cpu {
            let bytes = KvCache::bytes(&model.config, count, columns, kind);
            let what = format!("keys and values of {count} sequences of {columns} positions");
            check_host_memory(&what, bytes).map_err(WorkerError::OutOfMemory)?;
        }
        let new_cache = |rows: i64, columns: i64| {
            KvCache::new(&model.config, (rows, columns), kind, model.placement())
        };
        let mut cache = new_cache(count, columns);
        let mut last_hidden = Vec::with_capacity(prompts.len());
        let mut first_row = 0;
        for group in chunks(prompts) {
            let lengths: Vec<i64> = group.iter().map(|prompt| prompt.ids.len() as i64).collect();
            let ids: Vec<u32> = group.iter().flat_map(|prompt| prompt.ids.clone()).collect();
            let mut scratch = new_cache(1, ids.len() as i64);
            let ids = ids_tensor(&ids, model).unsqueeze(0);
            let hidden = model.prefill(&ids, &lengths, &mut scratch);
            let mut first = 0;
            for tokens in lengths {
                let index = last_hidden.len();
                last_hidden.push(hidden.select(1, first + tokens - 1));
                let copies = rows.iter().filter(|row| row.prompt == index).count() as i64;
                let place = Place { row: first_row, copies, column_end: longest };
                cache.place((&scratch, first), tokens, place);
                (first_row, first) = (first_row + copies, first + tokens);
            }
            watch.tick(first as u64)?;
        }
        let starts: Vec<i64> =
            rows.iter().map(|row| longest - prompts[row.prompt].ids.len() as i64).collect();
        let mask = starts.iter().any(|start| *start > 0).then(|| {
            let column = Tensor::arange(columns, (Kind::Int64, device));
            let start = Tensor::from_slice(&starts).to_device(device).unsqueeze(1);
            Tensor::zeros([starts.len() as i64, columns], (kind, device))
                .masked_fill(&column.unsqueeze(0).lt_tensor(&start), f64::NEG_INFINITY)
                .unsqueeze(1)
                .unsqueeze(1)
        });
        let last_hidden = Tensor::cat(&last_hidden, 0);
        Ok(Self { model, cache, starts, mask, column: longest, last_hidden })
    }

    /// `[prompts, vocabulary]`: what the first token of each prompt's responses is drawn from.
    fn first_logits(&self) -> Tensor {
        self.model.logits(&self.last_hidden)
    }

    /// Feeds each row's last id; `[rows, vocabulary]`.
    fn step(&mut self, rows: &[Row]) -> Tensor {
        let last: Vec<u32> =
            rows.iter().map(|row| row.response.ids.last().copied().unwrap_or(0)).collect();
        let positions: Vec<i64> = self.starts.iter().map(|start| self.column - start).collect();
        let positions = Tensor::from_slice(&positions).to_device(self.model.device());
        let mask = self
            .mask
            .as_ref()
            .map(|mask| mask.narrow(0, 0, rows.len() as i64).narrow(3, 0, self.column + 1));
        let hidden = self.model.decode(
            &ids_tensor(&last, self.model),
            &positions,
            &mut self.cache,
            self.column,
            mask.as_ref(),
        );
        self.column += 1;
        self.model.logits(&hidden)
    }

    /// Row `index` leaves and the last row takes its place, as `swap_remove` does.
    fn remove_row(&mut self, index: usize) {
        self.cache.remove_row(index as i64, self.column);
        let last = self.starts.len() - 1;
        if let Some(mask) = self.mask.as_ref().filter(|_| index != last) {
            mask.select(0, index as i64).copy_(&mask.select(0, last as i64));
        }
        self.starts.swap_remove(index);
    }
}

/// Prompts that are computed together: enough tokens for full matrix products, few enough that
/// their states stay small.
const PREFILL_TOKENS: usize = 1024;

/// Consecutive prompts of about [`PREFILL_TOKENS`] tokens, at least one.
fn chunks(prompts: &[PromptTask]) -> impl Iterator<Item = &[PromptTask]> {
    let mut rest = prompts;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |prompt: &&PromptTask| {
            tokens += prompt.ids.len();
            tokens <= PREFILL_TOKENS
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (chunk, after) = rest.split_at(count);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// `[n]`, i64, on the model's device.
fn ids_tensor(ids: &[u32], model: &Transformer) -> Tensor {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    Tensor::from_slice(&ids).to_device(model.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_computed_in_chunks_that_hold_each_once() {
        let task = |tokens: usize| PromptTask { ids: vec![1; tokens], occurrence: 0 };
        let prompts = [task(500), task(500), task(500), task(3000), task(1)];
        let cut: Vec<usize> = chunks(&prompts).map(<[PromptTask]>::len).collect();
        assert_eq!(cut, [2, 1, 1, 1]);
        assert_eq!(chunks(&[]).count(), 0);
    }
}
