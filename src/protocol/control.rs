//! rlhfctl ↔ rlhfd: what travels over the control socket, HTTP/1.1 with JSON bodies.
//!
//! | Request | Body | Answer |
//! |---|---|---|
//! | `GET /v1/status` | – | [`Status`] |
//! | `GET /v1/runs` | – | [`Runs`] |
//! | `GET /v1/prompt-sets` | – | [`PromptSets`] |
//! | `POST /v1/prompt-sets/{name}` | [`PromptSetOrder`] | [`Done`] |
//! | `POST /v1/prompt-sets/{name}/prompts?reserve=&priority=&weight=&skip_bad=&client_key=` | JSONL | [`PromptsAdded`] |
//! | `GET /v1/preference-sets` | – | [`PreferenceSets`] |
//! | `POST /v1/preference-sets/{name}/preferences?skip_bad=&client_key=` | JSONL | [`PreferencesAdded`] |
//! | `GET /v1/iterations` | – | [`Table`] of the view `iteration_history` |
//! | `GET /v1/checkpoints?lineage=` | – | [`Table`] |
//! | `GET /v1/training-jobs` | – | [`Jobs`] |
//! | `POST /v1/training-jobs/{kind}/{name}?skip_bad=&client_key=` | JSONL | [`JobAdded`] |
//! | `GET /v1/devices?history=` | – | [`Devices`] |
//! | `GET /v1/events?since=&last=&follow=` | – | [`Event`]s: SSE or NDJSON |
//! | `POST /v1/start`, `/v1/pause`, `/v1/resume`, `/v1/cancel`, `/v1/rollback`, `/v1/pin`, `/v1/unpin`, `/v1/backup` | [`Command`] | [`Done`] |
//! | `POST /v1/doctor` | [`Command`] | [`Doctor`] |
//! | `POST /v1/sql` | [`Sql`] | [`Table`] |
//!
//! Every error is an [`ErrorBody`]. A request's unknown keys are errors; an answer's unknown keys are
//! passed over, so that an older client reads a newer daemon. May not enter: HTTP itself, I/O.

mod commands;
mod devices;
mod doctor;
mod errors;
mod events;
mod jobs;
pub mod lines;
mod names;
mod preferences;
mod prompts;
pub mod reward_lines;
mod runs;
mod status;
mod tables;

pub use commands::{Command, Done};
pub use devices::{DeviceEvent, Devices, DevicesQuery};
pub use doctor::{Doctor, Finding};
pub use errors::{BadLine, ErrorBody, ErrorDetail};
pub use events::{Event, EventsQuery};
pub use jobs::{Job, JobAdded, Jobs, UploadQuery};
pub use names::check_name;
pub use preferences::{PreferenceSet, PreferenceSets, PreferencesAdded};
pub use prompts::{PromptSet, PromptSetOrder, PromptSets, PromptsAdded, PromptsQuery};
pub use runs::{Run, Runs};
pub use status::{
    DeviceStatus, IterationStatus, JobStatus, LeaseStatus, PromptsStatus, RunStatus, ScorerStatus,
    StageStatus, Status,
};
pub use tables::{Sql, Table};

/// The environment variable that names the control socket.
pub const SOCKET_ENV: &str = "RLHFD_SOCKET";

/// Where the system's daemon serves.
pub const SYSTEM_SOCKET: &str = "/run/rlhfd/rlhfd.sock";

/// Where a user's own daemon serves, below `$XDG_RUNTIME_DIR`.
pub const USER_SOCKET: &str = "rlhfd.sock";

/// The longest path that the kernel takes for a Unix socket, without the final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How many bad lines of an upload are named; the others are counted.
pub const BAD_LINES_MAX: usize = 200;

/// The answer's header that names the daemon's version.
pub const VERSION_HEADER: &str = "rlhfd-version";
