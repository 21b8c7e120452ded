//! The tokeniser's thread: items as they arrive, to batches of ids.
//!
//! In: the daemon's frames in their order. Out: units as the compute thread takes them, their items cut
//! into the groups of the batch plan. What can be known about an item from its text alone (too long,
//! refused by the template) is answered here. May not enter: tensors.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use rlhfd_protocol::frame::{Frame, ids_from_bytes, ids_to_bytes};
use rlhfd_protocol::worker::{Item, ItemResult, Message, ModelRef, Reason, ToWorker, Work};

use super::shared::Shared;
use super::units::{Failure, Prepared, Task, TextSide, ToCompute, Unit, concerns_item, refused};
use crate::errors::{TextError, WorkerError};
use crate::model::ModelKind;
use crate::render::{PairIds, PairText, RenderRule};
use crate::verifying::Files;

/// Runs until the reader ends.
pub(super) fn run(frames: &Receiver<Frame<ToWorker>>, out: &Sender<ToCompute>, shared: &Shared) {
    let mut preparer = Preparer { out, shared, sides: Vec::new(), unit: None };
    for frame in frames {
        preparer.take(frame);
    }
}

/// Text sides that are kept open.
const SIDES_MAX: usize = 8;

/// Items of a render unit that are answered together.
const RENDER_ITEMS: usize = 32;

struct Preparer<'a> {
    out: &'a Sender<ToCompute>,
    shared: &'a Shared,
    sides: Vec<(ModelRef, Arc<TextSide>)>,
    unit: Option<Preparing>,
}

/// The unit whose items arrive.
struct Preparing {
    attempt: u64,
    work: Work,
    side: Option<Arc<TextSide>>,
    left: u32,
    batch_items: usize,
    batch: Vec<Prepared>,
    failed: bool,
}

