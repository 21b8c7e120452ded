//! The decoder's thread: responses to text, answers to frames.
//!
//! In: answers in the order of the computation. Out: frames on the socket; the end of the process once
//! the last one is written. May not enter: tensors.

use crossbeam::channel::Receiver;
use rlhfd_protocol::frame::{FrameError, floats_to_bytes, ids_to_bytes};
use rlhfd_protocol::worker::{FromWorker, ItemResult, Reason};

use super::shared::{Wire, end_process};
use super::units::{Answer, TextSide, refused};
use crate::generate::Response;

/// Runs until the compute thread asks for the end.
pub(super) fn run(answers: &Receiver<Answer>, wire: &Wire) {
    for answer in answers {
        match answer {
            Answer::Frame { message, payload } => wire.send_or_end(&message, &payload),
            Answer::Responses { attempt, index, responses, text } => {
                for response in responses {
                    send_response(wire, (attempt, index), &response, &text);
                }
            }
            Answer::Exit(code) => end_process(code),
        }
    }
    end_process(1);
}

fn send_response(wire: &Wire, (attempt, index): (u64, u32), response: &Response, side: &TextSide) {
    let result = match side.renderer.tokenizer.decode(response.text_ids()) {
        Ok(text) => ItemResult::Response {
            arm: response.arm,
            sample: response.sample,
            finish: response.finish,
            tokens: response.ids.len() as u32,
            logprob: response.logprob(),
            text,
        },
        Err(error) => refused(Reason::Template, error.to_string()),
    };
    let mut payload = ids_to_bytes(&response.ids);
    payload.extend(floats_to_bytes(&response.logprobs));
    match wire.send(&FromWorker::Result { attempt, index, result }, &payload) {
        Ok(()) => {}
        Err(FrameError::TooLarge { bytes }) => {
            let message = format!("a response of {bytes} bytes does not fit a frame");
            let result = refused(Reason::OverLong, message);
            wire.send_or_end(&FromWorker::Result { attempt, index, result }, &[]);
        }
        Err(error) => {
            tracing::debug!("the daemon is gone: {error}");
            end_process(0);
        }
    }
}
