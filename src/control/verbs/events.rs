//! `events`: what happened, and with `follow` what happens, until the peer leaves or the daemon stops.
//!
//! A stream reads pages from the database and sleeps on the number of the newest event in between: a
//! slow peer holds back its own stream and nothing else. An error within a stream is told in the
//! stream, because its status has been sent already.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use rlhfd_domain::EventId;
use rlhfd_domain::limits::EVENTS_PAGE_ROWS;
use rlhfd_protocol::control::{ErrorBody, ErrorDetail, Event, EventsQuery};
use rlhfd_store::EventRow;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Shared, asked, place};
use crate::handles::StoreHandle;
use crate::listener::{Answer, Refusal};

/// How often a silent stream shows that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// With how many of the newest events a list begins that names no beginning.
const LAST: u32 = 100;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `text/event-stream`.
    Sse,
    /// One JSON object a line.
    Ndjson,
}

/// `GET /v1/events`
pub async fn get(
    shared: web::Data<Shared>,
    request: HttpRequest,
    query: web::Query<EventsQuery>,
) -> Answer {
    let form = if wants_sse(&request) { Form::Sse } else { Form::Ndjson };
    let follow = query.follow.unwrap_or(form == Form::Sse);
    let place = place(&shared.streams, "event streams", &request)?;
    // Subscribed before the newest is asked for, so that none is missed in between.
    let news = shared.app.store.events();
    let newest = shared.app.store.read(|reader| reader.last_event()).await;
    let newest = newest.map_err(|error| Refusal::ask(asked(&request), &error))?.get();
    let last = query.last.unwrap_or(if form == Form::Sse { 0 } else { LAST });
    let since = last_event_id(&request)?.or(query.since);
    let after = since.unwrap_or_else(|| newest.saturating_sub(i64::from(last)));
    let events = Events {
        store: shared.app.store.clone(),
        shutdown: shared.app.shutdown.clone(),
        news,
        form,
        follow,
        newest,
        after: after.max(0),
        broken: false,
        _place: place,
    };
    let kind = match form {
        Form::Sse => "text/event-stream",
        Form::Ndjson => "application/x-ndjson",
    };
    Ok(HttpResponse::Ok()
        .content_type(kind)
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(pages(events)))
}

fn wants_sse(request: &HttpRequest) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

fn last_event_id(request: &HttpRequest) -> Result<Option<i64>, Refusal> {
    let Some(value) = request.headers().get("Last-Event-ID") else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    id.map(Some).ok_or_else(|| {
        Refusal::new(
            400,
            "Last-Event-ID is no number",
            asked(request),
            "send the id of the last event that you saw",
        )
    })
}

struct Events {
    store: StoreHandle,
    shutdown: watch::Receiver<bool>,
    news: watch::Receiver<i64>,
    form: Form,
    follow: bool,
    /// The newest event when the request came: where a list ends.
    newest: i64,
    after: i64,
    broken: bool,
    _place: OwnedSemaphorePermit,
}

/// The stream of a request, a page at a time.
fn pages(events: Events) -> impl Stream<Item = Result<Bytes, actix_web::Error>> {
    stream::unfold(events, |mut events| async move {
        let page = events.next().await?;
        Some((Ok(Bytes::from(page)), events))
    })
}

impl Events {
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.broken || *self.shutdown.borrow() || (!self.follow && self.after >= self.newest)
            {
                return None;
            }
            self.news.mark_unchanged();
            let after = EventId(self.after);
            let page =
                self.store.read(move |reader| reader.events_since(after, EVENTS_PAGE_ROWS)).await;
            match page {
                Err(error) => {
                    self.broken = true;
                    return Some(self.form.error(&error.to_string()));
                }
                Ok(rows) if !rows.is_empty() => return Some(self.page(rows)),
                Ok(_) if !self.follow => return None,
                Ok(_) => {}
            }
            tokio::select! {
                // Both senders live as long as the daemon; where one is gone, the stream ends.
                changed = self.news.changed() => changed.ok()?,
                stop = self.shutdown.wait_for(|stop| *stop) => {
                    let _ = stop;
                    return None;
                }
                () = tokio::time::sleep(SIGN_OF_LIFE) => return Some(self.form.sign_of_life()),
            }
        }
    }

    fn page(&mut self, rows: Vec<EventRow>) -> String {
        let mut text = String::new();
        for row in rows {
            self.after = row.id.get();
            if !self.follow && self.after > self.newest {
                break;
            }
            text.push_str(&self.form.event(&event(row)));
        }
        text
    }
}

impl Form {
    fn event(self, event: &Event) -> String {
        let json = serde_json::to_string(event).unwrap_or_default();
        match self {
            Self::Sse => format!("id: {}\nevent: {}\ndata: {json}\n\n", event.id, event.kind),
            Self::Ndjson => json + "\n",
        }
    }

    fn error(self, what: &str) -> String {
        let mend = "ask again from the last event that you saw";
        let error = ErrorDetail::new(what, "the event stream", mend);
        let json = serde_json::to_string(&ErrorBody { error }).unwrap_or_default();
        match self {
            Self::Sse => format!("event: error\ndata: {json}\n\n"),
            Self::Ndjson => json + "\n",
        }
    }

    fn sign_of_life(self) -> String {
        match self {
            Self::Sse => ":\n\n".to_owned(),
            Self::Ndjson => "\n".to_owned(),
        }
    }
}

fn event(row: EventRow) -> Event {
    Event {
        id: row.id.get(),
        at_ms: row.at_ms,
        level: row.level,
        kind: row.kind,
        run: row.run,
        iteration: row.iteration.map(i64::from),
        unit: row.unit.map(|unit| unit.get()),
        uid: row.uid.map(i64::from),
        message: row.message,
        data: row.data.and_then(|data| serde_json::from_str(&data).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_block_of_sse_and_one_line_of_ndjson() {
        let event = Event {
            id: 3,
            at_ms: 0,
            level: "info".to_owned(),
            kind: "command".to_owned(),
            run: None,
            iteration: None,
            unit: None,
            uid: Some(7),
            message: "two\nlines".to_owned(),
            data: None,
        };
        let sse = Form::Sse.event(&event);
        assert!(sse.starts_with("id: 3\nevent: command\ndata: {") && sse.ends_with("}\n\n"));
        assert_eq!(sse.lines().count(), 4);
        assert_eq!(Form::Ndjson.event(&event).lines().count(), 1);
    }
}