impl Preparer<'_> {
    fn send(&self, message: ToCompute) {
        if self.out.send(message).is_err() {
            super::shared::end_process(1);
        }
    }

    fn take(&mut self, frame: Frame<ToWorker>) {
        match frame.message {
            ToWorker::Load { models } => self.send(ToCompute::Load(models)),
            ToWorker::RunUnit { attempt, work, items } => self.begin(attempt, *work, items),
            ToWorker::Item { attempt, index, item } => {
                self.item(attempt, index, item, &frame.payload);
            }
            ToWorker::Unload => self.send(ToCompute::Unload),
            ToWorker::Drain { .. } => self.send(ToCompute::Drain),
            ToWorker::Hello { .. } | ToWorker::Cancel { .. } => {}
        }
    }

    fn begin(&mut self, attempt: u64, work: Work, items: u32) {
        let (model, batch_items) = match &work {
            Work::Render { policy, .. } | Work::RenderPairs { policy, .. } => {
                (Some((policy, ModelKind::Policy)), RENDER_ITEMS)
            }
            Work::Generate { policy, batch_items, .. } => {
                (Some((policy, ModelKind::Policy)), *batch_items as usize)
            }
            Work::Score { scorer, batch_items, .. } => {
                (Some((scorer, ModelKind::RewardModel)), *batch_items as usize)
            }
            Work::Prefer { model, batch_items, .. } => {
                (Some((model, ModelKind::PreferenceModel)), *batch_items as usize)
            }
            Work::Logprobs { model, batch_items } => {
                (Some((model, ModelKind::Policy)), *batch_items as usize)
            }
            Work::Probe { .. }
            | Work::Average { .. }
            | Work::TrainDpo { .. }
            | Work::TrainSft { .. }
            | Work::TrainReward { .. }
            | Work::TrainPreference { .. } => (None, 1),
        };
        let side = model.map(|(model, wanted)| self.side(model, wanted)).transpose();
        let (side, failure) = match side {
            Ok(side) => (side, None),
            Err(failure) => (None, Some(failure)),
        };
        let unit = Unit { attempt, work: work.clone(), text: side.clone() };
        self.send(ToCompute::Begin(Box::new(unit)));
        let failed = failure.is_some();
        if let Some(failure) = failure {
            self.send(ToCompute::Unready(failure));
        }
        self.unit = Some(Preparing {
            attempt,
            work,
            side,
            left: items,
            batch_items: batch_items.max(1),
            batch: Vec::new(),
            failed,
        });
        self.end_if_whole();
    }

    fn side(&mut self, model: &ModelRef, wanted: ModelKind) -> Result<Arc<TextSide>, Failure> {
        let known = self.sides.iter().find(|(known, _)| known == model);
        let known = known.map(|(_, side)| Arc::clone(side));
        let side = match &known {
            Some(side) => Arc::clone(side),
            None => {
                self.shared.known.verify(model, Files::Text)?;
                Arc::new(TextSide::open(model)?)
            }
        };
        side.kind.require(wanted, &model.path).map_err(WorkerError::from)?;
        if known.is_some() {
            return Ok(side);
        }
        if self.sides.len() >= SIDES_MAX {
            self.sides.remove(0);
        }
        self.sides.push((model.clone(), Arc::clone(&side)));
        Ok(side)
    }

    fn item(&mut self, attempt: u64, index: u32, item: Item, payload: &[u8]) {
        let Some(unit) = self.unit.as_mut().filter(|unit| unit.attempt == attempt) else {
            tracing::error!(attempt, "an item of a unit that was not sent");
            super::shared::end_process(1);
        };
        unit.left = unit.left.saturating_sub(1);
        if !unit.failed {
            match unit.prepare(index, item, payload) {
                Ok(prepared) => unit.batch.push(prepared),
                Err(failure) => {
                    unit.failed = true;
                    unit.batch.clear();
                    self.send(ToCompute::Unready(failure));
                }
            }
        }
        self.end_if_whole();
    }

    /// Sends a batch that is full, and the end of a unit whose items are all there.
    fn end_if_whole(&mut self) {
        let Some(unit) = self.unit.as_mut() else { return };
        let whole = unit.left == 0;
        let full = unit.batch.len() >= unit.batch_items;
        let batch = (full || whole).then(|| std::mem::take(&mut unit.batch));
        if let Some(batch) = batch.filter(|batch| !batch.is_empty()) {
            self.send(ToCompute::Batch(batch));
        }
        if whole {
            self.unit = None;
            self.send(ToCompute::End);
        }
    }
}

impl Preparing {
    fn prepare(&self, index: u32, item: Item, payload: &[u8]) -> Result<Prepared, Failure> {
        let side = self.side.as_ref().ok_or_else(|| Failure::input("this work has no items"))?;
        let ids = || {
            let ids = ids_from_bytes(payload).map_err(|error| Failure::input(error.to_string()))?;
            match ids.iter().find(|id| **id as usize >= side.vocabulary) {
                Some(id) => Err(Failure::input(format!("id {id} is none of the model's"))),
                None if ids.is_empty() => Err(Failure::input("an item has no ids")),
                None => Ok(ids),
            }
        };
        let task = match (&self.work, item) {
            (Work::Render { prompt_tokens_max, .. }, Item::Prompt { messages }) => {
                let most = (*prompt_tokens_max as usize).min(side.positions_max);
                render(side.renderer.prompt(&messages), most)?
            }
            (
                Work::RenderPairs { pair_tokens_max, .. },
                Item::Pair { messages, chosen, rejected },
            ) => {
                let most = (*pair_tokens_max as usize).min(side.positions_max);
                let answer = |content| vec![Message { role: "assistant".to_owned(), content }];
                let (chosen, rejected) = (answer(chosen), answer(rejected));
                let text = PairText::Messages { prompt: messages, chosen, rejected };
                render_pair(side.renderer.pair(&text, RenderRule::Conversation), most)?
            }
            (Work::Generate { max_new_tokens, .. }, Item::PromptIds { occurrence }) => {
                let ids = ids()?;
                let needed = ids.len() + *max_new_tokens as usize;
                bounded(ids, occurrence, needed, side.positions_max)
            }
            (Work::Score { .. }, Item::Conversation { messages }) => score(side, &messages)?,
            (Work::Prefer { .. }, Item::Responses { messages, responses }) => {
                Task::Compare { context: messages, responses }
            }
            (Work::Logprobs { .. }, Item::ResponseIds { prompt_tokens }) => {
                let ids = ids()?;
                if prompt_tokens == 0 || prompt_tokens as usize >= ids.len() {
                    return Err(Failure::input("an item's response has no ids"));
                }
                let needed = ids.len();
                bounded(ids, prompt_tokens, needed, side.positions_max)
            }
            (work, item) => {
                return Err(Failure::input(format!("{item:?} is no item of {work:?}")));
            }
        };
        Ok(Prepared { index, task })
    }
}

