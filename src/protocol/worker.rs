//! rlhfd ↔ rlhfd-worker: what a lease's worker is told and what it answers.
//!
//! The daemon sends `hello` first and the worker answers with its own. A unit is sent as one
//! `run_unit` followed by exactly `items` `item` frames; the worker answers with one or more
//! `result` frames an item, then one `unit_done` or `unit_failed`. The next unit may be sent while
//! one is running. All that a unit needs arrives in its frames or lies in a folder that they name:
//! a worker reads no configuration and no database.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Daemon → worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// The first frame. `device` is `cpu` or `cuda` (all the devices that the child can see).
    /// `rooms_mib` is what each of several devices has for its part of every model, in their order;
    /// empty for a single one.
    Hello {
        protocol: u32,
        device: String,
        #[serde(default)]
        rooms_mib: Vec<u64>,
        threads: Option<usize>,
        heartbeat_ms: u64,
    },
    /// Load these models now and drop all others: the unit that needs them comes next.
    Load { models: Vec<ModelRef> },
    /// A unit. Its items follow at once, in order.
    RunUnit { attempt: u64, work: Box<Work>, items: u32 },
    /// One item of the unit of `attempt`. Payload: token ids where [`Item`] says so.
    Item { attempt: u64, index: u32, item: Item },
    /// Stop this attempt at the next micro-batch; answered by `unit_failed` of kind `cancelled`.
    Cancel { attempt: u64 },
    /// Finish what was sent, then exit 0. A training stops at its next micro-batch, saves its state
    /// where that is done before `within_ms` have passed, and answers `cancelled`; where `at_once`,
    /// every other unit stops there too.
    Drain { at_once: bool, within_ms: u64 },
    /// Drop all models, stay alive.
    Unload,
}

/// Worker → daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum FromWorker {
    /// The answer to `hello`.
    Hello { protocol: u32, version: String, device: String, libtorch: String, threads: usize },
    /// The answer to `load`.
    Loaded { seconds: f64 },
    /// From a side thread, every `heartbeat_ms`; `progress` counts what the compute thread did, so
    /// that a hung computation is told from a slow one.
    /// `device_mib` is what it holds of each GPU's memory, contexts included, in the order of its
    /// devices; empty on the CPU.
    Heartbeat {
        attempt: Option<u64>,
        progress: u64,
        resident_mib: u64,
        #[serde(default)]
        device_mib: Vec<u64>,
        done: Option<Done>,
    },
    /// One answer to item `index` of `attempt`. Payload: as [`ItemResult`] says.
    Result { attempt: u64, index: u32, result: ItemResult },
    /// One optimiser step was made (train units only), for live status; the journal of steps is
    /// steps.jsonl in the checkpoint folder.
    Step { attempt: u64, step: u64, steps: u64, loss: f64 },
    /// All items were answered.
    UnitDone { attempt: u64, summary: Summary },
    /// The unit could not be finished. The worker lives on unless it closes the socket.
    UnitFailed { attempt: u64, kind: FailureKind, message: String },
}

/// How far a running unit is, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub items: u32,
    pub tokens: u64,
}

/// A model folder, named by place and content. The sum is that of the folder's manifest, or of its
/// files where it has none; the worker keeps a model by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelRef {
    pub path: PathBuf,
    pub sha256: String,
}

/// What responses are for; part of the random key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Generate,
    Evaluate,
}

/// One way to sample: `n` responses a prompt, of the numbers `first_sample` and on. Temperature 0 is
/// greedy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    pub name: String,
    pub temperature: f64,
    pub top_p: f64,
    /// 0 means no limit.
    pub top_k: u32,
    pub n: u32,
    /// Samples count over all arms of an iteration, which several units may share by policy.
    pub first_sample: u32,
}

/// Where a reward model reads its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScorePosition {
    /// The last position whose id is not the pad id, as transformers does.
    #[default]
    Transformers,
    /// The last position.
    Last,
}

/// Which responses of an item are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// Every one with every other.
    RoundRobin,
    /// The best so far with the next, and the worst so far with the next.
    Linear,
    /// The k-th with the k-th of the second half.
    Halves,
}

