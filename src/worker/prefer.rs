//! Compares two responses with a preference model: how likely the first one is better.
//!
//! In: a preference model, both questions of each pair: the first response as A, and as B. Out: a
//! [`Preference`] a pair, from both orders, since a model favours a place too. Questions are packed
//! without padding. May not enter: files, training.

use rlhfd_protocol::worker::Message;
use tch::{Kind, Tensor};

use crate::errors::{TextError, WorkerError};
use crate::logprob::host_floats;
use crate::model::Transformer;
use crate::model::labels::Labels;
use crate::prefix::Forest;
use crate::render::Renderer;
use crate::watch::Watch;

/// The two questions about a pair, as ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Questions {
    /// The first response is called A.
    pub first_as_a: Vec<u32>,
    /// The first response is called B.
    pub first_as_b: Vec<u32>,
}

/// How likely the first response is better, each in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    /// Asked with the first response as A: p_A / (p_A + p_B).
    pub forward: f64,
    /// Asked with the first response as B: 1 − p_A / (p_A + p_B).
    pub backward: f64,
    mean: f64,
}

impl Preference {
    /// From p_A / (p_A + p_B) of either order.
    #[must_use]
    pub fn of(first_as_a: f64, first_as_b: f64) -> Self {
        // As a distance from one half, whose sign alone changes when the two are exchanged.
        let mean = 0.5 + (first_as_a - first_as_b) / 2.0;
        Self { forward: first_as_a, backward: 1.0 - first_as_b, mean }
    }

    /// The mean over both orders; exactly one half is a tie.
    #[must_use]
    pub fn mean(self) -> f64 {
        self.mean
    }
}

impl Questions {
    /// Both questions about two responses to a conversation.
    ///
    /// Errors: as [`Renderer::question`].
    pub fn of(
        renderer: &Renderer,
        context: &[Message],
        [first, second]: [&str; 2],
    ) -> Result<Self, TextError> {
        Ok(Self {
            first_as_a: renderer.question(context, [first, second])?,
            first_as_b: renderer.question(context, [second, first])?,
        })
    }

    /// Tokens of both.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.first_as_a.len() + self.first_as_b.len()
    }

    /// Both in an order that does not depend on which response is the first, so that exchanging the
    /// two computes the same numbers to the bit; once only where they are the same.
    fn ordered(&self) -> Vec<&[u32]> {
        let mut both = vec![self.first_as_a.as_slice(), self.first_as_b.as_slice()];
        both.sort_unstable();
        both.dedup();
        both
    }
}

/// The preferences of one batch, in its order.
///
/// The softmax is over the logits of the two labels alone, in f32, at temperature 1 and at the last
/// position, behind the opened turn of the assistant.
/// Shapes: one a pair. Errors: `Cancelled`; a damaged model gives NaN.
/// Source: arXiv 2405.07863, §2.1: P = p_A / (p_A + p_B).
pub fn prefer_batch(
    model: &Transformer,
    labels: Labels,
    pairs: &[Questions],
    watch: &Watch,
) -> Result<Vec<Preference>, WorkerError> {
    let _guard = tch::no_grad_guard();
    let sequences: Vec<&[u32]> = pairs.iter().flat_map(Questions::ordered).collect();
    let forest = Forest::of(&sequences);
    let last = |(index, ids): (usize, &&[u32])| forest.column(index, ids.len().saturating_sub(1));
    let positions: Vec<i64> = sequences.iter().enumerate().map(last).collect();
    let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(model.head_device());
    let ids = Tensor::from_slice(&forest.ids).to_device(model.device()).unsqueeze(0);
    let hidden = model.hidden_trees(&ids, &forest.trees).squeeze_dim(0);
    let logits = model.logits(&hidden.index_select(0, &tensor(&positions)));
    let both = logits.index_select(1, &tensor(&[i64::from(labels.a), i64::from(labels.b)]));
    watch.tick(forest.ids.len() as u64)?;
    let shares = host_floats(&both.softmax(-1, Kind::Float).select(1, 0));
    let mut rest = shares.iter().map(|share| f64::from(*share));
    let mut next = || rest.next().unwrap_or(f64::NAN);
    Ok(pairs
        .iter()
        .map(|pair| {
            let one = next();
            match pair.first_as_a.cmp(&pair.first_as_b) {
                std::cmp::Ordering::Less => Preference::of(one, next()),
                std::cmp::Ordering::Equal => Preference::of(one, one),
                std::cmp::Ordering::Greater => Preference::of(next(), one),
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preference_is_the_mean_of_both_orders_by_hand() {
        // As A the first response is chosen with 0.75; as B the other one, now A, with 0.5.
        let preference = Preference::of(0.75, 0.5);
        assert_eq!((preference.forward, preference.backward), (0.75, 0.5));
        assert_eq!(preference.mean(), 0.625);
        assert_eq!(Preference::of(0.5, 0.75).mean(), 0.375, "exchanged");
        // A model that always answers A prefers neither.
        assert_eq!(Preference::of(0.9, 0.9).mean(), 0.5);
    }

    #[test]
    fn questions_stand_in_one_order_whichever_response_is_the_first() {
        let one = Questions { first_as_a: vec![1, 2, 3], first_as_b: vec![1, 3, 2] };
        let other =
            Questions { first_as_a: one.first_as_b.clone(), first_as_b: one.first_as_a.clone() };
        assert_eq!(one.ordered(), other.ordered());
        let same = Questions { first_as_a: vec![1], first_as_b: vec![1] };
        assert_eq!((same.ordered().len(), same.tokens()), (1, 2));
    }
}
