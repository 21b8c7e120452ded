-- The first schema. Tables stand in the order of the flow:
-- prompts → generate → label → pair → train → checkpoint → evaluate.
--
-- Times are milliseconds since the epoch (UTC), sums are lower-case hex sha256, ids of tokens are
-- little-endian u32 and log-probs little-endian f32 in BLOBs. Enums are stored as the words of
-- `rlhfd-domain`. Unit and attempt rows are the journal: there is no second recovery mechanism.

-- ── runs ────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE runs (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    seed           INTEGER NOT NULL,
    base_id        INTEGER NOT NULL REFERENCES checkpoints(id) DEFERRABLE INITIALLY DEFERRED, -- [run] policy
    start_job      TEXT,                       -- the sft job whose policy the run begins with; null: with its base
    -- The base until that job's checkpoint is admitted, which moves all three at once.
    initial_id     INTEGER NOT NULL REFERENCES checkpoints(id) DEFERRABLE INITIALLY DEFERRED,
    reference_id   INTEGER NOT NULL REFERENCES checkpoints(id) DEFERRABLE INITIALLY DEFERRED,
    head_id        INTEGER NOT NULL REFERENCES checkpoints(id) DEFERRABLE INITIALLY DEFERRED,
    best_id        INTEGER REFERENCES checkpoints(id), -- by evaluation, and the run's output; null: none yet
    active         INTEGER NOT NULL DEFAULT 0 CHECK (active IN (0, 1)),
    paused_reason  TEXT,                       -- null: not paused
    paused_by      TEXT CHECK (paused_by IN ('operator', 'daemon')),
    start_asked_ms INTEGER,                    -- `rlhfctl start` not yet served
    probed_key     TEXT,                       -- the models and settings that the last good probe covered
    texts_swept_to INTEGER NOT NULL DEFAULT 0, -- iterations 1..this have no texts but those of preferences
    created_ms     INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX runs_one_active ON runs(active) WHERE active = 1;

-- ── prompts ─────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE prompt_sets (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    reserve_share  REAL    NOT NULL DEFAULT 0 CHECK (reserve_share >= 0 AND reserve_share < 1),
    priority       INTEGER NOT NULL DEFAULT 0, -- sets of the highest are drawn first,
    weight         REAL    NOT NULL DEFAULT 1 CHECK (weight > 0), -- and by weight among equals
    -- Counters of published prompts, so that nothing ever counts a large table.
    prompts        INTEGER NOT NULL DEFAULT 0,
    reserved       INTEGER NOT NULL DEFAULT 0,
    created_ms     INTEGER NOT NULL
) STRICT;

CREATE TABLE uploads (
    id             INTEGER PRIMARY KEY,
    client_key     TEXT    UNIQUE,             -- makes a retry harmless
    kind           TEXT    NOT NULL CHECK (kind IN
                     ('prompts', 'conversations', 'preferences', 'offline_preferences')),
    name           TEXT    NOT NULL,           -- the set's, or the training job's
    set_id         INTEGER REFERENCES prompt_sets(id),
    preference_set_id INTEGER REFERENCES preference_sets(id),
    state          TEXT    NOT NULL CHECK (state IN ('open', 'published', 'failed')),
    lines          INTEGER NOT NULL DEFAULT 0,
    kept           INTEGER NOT NULL DEFAULT 0,
    reserved       INTEGER NOT NULL DEFAULT 0,
    duplicates     INTEGER NOT NULL DEFAULT 0,
    bad            INTEGER NOT NULL DEFAULT 0,
    evaluation_prompts INTEGER NOT NULL DEFAULT 0, -- examples left out: a prompt kept for evaluation is theirs
    published_seq  INTEGER UNIQUE,             -- order of publishing; draws follow it
    created_ms     INTEGER NOT NULL,
    ended_ms       INTEGER
) STRICT;

CREATE TABLE prompts (
    id             INTEGER PRIMARY KEY,
    upload_id      INTEGER NOT NULL REFERENCES uploads(id), -- and by it the set
    messages       TEXT    NOT NULL,           -- JSON: [{"role", "content"}, …]
    sha256         BLOB    NOT NULL,           -- of the canonical messages: 32 bytes
    reserved       INTEGER NOT NULL CHECK (reserved IN (0, 1)),
    folded         BLOB                        -- of a reserved one: the sum without case and spacing
) STRICT;
CREATE INDEX prompts_by_sum ON prompts(sha256);
CREATE INDEX prompts_by_upload ON prompts(upload_id, reserved, id);
CREATE INDEX prompts_by_folded ON prompts(folded) WHERE folded IS NOT NULL;

-- Prompts of the examples that training jobs were given: none of them is compared on.
CREATE TABLE trained_prompts (
    folded         BLOB    NOT NULL,
    upload_id      INTEGER NOT NULL REFERENCES uploads(id),
    PRIMARY KEY (folded, upload_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX trained_prompts_by_upload ON trained_prompts(upload_id);

-- The same row in two uploads that were open at once: whichever is published second loses it.
CREATE TABLE upload_twins (
    upload_id      INTEGER NOT NULL REFERENCES uploads(id),
    row_id         INTEGER NOT NULL,           -- of prompts or offline_preferences, by the upload's kind
    other_upload_id INTEGER NOT NULL REFERENCES uploads(id),
    PRIMARY KEY (upload_id, row_id, other_upload_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX upload_twins_by_other ON upload_twins(other_upload_id);

-- Where the next draw of a run goes on in each upload. A published upload never grows: once it is
-- exhausted it is not looked at again.
CREATE TABLE draw_cursors (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    upload_id      INTEGER NOT NULL REFERENCES uploads(id),
    reserved       INTEGER NOT NULL CHECK (reserved IN (0, 1)),
    last_prompt_id INTEGER NOT NULL,
    exhausted      INTEGER NOT NULL DEFAULT 0 CHECK (exhausted IN (0, 1)),
    PRIMARY KEY (run_id, reserved, upload_id)
) STRICT, WITHOUT ROWID;

-- Prompts of cancelled iterations: back in the pool, drawn before fresh ones.
CREATE TABLE returned_prompts (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    prompt_id      INTEGER NOT NULL REFERENCES prompts(id),
    PRIMARY KEY (prompt_id, run_id)
) STRICT, WITHOUT ROWID;

-- With [run] reuse_prompts: the last row of draws that the pool has taken up again.
CREATE TABLE reuse_cursors (
    run_id         INTEGER PRIMARY KEY REFERENCES runs(id),
    iteration      INTEGER NOT NULL,
    ordinal        INTEGER NOT NULL
) STRICT;

-- Fresh prompts are counted from these, not from prompts.
CREATE TABLE run_sets (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    set_id         INTEGER NOT NULL REFERENCES prompt_sets(id),
    drawn          INTEGER NOT NULL DEFAULT 0, -- returned ones taken off again
    PRIMARY KEY (run_id, set_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE iterations (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    iteration      INTEGER NOT NULL CHECK (iteration >= 1),
    policy_in      INTEGER NOT NULL REFERENCES checkpoints(id),
    policy_out     INTEGER REFERENCES checkpoints(id),
    reference_id   INTEGER NOT NULL REFERENCES checkpoints(id), -- what its update is held to, by [train] reference
    config_sha256  TEXT    NOT NULL,
    prompts        INTEGER NOT NULL,           -- drawn
    evaluate       INTEGER NOT NULL,           -- evaluation_prompts 0..evaluate are used
    started_ms     INTEGER NOT NULL,
    ended_ms       INTEGER,
    cancelled_ms   INTEGER,
    config         TEXT    NOT NULL,           -- the frozen configuration, TOML; last, for it is long
    PRIMARY KEY (run_id, iteration)
) STRICT, WITHOUT ROWID;
CREATE INDEX iterations_ended ON iterations(run_id, ended_ms, cancelled_ms);

-- The prompts of an iteration, in training order.
CREATE TABLE draws (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    iteration      INTEGER NOT NULL,
    ordinal        INTEGER NOT NULL,
    prompt_id      INTEGER NOT NULL REFERENCES prompts(id),
    occurrence     INTEGER NOT NULL DEFAULT 0, -- among equal rendered prompts of this draw
    used_before    INTEGER NOT NULL DEFAULT 0, -- in so many earlier iterations; 0: a fresh prompt
    set_aside      TEXT,                       -- reason, where the prompt itself was refused
    returned_ms    INTEGER,                    -- the iteration was cancelled: back in the pool
    PRIMARY KEY (run_id, iteration, ordinal),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;
CREATE INDEX draws_by_prompt ON draws(prompt_id, run_id);

-- The reserved prompts that policies are compared on: one list a run, which only grows, so that
-- every policy answers the same prompts with the same random numbers.
CREATE TABLE evaluation_prompts (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    ordinal        INTEGER NOT NULL,
    prompt_id      INTEGER NOT NULL REFERENCES prompts(id),
    occurrence     INTEGER NOT NULL DEFAULT 0,
    set_aside      TEXT,
    PRIMARY KEY (run_id, ordinal),
    UNIQUE (prompt_id, run_id)
) STRICT, WITHOUT ROWID;

-- A prompt as the run's policy sees it.
CREATE TABLE prompt_ids (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    prompt_id      INTEGER NOT NULL REFERENCES prompts(id),
    tokens         INTEGER NOT NULL,
    ids_key        INTEGER NOT NULL,           -- equal ids have equal keys
    ids            BLOB    NOT NULL,
    PRIMARY KEY (prompt_id, run_id)
) STRICT, WITHOUT ROWID;

-- ── offline preferences: D_off, which an iteration trains on beside its own ─────────────────────

CREATE TABLE preference_sets (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    preferences    INTEGER NOT NULL DEFAULT 0, -- published
    created_ms     INTEGER NOT NULL
) STRICT;

CREATE TABLE offline_preferences (
    id             INTEGER PRIMARY KEY,
    upload_id      INTEGER NOT NULL REFERENCES uploads(id), -- and by it the set
    messages       TEXT    NOT NULL,           -- the prompt, JSON: [{"role", "content"}, …]
    chosen         TEXT    NOT NULL,
    rejected       TEXT    NOT NULL,
    sha256         BLOB    NOT NULL,           -- of prompt, chosen and rejected: 32 bytes
    CHECK (chosen <> rejected)
) STRICT;
CREATE INDEX offline_preferences_by_sum ON offline_preferences(sha256);
CREATE INDEX offline_preferences_by_upload ON offline_preferences(upload_id, id);

-- The offline preferences that a run has taken up: one list a run, which only grows, so that ids and
-- log-probs are made once and never again in later iterations.
CREATE TABLE offline_pairs (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    ordinal        INTEGER NOT NULL,
    offline_id     INTEGER NOT NULL REFERENCES offline_preferences(id),
    set_id         INTEGER NOT NULL REFERENCES preference_sets(id),
    prompt_tokens  INTEGER,                    -- null: not rendered
    pair_tokens    INTEGER,                    -- of the longer side, its prompt included
    set_aside      TEXT,                       -- reason, where it cannot be rendered
    PRIMARY KEY (run_id, ordinal),
    UNIQUE (offline_id, run_id)
) STRICT, WITHOUT ROWID;

-- An offline preference as the run's policy sees it.
CREATE TABLE offline_ids (
    run_id         INTEGER NOT NULL,
    ordinal        INTEGER NOT NULL,
    prompt_ids     BLOB    NOT NULL,
    chosen_ids     BLOB    NOT NULL,
    rejected_ids   BLOB    NOT NULL,
    PRIMARY KEY (run_id, ordinal),
    FOREIGN KEY (run_id, ordinal) REFERENCES offline_pairs(run_id, ordinal)
) STRICT, WITHOUT ROWID;

-- The sets that an iteration trains on, frozen at its start: offline_pairs 0..pairs_to of each.
CREATE TABLE iteration_sets (
    run_id         INTEGER NOT NULL,
    iteration      INTEGER NOT NULL,
    place          INTEGER NOT NULL,           -- in training order
    set_id         INTEGER NOT NULL REFERENCES preference_sets(id),
    pairs_to       INTEGER NOT NULL,
    weight         REAL    NOT NULL CHECK (weight > 0),
    tokens_max     INTEGER NOT NULL,           -- of a side with its prompt: longer pairs are over-long
    prompt_tokens_max INTEGER,
    PRIMARY KEY (run_id, iteration, place),
    UNIQUE (run_id, iteration, set_id),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;

-- ── training jobs, units, attempts, leases, devices ─────────────────────────────────────────────

CREATE TABLE training_jobs (
    id             INTEGER PRIMARY KEY,
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    kind           TEXT    NOT NULL CHECK (kind IN ('sft', 'reward', 'preference')),
    name           TEXT    NOT NULL,
    number         INTEGER NOT NULL,           -- among the jobs of this name, from 1
    upload_id      INTEGER REFERENCES uploads(id),
    config         TEXT    NOT NULL,
    config_sha256  TEXT    NOT NULL,
    base_path      TEXT,                       -- null: the policy of the run's start job, which is awaited
    base_sha256    TEXT,
    checkpoint_id  INTEGER REFERENCES checkpoints(id),
    status         TEXT    NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'done', 'failed', 'cancelled')),
    reason         TEXT,
    created_ms     INTEGER NOT NULL,
    started_ms     INTEGER,
    ended_ms       INTEGER,
    UNIQUE (run_id, kind, name, number)
) STRICT;
-- A job that failed or was cancelled leaves its name to another one; its row stays.
CREATE UNIQUE INDEX training_jobs_by_name ON training_jobs(run_id, kind, name)
    WHERE status IN ('open', 'done');

CREATE TABLE units (
    id             INTEGER PRIMARY KEY,
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    iteration      INTEGER,                    -- null: a training job's unit, or the run's probe
    job_id         INTEGER REFERENCES training_jobs(id),
    stage          TEXT    NOT NULL CHECK (stage IN
                     ('prompts', 'generate', 'label', 'pair', 'train', 'checkpoint', 'evaluate')),
    work           TEXT    NOT NULL,           -- probe, render, generate, score, pair, logprobs, train_dpo, …
    lane           TEXT    NOT NULL DEFAULT '',-- of evaluate: which policy answers; else empty
    key            TEXT    NOT NULL,           -- natural key within the run: iteration/stage/work/…
    -- The batch plan: ordinals from..to, computed together in groups of batch_items. Null: in one piece.
    from_item      INTEGER,
    to_item        INTEGER,
    batch_items    INTEGER,
    policy_id      INTEGER REFERENCES checkpoints(id), -- null in evaluate: what this iteration trained
    scorer_id      INTEGER REFERENCES scorers(id),
    detail         TEXT,                       -- JSON of control's own; of an evaluation's prefer the baseline's
                                               -- lane, of log-probs the earlier iteration whose draw is meant
    state          TEXT    NOT NULL CHECK (state IN
                     ('open', 'running', 'done', 'set_aside', 'split', 'cancelled')),
    deaths         INTEGER NOT NULL DEFAULT 0, -- those that the worker caused, since the last progress
    outside_deaths INTEGER NOT NULL DEFAULT 0,
    replanned      INTEGER NOT NULL DEFAULT 0 CHECK (replanned IN (0, 1)),
    last_step      INTEGER,                    -- of a train unit: the last saved step that an attempt reported
    split_from     INTEGER REFERENCES units(id),
    reason         TEXT,                       -- why it was set aside
    tokens         INTEGER,                    -- what the finished attempt computed
    seconds        REAL,
    created_ms     INTEGER NOT NULL,
    ended_ms       INTEGER,
    UNIQUE (run_id, key)
) STRICT;
CREATE INDEX units_unclosed ON units(run_id, iteration, lane, work, from_item, to_item) WHERE state IN ('open', 'running');
-- Those of one policy never overlap: whether a range is written takes one step a policy.
CREATE INDEX units_generating ON units(run_id, iteration, policy_id, from_item, to_item)
    WHERE work = 'generate' AND stage = 'generate' AND state IN ('open', 'running');
CREATE INDEX units_of_lanes ON units(run_id, lane) WHERE lane <> '';
-- Covers what `status` counts, so that it reads no row.
CREATE INDEX units_by_stage ON units(run_id, iteration, stage, state, from_item, to_item, tokens, seconds, scorer_id);
CREATE INDEX units_by_job ON units(job_id) WHERE job_id IS NOT NULL;

CREATE TABLE devices (
    id             INTEGER PRIMARY KEY,
    uuid           TEXT    NOT NULL UNIQUE,    -- the GPU's UUID, or 'cpu'
    kind           TEXT    NOT NULL CHECK (kind IN ('cpu', 'cuda')),
    name           TEXT    NOT NULL,
    memory_mib     INTEGER,
    present        INTEGER NOT NULL CHECK (present IN (0, 1)),
    seen_ms        INTEGER NOT NULL
) STRICT;

-- What was seen of devices and what was decided: a row where something changed, never one a look.
CREATE TABLE device_events (
    id             INTEGER PRIMARY KEY,
    at_ms          INTEGER NOT NULL,
    device         TEXT    NOT NULL,           -- the UUID, 'cpu', or 'driver'
    kind           TEXT    NOT NULL,           -- found, free, hot, silent, quiet, yielded, broken, lost, xid, lease, …
    seen           TEXT    NOT NULL,
    decision       TEXT    NOT NULL,
    reason         TEXT    NOT NULL,
    lease_id       INTEGER,                    -- that it touches
    unit_id        INTEGER
) STRICT;

-- By how much a kind of work needs more GPU memory than the plan says, or less: as measured.
CREATE TABLE memory_factors (
    work           TEXT    PRIMARY KEY,
    factor         REAL    NOT NULL CHECK (factor > 0),
    planned_mib    INTEGER NOT NULL,           -- of the last unit that was measured, before correction
    peak_mib       INTEGER NOT NULL,           -- that it had
    measured       INTEGER NOT NULL,           -- units so far
    at_ms          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    id             INTEGER PRIMARY KEY,
    stage          TEXT    NOT NULL,
    devices        TEXT    NOT NULL,           -- JSON: the UUIDs
    pid            INTEGER,
    worker         TEXT,                       -- version and libtorch, from its hello
    started_ms     INTEGER NOT NULL,
    ended_ms       INTEGER,
    end_cause      TEXT
) STRICT;
CREATE INDEX leases_open ON leases(id) WHERE ended_ms IS NULL;

CREATE TABLE attempts (
    id             INTEGER PRIMARY KEY,
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    lease_id       INTEGER REFERENCES leases(id),  -- null: done by the control plane itself
    number         INTEGER NOT NULL,               -- 1, 2, … within the unit
    first_step     INTEGER,                        -- of a train unit: the first step that it made itself
    started_ms     INTEGER NOT NULL,
    ended_ms       INTEGER,
    outcome        TEXT CHECK (outcome IN ('finished', 'died', 'failed', 'cancelled')),
    cause          TEXT,                           -- exit, signal, oom, stalled, silent, disk, input, …
    counted        INTEGER CHECK (counted IN (0, 1)),
    message        TEXT,
    UNIQUE (unit_id, number)
) STRICT;
CREATE UNIQUE INDEX attempts_one_finished ON attempts(unit_id) WHERE outcome = 'finished';
CREATE INDEX attempts_open ON attempts(id) WHERE ended_ms IS NULL;

-- ── generate ────────────────────────────────────────────────────────────────────────────────────

-- An iteration's ways to sample, frozen at its start: words such as "previous" are checkpoints here.
CREATE TABLE iteration_arms (
    run_id         INTEGER NOT NULL,
    iteration      INTEGER NOT NULL,
    arm            INTEGER NOT NULL,           -- its place in the configuration, from 0
    name           TEXT    NOT NULL,
    policy_id      INTEGER NOT NULL REFERENCES checkpoints(id),
    temperature    REAL    NOT NULL,
    top_p          REAL    NOT NULL,
    top_k          INTEGER NOT NULL,
    n              INTEGER NOT NULL,           -- responses a prompt
    first_sample   INTEGER NOT NULL,           -- samples count over all arms
    PRIMARY KEY (run_id, iteration, arm),
    UNIQUE (run_id, iteration, name),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;

CREATE TABLE responses (
    id             INTEGER PRIMARY KEY,
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    purpose        TEXT    NOT NULL CHECK (purpose IN ('generate', 'evaluate')),
    iteration      INTEGER NOT NULL,           -- of the draw that it belongs to
    ordinal        INTEGER NOT NULL,           -- of the prompt in that draw, or in evaluation_prompts
    prompt_id      INTEGER NOT NULL,           -- of prompts; no index, so no key that would need one
    policy_id      INTEGER NOT NULL REFERENCES checkpoints(id),
    lane           TEXT    NOT NULL DEFAULT '',-- as its unit's
    arm            TEXT    NOT NULL,
    temperature    REAL    NOT NULL,
    sample         INTEGER NOT NULL,           -- over all arms
    seed           INTEGER NOT NULL,           -- the run's seed: with the key's other parts it names the random numbers
    finish         TEXT    NOT NULL CHECK (finish IN ('stop', 'length')),
    tokens         INTEGER NOT NULL,
    characters     INTEGER NOT NULL,
    logprob        REAL    NOT NULL,           -- nats, summed, at temperature 1, stop id included
    text_key       INTEGER NOT NULL,           -- equal texts have equal keys
    replanned      INTEGER NOT NULL DEFAULT 0,
    unit_id        INTEGER NOT NULL REFERENCES units(id)
) STRICT;
CREATE UNIQUE INDEX responses_generated ON responses(run_id, iteration, ordinal, sample) WHERE purpose = 'generate';
CREATE UNIQUE INDEX responses_evaluated ON responses(run_id, lane, ordinal, sample) WHERE purpose = 'evaluate';

CREATE TABLE response_texts (
    response_id    INTEGER PRIMARY KEY REFERENCES responses(id) ON DELETE CASCADE,
    text           TEXT    NOT NULL,
    ids            BLOB    NOT NULL,
    logprobs       BLOB    NOT NULL
) STRICT;

-- ── label ───────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE scorers (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind IN ('reward', 'preference')),
    path           TEXT    NOT NULL,
    sha256         TEXT    NOT NULL,
    UNIQUE (name, sha256)
) STRICT;

-- A reward model labels one response; a preference model pairs of them (versus_id), of which each
-- response has its score. In evaluation it labels pairs alone: a policy's answer and its baseline's.
CREATE TABLE labels (
    id             INTEGER PRIMARY KEY,
    response_id    INTEGER NOT NULL REFERENCES responses(id) ON DELETE CASCADE,
    versus_id      INTEGER REFERENCES responses(id) ON DELETE CASCADE,
    scorer_id      INTEGER NOT NULL REFERENCES scorers(id),
    score          REAL,                       -- null: set aside
    preference     REAL,                       -- P(response beats versus)
    set_aside      TEXT,                       -- reason
    unit_id        INTEGER NOT NULL REFERENCES units(id)
) STRICT;
CREATE UNIQUE INDEX labels_by_key ON labels(response_id, scorer_id, coalesce(versus_id, 0));

-- What shaped an iteration's combined scores, written with its pairs: a row a scorer, and one of the
-- sum. combined = Σ weight × normalised score − length_penalty × length.
CREATE TABLE scorer_totals (
    run_id         INTEGER NOT NULL,
    iteration      INTEGER NOT NULL,
    scorer_id      INTEGER NOT NULL REFERENCES scorers(id),
    weight         REAL    CHECK (weight > 0), -- null: a canary, which pairing never uses
    normalise      TEXT    NOT NULL CHECK (normalise IN ('none', 'standard', 'rank')),
    labelled       INTEGER NOT NULL,           -- labelled + set_aside = the iteration's responses
    set_aside      INTEGER NOT NULL,
    score_mean     REAL,                       -- null: nothing was labelled
    score_deviation REAL,
    PRIMARY KEY (run_id, iteration, scorer_id),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;

CREATE TABLE label_fits (
    run_id         INTEGER NOT NULL,
    iteration      INTEGER NOT NULL,
    responses      INTEGER NOT NULL,           -- with a combined score
    unscored       INTEGER NOT NULL,           -- a scorer with a weight set them aside: no candidates
    score_mean     REAL,                       -- of the combined scores
    length_unit    TEXT    NOT NULL CHECK (length_unit IN ('characters', 'tokens')),
    length_penalty REAL    NOT NULL CHECK (length_penalty >= 0), -- score per unit of length
    fitted         INTEGER NOT NULL CHECK (fitted IN (0, 1)),
    correlation_before REAL,                   -- Spearman's, of score and length, without the penalty
    correlation_after REAL,                    -- with it; null: scores or lengths do not vary
    PRIMARY KEY (run_id, iteration),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;

-- ── pair ────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE preferences (
    id             INTEGER PRIMARY KEY,
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    iteration      INTEGER NOT NULL,
    ordinal        INTEGER NOT NULL,           -- of the prompt
    rank           INTEGER NOT NULL DEFAULT 0, -- where a prompt gives several: the widest gap is 0
    prompt_id      INTEGER NOT NULL,
    chosen_id      INTEGER NOT NULL REFERENCES responses(id),
    rejected_id    INTEGER NOT NULL REFERENCES responses(id),
    chosen_score   REAL    NOT NULL,           -- combined, as label_fits tells
    rejected_score REAL    NOT NULL,
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    CHECK (chosen_id <> rejected_id),
    CHECK (chosen_score > rejected_score),
    UNIQUE (run_id, iteration, ordinal, rank)
) STRICT;

-- Every drawn prompt that gave no preference, and why: tie, or without a pair for another reason,
-- or set aside. preferences ∪ unpaired = the draw; asserted before training.
CREATE TABLE unpaired (
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    iteration      INTEGER NOT NULL,
    ordinal        INTEGER NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind IN ('tie', 'without_pair', 'set_aside')),
    reason         TEXT    NOT NULL,
    PRIMARY KEY (run_id, iteration, ordinal)
) STRICT, WITHOUT ROWID;

-- ── train ───────────────────────────────────────────────────────────────────────────────────────

-- Per (response, reference): kept as long as the reference's files, never computed twice.
CREATE TABLE reference_logprobs (
    response_id    INTEGER NOT NULL REFERENCES responses(id) ON DELETE CASCADE,
    reference_id   INTEGER NOT NULL REFERENCES checkpoints(id),
    logprob        REAL    NOT NULL,
    tokens         INTEGER NOT NULL,
    logprobs       BLOB    NOT NULL,
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    PRIMARY KEY (response_id, reference_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX reference_logprobs_by_reference ON reference_logprobs(reference_id);

-- Of both sides of an offline pair, per reference: kept as long as its files, never computed twice.
CREATE TABLE offline_logprobs (
    run_id         INTEGER NOT NULL,
    ordinal        INTEGER NOT NULL,
    reference_id   INTEGER NOT NULL REFERENCES checkpoints(id),
    chosen         REAL,                       -- nats, summed; null: set aside
    rejected       REAL,
    chosen_logprobs   BLOB,
    rejected_logprobs BLOB,
    set_aside      TEXT,                       -- reason
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    PRIMARY KEY (run_id, ordinal, reference_id),
    FOREIGN KEY (run_id, ordinal) REFERENCES offline_pairs(run_id, ordinal),
    CHECK ((chosen IS NULL) = (set_aside IS NOT NULL) AND (rejected IS NULL) = (chosen IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX offline_logprobs_by_reference ON offline_logprobs(reference_id);

-- What an update was trained on, in order: a preference of an iteration, or an offline one.
CREATE TABLE training_set_members (
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    position       INTEGER NOT NULL,
    preference_id  INTEGER REFERENCES preferences(id),
    offline_id     INTEGER REFERENCES offline_preferences(id),
    weight         REAL    NOT NULL DEFAULT 1 CHECK (weight > 0),
    CHECK ((preference_id IS NULL) <> (offline_id IS NULL)),
    PRIMARY KEY (unit_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE training_steps (
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    step           INTEGER NOT NULL,           -- from 1
    loss           REAL    NOT NULL,
    lr             REAL    NOT NULL,           -- the rate applied
    grad_norm      REAL    NOT NULL,           -- before clipping
    accuracy       REAL,
    margin         REAL,
    implicit_reward_chosen   REAL,
    implicit_reward_rejected REAL,
    token_accuracy REAL,
    PRIMARY KEY (unit_id, step)
) STRICT, WITHOUT ROWID;

-- What a trained reward model is worth on preferences that were held out from its training.
CREATE TABLE training_reports (
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    source         TEXT    NOT NULL,           -- as the data names it; empty: all of them
    pairs          INTEGER NOT NULL,
    accuracy       REAL    NOT NULL,
    calibration_error REAL NOT NULL,           -- expected, over ten bins
    responses      INTEGER NOT NULL,
    length_correlation REAL,                   -- Pearson's, of score and tokens; null: one of them is constant
    PRIMARY KEY (unit_id, source)
) STRICT, WITHOUT ROWID;

-- ── checkpoint ──────────────────────────────────────────────────────────────────────────────────

CREATE TABLE checkpoints (
    id             INTEGER PRIMARY KEY,
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    name           TEXT    NOT NULL,           -- base, initial, reference, iteration-0001, reference-0001, sft-NAME, reward-NAME, …
    kind           TEXT    NOT NULL CHECK (kind IN ('base', 'initial', 'reference', 'policy', 'reward', 'preference')),
    iteration      INTEGER,
    parent_id      INTEGER REFERENCES checkpoints(id),
    reference_id   INTEGER REFERENCES checkpoints(id), -- of a moving average the one before; parent: its policy
    path           TEXT    NOT NULL,           -- relative to the state folder where it lies in there
    sha256         TEXT    NOT NULL,           -- of its manifest
    bytes          INTEGER NOT NULL DEFAULT 0,
    sound          INTEGER NOT NULL DEFAULT 1 CHECK (sound IN (0, 1)),
    rejected       INTEGER NOT NULL DEFAULT 0 CHECK (rejected IN (0, 1)), -- the gate kept the old head
    pinned         INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)), -- `rlhfctl pin`: its files stay
    -- Its files are superfluous: marked first, then removed, then marked as gone. The row stays.
    removal_ms     INTEGER,                    -- null: nobody wants them removed
    removal_why    TEXT,
    removed_ms     INTEGER,                    -- null: not gone yet
    logprobs_swept INTEGER CHECK (logprobs_swept IN (0, 1)), -- under it: null: all stand; 0: some went; 1: all
    unit_id        INTEGER REFERENCES units(id),
    created_ms     INTEGER NOT NULL,
    UNIQUE (run_id, name)
) STRICT;

-- ── evaluate ────────────────────────────────────────────────────────────────────────────────────

-- One row per (policy, baseline, scorer, temperature), over all reserved prompts of the iteration that
-- both answered. Baselines are the initial policy and, where it is another, the one that the iteration
-- began with. `gain` is the difference of mean score to the baseline, paired by prompt and sample;
-- intervals are 95 %, by a seeded bootstrap over prompts. By a preference model, score_mean and win_rate
-- are the mean P(policy's answer beats the baseline's), and gain is that - 0.5.
CREATE TABLE evaluations (
    id             INTEGER PRIMARY KEY,
    run_id         INTEGER NOT NULL REFERENCES runs(id),
    iteration      INTEGER NOT NULL,           -- 0: the initial policy itself
    policy_id      INTEGER NOT NULL REFERENCES checkpoints(id),
    baseline_id    INTEGER NOT NULL REFERENCES checkpoints(id),
    scorer_id      INTEGER NOT NULL REFERENCES scorers(id),
    temperature    REAL    NOT NULL,
    prompts        INTEGER NOT NULL,
    responses      INTEGER NOT NULL,
    score_mean     REAL    NOT NULL,
    gain           REAL    NOT NULL,
    gain_low       REAL    NOT NULL,
    gain_high      REAL    NOT NULL,
    win_rate       REAL    NOT NULL,           -- against the baseline, ties one half
    win_rate_low   REAL    NOT NULL,
    win_rate_high  REAL    NOT NULL,
    response_tokens_mean REAL NOT NULL,
    truncated_share REAL   NOT NULL,
    kl_k3          REAL,                       -- to the iteration's reference, nats a response; at temperature 1 only
    unit_id        INTEGER NOT NULL REFERENCES units(id),
    repeated_share REAL    NOT NULL,           -- 1 − different texts / responses, over all prompts
    entropy        REAL,                       -- nats a token: −mean log-prob; at temperature 1 only
    UNIQUE (run_id, iteration, policy_id, baseline_id, scorer_id, temperature)
) STRICT;

-- What a gate looked at before the head moved: a row for each limit of [gate].
CREATE TABLE gate_verdicts (
    run_id         INTEGER NOT NULL,
    iteration      INTEGER NOT NULL,
    figure         TEXT    NOT NULL CHECK (figure IN
                     ('win_rate', 'kl_k3', 'length_growth', 'chosen_logprob_fall', 'canary_gain')),
    against        TEXT    NOT NULL CHECK (against IN ('initial', 'previous', 'reference')),
    bound          TEXT    NOT NULL CHECK (bound IN ('min', 'max')),
    limit_value    REAL    NOT NULL,
    value          REAL,                       -- null: not measured, and so not held
    held           INTEGER NOT NULL CHECK (held IN (0, 1)),
    PRIMARY KEY (run_id, iteration, figure),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;

-- ── what a stage gave, written once when it ends ────────────────────────────────────────────────

CREATE TABLE iteration_totals (
    run_id         INTEGER NOT NULL,
    iteration      INTEGER NOT NULL,
    prompts        INTEGER,
    responses      INTEGER,
    preferences    INTEGER,
    ties           INTEGER,
    without_pair   INTEGER,
    set_aside      INTEGER,
    score_mean     REAL,
    score_gap_mean REAL,
    response_tokens_mean REAL,
    truncated_share REAL,
    loss_last      REAL,
    accuracy_last  REAL,
    margin_last    REAL,
    kl_k3          REAL,
    eval_score_mean REAL,
    eval_win_rate  REAL,
    generate_s     REAL,
    label_s        REAL,
    train_s        REAL,
    evaluate_s     REAL,
    device         TEXT,
    length_penalty REAL,
    score_length_correlation REAL,
    canary_score_mean REAL,
    offline        INTEGER,
    gate           TEXT,                       -- passed, or failed and why; null: no gate
    divergence     TEXT,                       -- how the update went wrong; null: it did not
    PRIMARY KEY (run_id, iteration),
    FOREIGN KEY (run_id, iteration) REFERENCES iterations(run_id, iteration)
) STRICT, WITHOUT ROWID;

-- ── events ──────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE events (
    id             INTEGER PRIMARY KEY,
    at_ms          INTEGER NOT NULL,
    level          TEXT    NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    kind           TEXT    NOT NULL,           -- a word that SQL can group by
    run_id         INTEGER REFERENCES runs(id),
    iteration      INTEGER,
    unit_id        INTEGER,
    uid            INTEGER,                    -- of the peer whose request it was
    message        TEXT    NOT NULL,
    data           TEXT                        -- JSON
) STRICT;
CREATE INDEX events_by_kind ON events(kind, id);

-- ── views that users rely on ────────────────────────────────────────────────────────────────────

CREATE VIEW iteration_history AS
SELECT r.name                            AS run,
       i.iteration                       AS iteration,
       CASE WHEN i.cancelled_ms IS NOT NULL THEN 'cancelled'
            WHEN i.ended_ms IS NOT NULL THEN 'done'
            WHEN r.paused_reason IS NOT NULL THEN 'paused'
            ELSE 'running' END           AS status,
       pin.name                          AS policy_in,
       pout.name                         AS policy_out,
       ref.name                          AS reference,
       t.prompts, t.responses, t.preferences, t.ties, t.without_pair, t.set_aside,
       t.score_mean, t.score_gap_mean, t.response_tokens_mean, t.truncated_share,
       t.loss_last, t.accuracy_last, t.margin_last,
       t.kl_k3, t.eval_score_mean, t.eval_win_rate,
       t.generate_s, t.label_s, t.train_s, t.evaluate_s, t.device,
       i.started_ms, i.ended_ms,
       t.length_penalty, t.score_length_correlation, t.canary_score_mean,
       t.offline, t.gate, t.divergence
FROM iterations i
JOIN runs r ON r.id = i.run_id
JOIN checkpoints pin ON pin.id = i.policy_in
LEFT JOIN checkpoints pout ON pout.id = i.policy_out
JOIN checkpoints ref ON ref.id = i.reference_id
LEFT JOIN iteration_totals t ON t.run_id = i.run_id AND t.iteration = i.iteration;

CREATE VIEW checkpoint_lineage AS
WITH RECURSIVE line(id, ancestor_id, depth) AS (
    SELECT id, id, 0 FROM checkpoints
    UNION ALL
    SELECT line.id, c.parent_id, line.depth + 1
    FROM line JOIN checkpoints c ON c.id = line.ancestor_id
    WHERE c.parent_id IS NOT NULL
)
SELECT r.name || '/' || c.name AS checkpoint,
       r.name || '/' || a.name AS ancestor,
       line.depth              AS depth,
       a.iteration             AS iteration,
       a.path                  AS path,
       a.sha256                AS sha256
FROM line
JOIN checkpoints c ON c.id = line.id
JOIN checkpoints a ON a.id = line.ancestor_id
JOIN runs r ON r.id = c.run_id;
