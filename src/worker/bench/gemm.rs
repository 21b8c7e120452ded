//! The machine's own rate for the model's matrix products: the limit that shares are taken of.
//!
//! In: a subject. Out: GFLOP/s over one block's linear maps at 512 tokens. May not enter: the model.

use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::subject::Subject;

/// Tokens of a product: as many as a full prefill chunk or micro-batch has.
const TOKENS: i64 = 512;
const LEAST: Duration = Duration::from_millis(1500);

/// Measures for a second and a half, after a first round that is not counted.
pub fn rate(subject: &Subject) -> f64 {
    let _no_grad = tch::no_grad_guard();
    let config = &subject.config;
    let options = (subject.compute.precision.kind(), subject.compute.devices.first());
    let (width, mlp) = (config.width as i64, config.mlp_width as i64);
    let queries = (config.heads * config.head_dim) as i64;
    let keys = (config.kv_heads * config.head_dim) as i64;
    let shapes = [
        (queries, width),
        (keys, width),
        (keys, width),
        (width, queries),
        (mlp, width),
        (mlp, width),
        (width, mlp),
    ];
    let random =
        |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, options.1)).to_kind(options.0);
    let inputs = [random([TOKENS, width]), random([TOKENS, queries]), random([TOKENS, mlp])];
    let products: Vec<(Tensor, &Tensor)> = shapes
        .iter()
        .filter_map(|(outputs, inner)| {
            let input = inputs.iter().find(|input| input.size()[1] == *inner)?;
            Some((random([*outputs, *inner]), input))
        })
        .collect();
    let round = || {
        // Every product is computed; reading a number of the last waits for the device.
        let all: Vec<Tensor> =
            products.iter().map(|(weight, input)| input.linear(weight, None::<&Tensor>)).collect();
        all.last().map(|product| product.double_value(&[0, 0]))
    };
    round();
    let start = Instant::now();
    let mut rounds = 0_u32;
    while start.elapsed() < LEAST {
        round();
        rounds += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count for a report")]
    let operations: f64 =
        shapes.iter().map(|(outputs, inner)| 2.0 * (TOKENS * outputs * inner) as f64).sum();
    operations * f64::from(rounds) / start.elapsed().as_secs_f64() / 1e9
}
