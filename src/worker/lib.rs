//! Room worker: computes and forgets.
//!
//! In: model folders, data files or the daemon's frames. Out: responses, scores, log-probs and
//! checkpoints. The file mode and the daemon's units are the same code. May not enter: the database,
//! the network, any decision about what comes next.

pub mod data;
pub mod errors;
pub mod model;
pub mod render;
pub mod template;
pub mod tokenizer;
