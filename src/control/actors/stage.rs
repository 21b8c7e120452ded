//! What the five stage actors have in common: a unit is prepared for a worker, and its answers are
//! turned into rows.
//!
//! In: unit rows, workers' answers. Out: work for a worker, one transaction a unit. May not enter:
//! processes, placements.

use std::sync::Arc;

use actix::prelude::*;
use rlhfd_config::CheckedConfig;
use rlhfd_domain::{AttemptId, CheckpointId, PromptId, ResponseId, Stage, WorkKind};
use rlhfd_protocol::worker::{Item, ItemResult, ModelRef, Reason, Summary, Work};
use rlhfd_store::{Finish, Store, StoreError, UnitRow};
use tokio::sync::watch;

use crate::handles::{AskError, StoreHandle};
use crate::health::Health;
use crate::places::Places;

/// Messages that may wait for one stage.
pub const MAILBOX: usize = 32;

/// What every stage actor holds.
#[derive(Clone)]
pub struct StageContext {
    /// The database.
    pub store: StoreHandle,
    /// Where things lie.
    pub places: Arc<Places>,
    /// The configuration in force; an iteration's own part is frozen in its row.
    pub config: watch::Receiver<Arc<CheckedConfig>>,
    /// Whether the state folder can be written.
    pub health: Health,
}

/// Why a stage could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The store or its actor.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The worker's answers do not fit what it was asked.
    #[error("the worker's answers do not fit the unit: {0}")]
    Answers(String),
    /// What the unit works on cannot be used, and trying again does not help; a sentence.
    #[error("{0}")]
    Input(String),
    /// What the unit belongs to ended meanwhile, and the unit with it; a sentence.
    #[error("{0}")]
    Over(String),
    /// What a worker published is altered or gone, and can be made again; a sentence.
    #[error("{0}")]
    Spoiled(String),
    /// A file could not be written or read: a matter of the place.
    #[error("{path} could not be written or read")]
    Place {
        /// Where.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl From<StoreError> for StageError {
    fn from(error: StoreError) -> Self {
        Self::Ask(AskError::Store(error))
    }
}

/// Which rows a unit's items stand for, in the order in which they were sent.
#[derive(Debug, Clone)]
pub enum ItemKeys {
    /// A unit without items.
    None,
    /// Prompts, by ordinal.
    Prompts(Vec<(u64, PromptId)>),
    /// Responses.
    Responses(Vec<ResponseId>),
    /// Responses to prompts, to be compared.
    Comparisons(crate::stages::prefer::Comparisons),
    /// Offline pairs, by their place in the run's list.
    Pairs(Vec<u64>),
}

/// A unit, ready to be sent.
#[derive(Debug)]
pub struct Prepared {
    /// Its work.
    pub work: Work,
    /// The models that it computes with: exactly these are kept. None: as it is.
    pub load: Option<Vec<ModelRef>>,
    /// Its items with their payloads.
    pub items: Vec<(Item, Vec<u8>)>,
    /// What the items stand for.
    pub keys: ItemKeys,
}

/// One answer of a worker.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Of which item.
    pub index: u32,
    /// What it gave.
    pub result: ItemResult,
    /// The bytes beside it.
    pub payload: Vec<u8>,
}

/// Make a unit ready for a worker.
#[derive(Message)]
#[rtype(result = "Result<Prepared, StageError>")]
pub struct Prepare {
    /// The unit.
    pub unit: Arc<UnitRow>,
}

/// Write what a finished unit gave, in one transaction with its being done.
#[derive(Message)]
#[rtype(result = "Result<(), StageError>")]
pub struct Conclude {
    /// The unit.
    pub unit: Arc<UnitRow>,
    /// The attempt that gave it.
    pub attempt: AttemptId,
    /// What its items stand for.
    pub keys: ItemKeys,
    /// All answers.
    pub answers: Vec<Answer>,
    /// What the worker says of the whole.
    pub summary: Summary,
}

/// Do a unit that needs no worker.
#[derive(Message)]
#[rtype(result = "Result<(), StageError>")]
pub struct Perform {
    /// The unit.
    pub unit: Arc<UnitRow>,
    /// Its attempt.
    pub attempt: AttemptId,
}

/// The addresses of the stages.
#[derive(Clone)]
pub struct Stages {
    /// Probe, render and generate of the main flow.
    pub generation: Addr<super::generation::GenerationActor>,
    /// Scores.
    pub labelling: Addr<super::labelling::LabellingActor>,
    /// Best against worst.
    pub pairing: Addr<super::pairing::PairingActor>,
    /// Reference log-probs, updates, checkpoints.
    pub training: Addr<super::training::TrainingActor>,
    /// All units of evaluation's lanes, and the summary.
    pub evaluation: Addr<super::evaluation::EvaluationActor>,
}

