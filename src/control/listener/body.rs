//! Small JSON bodies, read with a ceiling and a deadline; and bodies that nobody wants any more.

use std::future::Future;
use std::time::Duration;

use actix_web::web;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::Refusal;

/// The longest JSON body.
const JSON_BYTES_MAX: usize = 128 << 10;

/// How long a peer may be silent within a body.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a peer may take for a whole JSON body, or for the rest of one that is refused: by small steps
/// it would else hold its place for days.
const WHOLE_MAX: Duration = Duration::from_secs(60);

/// How much of a refused body is still read, so that the peer gets to read its answer.
const DRAIN_BYTES_MAX: usize = 256 << 20;

/// The next piece of a body; none at its end.
///
/// Errors: 408 where the peer was silent for too long, 400 where the body broke off.
pub(super) async fn piece(payload: &mut web::Payload) -> Result<Option<Bytes>, Refusal> {
    match within(SILENCE_MAX, payload.next()).await {
        None => Err(late(format!("nothing of the body came for {} s", SILENCE_MAX.as_secs()))),
        Some(None) => Ok(None),
        Some(Some(Ok(bytes))) => Ok(Some(bytes)),
        Some(Some(Err(error))) => Err(Refusal::new(
            400,
            format!("the body broke off ({error})"),
            "the request's body",
            "send it again; nothing of it was kept",
        )),
    }
}

/// A JSON body of a verb; an empty one is `{}`. The content type is not asked for, so that
/// `curl -d` works as it is.
///
/// Errors: 413 above the ceiling, 408 where it takes too long, 400 where it is no JSON or does not fit.
pub async fn json<T: DeserializeOwned>(payload: &mut web::Payload) -> Result<T, Refusal> {
    json_within(WHOLE_MAX, payload).await
}

async fn json_within<T: DeserializeOwned>(
    time: Duration,
    payload: &mut web::Payload,
) -> Result<T, Refusal> {
    let body = within(time, whole(payload)).await;
    let body =
        body.ok_or_else(|| late(format!("the body took more than {} s", time.as_secs())))??;
    parse(&body)
}

fn late(what: String) -> Refusal {
    Refusal::new(408, what, "the request's body", "send it again, without pauses")
}

async fn whole(payload: &mut web::Payload) -> Result<BytesMut, Refusal> {
    let mut body = BytesMut::new();
    while let Some(bytes) = piece(payload).await? {
        if body.len() + bytes.len() > JSON_BYTES_MAX {
            drain(payload).await;
            return Err(Refusal::new(
                413,
                format!("the body is longer than {} KiB", JSON_BYTES_MAX >> 10),
                "the request's body",
                "shorten it",
            ));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let text = if body.is_empty() { b"{}".as_slice() } else { body };
    // An array would be read as an object's values in order, which nobody means.
    let read = match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(text),
        _ => Err(serde::de::Error::custom("it is no JSON object")),
    };
    read.map_err(|error: serde_json::Error| {
        Refusal::new(
            400,
            format!("the body cannot be read: {error}"),
            format!("line {}, column {} of the body", error.line(), error.column()),
            "send the JSON that the verb takes; `GET /v1` lists them",
        )
    })
}

/// Reads a body to its end and forgets it. A peer that writes and does not read would else be cut off
/// before it saw why.
pub async fn drain(payload: &mut web::Payload) {
    let rest = async {
        let mut bytes = 0;
        while let Ok(Some(piece)) = piece(payload).await {
            bytes += piece.len();
            if bytes > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    let _ = within(WHOLE_MAX, rest).await;
}

async fn within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    actix_web::rt::time::timeout(time, future).await.ok()
}

#[cfg(test)]
mod tests {
    use actix_web::FromRequest;
    use actix_web::dev::Payload;
    use actix_web::error::PayloadError;
    use actix_web::test::TestRequest;
    use futures_util::stream;

    use super::*;

    #[actix_rt::test]
    async fn a_body_that_comes_by_small_steps_has_an_end() {
        let steps = stream::unfold((), |()| async {
            actix_web::rt::time::sleep(Duration::from_millis(2)).await;
            Some((Ok::<_, PayloadError>(Bytes::from_static(b" ")), ()))
        });
        let request = TestRequest::default().to_http_request();
        let mut raw: Payload = Payload::Stream { payload: Box::pin(steps) };
        let mut payload = web::Payload::from_request(&request, &mut raw).await.unwrap();
        let read = json_within::<serde_json::Value>(Duration::from_millis(50), &mut payload);
        let refusal = read.await.unwrap_err();
        assert_eq!(refusal.into_answer().status(), 408);
    }
}
