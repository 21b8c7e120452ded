//! A database of a thousand iterations and ten million responses: how fast it is asked, how fast a daemon
//! starts on it, what a further iteration costs on top of it.
//!
//! A daemon makes the folder and two iterations of its own; the others are written by SQL into its schema
//! while it is down, with short texts, and with checkpoints whose files have gone.

use std::fs;
use std::time::{Duration, Instant};

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings};
use rusqlite::{Connection, params};

use crate::ask;
use crate::report::{Limit, Report};

/// Of its own making.
const FIRST: i64 = 2;
/// In all.
const ITERATIONS: i64 = 1_000;
/// Prompts of an iteration, and responses to each.
const PROMPTS: i64 = 2_500;
const SAMPLES: i64 = 4;
const BYTES_MAX: u64 = 10 << 30;

pub fn run(report: &mut Report, share: i64) {
    let settings =
        |iterations: i64| {
            let base = Settings::default()
                .set("run", "iterations_max", &iterations.to_string())
                .set("train", "history", "\"newest\"");
            base.with("store", "disk_free_min_mib = 0\nkeep_responses = 0\nkeep_events_days = 0")
        };
    let scene = Scene::fake(&settings(FIRST));
    let daemon = scene.start();
    scene.add_prompts("plain", 0, 60, "0.2");
    ask::ended(&scene, FIRST);
    assert!(daemon.terminate().success());
    let started = Instant::now();
    grow(&scene, PROMPTS / share);
    println!("the large database was made in {:.0} s", started.elapsed().as_secs_f64());
    let bytes = fs::metadata(scene.database()).expect("a database").len();
    report.add("the large database", bytes as f64 / (1 << 30) as f64, "GiB", Limit::AtMost(10.0));
    assert!(bytes <= BYTES_MAX);
    let rows = dump::number(&scene.database(), "SELECT count(*) FROM responses") as f64;
    report.add("responses in it", rows / 1e6, "million", Limit::None);

    let (daemon, start) = timed_start(&scene);
    report.add("start on it", start.as_secs_f64(), "s", Limit::None);
    let history = ask::times(&scene.socket(), 200, "/v1/iterations?run=main");
    report.add_times("iteration_history of 1000 iterations by the socket", history, Limit::None);
    report.add_times(
        "iteration_history of 1000 iterations by SQL",
        by_sql(&scene),
        Limit::AtMost(20.0),
    );
    let status = ask::times(&scene.socket(), 1_000, "/v1/status");
    report.add_times("status on it", status, Limit::AtMost(5.0));
    let loaded = ask::under_load(&scene.socket(), 1_000);
    report.add_times("status on it, four others ask without a pause", loaded, Limit::None);
    let lineage = ask::times(&scene.socket(), 20, "/v1/checkpoints?lineage=iteration-1000");
    report.add_times("the lineage of 1000 checkpoints", lineage, Limit::None);
    let held = ask::memory_mib(daemon.pid(), |usage| usage.resident_kib);
    report.add("memory on it", held, "MiB", Limit::None);
    daemon.kill();
    let (daemon, start) = timed_start(&scene);
    report.add("start on it after kill -9", start.as_secs_f64(), "s", Limit::None);
    drop(daemon);
    one_more(&scene, &settings(ITERATIONS + 1), report);
}

fn timed_start(scene: &Scene) -> (rlhfd_tests::scene::Daemon<'_>, Duration) {
    let started = Instant::now();
    let daemon = scene.start();
    (daemon, started.elapsed())
}

fn by_sql(scene: &Scene) -> Vec<Duration> {
    let database = dump::open(&scene.database());
    (0..200)
        .map(|_| {
            let started = Instant::now();
            let mut statement = database
                .prepare("SELECT * FROM iteration_history WHERE run = 'main'")
                .expect("the view");
            let mut rows = statement.query([]).expect("the view");
            let mut count = 0;
            while rows.next().expect("a row").is_some() {
                count += 1;
            }
            assert_eq!(count, ITERATIONS);
            started.elapsed()
        })
        .collect()
}

/// A further iteration of the size of the first ones.
fn one_more(scene: &Scene, settings: &Settings, report: &mut Report) {
    let took = "SELECT max(ended_ms - started_ms) FROM iterations WHERE iteration =";
    scene.configure(settings);
    let daemon = scene.start();
    scene.add_prompts("more", 1_000, 1_040, "0");
    ask::ended(scene, ITERATIONS + 1);
    let of = |n: i64| scene.number(&format!("{took} {n}")) as f64 / 1e3;
    report.add("a small iteration on an empty database", of(FIRST), "s", Limit::None);
    report.add(
        "the same on the large one",
        of(ITERATIONS + 1),
        "s",
        Limit::AtMost(2.0 * of(FIRST) + 0.5),
    );
    assert!(daemon.terminate().success());
}