impl Stages {
    /// Who prepares this unit.
    #[must_use]
    pub fn preparer(&self, unit: &UnitRow) -> Recipient<Prepare> {
        match unit.stage {
            Stage::Prompts | Stage::Generate => self.generation.clone().recipient(),
            Stage::Label | Stage::Pair => self.labelling.clone().recipient(),
            Stage::Train | Stage::Checkpoint => self.training.clone().recipient(),
            Stage::Evaluate => self.evaluation.clone().recipient(),
        }
    }

    /// Who writes its rows.
    #[must_use]
    pub fn concluder(&self, unit: &UnitRow) -> Recipient<Conclude> {
        match unit.stage {
            Stage::Prompts | Stage::Generate => self.generation.clone().recipient(),
            Stage::Label | Stage::Pair => self.labelling.clone().recipient(),
            Stage::Train | Stage::Checkpoint => self.training.clone().recipient(),
            Stage::Evaluate => self.evaluation.clone().recipient(),
        }
    }

    /// Who does it without a worker; none where it needs one.
    #[must_use]
    pub fn performer(&self, unit: &UnitRow) -> Option<Recipient<Perform>> {
        match unit.work {
            WorkKind::Pair => Some(self.pairing.clone().recipient()),
            WorkKind::Checkpoint => Some(self.training.clone().recipient()),
            WorkKind::Summarise => Some(self.evaluation.clone().recipient()),
            WorkKind::Probe
            | WorkKind::Render
            | WorkKind::Generate
            | WorkKind::Score
            | WorkKind::Prefer
            | WorkKind::Average
            | WorkKind::RenderPairs
            | WorkKind::Logprobs
            | WorkKind::LogprobsPairs
            | WorkKind::TrainDpo
            | WorkKind::TrainSft
            | WorkKind::TrainReward
            | WorkKind::TrainPreference => None,
        }
    }
}

impl StageContext {
    /// The configuration of a unit: its iteration's frozen part over the machine's part of today; a
    /// job's and the probe's is that in force (a job's settings stand in its own folder).
    pub async fn config_of(&self, unit: &UnitRow) -> Result<Arc<CheckedConfig>, StageError> {
        let today = self.config.borrow().clone();
        let Some(iteration) = unit.iteration else { return Ok(today) };
        let run = unit.run;
        let row = self.store.read(move |r| r.iteration(run, iteration)).await?;
        today.with_frozen(&row.config).map(Arc::new).map_err(|error| {
            StageError::Input(format!(
                "the configuration frozen with iteration {iteration} cannot be read by this version: {error}"
            ))
        })
    }

