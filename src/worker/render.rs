//! Conversations to token ids, in the one way that generation, scoring and training share.
//!
//! In: messages, or the text of a pair. Out: ids of a prompt (with the assistant's turn opened), of a
//! whole conversation, of a pair split into prompt, chosen and rejected as TRL splits it. Special
//! tokens come from the template alone, so no BOS is doubled. May not enter: tensors, files.

use rlhfd_protocol::worker::Message;

use crate::errors::TextError;
use crate::model::ModelFolder;
use crate::template::{ChatTemplate, Now, Rendered};
use crate::tokenizer::{AddSpecial, Tokenizer};

/// A model's tokenizer and template together.
#[derive(Debug)]
pub struct Renderer {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

/// What a preference says, before it is rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairText {
    /// A conversation and two ways to go on with it.
    Messages {
        /// The shared turns.
        prompt: Vec<Message>,
        /// The turns of the chosen answer.
        chosen: Vec<Message>,
        /// The turns of the rejected answer.
        rejected: Vec<Message>,
    },
    /// Plain text, which no template renders.
    Plain {
        /// The shared beginning.
        prompt: String,
        /// The chosen continuation.
        chosen: String,
        /// The rejected continuation.
        rejected: String,
    },
}

/// The ids of a preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairIds {
    /// The prompt with its generation prompt.
    pub prompt: Vec<u32>,
    /// The chosen response, to the end of its rendering.
    pub chosen: Vec<u32>,
    /// The rejected response.
    pub rejected: Vec<u32>,
}

/// How a response given as messages becomes ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenderRule {
    /// The rest of the whole conversation's rendering after the prompt's, as TRL does.
    Conversation,
    /// The prompt's rendering, the answer's own text, and the stop id: what generation would see.
    Generation,
}

impl Renderer {
    /// Opens tokenizer and template of a folder. A folder without a template can still encode plain
    /// text; rendering messages is then an error.
    ///
    /// Errors: `Tokenizer`, `Misfit`, or `Template` for a template that does not compile.
    pub fn open(folder: &ModelFolder) -> Result<Self, TextError> {
        Self::open_at(folder, system_now)
    }

