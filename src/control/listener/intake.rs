//! What uploads share: an upload row that fails by itself when its request ends early, the reading of
//! lines with a note of each bad one, and publishing.

use rlhfd_domain::UploadId;
use rlhfd_domain::limits::CLIENT_KEY_BYTES_MAX;
use rlhfd_protocol::control::lines::too_long;
use rlhfd_protocol::control::{BAD_LINES_MAX, BadLine, ErrorDetail};
use rlhfd_store::{NewUpload, Publish, Upload, UploadOpened};

use super::Refusal;
use super::lines::{Line, Lines, Pieces};
use crate::handles::{AskError, StoreHandle, now_ms};

/// Where good lines go.
pub trait Sink {
    /// What a line becomes.
    type Item;

    /// Takes one.
    async fn take(&mut self, item: Self::Item) -> Result<(), Refusal>;

    /// After the last.
    async fn end(&mut self) -> Result<(), Refusal>;
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines that are not blank.
    pub lines: u64,
    /// Bad ones among them.
    pub bad: u64,
    /// The first of these.
    pub bad_lines: Vec<BadLine>,
}

impl Report {
    /// Counts a line, and gives what it becomes; none where it is blank or bad.
    pub fn look<T>(&mut self, line: &Line, parse: fn(&[u8]) -> Result<T, String>) -> Option<T> {
        if line.is_blank() {
            return None;
        }
        self.lines += 1;
        let item = line.bytes.as_ref().map_or_else(|| Err(too_long()), |bytes| parse(bytes));
        item.map_err(|reason| self.note(line.number, reason)).ok()
    }

    fn note(&mut self, line: u64, reason: String) {
        self.bad += 1;
        if self.bad_lines.len() < BAD_LINES_MAX {
            self.bad_lines.push(BadLine { line, reason });
        }
    }

    fn refusal(self, skip_bad: bool) -> Refusal {
        let (what, mend) = match (self.lines, skip_bad) {
            (0, _) => (
                "the upload is empty: no line holds anything".to_owned(),
                "send one JSON object a line",
            ),
            (_, false) => (
                format!("{} of {} lines are bad; nothing was kept", self.bad, self.lines),
                "mend the lines, or leave them out by --skip-bad",
            ),
            (lines, true) => (format!("all {lines} lines are bad"), "mend the lines"),
        };
        let mut detail = ErrorDetail::new(what, "the lines of the upload", mend);
        detail.lines = self.bad_lines;
        detail.bad = self.bad;
        Refusal::with(422, detail)
    }
}

/// What came of opening.
pub enum Opened {
    /// Send the lines.
    Fresh(Intake),
    /// The same key was published before.
    Done(Upload),
}

/// An open upload. Where it is dropped before it is published, because its request was refused, cut
/// off or its peer left, it is failed, and its rows are swept.
pub struct Intake {
    store: StoreHandle,
    id: UploadId,
    place: String,
    why: String,
    published: bool,
}

/// Refuses a client key that no row could hold.
pub fn check_key(key: Option<&str>) -> Result<(), Refusal> {
    let Some(key) = key else { return Ok(()) };
    if !key.is_empty() && key.len() <= CLIENT_KEY_BYTES_MAX && !key.contains(char::is_control) {
        return Ok(());
    }
    Err(Refusal::new(
        400,
        "the client key is empty, too long, or holds control characters",
        format!("a key of {} bytes", key.len()),
        format!("use 1 to {CLIENT_KEY_BYTES_MAX} ordinary characters"),
    ))
}

/// Opens an upload row.
pub async fn open(store: &StoreHandle, new: NewUpload, place: &str) -> Result<Opened, Refusal> {
    let key = new.client_key.clone();
    let opened = store.try_write(move |store| store.open_upload(&new, now_ms())).await;
    match opened {
        Ok(UploadOpened::Done(upload)) => Ok(Opened::Done(upload)),
        Ok(UploadOpened::Fresh(upload)) => Ok(Opened::Fresh(Intake {
            store: store.clone(),
            id: upload.id,
            place: place.to_owned(),
            why: "its peer left".to_owned(),
            published: false,
        })),
        Err(error) => Err(not_opened(store, key, place, error).await),
    }
}