    /// Writes a unit's rows. A disk that is full or fails is waited for: what was computed is kept in
    /// memory until the place is well. A second result of a unit that is done changes nothing.
    ///
    /// Errors: all others.
    pub async fn write_patiently<T, W>(&self, write: W) -> Result<Option<T>, StageError>
    where
        T: Send + 'static,
        W: Fn(&mut Store) -> Result<T, StoreError> + Send + Sync + 'static,
    {
        let write = Arc::new(write);
        loop {
            let now = Arc::clone(&write);
            match self.store.write(move |store| now(store)).await {
                Ok(given) => return Ok(Some(given)),
                Err(AskError::Store(StoreError::AlreadyFinished { .. })) => return Ok(None),
                Err(AskError::Store(
                    error @ (StoreError::Disk { .. } | StoreError::Busy { .. }),
                )) => {
                    self.health.tell(&error.to_string());
                    self.health.until_well().await;
                }
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// A checkpoint as a worker is told of it.
    pub async fn model(&self, checkpoint: CheckpointId) -> Result<ModelRef, StageError> {
        let row = self.store.read(move |r| r.checkpoint(checkpoint)).await?;
        Ok(ModelRef { path: self.places.resolve(&row.path), sha256: row.sha256 })
    }

    /// The reference that a unit's log-probs are taken under: its iteration's.
    pub async fn reference_of(&self, unit: &UnitRow) -> Result<ModelRef, StageError> {
        let unit = unit.clone();
        let reference = self.store.read(move |r| r.reference_of(&unit)).await?;
        self.model(reference).await
    }

    /// The model that a generate unit answers with: the one of its row, else what its iteration made.
    pub async fn policy_of(&self, unit: &UnitRow) -> Result<CheckpointId, StageError> {
        if let Some(policy) = unit.policy {
            return Ok(policy);
        }
        let (run, number) = (unit.run, unit.iteration);
        let Some(number) = number else {
            return Err(StageError::Input(format!("the unit {} names no policy", unit.key)));
        };
        let iteration = self.store.read(move |r| r.iteration(run, number)).await?;
        iteration
            .policy_out
            .ok_or_else(|| StageError::Input(format!("iteration {number} has no checkpoint yet")))
    }
}

/// The frame of a finished unit's rows.
#[must_use]
pub fn finish(unit: &UnitRow, attempt: AttemptId, summary: &Summary) -> Finish {
    Finish { unit: unit.id, attempt, tokens: summary.tokens, seconds: summary.seconds }
}

/// A reason as a word that SQL can group by.
#[must_use]
pub fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::OverLong => "over_long",
        Reason::Template => "template",
        Reason::NonFinite => "non_finite",
        Reason::Empty => "empty",
        Reason::SameIds => "same_ids",
    }
}

/// Answers by item, each in the order of arrival.
///
/// Errors: an index that no item has, or an item without any answer.
pub fn by_item(answers: Vec<Answer>, items: usize) -> Result<Vec<Vec<Answer>>, StageError> {
    let mut sorted: Vec<Vec<Answer>> = Vec::new();
    sorted.resize_with(items, Vec::new);
    for answer in answers {
        let index = answer.index;
        match usize::try_from(index).ok().and_then(|i| sorted.get_mut(i)) {
            Some(of_item) => of_item.push(answer),
            None => {
                return Err(StageError::Answers(format!("item {index} of {items} was answered")));
            }
        }
    }
    match sorted.iter().position(Vec::is_empty) {
        Some(missing) => Err(StageError::Answers(format!("item {missing} has no answer"))),
        None => Ok(sorted),
    }
}

/// The one answer of an item that has exactly one.
pub fn only(mut answers: Vec<Answer>) -> Result<Answer, StageError> {
    match (answers.pop(), answers.is_empty()) {
        (Some(answer), true) => Ok(answer),
        (Some(answer), false) => {
            Err(StageError::Answers(format!("item {} was answered twice", answer.index)))
        }
        (None, _) => Err(StageError::Answers("an item has no answer".into())),
    }
}

/// The error of an answer of the wrong kind.
#[must_use]
pub fn unexpected(answer: &Answer) -> StageError {
    StageError::Answers(format!("item {} got an answer of another work", answer.index))
}

/// Defines a stage actor: a mailbox, the stage's context, and calls of the stage's own functions. A
/// handler hands its future over, so that a long one (a checkpoint's sums) holds nobody up.
macro_rules! stage_actor {
    ($(#[$doc:meta])* $actor:ident { $($message:ident => $work:path),+ $(,)? }) => {
        $(#[$doc])*
        pub struct $actor {
            ctx: $crate::actors::stage::StageContext,
        }

        impl $actor {
            /// Starts it on this thread.
            #[must_use]
            pub fn start_with(ctx: $crate::actors::stage::StageContext) -> actix::Addr<Self> {
                <Self as actix::Actor>::create(move |own| {
                    own.set_mailbox_capacity($crate::actors::stage::MAILBOX);
                    Self { ctx }
                })
            }
        }

        impl actix::Actor for $actor {
            type Context = actix::Context<Self>;
        }

        $(impl actix::Handler<$message> for $actor {
            type Result = actix::ResponseFuture<<$message as actix::Message>::Result>;

            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let ctx = self.ctx.clone();
                Box::pin(async move { $work(&ctx, message).await })
            }
        })+
    };
}
pub(crate) use stage_actor;

/// The error of a unit that came to the wrong stage: a defect, told instead of asserted.
#[must_use]
pub fn misplaced(unit: &UnitRow) -> StageError {
    StageError::Input(format!("the unit {} ({}) came to the wrong stage", unit.key, unit.work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(index: u32) -> Answer {
        Answer { index, result: ItemResult::Rendered { tokens: 1 }, payload: Vec::new() }
    }

    #[test]
    fn an_answer_too_many_or_too_few_is_told() {
        assert_eq!(by_item(vec![answer(1), answer(0), answer(1)], 2).unwrap()[1].len(), 2);
        assert!(by_item(vec![answer(0)], 2).is_err());
        assert!(by_item(vec![answer(0), answer(2)], 2).is_err());
        assert!(only(vec![answer(0), answer(0)]).is_err());
        assert_eq!(only(vec![answer(0)]).unwrap().index, 0);
    }
}
