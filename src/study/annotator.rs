//! The annotator: says which of two answers is better, with noise, and sometimes only looks at length.
//!
//! In: a prompt's answers and random numbers. Out: all pairs of them, the better one first. It knows
//! the gold score and is the only one between it and a trained model. May not enter: models.

use serde::Deserialize;

use crate::prompts::Prompt;
use crate::rng::Rng;

/// How it judges.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annotator {
    /// How often it takes the longer answer, whatever it says.
    pub length_bias: f64,
    /// Bradley and Terry's: a difference of gold this large has odds of e.
    pub temperature: f64,
}

/// An answer as the annotator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its text.
    pub text: String,
    /// Its gold score.
    pub gold: f64,
}

/// The answers to one prompt, and which of them won against which.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The prompt.
    pub prompt: Prompt,
    /// Different texts, in the order of their first appearance.
    pub responses: Vec<String>,
    /// `[chosen, rejected]`, as places in `responses`.
    pub pairs: Vec<[usize; 2]>,
}

impl Annotator {
    /// Whether the first of two answers is better.
    pub fn prefers(&self, first: &Seen, second: &Seen, rng: &mut Rng) -> bool {
        let words = |seen: &Seen| seen.text.split_whitespace().count();
        let (biased, draw) = (rng.happens(self.length_bias), rng.uniform());
        if biased && words(first) != words(second) {
            return words(first) > words(second);
        }
        let odds = (first.gold - second.gold) / self.temperature;
        draw < 1.0 / (1.0 + (-odds).exp())
    }

    /// Judges all pairs of different answers; none where there are fewer than two.
    pub fn judge(&self, prompt: Prompt, answers: &[Seen], rng: &mut Rng) -> Option<Group> {
        let mut seen: Vec<&Seen> = Vec::new();
        for answer in answers {
            if !answer.text.is_empty() && seen.iter().all(|known| known.text != answer.text) {
                seen.push(answer);
            }
        }
        let mut pairs = Vec::new();
        for second in 0..seen.len() {
            for first in 0..second {
                let better = self.prefers(seen[first], seen[second], rng);
                pairs.push(if better { [first, second] } else { [second, first] });
            }
        }
        let responses = seen.iter().map(|seen| seen.text.clone()).collect();
        (!pairs.is_empty()).then_some(Group { prompt, responses, pairs })
    }
}

impl Group {
    /// The line that reward training takes.
    pub fn line(&self) -> String {
        serde_json::json!({
            "prompt": self.prompt.text(), "responses": self.responses, "pairs": self.pairs
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str, gold: f64) -> Seen {
        Seen { text: text.to_owned(), gold }
    }

    fn share(annotator: Annotator, first: &Seen, second: &Seen) -> f64 {
        let mut rng = Rng::new(1, "test");
        let won = (0..4_000).filter(|_| annotator.prefers(first, second, &mut rng)).count();
        won as f64 / 4_000.0
    }

    #[test]
    fn it_follows_gold_by_bradley_and_terry_and_length_by_its_bias() {
        let (good, long) = (seen("a b", 0.6), seen("a b c d", 0.5));
        let fair = Annotator { length_bias: 0.0, temperature: 0.1 };
        let expected = 1.0 / (1.0 + (-1.0_f64).exp());
        assert!((share(fair, &good, &long) - expected).abs() < 0.03);
        assert!((share(fair, &long, &good) - (1.0 - expected)).abs() < 0.03);
        let biased = Annotator { length_bias: 0.5, ..fair };
        assert!((share(biased, &good, &long) - 0.5 * expected).abs() < 0.03);
        let alike = seen("c d", 0.6);
        assert!((share(biased, &good, &alike) - 0.5).abs() < 0.03, "equal lengths: gold decides");
    }

    #[test]
    fn a_group_has_all_pairs_of_different_answers() {
        let prompt = Prompt::parse("one plain near river then slowly").unwrap();
        let annotator = Annotator { length_bias: 0.0, temperature: 1e-6 };
        let answers =
            [seen("a", 0.1), seen("b", 0.3), seen("a", 0.1), seen("c", 0.2), seen("", 0.0)];
        let group = annotator.judge(prompt, &answers, &mut Rng::new(1, "x")).unwrap();
        assert_eq!(group.responses, ["a", "b", "c"]);
        assert_eq!(group.pairs, [[1, 0], [2, 0], [1, 2]]);
        assert!(group.line().contains("\"pairs\":[[1,0],[2,0],[1,2]]"));
        let same = [seen("a", 0.1), seen("a", 0.1)];
        assert_eq!(annotator.judge(prompt, &same, &mut Rng::new(1, "x")), None);
    }
}