/// A retry may come before the daemon noticed that the first try was cut off: that is no conflict, but
/// a reason to come again.
async fn not_opened(
    store: &StoreHandle,
    key: Option<String>,
    place: &str,
    error: AskError,
) -> Refusal {
    let refusal = Refusal::ask(place, &error);
    let (AskError::Store(_), Some(key)) = (&error, key) else { return refusal };
    match store.read(move |reader| reader.upload_by_key(&key)).await {
        Ok(Some(upload)) if upload.state == "open" => Refusal::new(
            503,
            "an upload with this client key is still open",
            place,
            "try again in a second",
        )
        .retry_after(1),
        _ => refusal,
    }
}

impl Intake {
    /// Its row.
    pub fn id(&self) -> UploadId {
        self.id
    }

    /// Reads a body's lines into a sink. Bad lines are noted; without `skip_bad` the first of them
    /// makes the whole upload fail, and the others are still looked for.
    ///
    /// Errors: 422 with the bad lines, or where no line is left; 400 and 408 where the body broke off;
    /// the sink's own.
    pub async fn take<S: Sink, P: Pieces>(
        mut self,
        payload: &mut P,
        parse: fn(&[u8]) -> Result<S::Item, String>,
        sink: &mut S,
        skip_bad: bool,
    ) -> Result<(Self, Report), Refusal> {
        let report = match self.read(payload, parse, sink, skip_bad).await {
            Ok(report) => report,
            Err(refusal) => {
                self.why = refusal.to_string().lines().next().unwrap_or_default().to_owned();
                return Err(refusal);
            }
        };
        let refused = report.bad > 0 && !skip_bad || report.bad == report.lines;
        if refused {
            self.why = format!("{} of its {} lines are bad", report.bad, report.lines);
            return Err(report.refusal(skip_bad));
        }
        sink.end().await?;
        Ok((self, report))
    }

    async fn read<S: Sink, P: Pieces>(
        &self,
        payload: &mut P,
        parse: fn(&[u8]) -> Result<S::Item, String>,
        sink: &mut S,
        skip_bad: bool,
    ) -> Result<Report, Refusal> {
        let mut report = Report::default();
        let mut lines = Lines::new(payload);
        while let Some(line) = lines.next().await? {
            match report.look(&line, parse) {
                // After a bad line that counts, nothing will be kept: the rest is only looked at.
                Some(item) if report.bad == 0 || skip_bad => sink.take(item).await?,
                Some(_) | None => {}
            }
        }
        Ok(report)
    }

    /// Makes the upload visible, and keeps who sent it. `bad` lines were left out.
    pub async fn publish(mut self, bad: u64, uid: Option<u32>) -> Result<Upload, Refusal> {
        let id = self.id;
        if bad > 0 {
            self.write(move |store| store.count_lines(id, 0, bad)).await?;
        }
        let upload = loop {
            match self.write(move |store| store.publish_upload(id, uid, now_ms())).await? {
                Publish::Again => {}
                Publish::Done(upload) => break *upload,
            }
        };
        self.published = true;
        Ok(upload)
    }

    /// Runs a write for this upload; it waits for its turn.
    pub async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut rlhfd_store::Store) -> rlhfd_store::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let result = self.store.write(write).await;
        result.map_err(|error| Refusal::ask(self.place.clone(), &error))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let (store, id, why) = (self.store.clone(), self.id, std::mem::take(&mut self.why));
        // Where the runtime is gone, the next start sweeps.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { give_up(&store, id, &why).await });
        }
    }
}

async fn give_up(store: &StoreHandle, id: UploadId, why: &str) {
    let text = why.to_owned();
    let failed = store.write(move |store| store.fail_upload(id, &text, now_ms())).await;
    if let Err(error) = failed {
        tracing::warn!("upload {id} could not be given up: {error}");
        return;
    }
    loop {
        match store.write(|store| store.sweep_uploads()).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!("rows of upload {id} stay behind until the next start: {error}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordinary_text() {
        assert!(check_key(None).is_ok() && check_key(Some("a-1")).is_ok());
        for bad in ["", "a\nb", &"x".repeat(CLIENT_KEY_BYTES_MAX + 1)] {
            assert!(check_key(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn many_bad_lines_are_counted_and_the_first_named() {
        let mut report = Report { lines: 1_000, ..Report::default() };
        for line in 0..1_000 {
            report.note(line, "is not JSON".to_owned());
        }
        assert_eq!((report.bad, report.bad_lines.len()), (1_000, BAD_LINES_MAX));
        assert!(report.refusal(false).to_string().starts_with("1000 of 1000 lines are bad"));
    }
}
