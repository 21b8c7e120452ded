//! Hard ceilings: every loop, queue, text and retry has one, and it stands here.
//!
//! In: nothing. Out: numbers with their reasons. A limit that an operator may choose is a knob of the
//! configuration; these are the outer bounds of all knobs. May not enter: logic.

/// Counted deaths at which a unit is split, set aside, or pauses its run.
pub const COUNTED_DEATHS_MAX: u32 = 2;
/// Deaths from outside at which even those end a unit: something kills it on purpose.
pub const OUTSIDE_DEATHS_MAX: u32 = 50;

/// The longest prompt, as UTF-8 bytes of all contents: far above any context, far below a frame.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;
/// The most turns of a prompt.
pub const PROMPT_MESSAGES_MAX: usize = 1_000;
/// The longest role name of a turn.
pub const ROLE_BYTES_MAX: usize = 32;
/// The longest line of an upload.
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Prompt rows a transaction takes in: short enough that others get their turn (about 20 ms).
pub const UPLOAD_BATCH_ROWS: usize = 2_000;
/// Rows that a sweep deletes in one transaction.
pub const SWEEP_BATCH_ROWS: u32 = 2_000;
/// Offline preferences that a run may take up.
pub const OFFLINE_PAIRS_MAX: u64 = 1_000_000;
/// Tokens of a side of an offline pair with its prompt: the ids of both sides fit one frame.
pub const PAIR_TOKENS_MAX: u32 = 65_536;
/// Uploads that may be open at once.
pub const UPLOADS_OPEN_MAX: u64 = 64;
/// Characters of a client's key.
pub const CLIENT_KEY_BYTES_MAX: usize = 200;

/// Prompts that one iteration may draw.
pub const ITERATION_PROMPTS_MAX: u64 = 1_000_000;
/// Reserved prompts that an evaluation may use.
pub const EVALUATE_PROMPTS_MAX: u64 = 100_000;
/// Responses a prompt, over all arms.
pub const SAMPLES_MAX: u32 = 1_024;
/// Tokens of a response.
pub const RESPONSE_TOKENS_MAX: u32 = 131_072;
/// Responses that a length penalty is fitted to; of more, a counted share: some megabytes and a
/// second of sorting.
pub const FIT_RESPONSES_MAX: u64 = 100_000;
/// Units that one iteration may be cut into.
pub const ITERATION_UNITS_MAX: usize = 200_000;
/// Bootstrap samples of an evaluation.
pub const BOOTSTRAP_SAMPLES_MAX: u32 = 100_000;

/// Rows that one answer of a list may have.
pub const LIST_ROWS_MAX: u32 = 10_000;
/// Training pairs that are read from the store at once.
pub const PAIRS_PAGE_ROWS: u32 = 1_000;

/// Rows of an answer to `sql`.
pub const SQL_ROWS_MAX: u32 = 10_000;
/// Bytes of an answer to `sql`.
pub const SQL_ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one value that `sql` may build.
pub const SQL_VALUE_BYTES_MAX: i32 = 4 * 1024 * 1024;
/// Bytes of a statement of `sql`.
pub const SQL_TEXT_BYTES_MAX: i32 = 64 * 1024;
/// Milliseconds that a statement of `sql` may take.
pub const SQL_TIME_MS_MAX: u64 = 10_000;

/// Rows of the devices' timeline that are kept; the oldest go.
pub const DEVICE_EVENTS_MAX: u64 = 50_000;

/// Characters of a reason or message kept in a row.
pub const MESSAGE_CHARS_MAX: usize = 2_000;
/// Events that one read returns.
pub const EVENTS_PAGE_ROWS: u32 = 1_000;
