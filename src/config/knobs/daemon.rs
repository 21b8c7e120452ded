//! Knobs of the machine: socket, store, devices, scheduler, workers. They change nothing that an
//! iteration computes, and are not frozen with it.
//!
//! In: nothing. Out: rows.

use super::{Kind, Knob, Section, count};

const OURS: &str = "ours";

pub(crate) static CONTROL: Section = Section {
    name: "control",
    repeated: false,
    doc: "The socket's second door, and what one question may cost.",
    frozen: false,
    knobs: &[
        Knob::unset(
            "readers_socket",
            Kind::Path,
            "no second socket",
            "\"/run/rlhfd/readers.sock\"",
        )
        .doc("a second socket, for GET and `sql` only, for people who may look but not steer")
        .source(OURS),
        Knob::new("sql_rows_max", count(1, 1_000_000), "10000")
            .unit("rows")
            .doc("a `rlhfctl sql` answer is cut here, and says so")
            .source(OURS),
        Knob::new("sql_time_ms", count(1, 600_000), "10000")
            .unit("milliseconds")
            .doc("a `rlhfctl sql` question that takes longer is stopped")
            .source(OURS),
    ],
};

pub(crate) static STORE: Section = Section {
    name: "store",
    repeated: false,
    doc: "The disk that the state folder lies on.",
    frozen: false,
    knobs: &[
        Knob::new("disk_free_min_mib", count(0, 1 << 40), "1024")
            .unit("MiB")
            .doc(
                "with less free than this (and the checkpoint to come) the stage pauses, and goes \
                  on by itself when there is room; too low: writes fail half-way",
            )
            .source(OURS),
        Knob::new("budget_mib", count(0, 1 << 40), "0")
            .unit("MiB")
            .doc(
                "what the state folder may take in all; the stage pauses before it is more; 0: the \
                  disk itself is the limit",
            )
            .source(OURS),
        Knob::new("keep_checkpoints", count(0, 1_000_000), "5")
            .unit("checkpoints")
            .doc(
                "the files of the newest so many stay, and with them those of head, best, pinned \
                  (`rlhfctl pin`), initial and reference; older ones go, and with them the log-probs under \
                  them; their rows stay; 0: all stay",
            )
            .source(OURS),
        Knob::new("keep_responses", count(0, 1_000_000), "10")
            .unit("iterations")
            .doc(
                "responses of older iterations that no preference has lose text and ids, their rows \
                  and scores stay; answers of evaluations keep theirs; 0: all texts stay",
            )
            .source(OURS),
        Knob::new("keep_events_days", count(0, 36_500), "365")
            .unit("days")
            .doc("older events go; 0: all stay")
            .source(OURS),
        Knob::new("log_max_mib", count(1, 1 << 20), "256")
            .unit("MiB")
            .doc(
                "a write-ahead log larger than this is told as an event, with the programs that read the \
                  database: one that never ends its reading lets the log grow",
            )
            .source(OURS),
        Knob::new("disk_probe_ms", count(100, 3_600_000), "15000")
            .unit("milliseconds")
            .doc("how often a full or failing disk is tried again")
            .source(OURS),
    ],
};

pub(crate) static DEVICES: Section = Section {
    name: "devices",
    repeated: false,
    doc: "What the workers may compute on.",
    frozen: false,
    knobs: &[
        Knob::new("use", Kind::Devices, "\"auto\"")
            .doc(
                "\"auto\" (every GPU that NVML names, else the CPU), or a list: \"cpu\", indices, \
                  UUIDs",
            )
            .source(OURS),
        Knob::new("reserve_mib", count(0, 1 << 24), "1024")
            .unit("MiB of each GPU")
            .doc(
                "left free beside what a job is planned to need; too low: out of memory; too high: \
                  smaller batches",
            )
            .source(OURS),
        Knob::new("temperature_max_c", count(0, 150), "85")
            .unit("degrees Celsius")
            .doc(
                "a GPU above it gets no new unit until it is 5 degrees cooler (what runs goes on); 0: \
                  no limit; too low: a busy GPU stands idle between units",
            )
            .source("ours; data-centre GPUs slow themselves down at about 87"),
        Knob::new("quiet_hours", Kind::Hours, "[]")
            .doc(
                "hours in which nothing is computed, in UTC: units that run are finished, a training \
                  stops at a step and goes on afterwards",
            )
            .source(OURS),
        Knob::new("yield_above_mib", count(0, 1 << 24), "0")
            .unit("MiB of a GPU")
            .doc(
                "a GPU of which others use more than this is left to them, as in quiet hours; 0: \
                  never. What workers hold themselves is known to about 500 MiB",
            )
            .source(OURS),
        Knob::new("yield_for_s", count(0, 604_800), "300")
            .unit("seconds")
            .doc("a GPU that was left to others is taken again after it was free for so long")
            .source(OURS),
        Knob::new("look_ms", count(50, 600_000), "5000")
            .unit("milliseconds")
            .doc(
                "how often the devices are looked at; where yield_above_mib is set, at least two \
                  heartbeats",
            )
            .source(OURS),
    ],
};