    /// The same, with a clock for templates that ask for the date.
    ///
    /// Errors: as [`Self::open`].
    pub fn open_at(folder: &ModelFolder, now: Now) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::open(folder)?;
        let template = match &tokenizer.template {
            Some(source) => {
                Some(ChatTemplate::new(source, tokenizer.special.clone(), &folder.dir, now)?)
            }
            None => None,
        };
        Ok(Self { tokenizer, template })
    }

    /// The text of a conversation.
    ///
    /// Errors: `NoTemplate`, `Template`.
    pub fn text(&self, messages: &[Message], turn: Turn) -> Result<String, TextError> {
        self.rendered(messages, turn).map(|rendered| rendered.text)
    }

    /// The same, with what the template marks as the assistant's.
    ///
    /// Errors: as [`Self::text`].
    pub fn rendered(&self, messages: &[Message], turn: Turn) -> Result<Rendered, TextError> {
        let template = self
            .template
            .as_ref()
            .ok_or_else(|| TextError::NoTemplate { dir: self.tokenizer.dir().to_owned() })?;
        template.render(messages, turn == Turn::Opened)
    }

    /// Whether the template marks the assistant's text by `{% generation %}`.
    #[must_use]
    pub fn marks_assistant(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::marks_assistant)
    }

    /// Whether a rendering that asks for the assistant's turn opens it: it differs from one that does not,
    /// or the answer's own words follow it at once. Without that a model is asked to write the header
    /// of its turn, and trained on answers that begin where generation never does.
    ///
    /// Errors: `NoTemplate`, `Template`.
    pub fn opens_the_answer(&self) -> Result<bool, TextError> {
        let turn = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let prompt = [turn("user", "What colour is the sky?")];
        let opened = self.text(&prompt, Turn::Opened)?;
        if opened != self.text(&prompt, Turn::Closed)? {
            return Ok(true);
        }
        let [asked] = prompt;
        let whole = self.text(&[asked, turn("assistant", "Blue.")], Turn::Closed)?;
        Ok(whole.strip_prefix(&opened).is_some_and(|rest| rest.trim_start().starts_with("Blue.")))
    }

    /// Ids of a prompt: the template's rendering with the assistant's turn opened.
    ///
    /// Errors: `NoTemplate`, `Template`, `Unusable` where nothing is left or the BOS is doubled.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        self.ids(&self.text(messages, Turn::Opened)?)
    }

    /// Ids of a whole conversation, as a reward model reads it.
    ///
    /// Errors: as [`Self::prompt`].
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        self.ids(&self.text(messages, Turn::Closed)?)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.tokenizer.encode(text)?;
        if ids.is_empty() {
            return Err(TextError::Unusable {
                problem: "the template renders the conversation to nothing".to_owned(),
                mend: "give at least one message, and check the template",
            });
        }
        if self.tokenizer.bos_id.is_some_and(|bos| ids.starts_with(&[bos, bos])) {
            return Err(TextError::Unusable {
                problem: "the rendering begins with two BOS tokens".to_owned(),
                mend: "take the BOS out of the template, or out of the message",
            });
        }
        Ok(ids)
    }

    /// Ids of a preference.
    ///
    /// Errors: `PromptChanges` where the rendering of messages is not the beginning of the whole
    /// conversation's; `EmptyResponse` where a response has no ids; `Unusable` where plain texts share
    /// none.
    pub fn pair(&self, pair: &PairText, rule: RenderRule) -> Result<PairIds, TextError> {
        let (prompt, chosen, rejected) = match pair {
            PairText::Messages { prompt, chosen, rejected } => {
                let ids = self.prompt(prompt)?;
                let whole = |answer: &[Message]| self.answered(prompt, &ids, answer, rule);
                let (chosen, rejected) = (whole(chosen)?, whole(rejected)?);
                (ids, chosen, rejected)
            }
            PairText::Plain { prompt, chosen, rejected } => {
                let encode = |text: &str| self.tokenizer.encode_with(text, AddSpecial::Yes);
                let whole = |answer: &str| encode(&format!("{prompt}{}", self.ended(answer)));
                let (mut ids, chosen, rejected) =
                    (encode(prompt)?, whole(chosen)?, whole(rejected)?);
                // A token may span the end of the prompt: as in TRL, the responses begin where the
                // renderings part. Templates have no such excuse.
                let shared =
                    |whole: &[u32]| ids.iter().zip(whole).take_while(|(a, b)| a == b).count();
                ids.truncate(shared(&chosen).min(shared(&rejected)));
                if ids.is_empty() {
                    return Err(TextError::Unusable {
                        problem: "the prompt and its answers share no token".to_owned(),
                        mend: "give a longer prompt, or end it at a word's end",
                    });
                }
                (ids, chosen, rejected)
            }
        };
        let response = |whole: Vec<u32>| self.response(&prompt, &whole);
        let (chosen, rejected) = (response(chosen)?, response(rejected)?);
        Ok(PairIds { prompt, chosen, rejected })
    }

    /// The whole conversation's ids of a prompt and one answer.
    fn answered(
        &self,
        prompt: &[Message],
        prompt_ids: &[u32],
        answer: &[Message],
        rule: RenderRule,
    ) -> Result<Vec<u32>, TextError> {
        match rule {
            RenderRule::Conversation => {
                let messages: Vec<Message> = prompt.iter().chain(answer).cloned().collect();
                self.conversation(&messages)
            }
            RenderRule::Generation => {
                let [only] = answer else {
                    return Err(TextError::Unusable {
                        problem: format!("the answer has {} messages", answer.len()),
                        mend: "an answer rendered as generated is one message",
                    });
                };
                let mut ids = prompt_ids.to_vec();
                ids.extend(self.tokenizer.encode(&only.content)?);
                ids.extend(self.turn_end());
                Ok(ids)
            }
        }
    }

    /// The id with which the model ends its turn: the tokenizer's eos where it is a stop id.
    #[must_use]
    pub fn turn_end(&self) -> Option<u32> {
        let eos = self.tokenizer.eos_id.filter(|id| self.tokenizer.is_stop(*id));
        eos.or_else(|| self.tokenizer.stop_ids.first().copied())
    }

    /// Plain answers end in the eos token, as TRL adds it.
    fn ended(&self, answer: &str) -> String {
        let eos = self.tokenizer.special.get("eos_token").and_then(|token| token.as_str());
        match eos {
            Some(eos) if !answer.ends_with(eos) => format!("{answer}{eos}"),
            _ => answer.to_owned(),
        }
    }

    /// What comes after the prompt.
    fn response(&self, prompt: &[u32], whole: &[u32]) -> Result<Vec<u32>, TextError> {
        let shared = prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
        if shared < prompt.len() {
            let token = |ids: &[u32]| {
                ids.get(shared).map_or("(the end)".to_owned(), |id| self.tokenizer.token(*id))
            };
            return Err(TextError::PromptChanges {
                index: shared,
                prompt_token: token(prompt),
                whole_token: token(whole),
            });
        }
        let response = whole[shared..].to_vec();
        if response.is_empty() {
            return Err(TextError::EmptyResponse);
        }
        Ok(response)
    }
}

/// Whether the assistant's turn is opened after a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The generation prompt is added.
    Opened,
    /// The conversation stands as it is.
    Closed,
}

impl PairText {
    /// Splits two whole conversations where they part, as TRL's `extract_prompt` does.
    ///
    /// Errors: `PromptsDiffer` where they part anywhere but at an answer.
    pub fn from_conversations(chosen: &[Message], rejected: &[Message]) -> Result<Self, TextError> {
        let differ = |difference: String| Err(TextError::PromptsDiffer { difference });
        let (Some(chosen_last), Some(rejected_last)) = (chosen.last(), rejected.last()) else {
            return differ("one of them has no messages".to_owned());
        };
        if chosen_last.role != "assistant" || rejected_last.role != "assistant" {
            return differ("one of them does not end in an assistant's message".to_owned());
        }
        let most = chosen.len().min(rejected.len()) - 1;
        let shared = chosen.iter().zip(rejected).take(most).take_while(|(a, b)| a == b).count();
        if shared == 0 {
            return differ("their first messages differ, or there is no prompt".to_owned());
        }
        if chosen[shared].role != "assistant" || rejected[shared].role != "assistant" {
            return differ(format!("message {} differs and is no answer", shared + 1));
        }
        Ok(Self::Messages {
            prompt: chosen[..shared].to_vec(),
            chosen: chosen[shared..].to_vec(),
            rejected: rejected[shared..].to_vec(),
        })
    }
}

/// Templates may ask for today's date.
fn system_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |elapsed| elapsed.as_secs() as i64)
}
