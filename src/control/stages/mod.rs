//! The works of the stages, one file each, in flow order: how a unit is prepared for a worker, and
//! how its answers become rows.
//!
//! In: unit rows, workers' answers. Out: frames' contents, one transaction a unit. The main flow and
//! evaluation's lanes share them. May not enter: processes, placements, SQL.

pub mod average;
pub mod checkpoint;
pub mod folders;
pub mod gate;
pub mod generate;
pub mod logprobs;
pub mod needs;
pub mod offline;
pub mod pair;
pub mod plan;
pub mod prefer;
pub mod probe;
pub mod render;
pub mod report;
pub mod score;
pub mod steps;
pub mod summarise;
pub mod sums;
pub mod train;
pub mod unsound;
