//! Room worker: computes and forgets.
//!
//! In: model folders, data files or the daemon's frames. Out: responses, scores, log-probs and
//! checkpoints. The file mode and the daemon's units are the same code. May not enter: the database,
//! the network, any decision about what comes next.

pub mod assistant;
pub mod bench;
pub mod checkpoint;
pub mod data;
pub mod device;
pub mod device_memory;
pub mod draw;
pub mod errors;
pub mod file_mode;
pub mod generate;
pub mod gpu_check;
pub mod guard;
pub mod in_place;
pub mod initial;
pub mod libtorch_switches;
pub mod logprob;
pub mod model;
pub mod one_pass;
pub mod philox;
pub mod prefer;
pub mod prefix;
pub mod probe;
pub mod process;
pub mod product;
pub mod question;
pub mod rehearsal;
pub mod render;
pub mod sample;
pub mod score;
pub mod serve;
pub mod synthetic;
pub mod template;
pub mod tokenizer;
pub mod train;
pub mod verifying;
pub mod watch;
