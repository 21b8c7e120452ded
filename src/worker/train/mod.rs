//! Training: DPO of a policy, supervised fine-tuning, Bradley and Terry's reward model, the preference
//! model.
//!
//! In: a model folder, pairs (as text, or as token ids with the reference's log-probs), groups or
//! conversations, settings. Out: a checkpoint folder with its manifest and steps.jsonl. Reading
//! order: `pairs`, `preferences` with `duplicates` and `groups`, `judgements`, `conversations`,
//! `blocks` and `batches` say what is trained on and in which order, `pack`, `trunk`, `head` and `loss` compute a
//! micro-batch, `schedule`, `adamw` and `learners` make a step of it, `trainer` is the loop,
//! `rescore` holds the models to what is stored, `state` saves and resumes it (`saver`: when), `lora` and `adapter_files` are adapters' part, `report` holds a
//! reward model to what it never saw, `weights` and `publish` write the folder, `average` makes one of two, `start` and `job`
//! put it together for the file mode and (`unit`) for the daemon. May not enter: the protocol's
//! frames.

pub mod adamw;
mod adapter_files;
pub mod average;
pub mod batches;
pub mod blocks;
pub mod conversations;
pub mod duplicates;
pub mod error;
mod examples;
pub mod groups;
pub mod head;
pub mod job;
mod judgements;
pub mod learners;
mod lora;
pub mod loss;
pub mod mixture;
pub mod pack;
pub mod pairs;
pub mod preferences;
pub mod publish;
pub mod reference;
pub mod report;
pub mod rescore;
pub mod reward_head;
mod saver;
pub mod schedule;
mod start;
pub mod state;
pub mod steps;
pub mod trainer;
pub mod trunk;
pub mod unit;
pub mod weights;

pub use error::TrainError;
