//! The tables of a checked configuration, as plain typed fields.
//!
//! In: entries whose every value lies in its range. Out: structs. What each key means, its default
//! and the default's source stand in the rows of `knobs`; rules between keys stand in `checked`.

mod devices;
mod gate;
mod jobs;
mod label;

use std::path::Path;

pub use self::devices::{DevicesConfig, UseDevices};
pub use self::gate::{GateAgainst, GateConfig, GateFailure};
pub use self::jobs::{JobConfig, JobData};
pub use self::label::{
    Compare, LabelConfig, LengthUnit, Normalise, PairArms, PairConfig, PairRule, ScorePosition,
    ScorerConfig, ScorerKind, ScorerModel, ScorerRole, Unfinished,
};
use crate::arm::ArmPolicy;
use crate::reference::ReferenceConfig;
pub use crate::setting::{DataFile, Place, RunStart};
use crate::setting::{Setting, section, words};
use crate::train::{History, TrainSettings, Training};
use crate::values::{Entry, Value};

/// Keys and values of one table, in their order.
pub(crate) type Rows = Vec<(&'static str, Option<Value>)>;

words! {
    /// What happens with fewer fresh prompts than an iteration takes.
    WhenShort {
        /// Wait for more.
        Wait = "wait",
        /// After `wait_max_s`, take what there is.
        TakeRest = "take_rest",
    }
}

section! {
    /// `[run]`.
    RunConfig {
        /// The run's name; safe as a file's name.
        name: String,
        /// The initial policy's folder.
        policy: Place,
        /// What the run begins with.
        start: RunStart,
        /// The reference's folder; `None`: the initial policy.
        reference: Option<Place>,
        /// At most `i64::MAX`.
        seed: u64,
        /// 0: no end.
        iterations_max: u64,
        /// Prompts of an iteration.
        prompts_per_iteration: u64,
        /// What happens with fewer.
        when_short: WhenShort,
        /// How long `take_rest` waits.
        wait_max_s: u64,
        /// Draw used prompts again where fresh ones do not suffice.
        reuse_prompts: bool,
        /// Iterations without a better policy after which the run ends; 0: no such end.
        patience: u64,
    }
}

words! {
    /// What an update that went wrong does beside leaving the head as it was.
    OnDivergence {
        /// The run pauses.
        Pause = "pause",
        /// The loop goes on from the old head.
        KeepHead = "keep_head",
    }
}

section! {
    /// `[control]`.
    ControlConfig {
        /// A second socket, for reading only.
        readers_socket: Option<Place>,
        /// Rows of an answer to `sql`.
        sql_rows_max: u64,
        /// Time of a question to `sql`.
        sql_time_ms: u64,
    }
}

section! {
    /// `[store]`.
    StoreConfig {
        /// Free space below which a stage pauses.
        disk_free_min_mib: u64,
        /// What the state folder may take; 0: the whole disk.
        budget_mib: u64,
        /// Newest checkpoints whose files stay; 0: all.
        keep_checkpoints: u64,
        /// Newest iterations whose unpaired responses keep their texts; 0: all.
        keep_responses: u64,
        /// Days that events stay; 0: for ever.
        keep_events_days: u64,
        /// The write-ahead log's size from which it is told.
        log_max_mib: u64,
        /// How often a bad disk is tried again.
        disk_probe_ms: u64,
    }
}

section! {
    /// `[scheduler]`.
    SchedulerConfig {
        /// Tokens of a unit on a CPU.
        unit_tokens_cpu: u64,
        /// Tokens of a unit on a GPU.
        unit_tokens_gpu: u64,
        /// Time between heartbeats.
        heartbeat_ms: u64,
        /// Silence after which a worker is ended; at least three heartbeats.
        silence_timeout_s: u64,
        /// Standstill after which a worker is ended.
        progress_timeout_s: u64,
        /// Longest start and load.
        load_timeout_s: u64,
        /// What a step of the daemon itself may take until it is told.
        step_timeout_s: u64,
        /// Longest leave-taking.
        stop_timeout_s: u64,
    }
}

section! {
    /// `[worker]`.
    WorkerConfig {
        /// The program; `None`: look for it.
        program: Option<Place>,
        /// libtorch's folder; `None`: look for it.
        libtorch: Option<Place>,
        /// 0: one a core.
        threads: u64,
        /// 0 to 19.
        nice: u64,
    }
}

section! {
    /// `[prompts]`.
    PromptsConfig {
        /// Longer prompts are set aside.
        prompt_tokens_max: u32,
    }
}

/// `[generate]`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateConfig {
    /// Tokens of a response.
    pub max_new_tokens: u32,
    /// Prompts written together; 0: by the memory plan.
    pub batch_prompts: u32,
    /// At least one; names differ; at least two responses a prompt over all.
    pub arms: Vec<ArmConfig>,
}

impl GenerateConfig {
    /// Responses that each prompt gets, over all arms; at least 2.
    #[must_use]
    pub fn responses_per_prompt(&self) -> u32 {
        self.arms.iter().map(|arm| arm.n).sum()
    }
}

/// One of `[[generate.arms]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmConfig {
    /// Its name in the tables.
    pub name: String,
    /// Who writes.
    pub policy: ArmPolicy,
    /// 0 is greedy.
    pub temperature: f64,
    /// In (0, 1].
    pub top_p: f64,
    /// 0: all.
    pub top_k: u32,
    /// Responses a prompt.
    pub n: u32,
}

