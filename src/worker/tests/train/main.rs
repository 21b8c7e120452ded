//! Training against TRL on tiny random models, and what must hold of any training.
//!
//! In: the golden files (`tests/golden/README.md`). Out: checkpoints in temporary folders. May not
//! enter: anything that makes golden values.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

mod average;
mod bad_input;
mod groups;
mod lora;
mod mixture;
mod numbers;
mod preference;
mod replay;
mod rescore;
mod resume;
mod sft;
mod split;
mod support;
mod trl;
mod weights;
