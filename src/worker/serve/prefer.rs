//! Comparisons of a prefer unit: rounds of questions, until nothing is left to ask of any prompt.
//!
//! In: prompts with responses. Out: one answer a pair that was asked. Which pairs are asked next is a
//! rule of the domain that the daemon holds the answers against; how many are computed together is the
//! work's word, so that the bits depend on the plan alone. May not enter: scores of single responses.

use rlhfd_domain::label::compare::{Known, Places};
use rlhfd_protocol::worker::{FromWorker, ItemResult, Message, Reason, Work};

use super::compute::Engine;
use super::units::{Failure, TextSide, Unit, concerns_item};
use crate::prefer::{Preference, Questions, prefer_batch};

/// A prompt, its responses, and what is known of their pairs.
pub(super) struct Comparing {
    index: u32,
    context: Vec<Message>,
    responses: Vec<String>,
    known: Known,
}

/// A pair that is asked: of which prompt, and how.
struct Asked {
    prompt: usize,
    pair: Places,
    questions: Questions,
}

/// Why a pair cannot be asked.
type Refusal = (Reason, String);

impl Comparing {
    pub(super) fn new(index: u32, context: Vec<Message>, responses: Vec<String>) -> Self {
        Self { index, context, responses, known: Known::new() }
    }

    /// Both questions about a pair, or why they cannot be asked.
    fn questions(
        &self,
        (first, second): Places,
        side: &TextSide,
    ) -> Result<Result<Questions, Refusal>, Failure> {
        let text = |place: usize| self.responses.get(place).map_or("", String::as_str);
        match Questions::of(&side.renderer, &self.context, [text(first), text(second)]) {
            Ok(questions) => {
                let longest = questions.first_as_a.len().max(questions.first_as_b.len());
                Ok(if longest <= side.positions_max {
                    Ok(questions)
                } else {
                    let most = side.positions_max;
                    let what = format!("it needs {longest} positions, the model has {most}");
                    Err((Reason::OverLong, what))
                })
            }
            Err(error) if concerns_item(&error) => Ok(Err((Reason::Template, error.to_string()))),
            Err(error) => Err(Failure::input(error.to_string())),
        }
    }
}

impl Engine<'_> {
    /// Asks in rounds: a tournament's next question hangs on the answers before.
    pub(super) fn prefer(&self, unit: &Unit, mut prompts: Vec<Comparing>) -> Result<(), Failure> {
        let (Work::Prefer { model, compare, together, .. }, Some(side)) = (&unit.work, &unit.text)
        else {
            return Err(Failure::input("this unit compares nothing"));
        };
        let labels = side.labels.ok_or_else(|| Failure::input("the model has no labels"))?;
        loop {
            let mut asked = Vec::new();
            let mut refused = 0_usize;
            for (prompt, comparing) in prompts.iter_mut().enumerate() {
                let texts = comparing.responses.len();
                let wanted = rlhfd_domain::label::compare::Compare::from(*compare)
                    .wanted(texts, &comparing.known);
                for pair in wanted {
                    match comparing.questions(pair, side)? {
                        Ok(questions) => asked.push(Asked { prompt, pair, questions }),
                        Err((reason, message)) => {
                            refused += 1;
                            comparing.known.insert(pair, None);
                            self.compared(
                                unit.attempt,
                                comparing.index,
                                pair,
                                Err((reason, message)),
                            );
                        }
                    }
                }
            }
            if asked.is_empty() && refused == 0 {
                break;
            }
            for chunk in asked.chunks((*together as usize).max(1)) {
                let questions: Vec<Questions> =
                    chunk.iter().map(|asked| asked.questions.clone()).collect();
                let model = self.model(model)?;
                let preferences = prefer_batch(model, labels, &questions, &self.shared.watch)?;
                for (asked, preference) in chunk.iter().zip(preferences) {
                    if let Some(comparing) = prompts.get_mut(asked.prompt) {
                        let told = told(preference, asked.questions.tokens());
                        let known = told.as_ref().ok().map(|(preference, _)| *preference);
                        comparing.known.insert(asked.pair, known);
                        self.compared(unit.attempt, comparing.index, asked.pair, told);
                    }
                }
            }
        }
        prompts.iter().for_each(|_| self.shared.watch.item_done());
        Ok(())
    }

    fn compared(
        &self,
        attempt: u64,
        index: u32,
        (first, second): Places,
        told: Result<(f64, u32), Refusal>,
    ) {
        let (first, second) = (first as u32, second as u32);
        let result = match told {
            Ok((preference, tokens)) => {
                ItemResult::Preference { first, second, preference, tokens }
            }
            Err((reason, message)) => ItemResult::NotCompared { first, second, reason, message },
        };
        self.frame(FromWorker::Result { attempt, index, result }, Vec::new());
    }
}

fn told(preference: Preference, tokens: usize) -> Result<(f64, u32), Refusal> {
    let mean = preference.mean();
    if mean.is_finite() {
        Ok((mean, tokens as u32))
    } else {
        Err((Reason::NonFinite, "the model's logits are not finite for this pair".to_owned()))
    }
}
