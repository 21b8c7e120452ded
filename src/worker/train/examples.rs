//! What a training learns from, as its file gives it: pairs, or blocks of conversations or questions.
//!
//! In: a job and its base folder. Out: [`Examples`] that fit, with a count of what was left out; an
//! error where nothing is left. May not enter: tensors, steps.

use std::collections::{BTreeMap, BTreeSet};

use rlhfd_config::Training;

use super::blocks::Block;
use super::error::TrainError;
use super::groups::Group;
use super::job::{PairSource, TrainJob};
use super::mixture;
use super::pack::TokenPair;
use super::pairs::{self, Limits};
use super::preferences::{self, Prepared};
use super::report::{HeldOut, Report};
use super::{blocks, conversations, judgements};
use crate::model::ModelFolder;
use crate::render::Renderer;

/// The examples of a training, and how many were left out, by reason.
#[derive(Default)]
pub(super) struct Examples {
    /// None where blocks are trained on.
    pub pairs: Vec<TokenPair>,
    /// None where pairs are trained on.
    pub blocks: Vec<Block>,
    /// What a reward model is trained on.
    pub groups: Vec<Group>,
    /// What a reward model is held to.
    pub held_out: Vec<Group>,
    dropped: BTreeMap<&'static str, u64>,
}

impl Examples {
    /// Reads and fits them; the renderer where one was needed.
    ///
    /// # Errors
    /// The first bad line's; `NoPairs`, `NoConversations`.
    pub(super) fn read(
        job: &TrainJob,
        base: &ModelFolder,
    ) -> Result<(Self, Option<Renderer>), TrainError> {
        match &job.pairs {
            PairSource::Conversations { files } => {
                let renderer = Renderer::open(base)?;
                let documents = conversations::read(files, &renderer, job.seed)?;
                Ok((Self::conversations(job, base, documents)?, Some(renderer)))
            }
            PairSource::Text { files, .. } if job.training == Training::Reward => {
                let renderer = Renderer::open(base)?;
                let (most, files) = (base.config.positions_max, (files.as_slice(), job.seed));
                let prepared = preferences::prepare(files, &renderer, &job.settings, most)?;
                Ok((Self::preferences(prepared)?, Some(renderer)))
            }
            PairSource::Text { files, .. } if job.training == Training::Preference => {
                let renderer = Renderer::open(base)?;
                let drawn_by = (renderer.labels()?, job.seed);
                let rows = pairs::read(files, job.seed)?;
                let documents = judgements::documents(&rows, &renderer, drawn_by)?;
                Ok((Self::conversations(job, base, documents)?, Some(renderer)))
            }
            PairSource::Text { files, rule, .. } => {
                let renderer = Renderer::open(base)?;
                let rows = pairs::read(files, job.seed)?;
                let pairs = pairs::tokenise(&rows, &renderer, (job.training, *rule))?;
                Ok((Self::pairs(job, base, pairs)?, Some(renderer)))
            }
            PairSource::Ids { path } if job.training == Training::Reward => {
                let problem = "a reward model is trained on texts, not on token ids".to_owned();
                Err(TrainError::Job { path: path.clone(), problem })
            }
            PairSource::Ids { path } => {
                let pairs = pairs::read_ids(path, base.config.vocabulary)?;
                let pairs = pairs.into_iter().map(|pair| (pair, 1)).collect();
                Ok((Self::pairs(job, base, pairs)?, None))
            }
        }
    }

    fn pairs(
        job: &TrainJob,
        base: &ModelFolder,
        pairs: Vec<(TokenPair, usize)>,
    ) -> Result<Self, TrainError> {
        let (pairs, not_drawn) = mixture::spread(pairs);
        let count = total(pairs.len(), not_drawn);
        let limits = Limits::of(&job.settings, job.training, base.config.positions_max);
        let fitted = pairs::fit(pairs, &limits);
        let dropped = with_not_drawn(fitted.dropped, not_drawn);
        let examples = Self { pairs: fitted.pairs, dropped, ..Self::default() };
        if examples.pairs.is_empty() {
            let reasons = examples.reasons();
            return Err(TrainError::NoPairs { pairs: count, dropped: count, reasons });
        }
        examples.tell(count, "pairs");
        if fitted.truncated > 0 {
            let most = limits.tokens_max;
            tracing::warn!("{} of {count} pairs are cut to {most} tokens", fitted.truncated);
        }
        Ok(examples)
    }