/// The iterations that are missing, copied from the last one's rows where a row of theirs would be alike.
fn grow(scene: &Scene, prompts: i64) {
    let mut database = Connection::open(scene.state().join("db/rlhfd.db")).expect("a database");
    // Safe here: what a crash would break is thrown away.
    database
        .execute_batch(
            "PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;
             PRAGMA cache_size = -200000;",
        )
        .expect("pragmas");
    database.execute_batch("CREATE TEMP TABLE n (n INTEGER PRIMARY KEY)").expect("a table");
    let numbers = "WITH RECURSIVE c(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM c WHERE x + 1 < ?1)
                   INSERT INTO n SELECT x FROM c";
    database.execute(numbers, [prompts]).expect("numbers");
    let first_prompt: i64 = database
        .query_row("SELECT max(id) + 1 FROM prompts", [], |row| row.get(0))
        .expect("prompts");
    for iteration in FIRST + 1..=ITERATIONS {
        let whole = database.transaction().expect("a transaction");
        for (what, sql) in STATEMENTS {
            let prompt = first_prompt + (iteration - FIRST - 1) * prompts;
            let mut statement = whole.prepare_cached(sql).unwrap_or_else(|e| panic!("{what}: {e}"));
            let all = params![iteration, FIRST, prompt, SAMPLES];
            statement.execute(all).unwrap_or_else(|e| panic!("{what} of {iteration}: {e}"));
        }
        drop(whole.commit());
    }
    let counted = "UPDATE prompt_sets SET prompts = (SELECT count(*) FROM prompts);
                   UPDATE run_sets SET drawn = (SELECT count(*) FROM draws);
                   PRAGMA journal_mode = DELETE";
    database.execute_batch(counted).expect("counters");
}

