//! `[train] reference`: which checkpoint an update is held to.
//!
//! In: the values of `[train]`. Out: [`ReferenceConfig`], and the rules between it and other knobs.

use std::path::Path;

use crate::problem::Findings;
use crate::sections::{Rows, RunConfig, get};
use crate::setting::{Setting, words};
use crate::train::TrainSettings;
use crate::values::{Entry, dotted};

words! {
    /// Which checkpoint an iteration's update is held to.
    Reference {
        /// The run's own: the policy that it begins with, or `[run] reference`.
        Fixed = "fixed",
        /// The policy that the iteration begins with.
        Previous = "previous",
        /// The head as it was at the last iteration that is a multiple of `reference_every`.
        Every = "every",
        /// A moving average of the policies that were heads.
        Average = "average",
    }
}

/// What an update is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceConfig {
    /// Which checkpoint.
    pub which: Reference,
    /// Iterations between two references, where it is `every`; at least 1.
    pub every: u32,
    /// The old average's share of the new one, where it is `average`; in (0, 1).
    pub decay: f64,
}

impl ReferenceConfig {
    pub(crate) fn of(entry: &Entry, base_dir: &Path) -> Option<Self> {
        Some(Self {
            which: get(entry, "reference", base_dir)?,
            every: get(entry, "reference_every", base_dir)?,
            decay: get(entry, "reference_decay", base_dir)?,
        })
    }

    pub(crate) fn values(self) -> Rows {
        vec![
            ("reference", self.which.value()),
            ("reference_every", self.every.value()),
            ("reference_decay", self.decay.value()),
        ]
    }
}

/// A reference that moves is a policy of the run: neither a folder of its own nor an adapter's base.
pub(crate) fn moving(
    train: &Entry,
    reference: ReferenceConfig,
    (run, settings): (&RunConfig, &TrainSettings),
    findings: &mut Findings,
) {
    if reference.which == Reference::Fixed {
        return;
    }
    let word = reference.which.label();
    let mut add = |what: String| {
        findings.add(train.line_of("reference"), dotted(train.section, "reference"), what);
    };
    if settings.lora_rank > 0 {
        add(format!(
            "is \"{word}\", but adapters (lora_rank = {}) stay on the policy that the run begins with, \
             which is their reference with the adapters off; write reference = \"fixed\", or lora_rank = 0",
            settings.lora_rank
        ));
    }
    if run.reference.is_some() {
        add(format!(
            "is \"{word}\", and [run] reference names a folder that would never be used; leave one of \
             them out"
        ));
    }
}
