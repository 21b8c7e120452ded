//! The database as a list of facts by natural keys, so that two runs can be compared.
//!
//! Left out: row ids, times, durations, devices, attempts, leases, events. What refers to a row is
//! written as that row's natural key instead.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// Table name → its rows, sorted.
pub type Dump = BTreeMap<String, Vec<String>>;

/// Opens a database for reading only, as a user's tool would.
pub fn open(path: &Path) -> Connection {
    try_open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// As [`open`], where it may not be there yet.
pub fn try_open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(connection)
}

/// What each table says, without what may differ between two runs that agree.
const FACTS: [(&str, &str); 26] = [
    ("runs", "SELECT r.name, r.seed, r.active, h.name, b.name FROM runs r
         JOIN checkpoints h ON h.id = r.head_id LEFT JOIN checkpoints b ON b.id = r.best_id"),
    ("prompts", "SELECT s.name, p.messages, p.reserved FROM prompts p JOIN uploads u ON u.id = p.upload_id
         JOIN prompt_sets s ON s.id = u.set_id"),
    (
        "offline_preferences",
        "SELECT s.name, s.preferences, p.messages, p.chosen, p.rejected FROM offline_preferences p
         JOIN uploads u ON u.id = p.upload_id JOIN preference_sets s ON s.id = u.preference_set_id",
    ),
    (
        "offline_pairs",
        "SELECT r.name, o.ordinal, s.name, p.messages, p.chosen, p.rejected, o.prompt_tokens,
                o.pair_tokens, o.set_aside, d.prompt_ids, d.chosen_ids, d.rejected_ids
         FROM offline_pairs o JOIN runs r ON r.id = o.run_id
         JOIN preference_sets s ON s.id = o.set_id JOIN offline_preferences p ON p.id = o.offline_id
         LEFT JOIN offline_ids d ON d.run_id = o.run_id AND d.ordinal = o.ordinal",
    ),
    (
        "iteration_sets",
        "SELECT r.name, i.iteration, i.place, s.name, i.pairs_to, i.weight, i.tokens_max,
                i.prompt_tokens_max
         FROM iteration_sets i JOIN runs r ON r.id = i.run_id
         JOIN preference_sets s ON s.id = i.set_id",
    ),
    (
        "iterations",
        "SELECT r.name, i.iteration, pin.name, pout.name, pout.sha256, i.config_sha256,
                i.ended_ms IS NOT NULL, i.cancelled_ms IS NOT NULL
         FROM iterations i JOIN runs r ON r.id = i.run_id
         JOIN checkpoints pin ON pin.id = i.policy_in LEFT JOIN checkpoints pout ON pout.id = i.policy_out",
    ),
    (
        "draws",
        "SELECT r.name, d.iteration, d.ordinal, p.messages, d.occurrence, d.used_before, d.set_aside
         FROM draws d JOIN runs r ON r.id = d.run_id JOIN prompts p ON p.id = d.prompt_id",
    ),
    (
        "evaluation_prompts",
        "SELECT r.name, e.ordinal, p.messages, e.occurrence, e.set_aside FROM evaluation_prompts e
         JOIN runs r ON r.id = e.run_id JOIN prompts p ON p.id = e.prompt_id",
    ),
    (
        "units",
        "SELECT r.name, u.iteration, u.stage, u.work, u.key, u.lane, u.from_item, u.to_item, u.batch_items, u.state, u.replanned, u.reason
         FROM units u JOIN runs r ON r.id = u.run_id WHERE u.work <> 'probe'",
    ),
    (
        "iteration_arms",
        "SELECT r.name, a.iteration, a.arm, a.name, c.name, a.temperature, a.top_p, a.top_k, a.n,
                a.first_sample
         FROM iteration_arms a JOIN runs r ON r.id = a.run_id JOIN checkpoints c ON c.id = a.policy_id",
    ),
    (
        "responses",
        "SELECT r.name, e.purpose, e.iteration, e.ordinal, c.name, e.arm, e.temperature, e.sample,
                e.seed, e.finish, e.tokens, e.characters, e.logprob, e.replanned, u.key
         FROM responses e JOIN runs r ON r.id = e.run_id JOIN checkpoints c ON c.id = e.policy_id
         JOIN units u ON u.id = e.unit_id",
    ),
    (
        "response_texts",
        "SELECT e.purpose, e.iteration, e.ordinal, c.name, e.sample, t.text, t.ids, t.logprobs
         FROM response_texts t JOIN responses e ON e.id = t.response_id
         JOIN checkpoints c ON c.id = e.policy_id",
    ),
    (
        "labels",
        "SELECT e.purpose, e.iteration, e.ordinal, c.name, e.sample, s.name, d.name, v.sample, l.score,
                l.preference, l.set_aside
         FROM labels l JOIN responses e ON e.id = l.response_id JOIN scorers s ON s.id = l.scorer_id
         JOIN checkpoints c ON c.id = e.policy_id
         LEFT JOIN responses v ON v.id = l.versus_id LEFT JOIN checkpoints d ON d.id = v.policy_id",
    ),
    (
        "scorer_totals",
        "SELECT r.name, t.iteration, s.name, s.sha256, t.weight, t.normalise, t.labelled, t.set_aside,
                t.score_mean, t.score_deviation
         FROM scorer_totals t JOIN runs r ON r.id = t.run_id JOIN scorers s ON s.id = t.scorer_id",
    ),
    (
        "label_fits",
        "SELECT r.name, f.iteration, f.responses, f.unscored, f.score_mean, f.length_unit,
                f.length_penalty, f.fitted, f.correlation_before, f.correlation_after
         FROM label_fits f JOIN runs r ON r.id = f.run_id",
    ),
    (
        "preferences",
        "SELECT r.name, p.iteration, p.ordinal, p.rank, a.sample, b.sample, p.chosen_score,
                p.rejected_score
         FROM preferences p JOIN runs r ON r.id = p.run_id
         JOIN responses a ON a.id = p.chosen_id JOIN responses b ON b.id = p.rejected_id",
    ),
    (
        "unpaired",
        "SELECT r.name, u.iteration, u.ordinal, u.kind, u.reason FROM unpaired u
         JOIN runs r ON r.id = u.run_id",
    ),
    (
        "reference_logprobs",
        "SELECT e.purpose, e.iteration, e.ordinal, p.name, e.sample, c.name, l.logprob, l.tokens,
                l.logprobs
         FROM reference_logprobs l JOIN responses e ON e.id = l.response_id
         JOIN checkpoints p ON p.id = e.policy_id JOIN checkpoints c ON c.id = l.reference_id",
    ),
    (
        "offline_logprobs",
        "SELECT r.name, k.ordinal, c.name, k.chosen, k.rejected, k.chosen_logprobs,
                k.rejected_logprobs, k.set_aside, u.key
         FROM offline_logprobs k JOIN runs r ON r.id = k.run_id
         JOIN checkpoints c ON c.id = k.reference_id JOIN units u ON u.id = k.unit_id",
    ),
    (
        "training_set_members",
        "SELECT u.key, m.position, p.iteration, p.ordinal, p.rank, o.chosen, o.rejected, m.weight
         FROM training_set_members m JOIN units u ON u.id = m.unit_id
         LEFT JOIN preferences p ON p.id = m.preference_id
         LEFT JOIN offline_preferences o ON o.id = m.offline_id",
    ),
    (
        "training_steps",
        "SELECT u.key, t.step, t.loss, t.lr, t.grad_norm, t.accuracy, t.margin,
                t.implicit_reward_chosen, t.implicit_reward_rejected
         FROM training_steps t JOIN units u ON u.id = t.unit_id",
    ),
    (
        "training_reports",
        "SELECT u.key, t.source, t.pairs, t.accuracy, t.calibration_error, t.responses,
                t.length_correlation
         FROM training_reports t JOIN units u ON u.id = t.unit_id",
    ),
    (
        "checkpoints",
        "SELECT r.name, c.name, c.kind, c.iteration, p.name, f.name, c.sha256, c.bytes, c.sound,
                c.rejected
         FROM checkpoints c JOIN runs r ON r.id = c.run_id
         LEFT JOIN checkpoints p ON p.id = c.parent_id LEFT JOIN checkpoints f ON f.id = c.reference_id",
    ),
    (
        "evaluations",
        "SELECT r.name, e.iteration, c.name, b.name, s.name, e.temperature, e.prompts, e.responses,
                e.score_mean, e.gain, e.gain_low, e.gain_high, e.win_rate, e.win_rate_low,
                e.win_rate_high, e.response_tokens_mean, e.truncated_share, e.kl_k3,
                e.repeated_share, e.entropy
         FROM evaluations e JOIN runs r ON r.id = e.run_id JOIN checkpoints c ON c.id = e.policy_id
         JOIN checkpoints b ON b.id = e.baseline_id JOIN scorers s ON s.id = e.scorer_id",
    ),
    (
        "gate_verdicts",
        "SELECT r.name, g.iteration, g.figure, g.against, g.bound, g.limit_value, g.value, g.held
         FROM gate_verdicts g JOIN runs r ON r.id = g.run_id",
    ),
    (
        "iteration_history",
        "SELECT run, iteration, status, policy_in, policy_out, reference, prompts, responses,
                preferences, ties, without_pair, set_aside, score_mean, score_gap_mean,
                response_tokens_mean, truncated_share, loss_last, accuracy_last, margin_last, kl_k3,
                eval_score_mean, eval_win_rate, length_penalty, score_length_correlation,
                canary_score_mean, offline, gate
         FROM iteration_history",
    ),
];

/// Everything that two runs which agree have in common.
pub fn dump(database: &Path) -> Dump {
    let connection = open(database);
    FACTS.iter().map(|(table, sql)| ((*table).to_owned(), rows(&connection, sql))).collect()
}

fn rows(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut out = Vec::new();
    while let Some(row) = rows.next().unwrap_or_else(|e| panic!("{sql}: {e}")) {
        let cells: Vec<String> = (0..columns).map(|n| cell(row.get_ref_unwrap(n))).collect();
        out.push(cells.join(" | "));
    }
    out.sort();
    out
}

fn cell(value: ValueRef) -> String {
    match value {
        ValueRef::Null => "-".into(),
        ValueRef::Integer(n) => n.to_string(),
        // All digits: runs must agree to the last bit.
        ValueRef::Real(x) => format!("{x:?}"),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => {
            bytes.iter().fold(String::from("x"), |text, byte| text + &format!("{byte:02x}"))
        }
    }
}

/// Fails with the first facts that one run has and the other has not.
pub fn assert_same(undisturbed: &Dump, disturbed: &Dump, what: &str) {
    for (table, facts) in undisturbed {
        let others = &disturbed[table];
        let missing: Vec<_> = facts.iter().filter(|row| !others.contains(row)).take(3).collect();
        let surplus: Vec<_> = others.iter().filter(|row| !facts.contains(row)).take(3).collect();
        assert!(
            facts == others,
            "{what}: {table} differs ({} rows and {}): only undisturbed {missing:#?}, \
             only disturbed {surplus:#?}",
            facts.len(),
            others.len()
        );
    }
}

/// One number by SQL.
pub fn number(database: &Path, sql: &str) -> i64 {
    open(database).query_row(sql, [], |row| row.get(0)).unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// One text by SQL, `None` where there is no row.
pub fn text(database: &Path, sql: &str) -> Option<String> {
    let connection = open(database);
    let mut statement = connection.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut rows = statement.query([]).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let row = rows.next().unwrap_or_else(|e| panic!("{sql}: {e}"))?;
    Some(cell(row.get_ref_unwrap(0)))
}
