//! The compute thread: loads models, runs units batch by batch, and survives what goes wrong in one.
//!
//! In: prepared units. Out: answers. Each batch runs behind the wall of `guard`; a failure drops the
//! unit's tensors and is answered by its kind. After a libtorch error that is not out of memory the
//! process ends, since the model may be damaged. May not enter: text, frames' bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender};
use rlhfd_config::Training;
use rlhfd_protocol::frame::floats_to_bytes;
use rlhfd_protocol::worker::{
    FailureKind, FromWorker, ItemResult, ModelRef, Published, Reason, Summary, TrainTarget, Work,
};

use super::prefer::Comparing;
use super::shared::Shared;
use super::units::{Answer, Failure, Prepared, Task, ToCompute, Unit, refused};
use crate::device::Compute;
use crate::device_memory;
use crate::errors::WorkerError;
use crate::generate::{Generation, PromptTask, Written, generate_batch};
use crate::guard::guarded;
use crate::logprob::{Sequence, response_logprobs};
use crate::model::{LoadOptions, ModelFolder, Trainable, Transformer};
use crate::probe;
use crate::process::give_back_freed_memory;
use crate::score::score_batch;
use crate::train::average::{self, Average};
use crate::train::steps::StepRow;
use crate::train::trainer::Observer;
use crate::train::unit;
use crate::verifying::Files;

/// Runs until the daemon drains the worker or a unit may have damaged the process.
pub(super) fn run(
    compute: Compute,
    messages: &Receiver<ToCompute>,
    answers: &Sender<Answer>,
    shared: &Shared,
) {
    let mut engine = Engine { compute, answers, shared, models: Vec::new(), unit: None };
    for message in messages {
        if let Some(code) = engine.take(message) {
            engine.send(Answer::Exit(code));
            return;
        }
    }
    // The tokeniser's thread is gone: nothing could ever be computed again.
    engine.send(Answer::Exit(1));
}

pub(super) struct Engine<'a> {
    compute: Compute,
    answers: &'a Sender<Answer>,
    pub(super) shared: &'a Shared,
    models: Vec<(ModelRef, Transformer)>,
    unit: Option<Running>,
}

/// The unit in hand.
struct Running {
    unit: Unit,
    begun: Instant,
    failed: bool,
}

