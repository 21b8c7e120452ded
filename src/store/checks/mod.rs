//! Checks of the store on databases of their own: opening, uploads, draws, the journal, a whole
//! iteration, and the fences around `sql`.
//!
//! In: temporary folders. Out: verdicts. May not enter: sleeping, the network, a state folder in use.

mod arms;
mod deaths;
mod diverged;
mod draw;
mod flow;
mod gate;
mod iteration;
mod labels;
mod offline;
mod opening;
mod overlap;
mod references;
mod retention;
mod sql_verb;
mod storms;
mod upload;

use rlhfd_domain::{BatchPlan, Name, RunId, Stage, UploadId, WorkKind, plan, prompt};
use tempfile::TempDir;

use crate::{
    Finish, ModelIdentity, NewPrompt, NewUnit, NewUpload, Outcome, Publish, Rendered, Run,
    RunIdentity, SetAsked, Store, UnitRow, Upload, UploadKind, UploadOpened,
};

pub(crate) const NOW: i64 = 1_700_000_000_000;

/// A store in a folder of its own.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    /// What a `kill -9` leaves: the files as they are now, in another folder, opened anew.
    pub(crate) fn after_a_kill(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("db")).unwrap();
        for file in std::fs::read_dir(self.dir.path().join("db")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.path().join("db").join(file.file_name())).unwrap();
        }
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    pub(crate) fn run(&mut self) -> Run {
        self.store.open_run(&identity("main", 7, "a"), NOW).unwrap()
    }

    pub(crate) fn open(&mut self, set: &str, share: f64) -> UploadId {
        match self.store.open_upload(&new_upload(set, share), NOW).unwrap() {
            UploadOpened::Fresh(upload) => upload.id,
            UploadOpened::Done(upload) => panic!("{upload:?} is done already"),
        }
    }

    pub(crate) fn publish(&mut self, upload: UploadId) -> Upload {
        loop {
            if let Publish::Done(done) = self.store.publish_upload(upload, None, NOW).unwrap() {
                return *done;
            }
        }
    }

    /// Publishes prompts of these texts in one upload.
    pub(crate) fn add(&mut self, set: &str, share: f64, texts: &[String]) -> Upload {
        let upload = self.open(set, share);
        for rows in texts.chunks(1_000) {
            let rows: Vec<NewPrompt> = rows.iter().map(|text| a_prompt(text)).collect();
            self.store.append_prompts(upload, &rows).unwrap();
        }
        self.publish(upload)
    }

    /// The only number that a statement gives.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        self.store.conn.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    pub(crate) fn ready(&self, run: RunId) -> Vec<String> {
        self.store.ready_units(run, 1_000).unwrap().into_iter().map(|unit| unit.key).collect()
    }

    pub(crate) fn unit(&self, run: RunId, key: &str) -> UnitRow {
        self.store.unit_by_key(run, key).unwrap().unwrap()
    }

    /// Leases a unit, and what its end needs.
    pub(crate) fn begin(&mut self, unit: &UnitRow) -> Finish {
        let attempt = self.store.lease_unit(unit.id, None, NOW).unwrap();
        Finish { unit: unit.id, attempt: attempt.id, tokens: 10, seconds: 0.5 }
    }

    /// Renders all that waits to be rendered: two ids a prompt, the second its text's length.
    pub(crate) fn render(&mut self, run: RunId) {
        for unit in self.store.ready_units(run, 1_000).unwrap() {
            if unit.work != WorkKind::Render {
                continue;
            }
            let end = self.begin(&unit);
            let items: Vec<Rendered> = self
                .store
                .render_items(unit.id)
                .unwrap()
                .into_iter()
                .map(|item| Rendered {
                    ordinal: item.ordinal,
                    prompt: item.prompt,
                    outcome: Outcome::Done(vec![1, u32::try_from(item.messages.len()).unwrap()]),
                })
                .collect();
            self.store.finish_render(&end, &items, NOW).unwrap();
        }
    }
}

pub(crate) fn identity(name: &str, seed: u64, sum: &str) -> RunIdentity {
    RunIdentity {
        name: Name::parse(name, "run").unwrap(),
        seed,
        policy: ModelIdentity { path: format!("models/{sum}"), sha256: sum.repeat(64) },
        start_job: None,
        reference: None,
    }
}

pub(crate) fn new_upload(set: &str, share: f64) -> NewUpload {
    NewUpload {
        client_key: None,
        kind: UploadKind::Prompts,
        name: Name::parse(set, "set").unwrap(),
        set: SetAsked { reserve_share: Some(share), ..SetAsked::default() },
    }
}

pub(crate) fn a_prompt(text: &str) -> NewPrompt {
    let turn = prompt::Turn { role: "user".into(), content: text.into() };
    let prompt = prompt::Prompt::new(vec![turn]).unwrap();
    let messages = serde_json::json!([{"role": "user", "content": text}]).to_string();
    NewPrompt { messages, sha256: prompt.sha256(), folded: prompt.folded() }
}

pub(crate) fn texts(from: u32, to: u32) -> Vec<String> {
    (from..to).map(|i| format!("prompt {i}")).collect()
}

/// A unit for each plan over 0..items.
pub(crate) fn units(
    template: &NewUnit,
    items: u64,
    batch_items: u64,
    unit_items: u64,
) -> Vec<NewUnit> {
    units_from(template, (0, items), batch_items, unit_items)
}

/// A unit for each plan over a range.
pub(crate) fn units_from(
    template: &NewUnit,
    (from, to): (u64, u64),
    batch_items: u64,
    unit_items: u64,
) -> Vec<NewUnit> {
    plan::cut(from, to, batch_items, unit_items)
        .unwrap()
        .into_iter()
        .map(|plan: BatchPlan| NewUnit {
            key: format!("{}/{}-{}", template.key, plan.from, plan.to),
            plan: Some(plan),
            ..template.clone()
        })
        .collect()
}

pub(crate) fn a_unit(stage: Stage, work: WorkKind, key: &str) -> NewUnit {
    NewUnit {
        stage,
        work,
        lane: String::new(),
        key: key.into(),
        micro_batch: None,
        plan: None,
        policy: None,
        scorer: None,
        detail: None,
    }
}