impl From<Compare> for rlhfd_domain::label::compare::Compare {
    fn from(compare: Compare) -> Self {
        match compare {
            Compare::RoundRobin => Self::RoundRobin,
            Compare::Linear => Self::Linear,
            Compare::Halves => Self::Halves,
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// A unit's work: the same for all its items.
///
/// `batch_items` is the batch plan: consecutive items are computed together in groups of that many,
/// so that the bits depend on the plan alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Render and decode a few built-in conversations with each model; see [`Summary::findings`].
    Probe {
        policies: Vec<ModelRef>,
        scorers: Vec<(ModelRef, ScorePosition)>,
        preference_models: Vec<ModelRef>,
        max_new_tokens: u32,
    },
    /// Prompts to token ids, with the policy's template and its generation prompt.
    Render { policy: ModelRef, prompt_tokens_max: u32 },
    /// Pairs of answers to token ids, as TRL renders them: the prompt with its generation prompt, a
    /// response as the rest of its whole conversation. A side is at most `pair_tokens_max` long.
    RenderPairs { policy: ModelRef, pair_tokens_max: u32 },
    /// Write responses of one policy: those of these arms.
    Generate {
        policy: ModelRef,
        run_seed: u64,
        purpose: Purpose,
        iteration: u32,
        arms: Vec<Arm>,
        max_new_tokens: u32,
        batch_items: u32,
    },
    /// Score whole conversations with a reward model.
    Score { scorer: ModelRef, position: ScorePosition, batch_items: u32 },
    /// Compare responses to a prompt with a preference model, each pair in both orders. Of one batch
    /// of items, `together` pairs are computed at once.
    Prefer { model: ModelRef, compare: Compare, batch_items: u32, together: u32 },
    /// Log-probs of given responses at temperature 1, untruncated.
    Logprobs { model: ModelRef, batch_items: u32 },
    /// A moving average of policies, weight by weight: decay × before + (1 − decay) × policy, in the
    /// policy's types and files. No items.
    Average {
        policy: ModelRef,
        before: ModelRef,
        decay: f64,
        /// The folder to publish, as in [`TrainTarget`].
        out: PathBuf,
        /// The unit's natural key, for the manifest.
        unit: String,
    },
    /// A DPO update from an iteration folder (pairs.jsonl and settings.toml, no items). Adapters are
    /// made on `initial`, the policy that the run began with, and go on over it.
    TrainDpo {
        policy: ModelRef,
        reference: ModelRef,
        initial: ModelRef,
        folder: PathBuf,
        target: TrainTarget,
    },
    /// Supervised fine-tuning of a policy from a job folder (conversations.jsonl and settings.toml, no
    /// items).
    TrainSft { base: ModelRef, folder: PathBuf, target: TrainTarget },
    /// A Bradley-Terry reward model (or the continuation of one) from a job folder (preferences.jsonl
    /// and settings.toml, no items).
    TrainReward { base: ModelRef, folder: PathBuf, target: TrainTarget },
    /// A preference model, which compares two responses, from the same files.
    TrainPreference { base: ModelRef, folder: PathBuf, target: TrainTarget },
}

/// Where a train unit leaves its checkpoint and its own state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainTarget {
    /// The checkpoint folder to publish. It must not exist, or be the one that this very unit has
    /// published already.
    pub out: PathBuf,
    /// The unit's natural key, for the manifest: a folder without a row is adopted by it.
    pub unit: String,
    /// A folder of the unit's own for masters, moments and position.
    pub state: PathBuf,
    /// Whether a state found there is resumed. Off only in the test that shows it matters.
    pub resume: bool,
    pub seed: u64,
    /// Examples of a micro-batch, in the place of what settings.toml says: a training that ran out of
    /// memory goes on with fewer.
    #[serde(default)]
    pub micro_batch: Option<u64>,
    /// Save after so many steps, or after so many seconds, whichever comes first.
    pub save_every_steps: u64,
    pub save_every_s: u64,
    /// Parent checkpoint's manifest sum, for the new manifest.
    pub parent_sha256: String,
}

/// What one item brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Item {
    /// For `render`.
    Prompt { messages: Vec<Message> },
    /// For `render_pairs`: a prompt and two answers to it.
    Pair { messages: Vec<Message>, chosen: String, rejected: String },
    /// For `generate`. Payload: the prompt's token ids.
    PromptIds {
        /// Which of the equal prompts of this draw it is, from 0.
        occurrence: u32,
    },
    /// For `score`: the prompt's messages, and the response as the last, assistant's turn.
    Conversation { messages: Vec<Message> },
    /// For `prefer`: the prompt's messages, and different responses to it.
    Responses { messages: Vec<Message>, responses: Vec<String> },
    /// For `logprobs`. Payload: the ids of prompt and response, one after the other.
    ResponseIds { prompt_tokens: u32 },
}

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// It wrote a stop id, which is its last id.
    Stop,
    /// It reached the limit of new tokens.
    Length,
}

