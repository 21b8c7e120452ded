//! Checked configuration: what the daemon runs on. Every cross-knob rule already holds.
//!
//! In: text, or a file. Out: [`CheckedConfig`], or everything that is wrong with it at once.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::arm::ArmPolicy;
use crate::knobs::{self, SECTIONS, Section};
use crate::problem::{ConfigError, Findings, Problems};
use crate::raw::{self, Given, RawTable, RawValue};
use crate::reference;
use crate::sections::{
    ArmConfig, ControlConfig, DevicesConfig, EvaluateConfig, GateConfig, GenerateConfig, JobConfig,
    LabelConfig, PairConfig, PromptsConfig, RunConfig, RunStart, SchedulerConfig, StoreConfig,
    TrainConfig, WorkerConfig,
};
use crate::spelling::nearest;
use crate::train::{TrainSettings, Training};
use crate::values::{Entry, Value, dotted};

/// No configuration comes near this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const ARMS_MAX: usize = 16;
/// The paper's algorithm 2: half of n = 8 at each temperature.
const PAPER_ARMS: [(f64, u32); 2] = [(1.0, 4), (0.7, 4)];

/// A configuration that may be run on. It cannot be made but from a text that was checked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CheckedConfig {
    /// Relative paths are meant from here; absolute.
    pub base_dir: PathBuf,
    /// Which run this is.
    pub run: RunConfig,
    /// The socket's second door and limits.
    pub control: ControlConfig,
    /// The state folder's disk.
    pub store: StoreConfig,
    /// What may be computed on.
    pub devices: DevicesConfig,
    /// Cutting of work and deadlines.
    pub scheduler: SchedulerConfig,
    /// Worker processes.
    pub worker: WorkerConfig,
    /// Which prompts are taken.
    pub prompts: PromptsConfig,
    /// How the policy writes.
    pub generate: GenerateConfig,
    /// How responses are scored.
    pub label: LabelConfig,
    /// How they become preferences.
    pub pair: PairConfig,
    /// The DPO update.
    pub train: TrainConfig,
    /// Held-out prompts.
    pub evaluate: EvaluateConfig,
    /// What makes a checkpoint the head.
    pub gate: GateConfig,
    /// Supervised fine-tuning.
    pub sft: JobConfig,
    /// Training of a reward model.
    pub reward: JobConfig,
    /// Training of a preference model.
    pub preference: JobConfig,
}

