//! Where the time of a forward pass goes: attention, MLP, norms, head, sampling.
//!
//! In: a subject. Out: seconds by part, for a prefill of 512 tokens and for a decoding step of 64 rows.
//! Each part is run by itself as often as the pass has it. May not enter: training.

use std::time::Instant;

use tch::{Kind, Tensor};

use super::report::{Part, Report};
use super::subject::Subject;
use crate::draw::{Draw, draw_ids};
use crate::errors::WorkerError;
use crate::model::attention::Step;
use crate::model::{KvCache, Trainable, Transformer};
use crate::sample::Sampling;

const PREFILL_TOKENS: i64 = 512;
const ROWS: i64 = 64;
/// Columns that a decoding step sees.
const COLUMNS: i64 = 96;
/// Rounds of each part.
const ROUNDS: u32 = 3;

/// Measures both.
///
/// # Errors
/// The subject's.
pub fn measure(subject: &Subject, report: &mut Report<'_>) -> Result<(), WorkerError> {
    let _no_grad = tch::no_grad_guard();
    let model = subject.policy(Trainable::Nothing)?;
    let options = (subject.compute.precision.kind(), subject.compute.devices.first());
    let width = subject.config.width as i64;
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, options.1)).to_kind(options.0);
    let long = random(&[1, PREFILL_TOKENS, width]);
    let ropes = model.rope(PREFILL_TOKENS);
    let parts = [
        part("attention", &model, |block| block.attention.forward(&long, ropes.at(0))),
        part("mlp", &model, |block| block.mlp.forward(&long)),
        part("norms", &model, |block| block.mlp_norm.forward(&block.attention_norm.forward(&long))),
    ];
    report.parts("prefill of 512 tokens", parts.to_vec());

    let rows = random(&[ROWS, 1, width]);
    let mut cache = KvCache::new(&subject.config, (ROWS, COLUMNS), options.0, model.placement());
    let positions = Tensor::full([ROWS], COLUMNS - 1, (Kind::Int64, options.1));
    let ropes = model.rope_at(&positions, COLUMNS);
    let step = Step { rope: ropes.at(0), column: COLUMNS - 1, mask: None };
    let attention = seconds(|| {
        let mut last = None;
        for (block, layer) in model.blocks().iter().zip(cache.layers()) {
            last = Some(block.attention.decode(&rows, layer, step));
        }
        last
    });
    let logits = model.logits(&rows.squeeze_dim(1));
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0 };
    let draws: Vec<Draw> =
        (0..ROWS as usize).map(|row| Draw { logits_row: row, sampling, uniform: 0.5 }).collect();
    let parts = [
        Part::new("attention", attention),
        part("mlp", &model, |block| block.mlp.forward(&rows)),
        part("norms", &model, |block| block.mlp_norm.forward(&block.attention_norm.forward(&rows))),
        Part::new("head", seconds(|| Some(model.logits(&rows.squeeze_dim(1))))),
        Part::new(
            "sampling",
            seconds(|| {
                let _ids = draw_ids(&logits, &draws);
                None
            }),
        ),
    ];
    report.parts("decoding step of 64 rows", parts.to_vec());
    Ok(())
}

fn part(
    name: &'static str,
    model: &Transformer,
    of: impl Fn(&crate::model::Block) -> Tensor,
) -> Part {
    Part::new(name, seconds(|| model.blocks().iter().fold(None, |_, block| Some(of(block)))))
}

/// Seconds of one round, after a first that is not counted.
fn seconds(mut round: impl FnMut() -> Option<Tensor>) -> f64 {
    let mut wait = || {
        if let Some(last) = round() {
            // Reading a number waits for the device.
            let _ = last.flatten(0, -1).narrow(0, 0, 1).double_value(&[0]);
        }
    };
    wait();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        wait();
    }
    start.elapsed().as_secs_f64() / f64::from(ROUNDS)
}