/// What one item gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ItemResult {
    /// Payload: the prompt's token ids.
    Rendered { tokens: u32 },
    /// Payload: the ids of the prompt, of the chosen and of the rejected response.
    RenderedPair { prompt_tokens: u32, chosen_tokens: u32, rejected_tokens: u32 },
    /// One response. `arm` is its place among the unit's, `sample` counts over all arms of the
    /// iteration. Payload: the ids (u32), then as many log-probs
    /// (f32), at temperature 1 and untruncated.
    Response { arm: u32, sample: u32, finish: Finish, tokens: u32, logprob: f64, text: String },
    /// A finite score and the length of what was scored.
    Score { score: f64, tokens: u32 },
    /// One comparison of an item: P(first beats second), by their places in it.
    Preference { first: u32, second: u32, preference: f64, tokens: u32 },
    /// One comparison that cannot be made.
    NotCompared { first: u32, second: u32, reason: Reason, message: String },
    /// Payload: one f32 a response token.
    Logprobs { logprob: f64, tokens: u32 },
    /// This item cannot be done, and trying again will not help: it is set aside.
    Refused { reason: Reason, message: String },
}

/// Why an item was refused; a word that SQL can group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Longer than the limit or than the model's context.
    OverLong,
    /// The template refused the conversation, or gave no tokens.
    Template,
    /// A score or log-prob was NaN or infinite.
    NonFinite,
    /// Nothing was written.
    Empty,
    /// The two sides of a pair have the same ids.
    SameIds,
}

/// What a finished unit says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub seconds: f64,
    /// Tokens computed: prompts once, responses as often as they were forwarded.
    pub tokens: u64,
    pub peak_mib: u64,
    /// The most of its GPUs' memory that the unit needed, summed over them, contexts included.
    #[serde(default)]
    pub device_peak_mib: Option<u64>,
    /// Of a probe: what was found wrong, one sentence each; empty is well.
    #[serde(default)]
    pub findings: Vec<String>,
    /// Of a train unit or an average: the published folder.
    #[serde(default)]
    pub checkpoint: Option<Published>,
}

/// A checkpoint folder that stands, synced and renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The sha256 of manifest.json, by which the checkpoint is known.
    pub sha256: String,
    pub steps: u64,
    /// The first step that this attempt made itself: above 1 where it was resumed.
    pub first_step: u64,
    pub bytes: u64,
    /// Pairs left out before training, by reason.
    #[serde(default)]
    pub dropped: Vec<(String, u64)>,
}

/// Why a unit failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The device, or the host, has no memory left.
    OutOfMemory,
    /// A panic or a libtorch error; the worker exits after it.
    Crashed,
    /// The input is wrong in a way that trying again cannot mend.
    Input,
    /// A model's folder is not as its manifest says: the checkpoint was altered, or is torn. Nothing was
    /// computed with it.
    Unsound,
    /// A write failed: the disk is full, failing or read-only. A matter of the place, not of the unit.
    Disk,
    /// A training went wrong; no checkpoint was published.
    Diverged(Divergence),
    /// As asked.
    Cancelled,
}

/// How a training went wrong; see [`rlhfd_domain::Divergence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    NonFinite,
    LossExploded,
    KlBeyondLimit,
    NothingLearnt,
    NoGradient,
}

impl From<Divergence> for rlhfd_domain::Divergence {
    fn from(divergence: Divergence) -> Self {
        match divergence {
            Divergence::NonFinite => Self::NonFinite,
            Divergence::LossExploded => Self::LossExploded,
            Divergence::KlBeyondLimit => Self::KlBeyondLimit,
            Divergence::NothingLearnt => Self::NothingLearnt,
            Divergence::NoGradient => Self::NoGradient,
        }
    }
}

impl From<rlhfd_domain::Divergence> for Divergence {
    fn from(divergence: rlhfd_domain::Divergence) -> Self {
        use rlhfd_domain::Divergence as Known;
        match divergence {
            Known::NonFinite => Self::NonFinite,
            Known::LossExploded => Self::LossExploded,
            Known::KlBeyondLimit => Self::KlBeyondLimit,
            Known::NothingLearnt => Self::NothingLearnt,
            Known::NoGradient => Self::NoGradient,
        }
    }
}
