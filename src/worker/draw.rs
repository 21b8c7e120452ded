//! From logits on a device to one token a row, with its log-prob.
//!
//! In: `[rows, vocabulary]` f32 logits, a [`Draw`] for each token that is wanted. Out: ids and log-probs
//! on the host. On a GPU only these leave the device; the random number decides there by the same rule
//! (the first id at which the running sum passes its share of the whole). May not enter: random number
//! generators, responses.

use tch::{Device, Kind, Tensor};

use crate::sample::{Sampling, greedy};

/// One token that is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The row of logits that it is drawn from.
    pub logits_row: usize,
    /// How.
    pub sampling: Sampling,
    /// In [0, 1): decides. Not looked at where sampling is greedy.
    pub uniform: f64,
}

/// For each draw its token and the token's log-prob at temperature 1, untruncated; `None` where the
/// logits are no distribution.
#[must_use]
pub fn draw_ids(logits: &Tensor, draws: &[Draw]) -> Vec<Option<(u32, f32)>> {
    // Truncation needs sorted rows, which the host does for the few likely ids only.
    if logits.device() == Device::Cpu || draws.iter().any(|draw| draw.sampling.truncates()) {
        on_host(logits, draws)
    } else {
        on_device(logits, draws)
    }
}

/// All rows at once where the logits are; two numbers a row come back.
fn on_device(logits: &Tensor, draws: &[Draw]) -> Vec<Option<(u32, f32)>> {
    let device = logits.device();
    let rows: Vec<i64> = draws.iter().map(|draw| draw.logits_row as i64).collect();
    let column = |values: Vec<f64>| Tensor::from_slice(&values).to_device(device).unsqueeze(1);
    let greedy = |draw: &Draw| draw.sampling.is_greedy();
    let temperature = |draw: &Draw| if greedy(draw) { 1.0 } else { draw.sampling.temperature };
    let temperatures = column(draws.iter().map(temperature).collect()).to_kind(Kind::Float);
    let uniforms = column(draws.iter().map(|draw| draw.uniform).collect());
    let logits = logits.index_select(0, &Tensor::from_slice(&rows).to_device(device));
    let sums = (&logits / temperatures).softmax(-1, Kind::Float).cumsum(-1, Kind::Double);
    let vocabulary = sums.size()[1];
    let target = uniforms * sums.narrow(1, vocabulary - 1, 1);
    let mut ids = target.searchsorted(&sums, false, true, "right", None::<&Tensor>);
    ids = ids.clamp_max(vocabulary - 1);
    if draws.iter().any(greedy) {
        let greedy: Vec<bool> = draws.iter().map(greedy).collect();
        let greedy = Tensor::from_slice(&greedy).to_device(device).unsqueeze(1);
        ids = logits.argmax(-1, true).where_self(&greedy, &ids);
    }
    let logprobs = logits.log_softmax(-1, Kind::Float).gather(1, &ids, false);
    // One transfer: all ids, then all log-probs.
    let both = [ids.to_kind(Kind::Double), logprobs.to_kind(Kind::Double)];
    let both = Tensor::cat(&both.map(|column| column.flatten(0, -1)), 0).to_device(Device::Cpu);
    let both = Vec::<f64>::try_from(&both).unwrap_or_default();
    let (ids, logprobs) = both.split_at(draws.len());
    let chosen = |(id, logprob): (&f64, &f64)| {
        #[expect(clippy::cast_possible_truncation, reason = "an id, and an f32 on its way back")]
        logprob.is_finite().then_some((*id as u32, *logprob as f32))
    };
    ids.iter().zip(logprobs).map(chosen).collect()
}

fn on_host(logits: &Tensor, draws: &[Draw]) -> Vec<Option<(u32, f32)>> {
    let logprobs = HostRows::new(&logits.log_softmax(-1, Kind::Float));
    let mut tempered: Vec<(f64, HostRows)> = Vec::new();
    for draw in draws.iter().filter(|draw| !draw.sampling.is_greedy()) {
        let temperature = draw.sampling.temperature;
        if tempered.iter().all(|(known, _)| *known != temperature) {
            let probabilities = if temperature == 1.0 {
                logprobs.tensor.exp()
            } else {
                (logits / temperature).softmax(-1, Kind::Float)
            };
            tempered.push((temperature, HostRows::new(&probabilities)));
        }
    }
    let choose = |draw: &Draw| {
        let own = logprobs.row(draw.logits_row);
        let id = if draw.sampling.is_greedy() {
            greedy(own)?
        } else {
            let known =
                |(temperature, _): &&(f64, HostRows)| *temperature == draw.sampling.temperature;
            let (_, probabilities) = tempered.iter().find(known)?;
            draw.sampling.choose(probabilities.row(draw.logits_row), draw.uniform)?
        };
        let logprob = own[id];
        logprob.is_finite().then_some((id as u32, logprob))
    };
    draws.iter().map(choose).collect()
}

/// A `[rows, columns]` f32 tensor, readable row by row on the host.
struct HostRows {
    tensor: Tensor,
    rows: usize,
    columns: usize,
}

impl HostRows {
    fn new(tensor: &Tensor) -> Self {
        let tensor = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous();
        let size = tensor.size();
        Self { rows: size[0] as usize, columns: size[1] as usize, tensor }
    }

    fn row(&self, index: usize) -> &[f32] {
        let index = index.min(self.rows - 1);
        // SAFETY: the tensor is contiguous f32 on the CPU with `rows × columns` elements, lives as
        // long as `self`, and nothing writes to it after `new`.
        unsafe {
            let first = self.tensor.data_ptr().cast::<f32>().add(index * self.columns);
            std::slice::from_raw_parts(first, self.columns)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(logits_row: usize, temperature: f64, uniform: f64) -> Draw {
        Draw { logits_row, sampling: Sampling { temperature, top_p: 1.0, top_k: 0 }, uniform }
    }

    #[test]
    fn the_device_chooses_as_the_host_does() {
        tch::manual_seed(5);
        let logits = Tensor::randn([3, 700], (Kind::Float, Device::Cpu)) * 3.0;
        // Nearer to 1 the two add up in another order, and may choose neighbours.
        let uniforms = [0.0, 1e-9, 0.2, 0.5, 0.77, 0.999];
        let draws: Vec<Draw> = [0, 2, 1]
            .into_iter()
            .flat_map(|row| [0.0, 0.3, 1.0, 1.7].map(|temperature| (row, temperature)))
            .flat_map(|(row, temperature)| uniforms.map(|u| draw(row, temperature, u)))
            .collect();
        let (host, device) = (on_host(&logits, &draws), on_device(&logits, &draws));
        for (own, other) in host.iter().zip(&device) {
            let (own, other) = (own.unwrap(), other.unwrap());
            assert_eq!(own.0, other.0);
            assert!((own.1 - other.1).abs() < 1e-6, "{own:?} {other:?}");
        }
        let last = on_device(&logits, &[draw(0, 1.0, 1.0 - f64::EPSILON)]);
        assert!(last[0].is_some_and(|(id, _)| id < 700), "{last:?}");
    }

    #[test]
    fn logits_that_are_no_distribution_give_no_id() {
        let logits = Tensor::from_slice(&[f32::NAN, 0.0, 0.0, 1.0, 2.0, 3.0]).view([2, 3]);
        for temperature in [0.0, 1.0] {
            let draws = [draw(0, temperature, 0.5), draw(1, temperature, 0.999)];
            for given in [on_host(&logits, &draws), on_device(&logits, &draws)] {
                assert_eq!(given[0], None);
                assert_eq!(given[1].unwrap().0, 2);
            }
        }
    }
}
