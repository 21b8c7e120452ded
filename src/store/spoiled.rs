//! Trainings that must be done again: the folder that one published was altered, or is gone, before its row
//! was written.
//!
//! In: the checkpoint unit that found it, and the train unit. Out: both open again, and what the training
//! told of itself taken back, in one transaction. May not enter: folders.

use rlhfd_domain::{AttemptId, Effect, Event, UnitId};

use crate::error::Result;
use crate::events::Level;
use crate::journal::{End, conclude, spoil};
use crate::open::Store;
use crate::units::{get, tell};

impl Store {
    /// The attempt of a checkpoint unit found that what `trained` published is not as it was: the training
    /// is done again, from its last saved state. Nothing counts as a death.
    pub fn training_spoiled(
        &mut self,
        (unit, attempt): (UnitId, AttemptId),
        trained: UnitId,
        why: &str,
        now_ms: i64,
    ) -> Result<Effect> {
        let end = End { outcome: "failed", cause: "unsound", counted: Some(false), message: why };
        self.transact(|conn| {
            let effect = conclude(conn, unit, Event::Returned(attempt), &end, now_ms)?;
            let trained = get(conn, trained)?;
            spoil(conn, &trained, why, now_ms)?;
            for rows in ["training_steps", "training_reports"] {
                let text = format!("DELETE FROM {rows} WHERE unit_id = ?1");
                conn.execute(&text, [trained.id.get()])?;
            }
            let text =
                format!("what {} published is not sound, it is trained again: {why}", trained.key);
            tell(conn, &trained, Level::Error, "checkpoint_unsound", text, now_ms)?;
            Ok(effect)
        })
    }
}