/// When a training saves its own state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavePolicy {
    /// After so many steps,
    pub every_steps: u64,
    /// or after so long, whichever comes first.
    pub every_s: u64,
}

/// `[train]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// What the worker gets.
    pub settings: TrainSettings,
    /// What it trains on of earlier iterations.
    pub history: History,
    /// The weight of these; above 0.
    pub history_weight: f64,
    /// Preference sets that it trains on too.
    pub offline: Vec<String>,
    /// The weight of their preferences; above 0.
    pub offline_weight: f64,
    /// Which checkpoint it is held to.
    pub reference: ReferenceConfig,
    /// Stored responses that are scored again before the first step; 0: none.
    pub rescore_responses: u32,
    /// What an update that went wrong does.
    pub on_divergence: OnDivergence,
    /// When it saves.
    pub save: SavePolicy,
}

/// `[evaluate]`.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluateConfig {
    /// At least one, none twice.
    pub temperatures: Vec<f64>,
    /// Responses a prompt and temperature (greedy writes one in any case).
    pub n: u32,
    /// Tokens of a response.
    pub max_new_tokens: u32,
    /// Reserved prompts answered.
    pub prompts_max: u64,
    /// Of the bootstrap.
    pub bootstrap_samples: u32,
}

/// One key of an entry, typed.
pub(crate) fn get<T: Setting>(entry: &Entry, key: &str, base_dir: &Path) -> Option<T> {
    T::of(entry.value(key), base_dir)
}

impl GenerateConfig {
    pub(crate) fn of(entry: &Entry, arms: Vec<ArmConfig>, base_dir: &Path) -> Option<Self> {
        Some(Self {
            max_new_tokens: get(entry, "max_new_tokens", base_dir)?,
            batch_prompts: get(entry, "batch_prompts", base_dir)?,
            arms,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        vec![
            ("max_new_tokens", self.max_new_tokens.value()),
            ("batch_prompts", self.batch_prompts.value()),
        ]
    }
}

impl ArmConfig {
    pub(crate) fn of(entry: &Entry, base_dir: &Path) -> Option<Self> {
        let temperature: f64 = get(entry, "temperature", base_dir)?;
        let name: Option<String> = get(entry, "name", base_dir)?;
        Some(Self {
            name: name.unwrap_or_else(|| format!("t{temperature:?}")),
            policy: get(entry, "policy", base_dir)?,
            temperature,
            top_p: get(entry, "top_p", base_dir)?,
            top_k: get(entry, "top_k", base_dir)?,
            n: get(entry, "n", base_dir)?,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        vec![
            ("name", self.name.value()),
            ("policy", self.policy.value()),
            ("temperature", self.temperature.value()),
            ("top_p", self.top_p.value()),
            ("top_k", self.top_k.value()),
            ("n", self.n.value()),
        ]
    }
}

impl SavePolicy {
    pub(crate) fn of(entry: &Entry, base_dir: &Path) -> Option<Self> {
        Some(Self {
            every_steps: get(entry, "save_every_steps", base_dir)?,
            every_s: get(entry, "save_every_s", base_dir)?,
        })
    }

    pub(crate) fn values(self) -> Rows {
        vec![("save_every_steps", self.every_steps.value()), ("save_every_s", self.every_s.value())]
    }
}

impl TrainConfig {
    pub(crate) fn of(entry: &Entry, settings: TrainSettings, base_dir: &Path) -> Option<Self> {
        Some(Self {
            settings,
            history: get(entry, "history", base_dir)?,
            history_weight: get(entry, "history_weight", base_dir)?,
            offline: get(entry, "offline", base_dir)?,
            offline_weight: get(entry, "offline_weight", base_dir)?,
            reference: ReferenceConfig::of(entry, base_dir)?,
            rescore_responses: get(entry, "rescore_responses", base_dir)?,
            on_divergence: get(entry, "on_divergence", base_dir)?,
            save: SavePolicy::of(entry, base_dir)?,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        let mut rows = self.settings.rows(Training::Dpo);
        rows.push(("history", self.history.value()));
        rows.push(("history_weight", self.history_weight.value()));
        rows.push(("offline", self.offline.value()));
        rows.push(("offline_weight", self.offline_weight.value()));
        rows.extend(self.reference.values());
        rows.push(("rescore_responses", self.rescore_responses.value()));
        rows.push(("on_divergence", self.on_divergence.value()));
        rows.extend(self.save.values());
        rows
    }
}

impl EvaluateConfig {
    pub(crate) fn of(entry: &Entry, generate: &GenerateConfig, base_dir: &Path) -> Option<Self> {
        let max_new_tokens: Option<u32> = get(entry, "max_new_tokens", base_dir)?;
        Some(Self {
            temperatures: get(entry, "temperatures", base_dir)?,
            n: get(entry, "n", base_dir)?,
            max_new_tokens: max_new_tokens.unwrap_or(generate.max_new_tokens),
            prompts_max: get(entry, "prompts_max", base_dir)?,
            bootstrap_samples: get(entry, "bootstrap_samples", base_dir)?,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        vec![
            ("temperatures", self.temperatures.value()),
            ("n", self.n.value()),
            ("max_new_tokens", self.max_new_tokens.value()),
            ("prompts_max", self.prompts_max.value()),
            ("bootstrap_samples", self.bootstrap_samples.value()),
        ]
    }
}
