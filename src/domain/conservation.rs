//! Conservation laws: nothing vanishes silently between the draw and the update.
//!
//! In: counts of one iteration, each counted from its own rows. Out: nothing, or the law that does
//! not hold. May not enter: how the counts were made.

/// What became of an iteration's drawn prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptCounts {
    /// Prompts drawn.
    pub drawn: u64,
    /// Prompts with at least one preference.
    pub paired: u64,
    /// Prompts whose best and worst responses have the same score.
    pub tied: u64,
    /// Prompts without a pair for another reason.
    pub without_pair: u64,
    /// Prompts that were set aside.
    pub set_aside: u64,
}

/// What one scorer did with an iteration's responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelCounts {
    /// Responses to prompts that were not set aside.
    pub kept: u64,
    /// Responses with a label of this scorer.
    pub labelled: u64,
    /// Responses that this scorer set aside.
    pub set_aside: u64,
}

/// What became of the offline preferences that an iteration uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineCounts {
    /// Preferences of its sets.
    pub used: u64,
    /// Those that it trains on.
    pub trained: u64,
    /// Those that were set aside, by reason.
    pub set_aside: Vec<(String, u64)>,
}

/// A law that does not hold: a defect of ours, and a reason not to train.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Of the prompts.
    #[error(
        "{} prompts were drawn, but {} are paired, {} tied, {} without a pair and {} set aside",
        .0.drawn, .0.paired, .0.tied, .0.without_pair, .0.set_aside
    )]
    Prompts(PromptCounts),
    /// Of a scorer's labels.
    #[error(
        "{} responses were kept, but scorer {scorer} labelled {} and set {} aside",
        .counts.kept, .counts.labelled, .counts.set_aside
    )]
    Labels {
        /// The scorer's name.
        scorer: String,
        /// What was counted.
        counts: LabelCounts,
    },
    /// Of the offline preferences.
    #[error(
        "{} offline preferences are used, but {} are trained on and {} set aside",
        .0.used, .0.trained, .0.set_aside.iter().map(|(_, n)| n).sum::<u64>()
    )]
    Offline(OfflineCounts),
}

/// Prompts drawn = paired + tied + without a pair + set aside.
pub fn prompts(counts: PromptCounts) -> Result<(), Broken> {
    let told = [counts.paired, counts.tied, counts.without_pair, counts.set_aside]
        .iter()
        .fold(0_u64, |sum, n| sum.saturating_add(*n));
    if told == counts.drawn { Ok(()) } else { Err(Broken::Prompts(counts)) }
}

/// Per scorer: responses kept = labelled + set aside.
pub fn labels(scorer: &str, counts: LabelCounts) -> Result<(), Broken> {
    if counts.labelled.saturating_add(counts.set_aside) == counts.kept {
        Ok(())
    } else {
        Err(Broken::Labels { scorer: scorer.to_owned(), counts })
    }
}

/// Offline preferences used = trained on + set aside.
pub fn offline(counts: OfflineCounts) -> Result<OfflineCounts, Broken> {
    let set_aside: u64 = counts.set_aside.iter().map(|(_, n)| n).sum();
    if counts.trained.saturating_add(set_aside) == counts.used {
        Ok(counts)
    } else {
        Err(Broken::Offline(counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_prompt_is_told() {
        let whole = PromptCounts { drawn: 10, paired: 6, tied: 1, without_pair: 2, set_aside: 1 };
        assert!(prompts(whole).is_ok());
        let lost = PromptCounts { paired: 5, ..whole };
        assert!(prompts(lost).unwrap_err().to_string().contains("10 prompts were drawn"));
        let twice = PromptCounts { paired: 7, ..whole };
        assert!(prompts(twice).is_err());
    }

    #[test]
    fn a_lost_label_is_told() {
        assert!(labels("help", LabelCounts { kept: 4, labelled: 3, set_aside: 1 }).is_ok());
        let error = labels("help", LabelCounts { kept: 4, labelled: 3, set_aside: 0 }).unwrap_err();
        assert!(error.to_string().contains("scorer help"));
    }

    #[test]
    fn a_lost_offline_preference_is_told() {
        let set_aside = vec![("over_long".to_owned(), 2), ("template".to_owned(), 1)];
        let whole = OfflineCounts { used: 10, trained: 7, set_aside };
        assert!(offline(whole.clone()).is_ok());
        let error = offline(OfflineCounts { trained: 6, ..whole }).unwrap_err();
        let said = "10 offline preferences are used, but 6 are trained on and 3 set aside";
        assert_eq!(error.to_string(), said);
    }
}
