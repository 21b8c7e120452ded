//! Which policy an arm of exploration samples from.
//!
//! In: a word of the configuration. Out: [`ArmPolicy`], or nothing where the word can name no policy
//! of any run. May not enter: which checkpoints a run has.

use std::path::Path;

use crate::setting::Setting;
use crate::values::{Value, is_set_name};

/// The policy of an arm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArmPolicy {
    /// The head.
    Current,
    /// The policy before the head in its line; the initial one where the head is that.
    Previous,
    /// The policy that the run began with.
    Initial,
    /// A checkpoint of the run, by its name.
    Named(String),
}

impl ArmPolicy {
    /// The policy of a word; none where no run could have it.
    #[must_use]
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "current" => Some(Self::Current),
            "previous" => Some(Self::Previous),
            "initial" => Some(Self::Initial),
            name => is_policy_name(name).then(|| Self::Named(name.to_owned())),
        }
    }

    /// The word in configurations.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Initial => "initial",
            Self::Named(name) => name,
        }
    }
}

/// Whether iterations or supervised fine-tunings give their checkpoints such a name.
fn is_policy_name(name: &str) -> bool {
    if let Some(number) = name.strip_prefix("iteration-") {
        let iteration = number.parse::<u32>().ok().filter(|iteration| *iteration > 0);
        // Four digits at least, as they are written.
        return iteration.is_some_and(|iteration| format!("{iteration:04}") == number);
    }
    name.strip_prefix("sft-").is_some_and(is_set_name)
}

impl Setting for ArmPolicy {
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self> {
        Self::parse(&String::of(value, base_dir)?)
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Text(self.label().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_run_could_have_is_a_policy() {
        for good in ["current", "previous", "initial", "iteration-0002", "iteration-12345", "sft-a"]
        {
            let policy = ArmPolicy::parse(good).unwrap();
            assert_eq!(policy.label(), good);
        }
        let bad = [
            "",
            "Current",
            "head",
            "iteration-2",
            "iteration-0000",
            "iteration-00002",
            "iteration-x",
            "reward-main",
            "sft-",
            "sft-A",
            "../x",
        ];
        for bad in bad {
            assert_eq!(ArmPolicy::parse(bad), None, "{bad}");
        }
    }
}