impl CheckedConfig {
    /// Reads and checks a file; relative paths are meant from its folder.
    ///
    /// # Errors
    /// Every [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_path_buf(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            let path = path.to_path_buf();
            return Err(ConfigError::TooLarge { path, max_bytes: CONFIG_BYTES_MAX });
        }
        let text = String::from_utf8(bytes).map_err(|error| ConfigError::NotText {
            path: path.to_path_buf(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Self::read(&text, &crate::frozen::folder_of(path))
            .map_err(|problems| ConfigError::Wrong { path: path.to_path_buf(), problems })
    }

    /// Checks a text that lies in no file; `base_dir` is what relative paths are meant from.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`].
    pub fn from_text(text: &str, base_dir: &Path) -> Result<Self, ConfigError> {
        let path = PathBuf::from("(text)");
        Self::read(text, base_dir).map_err(|problems| ConfigError::Wrong { path, problems })
    }

    /// The reference's folder: the initial policy's where none is named.
    #[must_use]
    pub fn reference_path(&self) -> &Path {
        self.run.reference.as_ref().map_or(&self.run.policy.path, |place| &place.path)
    }

    /// The folder that a training job starts from: the run's policy where none is named. (What the
    /// run begins with may be trained of it first; then that is the base.)
    #[must_use]
    pub fn base_path<'a>(&'a self, job: &'a JobConfig) -> &'a Path {
        job.base.as_ref().map_or(&self.run.policy.path, |place| &place.path)
    }

    pub(crate) fn read(text: &str, base_dir: &Path) -> Result<Self, Problems> {
        let mut findings = Findings::default();
        let table = raw::read(text, &mut findings);
        check_sections(&table, &mut findings);
        let config = build(&table, base_dir, &mut findings);
        findings.finish(config)
    }
}

/// Complains of top-level keys that are no sections.
fn check_sections(table: &RawTable, findings: &mut Findings) {
    let names = || SECTIONS.iter().map(|s| s.name).filter(|name| !name.contains('.'));
    for (key, given) in table {
        if names().any(|name| name == key) {
            if !matches!(given.value, RawValue::Table(_)) {
                findings.add(given.line, key.as_str(), format!("is a section: write [{key}]"));
            }
        } else if let Some(home) = SECTIONS.iter().find(|section| section.knob(key).is_some()) {
            let what = format!("stands outside a section; it belongs in [{}]", home.name);
            findings.add(given.line, key.as_str(), what);
        } else {
            let right = nearest(key, names()).unwrap_or("run");
            let what = format!("is no section; did you mean [{right}]?");
            findings.add(given.line, key.as_str(), what);
        }
    }
}

fn build(table: &RawTable, base_dir: &Path, findings: &mut Findings) -> Option<CheckedConfig> {
    let mut run = entry(&knobs::RUN, table, &[], findings);
    run.require(findings);
    let scheduler = entry(&knobs::SCHEDULER, table, &[], findings);
    let generate = entry(&knobs::GENERATE, table, &["arms"], findings);
    let label = entry(&knobs::LABEL, table, &["scorers"], findings);
    let train = entry(&knobs::TRAIN, table, &[], findings);
    let sft = entry(&knobs::SFT, table, &[], findings);
    let reward = entry(&knobs::REWARD, table, &[], findings);
    let preference = entry(&knobs::PREFERENCE, table, &[], findings);
    let evaluate = entry(&knobs::EVALUATE, table, &[], findings);
    let mut machine = |section| entry(section, table, &[], findings);
    let (control, store) = (machine(&knobs::CONTROL), machine(&knobs::STORE));
    let (devices, worker) = (machine(&knobs::DEVICES), machine(&knobs::WORKER));
    let (prompts, pair) = (machine(&knobs::PROMPTS), machine(&knobs::PAIR));
    let gate = machine(&knobs::GATE);

    let arms = arms(table, base_dir, findings)?;
    let scorers = label::scorers(table, base_dir, findings)?;
    label::penalty(&label, findings);
    label::pairs(&pair, &arms, findings);
    label::tournaments(&scorers, (&label, &pair), findings);
    gate::figures(&gate, &evaluate, &scorers, findings);
    let defaults = Entry::defaults(&knobs::TRAIN);
    let dpo = TrainSettings::checked(Training::Dpo, &train, &train, findings)?;
    let mut job = |training, entry: &Entry| {
        let settings = TrainSettings::checked(training, entry, &defaults, findings)?;
        JobConfig::of(training, entry, settings, base_dir)
    };
    let sft_config = job(Training::Sft, &sft)?;
    let reward = job(Training::Reward, &reward)?;
    let preference = job(Training::Preference, &preference)?;
    let run_config = RunConfig::of(&run, &run, base_dir)?;
    start(&run_config, &sft, findings);
    let train_config = TrainConfig::of(&train, dpo, base_dir)?;
    reference::moving(
        &train,
        train_config.reference,
        (&run_config, &train_config.settings),
        findings,
    );
    let generate = GenerateConfig::of(&generate, arms, base_dir)?;
    let scheduler_line = scheduler.line_of("silence_timeout_s");
    let scheduler = SchedulerConfig::of(&scheduler, &scheduler, base_dir)?;
    if scheduler.silence_timeout_s * 1000 < 3 * scheduler.heartbeat_ms {
        let what = format!(
            "is {}, less than three heartbeats of {} ms; raise it, or lower heartbeat_ms",
            scheduler.silence_timeout_s, scheduler.heartbeat_ms
        );
        findings.add(scheduler_line, "scheduler.silence_timeout_s", what);
    }
    let look_line = devices.line_of("look_ms");
    let devices = DevicesConfig::of(&devices, base_dir)?;
    // Memory counts as others' only where it is seen at two looks and no heartbeat told that it is ours.
    if devices.yield_above_mib > 0 && devices.look_ms < 2 * scheduler.heartbeat_ms {
        let what = format!(
            "is {}, less than two heartbeats of {} ms, so that with yield_above_mib a worker that grows \
             would be taken for others; raise it, or lower heartbeat_ms",
            devices.look_ms, scheduler.heartbeat_ms
        );
        findings.add(look_line, "devices.look_ms", what);
    }
    Some(CheckedConfig {
        base_dir: base_dir.to_path_buf(),
        run: run_config,
        control: ControlConfig::of(&control, &control, base_dir)?,
        store: StoreConfig::of(&store, &store, base_dir)?,
        devices,
        scheduler,
        worker: WorkerConfig::of(&worker, &worker, base_dir)?,
        prompts: PromptsConfig::of(&prompts, &prompts, base_dir)?,
        label: LabelConfig::of(&label, scorers, base_dir)?,
        pair: PairConfig::of(&pair, &pair, base_dir)?,
        train: train_config,
        evaluate: EvaluateConfig::of(&evaluate, &generate, base_dir)?,
        gate: GateConfig::of(&gate, &gate, base_dir)?,
        generate,
        sft: sft_config,
        reward,
        preference,
    })
}

/// A training that the run begins with starts from the run's own policy.
fn start(run: &RunConfig, sft: &Entry, findings: &mut Findings) {
    if run.start != RunStart::Policy && sft.value("base").is_some() {
        let what = "is given, and [run] start begins with what is made of [run] policy: leave one of \
                    them out";
        findings.add(sft.line_of("base"), "sft.base", what.to_owned());
    }
}

/// The values of one section; all defaults where the text has no such table.
fn entry(
    section: &'static Section,
    table: &RawTable,
    inner: &[&str],
    findings: &mut Findings,
) -> Entry {
    match table.get(section.name) {
        Some(Given { line, value: RawValue::Table(table) }) => {
            Entry::read(section, table, *line, inner, findings)
        }
        _ => Entry::defaults(section),
    }
}

/// The tables of a repeated section such as `generate.arms`.
fn repeated(
    section: &'static Section,
    table: &RawTable,
    findings: &mut Findings,
) -> Option<Vec<Entry>> {
    let (outer, inner) = section.name.split_once('.')?;
    let Some(Given { value: RawValue::Table(outer), .. }) = table.get(outer) else {
        return Some(Vec::new());
    };
    let Some(given) = outer.get(inner) else { return Some(Vec::new()) };
    let wrong = format!("is a list of tables: write [[{}]]", section.name);
    let RawValue::List(items) = &given.value else {
        findings.add(given.line, section.name, wrong);
        return None;
    };
    let mut entries = Vec::new();
    for item in items {
        let RawValue::Table(table) = &item.value else {
            findings.add(item.line, section.name, wrong);
            return None;
        };
        entries.push(Entry::read(section, table, item.line, &[], findings));
    }
    Some(entries)
}

fn arms(table: &RawTable, base_dir: &Path, findings: &mut Findings) -> Option<Vec<ArmConfig>> {
    let entries = repeated(&knobs::ARMS, table, findings)?;
    if entries.is_empty() {
        let arm = |(temperature, n): (f64, u32)| ArmConfig {
            name: format!("t{temperature:?}"),
            policy: ArmPolicy::Current,
            temperature,
            top_p: 1.0,
            top_k: 0,
            n,
        };
        return Some(PAPER_ARMS.map(arm).into());
    }
    let first_line = entries[0].line;
    if entries.len() > ARMS_MAX {
        let what = format!("are {}, but at most {ARMS_MAX} are taken", entries.len());
        findings.add(first_line, "generate.arms", what);
        return None;
    }
    let mut names = BTreeSet::new();
    let mut arms = Vec::new();
    for entry in &entries {
        let arm = ArmConfig::of(entry, base_dir)?;
        unique(&mut names, &arm.name, entry, findings);
        if arm.temperature == 0.0 && arm.n > 1 {
            let what = format!("is {}, but greedy writes the same response each time: 1", arm.n);
            findings.add(entry.line_of("n"), dotted(entry.section, "n"), what);
        }
        arms.push(arm);
    }
    let total: u32 = arms.iter().map(|arm| arm.n).sum();
    if total < 2 {
        let what = "give one response a prompt, but a preference needs two: raise n, or add an arm";
        findings.add(first_line, "generate.arms", what.to_owned());
    }
    Some(arms)
}

/// Complains of a name that stands twice.
fn unique(names: &mut BTreeSet<String>, name: &str, entry: &Entry, findings: &mut Findings) {
    if !names.insert(name.to_owned()) {
        let what = match entry.value("name") {
            Some(Value::Text(_)) => format!("{name:?} is taken already: give each another name"),
            _ => format!("{name:?}, made from the temperature, is taken already: write a name"),
        };
        findings.add(entry.line_of("name"), dotted(entry.section, "name"), what);
    }
}

mod gate;
mod label;

#[cfg(test)]
mod paper_tests;
#[cfg(test)]
mod tests;
