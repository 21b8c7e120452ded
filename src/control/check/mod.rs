//! `rlhfd check`: everything that is wrong with configuration, models, database, devices and disk,
//! all at once, before a run; and the memory plan.
//!
//! In: what the command line asked for. Out: a report on stdout, and the exit code: 0 where nothing
//! stands in a run's way. It reads only, takes no lock and loads no weights: of safetensors files it
//! reads the headers. May not enter: mending.

mod data;
mod folder;
mod memory;
pub(crate) mod report;
mod run;
mod service;
mod system;
pub(crate) mod weights;

use std::path::Path;
use std::process::ExitCode;

use rlhfd_config::{CheckedConfig, ConfigError, ScorePosition, ScorerKind, ScorerModel};
use rlhfd_domain::JobKind;

use crate::examples;
use crate::exit;
use crate::gpu::nvml::NvmlProbe;
use crate::places::{Asked, Places};
pub(crate) use folder::{Facts, Use};
pub(crate) use memory::{
    Needs, facts, forwarding, generating, rows_together, updating, vain_target,
};
use report::Report;

/// Who is going to run the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// Whoever asks.
    Oneself,
    /// The shipped system service, which is closed off.
    Service,
}

/// Checks everything, prints the report, and says by the exit code whether a run may begin.
#[must_use]
pub fn run(asked: &Asked, runner: Runner) -> ExitCode {
    let report = examine(asked, runner);
    // A closed pipe is the reader's own decision.
    let _ = report.print(&mut std::io::stdout().lock());
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::from(exit::CONFIG) }
}

pub(crate) fn examine(asked: &Asked, runner: Runner) -> Report {
    let mut report = Report::default();
    let places = match Places::find(asked, |name| std::env::var_os(name)) {
        Ok(places) => Some(places),
        Err(error) => {
            report.bad("places", error.to_string());
            None
        }
    };
    // The configuration is looked at even where a place is wrong.
    let file = places.as_ref().map(|places| places.config.as_path()).or(asked.config.as_deref());
    let config = file.and_then(|file| configuration(file, &mut report));
    let devices = system::devices(config.as_ref(), &NvmlProbe::default(), &mut report);
    if let Some(config) = &config {
        system::worker(config, &mut report);
        data::start(config, &mut report);
        let facts = models(config, &mut report);
        data::files(config, &mut report);
        memory::plan(config, &facts, &devices, &mut report);
        if runner == Runner::Service {
            service::drop_ins(config, &devices, &mut report);
        }
        if let Some(places) = &places {
            system::disk(config, facts.policy.as_ref(), &places.state, &mut report);
        }
    }
    if let Some(places) = &places {
        system::database(&places.state, &mut report);
        if let Some(config) = &config {
            run::identity(config, &places.state, &mut report);
            run::arms(config, places, &mut report);
            run::offline(config, &places.state, &mut report);
            run::gate(config, &places.state, &mut report);
        }
        system::socket(&places.socket, &mut report);
    }
    report
}

fn configuration(file: &Path, report: &mut Report) -> Option<CheckedConfig> {
    match CheckedConfig::load(file) {
        Ok(config) => {
            report.well("configuration", format!("{} is sound", file.display()));
            Some(config)
        }
        Err(ConfigError::Wrong { path, problems }) => {
            for problem in &problems.0 {
                report.bad("configuration", format!("{}, {problem}", path.display()));
            }
            None
        }
        Err(error) => {
            report.bad("configuration", error.to_string());
            None
        }
    }
}

/// What was learnt of the models that are there.
#[derive(Debug, Default)]
struct ModelFacts {
    policy: Option<Facts>,
    scorers: Vec<(ScorerKind, Facts)>,
    /// What the run's training jobs start from; as long as a model is to be trained, it has the size
    /// of its base.
    bases: Vec<(JobKind, Facts)>,
}