impl Engine<'_> {
    fn send(&self, answer: Answer) {
        if self.answers.send(answer).is_err() {
            super::shared::end_process(1);
        }
    }

    pub(super) fn frame(&self, message: FromWorker, payload: Vec<u8>) {
        self.send(Answer::Frame { message, payload });
    }

    /// Handles one message; a code where the process is to end.
    fn take(&mut self, message: ToCompute) -> Option<i32> {
        match message {
            ToCompute::Load(models) => {
                self.load_all(&models);
                None
            }
            ToCompute::Begin(unit) => {
                self.begin(*unit);
                None
            }
            ToCompute::Batch(batch) => {
                self.guarded_unit(|engine, running| engine.batch(&running.unit, batch))
            }
            ToCompute::Unready(failure) => self.guarded_unit(|_, _| Err(failure)),
            ToCompute::End => self.end(),
            ToCompute::Unload => {
                self.models.clear();
                device_memory::release(&self.compute.devices);
                give_back_freed_memory();
                None
            }
            ToCompute::Drain => Some(0),
        }
    }

    /// Loads these models and drops all others. A folder that cannot be loaded fails the unit that
    /// needs it, where there is an answer for it.
    fn load_all(&mut self, models: &[ModelRef]) {
        let begun = Instant::now();
        self.models.retain(|(known, _)| models.contains(known));
        for model in models {
            if let Err(failure) = self.ensure(model) {
                tracing::error!(path = %model.path.display(), "{}", failure.message);
            }
        }
        self.frame(FromWorker::Loaded { seconds: begun.elapsed().as_secs_f64() }, Vec::new());
    }

    /// Loads a model that is not there yet.
    fn ensure(&mut self, model: &ModelRef) -> Result<(), Failure> {
        if self.models.iter().any(|(known, _)| known == model) {
            return Ok(());
        }
        let options = LoadOptions {
            devices: self.compute.devices,
            precision: self.compute.precision,
            trainable: Trainable::Nothing,
        };
        let verifying = self.shared.known.begin(&[model], Files::Model);
        let loaded = guarded(|| -> Result<Transformer, WorkerError> {
            let folder = ModelFolder::open(&model.path)?;
            Ok(Transformer::load(&folder, &options)?)
        });
        // Its verdict first: a folder that is altered may not load either.
        verifying.end()?;
        self.models.push((model.clone(), loaded?));
        Ok(())
    }

    pub(super) fn model(&self, model: &ModelRef) -> Result<&Transformer, Failure> {
        let found = self.models.iter().find(|(known, _)| known == model);
        found.map(|(_, model)| model).ok_or_else(|| Failure::input("the model is not loaded"))
    }

    fn begin(&mut self, unit: Unit) {
        self.shared.begin(unit.attempt, trains(&unit));
        device_memory::reset_peak(&self.compute.devices);
        self.unit = Some(Running { unit, begun: Instant::now(), failed: false });
    }

    /// Runs a part of the unit in hand; a failure is answered, and the unit's other parts skipped.
    /// A code where the process may be damaged.
    fn guarded_unit(
        &mut self,
        work: impl FnOnce(&mut Self, &Running) -> Result<(), Failure>,
    ) -> Option<i32> {
        let mut running = self.unit.take()?;
        let mut code = None;
        if !running.failed {
            let result = guarded(|| work(self, &running));
            if let Err(failure) = result {
                running.failed = true;
                code = self.fail(running.unit.attempt, failure);
            }
        }
        self.unit = Some(running);
        code
    }

    fn fail(&mut self, attempt: u64, failure: Failure) -> Option<i32> {
        self.shared.end();
        let Failure { kind, message } = failure;
        self.frame(FromWorker::UnitFailed { attempt, kind, message }, Vec::new());
        match kind {
            FailureKind::Crashed => Some(1),
            FailureKind::OutOfMemory => {
                // What the failed batch left in the allocator's segments is room for a smaller one.
                device_memory::release(&self.compute.devices);
                None
            }
            FailureKind::Input
            | FailureKind::Unsound
            | FailureKind::Disk
            | FailureKind::Diverged(_)
            | FailureKind::Cancelled => None,
        }
    }

    /// All items are answered; a unit without items is done here.
    fn end(&mut self) -> Option<i32> {
        let mut summary = None;
        let code = self.guarded_unit(|engine, running| {
            let watch = &engine.shared.watch;
            // A cancel that came after the last batch, or before a unit without batches.
            watch.tick(0)?;
            let whole = engine.whole(running)?;
            let seconds = running.begun.elapsed().as_secs_f64();
            let (tokens, devices) = (engine.shared.watch.tokens(), engine.compute.devices);
            let own = super::units::summary(seconds, tokens, &devices);
            summary =
                Some(Summary { findings: whole.findings, checkpoint: whole.checkpoint, ..own });
            Ok(())
        });
        let running = self.unit.take();
        if running.as_ref().is_some_and(|running| trains(&running.unit)) {
            // Its activations and moments are of no use to what comes next.
            give_back_freed_memory();
        }
        if let (Some(running), Some(summary)) = (running, summary) {
            self.shared.end();
            let attempt = running.unit.attempt;
            self.frame(FromWorker::UnitDone { attempt, summary }, Vec::new());
        }
        code
    }

    /// Works without items.
    fn whole(&mut self, running: &Running) -> Result<Summary, Failure> {
        let mut own = Summary::default();
        let attempt = running.unit.attempt;
        let (answers, shared) = (self.answers, self.shared);
        let step = |row: &StepRow, steps: u64| {
            let message = FromWorker::Step { attempt, step: row.step, steps, loss: row.loss };
            // A decoder that is gone ends the process by itself.
            let _ = answers.send(Answer::Frame { message, payload: Vec::new() });
        };
        let observer = Observer { watch: &shared.watch, filled: &|_, _| {}, stepped: &step };
        match &running.unit.work {
            Work::Probe { policies, scorers, preference_models, max_new_tokens } => {
                let how = (self.compute, &shared.watch);
                let models =
                    (policies.as_slice(), scorers.as_slice(), preference_models.as_slice());
                own.findings = probe::run(models, *max_new_tokens, how)?;
            }
            Work::Average { policy, before, decay, out, unit } => {
                let average = Average { policy, before, decay: *decay, out, unit };
                own.checkpoint = Some(average::run(&average, &shared.watch)?);
            }
            Work::TrainDpo { policy, reference, initial, folder, target } => {
                self.models.clear();
                let models = (policy, reference, initial);
                let trained = unit::train_dpo(models, (folder, target), self.compute, &observer)?;
                own.checkpoint = Some(trained);
            }
            Work::TrainSft { base, folder, target } => {
                let job = (Training::Sft, base, folder.as_path(), target);
                own.checkpoint = Some(self.train_job(job, &observer)?);
            }
            Work::TrainReward { base, folder, target } => {
                let job = (Training::Reward, base, folder.as_path(), target);
                own.checkpoint = Some(self.train_job(job, &observer)?);
            }
            Work::TrainPreference { base, folder, target } => {
                let job = (Training::Preference, base, folder.as_path(), target);
                own.checkpoint = Some(self.train_job(job, &observer)?);
            }
            Work::Render { .. }
            | Work::RenderPairs { .. }
            | Work::Generate { .. }
            | Work::Score { .. }
            | Work::Prefer { .. }
            | Work::Logprobs { .. } => {}
        }
        Ok(own)
    }

    /// A training needs all the memory there is.
    fn train_job(
        &mut self,
        (training, base, folder, target): (Training, &ModelRef, &Path, &TrainTarget),
        observer: &Observer<'_>,
    ) -> Result<Published, Failure> {
        self.models.clear();
        Ok(unit::train_job(training, (base, folder), target, self.compute, observer)?)
    }

    /// Computes one batch and answers its items in order.
    fn batch(&mut self, unit: &Unit, batch: Vec<Prepared>) -> Result<(), Failure> {
        let (mut todo, mut comparing) = (Vec::new(), Vec::new());
        for Prepared { index, task } in batch {
            match task {
                Task::Answered { result, payload } => {
                    self.answer(unit.attempt, index, result, payload);
                }
                Task::Ids { ids, extra } => todo.push((index, ids, extra)),
                Task::Compare { context, responses } => {
                    comparing.push(Comparing::new(index, context, responses));
                }
            }
        }
        if let (Work::Prefer { model, .. }, false) = (&unit.work, comparing.is_empty()) {
            self.ensure(model)?;
            return self.prefer(unit, comparing);
        }
        if todo.is_empty() {
            return Ok(self.shared.watch.tick(0)?);
        }
        match &unit.work {
            Work::Generate { policy, .. } => {
                self.ensure(policy)?;
                self.generate(unit, todo)
            }
            Work::Score { scorer, .. } => {
                self.ensure(scorer)?;
                self.score(unit, todo)
            }
            Work::Logprobs { model, .. } => {
                self.ensure(model)?;
                self.logprobs(unit, todo)
            }
            Work::Render { .. }
            | Work::RenderPairs { .. }
            | Work::Prefer { .. }
            | Work::Probe { .. }
            | Work::Average { .. }
            | Work::TrainDpo { .. }
            | Work::TrainSft { .. }
            | Work::TrainReward { .. }
            | Work::TrainPreference { .. } => {
                Err(Failure::input("this work has no ids to compute"))
            }
        }
    }

    fn answer(&self, attempt: u64, index: u32, result: ItemResult, payload: Vec<u8>) {
        self.shared.watch.item_done();
        self.frame(FromWorker::Result { attempt, index, result }, payload);
    }

    fn generate(&self, unit: &Unit, todo: Vec<(u32, Vec<u32>, u32)>) -> Result<(), Failure> {
        let (
            Work::Generate { policy, run_seed, purpose, iteration, arms, max_new_tokens, .. },
            Some(text),
        ) = (&unit.work, &unit.text)
        else {
            return Err(Failure::input("this unit generates nothing"));
        };
        let generation = Generation {
            run_seed: *run_seed,
            purpose: *purpose,
            iteration: *iteration,
            arms: arms.clone(),
            max_new_tokens: *max_new_tokens,
            stop_ids: text.renderer.tokenizer.stop_ids.clone(),
        };
        let indices: Vec<u32> = todo.iter().map(|(index, _, _)| *index).collect();
        let tasks: Vec<PromptTask> =
            todo.into_iter().map(|(_, ids, occurrence)| PromptTask { ids, occurrence }).collect();
        let written = generate_batch(self.model(policy)?, &tasks, &generation, &self.shared.watch)?;
        for (index, written) in indices.into_iter().zip(written) {
            match written {
                Written::Responses(responses) => {
                    self.shared.watch.item_done();
                    self.send(Answer::Responses {
                        attempt: unit.attempt,
                        index,
                        responses,
                        text: Arc::clone(text),
                    });
                }
                Written::NonFinite => {
                    let result = refused(Reason::NonFinite, "the model's logits are not finite");
                    self.answer(unit.attempt, index, result, Vec::new());
                }
            }
        }
        Ok(())
    }

    fn score(&self, unit: &Unit, todo: Vec<(u32, Vec<u32>, u32)>) -> Result<(), Failure> {
        let Work::Score { scorer, position, .. } = &unit.work else {
            return Err(Failure::input("this unit scores nothing"));
        };
        let (indices, sequences): (Vec<u32>, Vec<Vec<u32>>) =
            todo.into_iter().map(|(index, ids, _)| (index, ids)).unzip();
        let scores = score_batch(self.model(scorer)?, &sequences, *position, &self.shared.watch)?;
        for ((index, ids), score) in indices.into_iter().zip(&sequences).zip(scores) {
            let result = if score.is_finite() {
                ItemResult::Score { score: f64::from(score), tokens: ids.len() as u32 }
            } else {
                refused(Reason::NonFinite, format!("the score is {score}"))
            };
            self.answer(unit.attempt, index, result, Vec::new());
        }
        Ok(())
    }

    fn logprobs(&self, unit: &Unit, todo: Vec<(u32, Vec<u32>, u32)>) -> Result<(), Failure> {
        let Work::Logprobs { model, .. } = &unit.work else {
            return Err(Failure::input("this unit has no log-probs"));
        };
        let (indices, sequences): (Vec<u32>, Vec<Sequence>) = todo
            .into_iter()
            .map(|(index, ids, prompt)| (index, Sequence { ids, prompt_tokens: prompt as usize }))
            .unzip();
        let logprobs = response_logprobs(self.model(model)?, &sequences, &self.shared.watch)?;
        for (index, own) in indices.into_iter().zip(logprobs) {
            let logprob: f64 = own.iter().map(|value| f64::from(*value)).sum();
            let (result, payload) = if logprob.is_finite() {
                let tokens = own.len() as u32;
                (ItemResult::Logprobs { logprob, tokens }, floats_to_bytes(&own))
            } else {
                let message = format!("the log-probs sum to {logprob}");
                (refused(Reason::NonFinite, message), Vec::new())
            };
            self.answer(unit.attempt, index, result, payload);
        }
        Ok(())
    }
}

/// Whether a unit is a training: it has the worker for itself, and stops at a micro-batch.
fn trains(unit: &Unit) -> bool {
    matches!(
        unit.work,
        Work::TrainDpo { .. }
            | Work::TrainSft { .. }
            | Work::TrainReward { .. }
            | Work::TrainPreference { .. }
    )
}