/// ?1 the iteration, ?2 the one that rows are copied from, ?3 its first prompt, ?4 samples a prompt.
const STATEMENTS: [(&str, &str); 17] = [
    (
        "checkpoints",
        "INSERT INTO checkpoints (run_id, name, kind, iteration, parent_id, path, sha256, bytes, sound,
                removal_ms, removal_why, removed_ms, unit_id, created_ms)
         SELECT run_id, printf('iteration-%04d', ?1), kind, ?1,
                (SELECT id FROM checkpoints WHERE name = printf('iteration-%04d', ?1 - 1)),
                printf('runs/main/checkpoints/iteration-%04d', ?1), sha256, bytes, 0, created_ms,
                'the bench', created_ms, unit_id, created_ms + ?1
         FROM checkpoints WHERE name = printf('iteration-%04d', ?2) AND ?3 + ?4 > 0",
    ),
    (
        "iterations",
        "INSERT INTO iterations (run_id, iteration, policy_in, policy_out, reference_id, config_sha256,
                prompts, evaluate, started_ms, ended_ms, config)
         SELECT run_id, ?1, (SELECT id FROM checkpoints WHERE name = printf('iteration-%04d', ?1 - 1)),
                (SELECT id FROM checkpoints WHERE name = printf('iteration-%04d', ?1)),
                reference_id, config_sha256, (SELECT count(*) FROM n), evaluate, started_ms, ended_ms, config
         FROM iterations WHERE iteration = ?2 AND ?3 + ?4 > 0",
    ),
    (
        "iteration_totals",
        "INSERT INTO iteration_totals SELECT t.run_id, ?1, t.prompts, t.responses, t.preferences, t.ties,
                t.without_pair, t.set_aside, t.score_mean, t.score_gap_mean, t.response_tokens_mean,
                t.truncated_share, t.loss_last, t.accuracy_last, t.margin_last, t.kl_k3, t.eval_score_mean,
                t.eval_win_rate, t.generate_s, t.label_s, t.train_s, t.evaluate_s, t.device,
                t.length_penalty, t.score_length_correlation, t.canary_score_mean, t.offline, t.gate,
                t.divergence
         FROM iteration_totals t WHERE iteration = ?2 AND ?3 + ?4 > 0",
    ),
    (
        "iteration_arms",
        "INSERT INTO iteration_arms SELECT run_id, ?1, arm, name, policy_id, temperature, top_p, top_k, n,
                first_sample FROM iteration_arms WHERE iteration = ?2 AND ?3 + ?4 > 0",
    ),
    (
        "units",
        "INSERT INTO units (run_id, iteration, stage, work, lane, key, from_item, to_item, batch_items,
                policy_id, scorer_id, detail, state, tokens, seconds, created_ms, ended_ms)
         SELECT run_id, ?1, stage, work, CASE lane WHEN '' THEN '' ELSE printf('bench/%d/%s', ?1, lane) END,
                printf('%d/bench/%s', ?1, key), from_item, to_item, batch_items,
                policy_id, scorer_id, detail, state, tokens, seconds, created_ms, ended_ms
         FROM units WHERE iteration = ?2 AND ?3 + ?4 > 0",
    ),
    (
        "attempts",
        "INSERT INTO attempts (unit_id, number, started_ms, ended_ms, outcome)
         SELECT id, 1, created_ms, ended_ms, 'finished' FROM units
         WHERE iteration = ?1 AND state = 'done' AND ?2 + ?3 + ?4 > 0",
    ),
    (
        "prompts",
        "INSERT INTO prompts (id, upload_id, messages, sha256, reserved)
         SELECT ?3 + n, (SELECT min(id) FROM uploads WHERE kind = 'prompts'),
                printf('[{\"role\":\"user\",\"content\":\"bench %d\"}]', ?3 + n), randomblob(32), 0
         FROM n WHERE ?1 + ?2 + ?4 > 0",
    ),
    (
        "draws",
        "INSERT INTO draws (run_id, iteration, ordinal, prompt_id) SELECT 1, ?1, n, ?3 + n FROM n
         WHERE ?2 + ?4 > 0",
    ),
    (
        "prompt_ids",
        "INSERT INTO prompt_ids SELECT 1, ?3 + n, 8, ?3 + n, randomblob(32) FROM n
         WHERE ?1 + ?2 + ?4 > 0",
    ),
    (
        "responses",
        "INSERT INTO responses (run_id, purpose, iteration, ordinal, prompt_id, policy_id, arm, temperature,
                sample, seed, finish, tokens, characters, logprob, text_key, unit_id)
         SELECT 1, 'generate', ?1, a.n, ?3 + a.n, 1, 'warm', 1.0, b.n, 7, 'stop', 8, 24, -12.5, a.n * 8 + b.n,
                (SELECT min(id) FROM units WHERE iteration = ?1 AND work = 'generate')
         FROM n a, n b WHERE b.n < ?4 AND ?2 > 0 ORDER BY a.n, b.n",
    ),
    (
        "response_texts",
        "INSERT INTO response_texts SELECT id, 'a short answer, no more', randomblob(32), randomblob(32)
         FROM responses WHERE run_id = 1 AND iteration = ?1 AND purpose = 'generate' AND ?2 + ?3 + ?4 > 0",
    ),
    (
        "labels",
        "INSERT INTO labels (response_id, scorer_id, score, unit_id)
         SELECT id, 1, (id % 1000) / 500.0, unit_id FROM responses
         WHERE run_id = 1 AND iteration = ?1 AND purpose = 'generate' AND ?2 + ?3 + ?4 > 0",
    ),
    (
        "preferences",
        "INSERT INTO preferences (run_id, iteration, ordinal, prompt_id, chosen_id, rejected_id, chosen_score,
                rejected_score, unit_id)
         SELECT 1, ?1, ordinal, prompt_id, id, id + 1, 1.0, 0.5, unit_id FROM responses
         WHERE run_id = 1 AND iteration = ?1 AND purpose = 'generate' AND sample = 0 AND ?2 + ?3 + ?4 > 0",
    ),
    (
        "reference_logprobs",
        "INSERT INTO reference_logprobs SELECT id, 1, -12.0, 8, randomblob(32), unit_id FROM responses
         WHERE run_id = 1 AND iteration = ?1 AND purpose = 'generate' AND sample < 2 AND ?2 + ?3 + ?4 > 0",
    ),
    (
        "training_steps",
        "INSERT INTO training_steps SELECT (SELECT min(id) FROM units WHERE iteration = ?1 AND work = 'train_dpo'),
                step, loss, lr, grad_norm, accuracy, margin, implicit_reward_chosen, implicit_reward_rejected,
                token_accuracy
         FROM training_steps WHERE ?3 + ?4 > 0 AND unit_id =
                (SELECT min(id) FROM units WHERE iteration = ?2 AND work = 'train_dpo')",
    ),
    (
        "evaluations",
        "INSERT INTO evaluations (run_id, iteration, policy_id, baseline_id, scorer_id, temperature, prompts,
                responses, score_mean, gain, gain_low, gain_high, win_rate, win_rate_low, win_rate_high,
                response_tokens_mean, truncated_share, kl_k3, unit_id, repeated_share, entropy)
         SELECT run_id, ?1, policy_id, baseline_id, scorer_id, temperature, prompts, responses, score_mean,
                gain, gain_low, gain_high, win_rate, win_rate_low, win_rate_high, response_tokens_mean,
                truncated_share, kl_k3, unit_id, repeated_share, entropy
         FROM evaluations WHERE iteration = ?2 AND ?3 + ?4 > 0",
    ),
    (
        "events",
        "INSERT INTO events (at_ms, level, kind, run_id, iteration, message)
         SELECT started_ms, 'info', 'iteration_ended', 1, ?1, 'the bench' FROM iterations, n
         WHERE iteration = ?1 AND n < 10 AND ?2 + ?3 + ?4 > 0",
    ),
];