fn models(config: &CheckedConfig, report: &mut Report) -> ModelFacts {
    let policy = folder::look(&config.run.policy.path, "policy", Use::Policy, report);
    if config.reference_path() != config.run.policy.path {
        let reference = folder::look(config.reference_path(), "reference", Use::Policy, report);
        if let (Some(policy), Some(reference)) = (&policy, &reference)
            && policy.vocabulary != reference.vocabulary
        {
            report.bad(
                "reference",
                format!(
                    "it has {} tokens and the policy {}: they must share a vocabulary; name the \
                     reference that the policy was made from",
                    reference.vocabulary, policy.vocabulary
                ),
            );
        }
    }
    let mut scorers = Vec::new();
    for wanted in &config.label.scorers {
        match &wanted.model {
            ScorerModel::Folder(place) => {
                let used = match wanted.kind {
                    ScorerKind::Reward => Use::Reward,
                    ScorerKind::Preference => Use::Preference,
                };
                if let Some(facts) = folder::look(&place.path, "scorer", used, report) {
                    if wanted.kind == ScorerKind::Reward {
                        score_position(&facts, wanted.score_position, report);
                    }
                    scorers.push((wanted.kind, facts));
                }
            }
            ScorerModel::Job(name) => {
                let kind = examples::trains(wanted.kind);
                let by = data::trained_by(config, kind, name);
                report.well("scorer", format!("the run scores with {kind}/{name}, {by}"));
            }
        }
    }
    let bases = bases(config, policy.as_ref(), report);
    for kind in [ScorerKind::Reward, ScorerKind::Preference] {
        let trained = bases.iter().filter(|(job, _)| *job == examples::trains(kind));
        scorers.extend(trained.map(|(_, facts)| (kind, facts.clone())));
    }
    lengths(config, report);
    ModelFacts { policy, scorers, bases }
}

/// What each kind of training job of this run starts from.
fn bases(
    config: &CheckedConfig,
    policy: Option<&Facts>,
    report: &mut Report,
) -> Vec<(JobKind, Facts)> {
    let mut bases = Vec::new();
    for kind in JobKind::ALL.into_iter().filter(|kind| trains(config, *kind)) {
        let job = examples::section(config, kind);
        let wanted = match kind {
            JobKind::Sft => Use::Policy,
            JobKind::Reward => Use::RewardBase,
            JobKind::Preference => Use::PreferenceBase,
        };
        let facts = match &job.base {
            Some(place) => folder::look(&place.path, kind.label(), wanted, report),
            None => policy.cloned(),
        };
        bases.extend(facts.map(|facts| (kind, facts)));
    }
    bases
}

/// Whether the configuration needs a training job of this kind, or names data for one.
fn trains(config: &CheckedConfig, kind: JobKind) -> bool {
    let awaited = match kind {
        JobKind::Sft => config.run.start.job().is_some(),
        JobKind::Reward | JobKind::Preference => config.label.scorers.iter().any(|scorer| {
            matches!(scorer.model, ScorerModel::Job(_)) && examples::trains(scorer.kind) == kind
        }),
    };
    awaited || examples::named(config).any(|named| named.kind == kind)
}

fn score_position(facts: &Facts, position: ScorePosition, report: &mut Report) {
    let pad_is_stop = facts.pad_id.is_some_and(|pad| facts.stop_ids.contains(&pad));
    if pad_is_stop && position == ScorePosition::Transformers {
        report.warn(
            "scorer",
            "its pad id is also a stop id: where its template ends a text with that id, \
             score_position = \"transformers\" reads one position earlier than \"last\"; keep the \
             one that the model was trained at"
                .to_owned(),
        );
    }
}

/// Lengths that fit their ranges and still lose data.
fn lengths(config: &CheckedConfig, report: &mut Report) {
    let longest = config.prompts.prompt_tokens_max.saturating_add(config.generate.max_new_tokens);
    let taken = config.train.settings.max_length;
    if longest > taken {
        report.warn(
            "train",
            format!(
                "max_length is {taken}, but a prompt of {} and a response of {} tokens have \
                 {longest}: longer pairs are over-long, and dropped and counted",
                config.prompts.prompt_tokens_max, config.generate.max_new_tokens
            ),
        );
    }
}

#[cfg(test)]
mod tests;
