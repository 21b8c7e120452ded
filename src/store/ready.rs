//! Readiness: an open unit is ready when its input rows exist. It is a question, never a state.
//!
//! In: a run. Out: its ready units in the order in which they should be taken: what lies later in the
//! flow first within generation and labelling, so that work drains; units that generate by policy, so
//! that a worker does not load one anew for each; then by item. The question looks
//! at unclosed units alone, by their partial index.
//! May not enter: pauses, devices, budgets: what to do with ready units is the scheduler's.

use rlhfd_domain::RunId;

use crate::error::Result;
use crate::open::Reader;
use crate::rows::limit;
use crate::units::{UnitRow, select_by};

/// `b` is an unclosed unit that must be closed before `u` may begin. Control's own works and training
/// wait for all before them; generating waits for all rendering, because the occurrence of a prompt
/// is counted over the whole draw; scoring, comparing and log-probs wait for the responses of their items
/// by every policy that writes some, comparing in evaluation also for those of the baseline (whose lane
/// is the unit's detail), log-probs of offline pairs for the rendering of all of them, a training job
/// for its base, which the run's start may still have to make. Unclosed units that generate in one lane
/// by one policy never overlap, so that the last one to begin before `u` ends is the only one that can
/// stand in its way: the answer costs one step of the index a policy, not one per unit.
const READY: &str = "
u.run_id = ?1 AND u.state IN ('open', 'running') AND u.state = 'open'
AND (u.job_id IS NULL
     OR EXISTS (SELECT 1 FROM training_jobs j WHERE j.id = u.job_id AND j.base_sha256 IS NOT NULL))
AND (u.work <> 'prefer' OR u.detail IS NULL
     OR coalesce((SELECT b.to_item FROM units b WHERE b.state IN ('open', 'running')
            AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = u.detail
            AND b.work = 'generate' AND b.from_item < u.to_item
            ORDER BY b.from_item DESC LIMIT 1), 0) <= u.from_item)
AND CASE iif(u.work = 'prefer', 'score', u.work)
    WHEN 'render' THEN 1
    WHEN 'probe' THEN 1
    WHEN 'average' THEN 1
    WHEN 'render_pairs' THEN 1
    WHEN 'train_sft' THEN 1
    WHEN 'train_reward' THEN 1
    WHEN 'train_preference' THEN 1
    WHEN 'generate' THEN
        NOT EXISTS (SELECT 1 FROM units b WHERE b.state IN ('open', 'running')
            AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = ''
            AND b.work = 'render' AND b.stage = iif(u.stage = 'evaluate', 'evaluate', 'prompts'))
        AND (u.policy_id IS NOT NULL OR EXISTS (SELECT 1 FROM iterations i
            WHERE i.run_id = u.run_id AND i.iteration = u.iteration AND i.policy_out IS NOT NULL))
    WHEN 'score' THEN
        CASE WHEN u.lane = '' THEN
            NOT EXISTS (SELECT 1 FROM iteration_arms a
                WHERE a.run_id = u.run_id AND a.iteration = u.iteration
                AND u.from_item < (SELECT b.to_item FROM units b
                    WHERE b.state IN ('open', 'running') AND b.run_id = u.run_id
                    AND b.iteration = u.iteration AND b.work = 'generate' AND b.stage = 'generate'
                    AND b.policy_id = a.policy_id AND b.from_item < u.to_item
                    ORDER BY b.from_item DESC LIMIT 1))
        ELSE
            coalesce((SELECT b.to_item FROM units b WHERE b.state IN ('open', 'running')
                AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = u.lane
                AND b.work = 'generate' AND b.from_item < u.to_item
                ORDER BY b.from_item DESC LIMIT 1), 0) <= u.from_item
        END
    WHEN 'pair' THEN
        NOT EXISTS (SELECT 1 FROM units b WHERE b.state IN ('open', 'running')
            AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = ''
            AND b.work IN ('render', 'generate', 'score', 'prefer') AND b.stage <> 'evaluate')
    WHEN 'logprobs' THEN
        CASE WHEN u.lane = '' THEN
            NOT EXISTS (SELECT 1 FROM units b WHERE b.state IN ('open', 'running')
                AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = ''
                AND b.work = 'pair')
        ELSE
            coalesce((SELECT b.to_item FROM units b WHERE b.state IN ('open', 'running')
                AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = u.lane
                AND b.work = 'generate' AND b.from_item < u.to_item
                ORDER BY b.from_item DESC LIMIT 1), 0) <= u.from_item
        END
    WHEN 'logprobs_pairs' THEN
        NOT EXISTS (SELECT 1 FROM units b WHERE b.state IN ('open', 'running')
            AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = ''
            AND b.work = 'render_pairs')
    WHEN 'train_dpo' THEN
        NOT EXISTS (SELECT 1 FROM units b WHERE b.state IN ('open', 'running')
            AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.lane = ''
            AND b.work IN ('pair', 'render_pairs', 'logprobs', 'logprobs_pairs'))
    WHEN 'checkpoint' THEN
        CASE WHEN u.job_id IS NULL THEN
            EXISTS (SELECT 1 FROM units d WHERE d.run_id = u.run_id AND d.iteration = u.iteration
                AND d.stage = 'train' AND d.state = 'done' AND d.work = 'train_dpo')
        ELSE
            EXISTS (SELECT 1 FROM units d WHERE d.job_id = u.job_id
                AND d.stage = 'train' AND d.state = 'done')
        END
    WHEN 'summarise' THEN
        NOT EXISTS (SELECT 1 FROM units b WHERE b.state IN ('open', 'running')
            AND b.run_id = u.run_id AND b.iteration = u.iteration AND b.id <> u.id)
    ELSE 0 END
ORDER BY
    u.iteration IS NOT NULL,
    CASE WHEN u.stage = 'evaluate' THEN 1 ELSE 0 END,
    CASE WHEN u.lane LIKE 'initial%' THEN 1 ELSE 0 END,
    CASE u.work WHEN 'probe' THEN 0 WHEN 'average' THEN 0 WHEN 'render' THEN 1 WHEN 'render_pairs' THEN 1
        WHEN 'score' THEN 2 WHEN 'prefer' THEN 2 WHEN 'generate' THEN 3 WHEN 'logprobs' THEN 4
        WHEN 'logprobs_pairs' THEN 4 ELSE 5 END,
    CASE WHEN u.work = 'generate' THEN u.policy_id END, u.from_item, u.id
LIMIT ?2";

impl Reader {
    /// Ready units, best first. Jobs and probes come before iterations; the initial policy's
    /// evaluation comes last.
    pub fn ready_units(&self, run: RunId, rows: u32) -> Result<Vec<UnitRow>> {
        // SQLite would rather walk all units that the run ever had, by their keys.
        let index = "INDEXED BY units_unclosed";
        select_by(&self.conn, index, READY, &[&run.get(), &limit(rows)])
    }
}