    fn preferences(prepared: Prepared) -> Result<Self, TrainError> {
        let count = prepared.pairs;
        let examples = Self {
            groups: prepared.groups,
            held_out: prepared.held_out,
            dropped: prepared.dropped,
            ..Self::default()
        };
        if examples.groups.is_empty() {
            let held_out = examples.held_out.iter().map(|group| group.pairs.len()).sum::<usize>();
            let mut reasons = examples.reasons();
            if held_out > 0 {
                reasons = format!("held_out: {held_out} {reasons}").trim_end().to_owned();
            }
            return Err(TrainError::NoPairs { pairs: count, dropped: count, reasons });
        }
        examples.tell(count, "pairs");
        Ok(examples)
    }

    fn conversations(
        job: &TrainJob,
        base: &ModelFolder,
        documents: Vec<(blocks::Document, usize)>,
    ) -> Result<Self, TrainError> {
        let (documents, not_drawn) = mixture::spread(documents);
        let count = total(documents.len(), not_drawn);
        let fitted = conversations::fit(documents, &job.settings, base.config.positions_max);
        let dropped = with_not_drawn(fitted.dropped, not_drawn);
        let examples = Self { blocks: fitted.blocks, dropped, ..Self::default() };
        if examples.blocks.is_empty() {
            let reasons = examples.reasons();
            return Err(TrainError::NoConversations { conversations: count, reasons });
        }
        let pairs = job.training == Training::Preference;
        examples.tell(count, if pairs { "pairs" } else { "conversations" });
        Ok(examples)
    }

    fn tell(&self, count: usize, what: &str) {
        for (reason, left_out) in &self.dropped {
            tracing::warn!("{left_out} of {count} {what} are left out: {reason}");
        }
    }

    fn reasons(&self) -> String {
        let reasons = self.dropped.iter().map(|(why, n)| format!("{why}: {n}"));
        reasons.collect::<Vec<_>>().join(", ")
    }

    /// How many were left out, by reason.
    pub(super) fn dropped(&self) -> Vec<(String, u64)> {
        self.dropped.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect()
    }

    /// How many there are: pairs, blocks, or groups.
    pub(super) fn count(&self) -> usize {
        self.pairs.len() + self.blocks.len() + self.groups.len()
    }

    /// The last ids of what a reward model reads.
    pub(super) fn last_ids(&self) -> BTreeSet<u32> {
        let groups = self.groups.iter().chain(&self.held_out);
        let whole = groups.flat_map(|group| &group.conversations);
        whole.filter_map(|ids| ids.last().copied()).collect()
    }

    /// What became of the pairs that a reward model was trained with, and what held-out ones say.
    pub(super) fn report(&self, held_out: Option<HeldOut>) -> Report {
        let trained: usize = self.groups.iter().map(|group| group.pairs.len()).sum();
        let kept_back: usize = self.held_out.iter().map(|group| group.pairs.len()).sum();
        let dropped: BTreeMap<String, u64> = self.dropped().into_iter().collect();
        let pairs = (trained + kept_back) as u64 + dropped.values().sum::<u64>();
        Report { pairs, trained: trained as u64, dropped, held_out }
    }

    /// All of them as bytes, for the fingerprint: equal examples give equal bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut data = Vec::new();
        let add = |data: &mut Vec<u8>, ids: &[u32]| {
            data.extend_from_slice(&(ids.len() as u64).to_le_bytes());
            data.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        };
        for pair in &self.pairs {
            for ids in [&pair.prompt, &pair.chosen, &pair.rejected] {
                add(&mut data, ids);
            }
            data.extend(pair.weight.to_le_bytes());
            let (chosen, rejected) = pair.reference.unwrap_or_default();
            data.extend(chosen.to_le_bytes());
            data.extend(rejected.to_le_bytes());
        }
        for group in &self.groups {
            group.conversations.iter().for_each(|ids| add(&mut data, ids));
            for pair in &group.pairs {
                data.extend((pair.chosen as u64).to_le_bytes());
                data.extend((pair.rejected as u64).to_le_bytes());
                data.extend(pair.apart.to_le_bytes());
            }
        }
        for block in &self.blocks {
            data.extend_from_slice(&(block.documents.len() as u64).to_le_bytes());
            for document in &block.documents {
                add(&mut data, &document.ids);
                data.extend(document.learnt.iter().map(|learnt| u8::from(*learnt)));
            }
        }
        data
    }
}

fn total(taken: usize, not_drawn: u64) -> usize {
    taken + usize::try_from(not_drawn).unwrap_or(usize::MAX)
}

fn with_not_drawn(
    mut dropped: BTreeMap<&'static str, u64>,
    not_drawn: u64,
) -> BTreeMap<&'static str, u64> {
    if not_drawn > 0 {
        dropped.insert(mixture::NOT_DRAWN, not_drawn);
    }
    dropped
}
