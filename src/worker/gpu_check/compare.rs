//! Holds one side's numbers against another's, with the bounds that decide.
//!
//! In: two [`Measured`]. Out: lines of a table, and the verdict. May not enter: models, devices,
//! but for one question: how near the two best logits were where two greedy responses part.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::Verdict;
use super::measure::{Curve, Measured, Side, logits, model};
use super::models::Subject;
use crate::errors::WorkerError;
use crate::model::{Devices, Precision, Trainable};

/// f32: largest difference of a logit, and of a step's loss.
const LOGIT_WITHIN: f64 = 1e-3;
const LOSS_WITHIN: f64 = 1e-4;
/// bf16: mean difference of a token's log-prob in nats; relative difference of a step's loss; and
/// how far the masters' way may turn from the CPU's.
const LOGPROB_WITHIN: f64 = 0.05;
const LOSS_SHARE: f64 = 0.02;
const COSINE_MIN: f64 = 0.99;
/// Two logits nearer than twice the bound may change places.
const NEAR_TIE: f32 = 2e-3;

/// The table, told line by line.
pub struct Table<'a> {
    tell: &'a mut dyn FnMut(&str),
    bad: u32,
}

impl<'a> Table<'a> {
    pub fn new(tell: &'a mut dyn FnMut(&str)) -> Self {
        Self { tell, bad: 0 }
    }

    pub fn heading(&mut self, text: &str) {
        (self.tell)(text);
    }

    pub fn timed(&mut self, side: &str, start: Instant) {
        (self.tell)(&format!("  {side} computed, {:.0} s", start.elapsed().as_secs_f64()));
    }

    pub fn verdict(&self) -> Verdict {
        if self.bad == 0 { Verdict::Good } else { Verdict::Bad }
    }

    fn line(&mut self, good: bool, text: &str) {
        self.bad += u32::from(!good);
        (self.tell)(&format!("  {} {text}", if good { "ok    " } else { "FAILED" }));
    }

    /// Whether a model on two devices was computed on both.
    pub fn split(&mut self, moves: u64) {
        self.line(moves > 0, &format!("hidden states crossed between the two {moves} times"));
    }

    /// The same precision on both sides.
    ///
    /// # Errors
    /// libtorch's, from asking the CPU about greedy responses that part.
    pub fn float32(
        &mut self,
        subject: &Subject,
        cpu: &Measured,
        gpu: &Measured,
    ) -> Result<(), WorkerError> {
        let worst = largest(&cpu.logits, &gpu.logits);
        self.line(worst <= LOGIT_WITHIN, &format!("f32 logits: at most {worst:.1e} apart"));
        let worst = largest(&cpu.logprobs, &gpu.logprobs);
        self.line(worst <= LOGIT_WITHIN, &format!("f32 log-probs: at most {worst:.1e} apart"));
        for (name, ours, theirs) in curves(cpu, gpu) {
            let worst = worst_of(&ours.losses, &theirs.losses, |a, b| (a - b).abs());
            let fell = fall(&ours.losses);
            let text = format!("f32 loss, {name} ({fell}): at most {worst:.1e} apart");
            self.line(worst <= LOSS_WITHIN, &text);
        }
        let (same, tied) = greedy(subject, cpu, gpu)?;
        let all = cpu.greedy.len();
        let text = format!("f32 greedy: {same} of {all} the same, {tied} part at a near tie");
        self.line(same + tied == all, &text);
        Ok(())
    }

    /// bf16 against f32.
    pub fn bfloat16(&mut self, cpu: &Measured, gpu: &Measured) {
        let (sum, count) = cpu
            .logprobs
            .iter()
            .flatten()
            .zip(gpu.logprobs.iter().flatten())
            .fold((0.0, 0.0), |(sum, count), (a, b)| (sum + f64::from((a - b).abs()), count + 1.0));
        let mean = sum / f64::max(count, 1.0);
        let good = mean <= LOGPROB_WITHIN;
        self.line(good, &format!("bf16 log-probs: {mean:.4} apart a token, on average"));
        for (name, ours, theirs) in curves(cpu, gpu) {
            let worst = worst_of(&ours.losses, &theirs.losses, |a, b| ((a - b) / a).abs());
            let text = format!("bf16 loss, {name}: at most {:.2} % apart", worst * 100.0);
            self.line(worst <= LOSS_SHARE, &text);
        }
        let cosine = cosine(&cpu.paper.moved, &gpu.paper.moved);
        let steps = cpu.paper.losses.len();
        let text = format!("bf16 masters after {steps} steps at 5e-7: cosine {cosine:.4}");
        self.line(cosine >= COSINE_MIN, &text);
        let same = cpu.greedy.iter().zip(&gpu.greedy).filter(|(a, b)| a == b).count();
        (self.tell)(&format!("         bf16 greedy: {same} of {} the same", cpu.greedy.len()));
    }
}