pub(crate) static SCHEDULER: Section = Section {
    name: "scheduler",
    repeated: false,
    doc: "How work is cut, and how long silence is borne.",
    frozen: false,
    knobs: &[
        Knob::new("unit_tokens_cpu", count(1, 1 << 32), "20000")
            .unit("tokens of a unit")
            .doc(
                "one to five minutes of a small model on a CPU; smaller: more bookkeeping; larger: \
                  more is done again after a crash",
            )
            .source("ours, at some 100 to 300 tokens a second"),
        Knob::new("unit_tokens_gpu", count(1, 1 << 36), "500000")
            .unit("tokens of a unit")
            .doc("the same on a GPU")
            .source("ours, at some 2,000 to 8,000 tokens a second"),
        Knob::new("heartbeat_ms", count(50, 60_000), "1000")
            .unit("milliseconds")
            .doc("how often a worker says that it lives")
            .source(OURS),
        Knob::new("silence_timeout_s", count(1, 86_400), "60")
            .unit("seconds")
            .doc(
                "a worker that sends nothing at all for so long is ended; counts against no unit; \
                  at least three heartbeats",
            )
            .source(OURS),
        Knob::new("progress_timeout_s", count(1, 86_400), "900")
            .unit("seconds")
            .doc(
                "a worker whose heartbeats come while its computing stands still for so long is \
                  ended; counts against its unit; too low: slow steps are killed while healthy",
            )
            .source(OURS),
        Knob::new("load_timeout_s", count(1, 86_400), "1800")
            .unit("seconds")
            .doc("longest time for a worker to start and load its models")
            .source(OURS),
        Knob::new("step_timeout_s", count(1, 86_400), "900")
            .unit("seconds")
            .doc(
                "a step of the daemon itself (the sum of a large model, an iteration's folder) that lasts \
                  longer is told, by status and an event: as a rule a disk does not answer; it is not ended",
            )
            .source(OURS),
        Knob::new("stop_timeout_s", count(1, 3_600), "30")
            .unit("seconds")
            .doc(
                "a training asked to leave is killed after this; a save of its state that would take longer \
                  is not begun. The service manager is asked for so much time",
            )
            .source("ours; below TimeoutStopSec=45s of systemd/rlhfd.service"),
    ],
};

pub(crate) static WORKER: Section = Section {
    name: "worker",
    repeated: false,
    doc: "The processes that compute.",
    frozen: false,
    knobs: &[
        Knob::unset(
            "program",
            Kind::Path,
            "`rlhfd-worker` beside `rlhfd`, else in PATH",
            "\"/usr/bin/rlhfd-worker\"",
        )
        .doc("the worker's program")
        .source(OURS),
        Knob::unset(
            "libtorch",
            Kind::Path,
            "RLHFD_LIBTORCH, then ../lib/rlhfd/libtorch beside the worker, then the project's folder",
            "\"/opt/libtorch\"",
        )
        .doc("the folder of libtorch 2.11.0")
        .source(OURS),
        Knob::new("threads", count(0, 4096), "0")
            .unit("threads")
            .doc("threads of one worker on the CPU; 0: one a core. Another number gives other bits")
            .source(OURS),
        Knob::new("nice", count(0, 19), "10")
            .doc("how far workers stand back for other processes")
            .source(OURS),
    ],
};