/// Ids, or the refusal of what the model has no positions for.
fn bounded(ids: Vec<u32>, extra: u32, needed: usize, most: usize) -> Task {
    if needed <= most {
        return Task::Ids { ids, extra };
    }
    let message = format!("it needs {needed} positions, the model has {most}");
    Task::Answered { result: refused(Reason::OverLong, message), payload: Vec::new() }
}

/// A prompt's ids as the answer.
fn render(ids: Result<Vec<u32>, TextError>, most: usize) -> Result<Task, Failure> {
    let (result, payload) = match ids {
        Ok(ids) if ids.len() <= most => {
            (ItemResult::Rendered { tokens: ids.len() as u32 }, ids_to_bytes(&ids))
        }
        Ok(ids) => {
            let message = format!("the prompt has {} tokens, the limit is {most}", ids.len());
            (refused(Reason::OverLong, message), Vec::new())
        }
        Err(error) if concerns_item(&error) => {
            (refused(Reason::Template, error.to_string()), Vec::new())
        }
        Err(error) => return Err(Failure::input(error.to_string())),
    };
    Ok(Task::Answered { result, payload })
}

/// A pair's ids as the answer.
fn render_pair(ids: Result<PairIds, TextError>, most: usize) -> Result<Task, Failure> {
    let refusal = |reason, message: String| (refused(reason, message), Vec::new());
    let (result, payload) = match ids {
        Ok(ids) if ids.chosen == ids.rejected => {
            let message = "chosen and rejected have the same token ids".to_owned();
            refusal(Reason::SameIds, message)
        }
        Ok(ids) => {
            let longest = ids.prompt.len() + ids.chosen.len().max(ids.rejected.len());
            if longest <= most {
                let tokens = |ids: &[u32]| ids.len() as u32;
                let result = ItemResult::RenderedPair {
                    prompt_tokens: tokens(&ids.prompt),
                    chosen_tokens: tokens(&ids.chosen),
                    rejected_tokens: tokens(&ids.rejected),
                };
                (result, ids_to_bytes(&[ids.prompt, ids.chosen, ids.rejected].concat()))
            } else {
                let message = format!("a side has {longest} tokens, the limit is {most}");
                refusal(Reason::OverLong, message)
            }
        }
        Err(error @ TextError::EmptyResponse) => refusal(Reason::Empty, error.to_string()),
        Err(error) if concerns_item(&error) => refusal(Reason::Template, error.to_string()),
        Err(error) => return Err(Failure::input(error.to_string())),
    };
    Ok(Task::Answered { result, payload })
}

fn score(side: &TextSide, messages: &[Message]) -> Result<Task, Failure> {
    match side.renderer.conversation(messages) {
        Ok(ids) => {
            let needed = ids.len();
            Ok(bounded(ids, 0, needed, side.positions_max))
        }
        Err(error) if concerns_item(&error) => Ok(Task::Answered {
            result: refused(Reason::Template, error.to_string()),
            payload: Vec::new(),
        }),
        Err(error) => Err(Failure::input(error.to_string())),
    }
}