fn curves<'m>(a: &'m Measured, b: &'m Measured) -> [(&'static str, &'m Curve, &'m Curve); 2] {
    [("own rate", &a.falling, &b.falling), ("rate 5e-7", &a.paper, &b.paper)]
}

fn fall(losses: &[f64]) -> String {
    match losses {
        [first, .., last] => format!("{first:.4} to {last:.4}"),
        _ => "no steps".to_owned(),
    }
}

/// The largest difference; infinite where a value is missing or not finite.
fn largest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let lengths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(a) != lengths(b) {
        return f64::INFINITY;
    }
    let differences =
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, nan_is_worst)
}

fn worst_of(a: &[f64], b: &[f64], distance: impl Fn(f64, f64) -> f64) -> f64 {
    if a.len() != b.len() || a.is_empty() {
        return f64::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| distance(*a, *b)).fold(0.0, nan_is_worst)
}

fn nan_is_worst(worst: f64, value: f64) -> f64 {
    if value.is_nan() { f64::INFINITY } else { worst.max(value) }
}

/// Of the ways that two trainings took; 0 where either did not move.
fn cosine(a: &[Tensor], b: &[Tensor]) -> f64 {
    let dot = |a: &[Tensor], b: &[Tensor]| -> f64 {
        let product = |(a, b): (&Tensor, &Tensor)| {
            (a.to_kind(Kind::Double) * b.to_kind(Kind::Double)).sum(Kind::Double).double_value(&[])
        };
        a.iter().zip(b).map(product).sum()
    };
    let length = (dot(a, a) * dot(b, b)).sqrt();
    if a.len() == b.len() && length > 0.0 { dot(a, b) / length } else { 0.0 }
}

/// How many greedy responses are the same, and how many part where the CPU saw a near tie.
fn greedy(
    subject: &Subject,
    cpu: &Measured,
    gpu: &Measured,
) -> Result<(usize, usize), WorkerError> {
    let (mut same, mut tied) = (0, 0);
    let prompts = subject.prompts();
    for (prompt, (ours, theirs)) in prompts.iter().zip(cpu.greedy.iter().zip(&gpu.greedy)) {
        match ours.iter().zip(theirs).position(|(a, b)| a != b) {
            None if ours.len() == theirs.len() => same += 1,
            None => {}
            Some(parted) => {
                let ids = [prompt.as_slice(), &ours[..parted]].concat();
                tied += usize::from(best_gap(subject, &ids)? < NEAR_TIE);
            }
        }
    }
    Ok((same, tied))
}

/// How far the second best logit lies behind the best, after `ids`, on the CPU.
fn best_gap(subject: &Subject, ids: &[u32]) -> Result<f32, WorkerError> {
    let side = Side { devices: Devices::one(Device::Cpu), precision: Precision::Float32 };
    let all = logits(&model(subject, side, Trainable::Nothing)?, ids);
    let mut last = all[all.len().saturating_sub(subject.shape.vocabulary)..].to_vec();
    last.sort_by(|a, b| b.total_cmp(a));
    Ok(match last[..] {
        [best, second, ..] => best - second,
        _ => f32::INFINITY,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_not_a_number_is_never_near() {
        assert_eq!(largest(&[vec![1.0, 2.0]], &[vec![1.0, 2.5]]), 0.5);
        assert_eq!(largest(&[vec![1.0]], &[vec![1.0, 2.0]]), f64::INFINITY);
        assert_eq!(largest(&[vec![1.0]], &[vec![f32::NAN]]), f64::INFINITY);
        assert_eq!(worst_of(&[], &[], |a, b| a - b), f64::INFINITY);
    }

    #[test]
    fn the_cosine_sees_a_way_that_turned_and_one_not_taken() {
        let way = |values: &[f32]| vec![Tensor::from_slice(values)];
        assert!((cosine(&way(&[1.0, 0.0]), &way(&[2.0, 0.0])) - 1.0).abs() < 1e-12);
        assert!(cosine(&way(&[1.0, 0.0]), &way(&[0.0, 1.0])).abs() < 1e-12);
        assert_eq!(cosine(&way(&[1.0]), &way(&[0.0])), 0.0);
    }
}
