//! Answers that their peers have not read yet: how much of them is held at once, and for how long.
//!
//! In: an answer, whole. Out: the same in pieces, which counts against one room for all connections until
//! its last byte is on its way. Without this, many peers that ask much and read nothing would fill the
//! memory. May not enter: streams, which make their pages only as they are read.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::rt;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Refusal;

/// An answer up to this size is not counted: it fits what a connection holds in any case.
const SMALL_BYTES: usize = 64 << 10;

/// How much the HTTP layer gets at a time.
const PIECE_BYTES: usize = 32 << 10;

/// The room for all answers.
#[derive(Debug, Clone)]
pub(super) struct Unread {
    kib: Arc<Semaphore>,
    wait: Duration,
}

impl Unread {
    /// Room for so many KiB; of an answer of which nothing is taken for `wait`, the rest is dropped, and
    /// with it the connection as soon as its peer moves again.
    pub(super) fn new(kib: u32, wait: Duration) -> Self {
        Self { kib: Arc::new(Semaphore::new(kib as usize)), wait }
    }

    /// The answer, counted; 503 in its place where there is no room.
    pub(super) fn hold(&self, answer: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
        let (request, answer) = answer.into_parts();
        let (head, body) = answer.into_parts();
        let bytes = match body.try_into_bytes() {
            Err(stream) => return ServiceResponse::new(request, head.set_body(stream)),
            Ok(bytes) if bytes.len() <= SMALL_BYTES => {
                return ServiceResponse::new(request, head.set_body(BoxBody::new(bytes)));
            }
            Ok(bytes) => bytes,
        };
        let kib = u32::try_from(bytes.len() >> 10).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.kib).try_acquire_many_owned(kib) else {
            let place: String = request.path().chars().take(200).collect();
            let what =
                "other peers have not read their answers yet, and there is no room for this one";
            let refusal = Refusal::new(503, what, place, "try again, or ask for less");
            return ServiceResponse::new(request, refusal.retry_after(1).into_answer());
        };
        let body = Held::new(bytes, room, self.wait);
        ServiceResponse::new(request, head.set_body(BoxBody::new(body)))
    }
}

/// The rest of an answer.
#[derive(Debug)]
struct Rest {
    bytes: Bytes,
    moved: bool,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Held {
    size: u64,
    /// None once it was dropped for want of a reader.
    rest: Rc<RefCell<Option<Rest>>>,
}

impl Held {
    fn new(bytes: Bytes, room: OwnedSemaphorePermit, wait: Duration) -> Self {
        let size = bytes.len() as u64;
        let rest = Rc::new(RefCell::new(Some(Rest { bytes, moved: true, _room: room })));
        rt::spawn(watch(Rc::downgrade(&rest), wait));
        Self { size, rest }
    }
}

/// Ends with the answer, or ends it.
async fn watch(rest: Weak<RefCell<Option<Rest>>>, wait: Duration) {
    loop {
        rt::time::sleep(wait).await;
        let Some(rest) = rest.upgrade() else { return };
        let mut rest = rest.borrow_mut();
        let Some(held) = rest.as_mut() else { return };
        if !std::mem::take(&mut held.moved) {
            *rest = None;
        }
    }
}

impl MessageBody for Held {
    type Error = std::io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let mut rest = self.rest.borrow_mut();
        let Some(held) = rest.as_mut() else {
            return Poll::Ready(Some(Err(std::io::ErrorKind::TimedOut.into())));
        };
        held.moved = true;
        let piece = PIECE_BYTES.min(held.bytes.len());
        let piece = held.bytes.split_to(piece);
        Poll::Ready((!piece.is_empty()).then_some(Ok(piece)))
    }
}
