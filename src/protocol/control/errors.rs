//! The one shape of every error that the socket answers: what, where, how to mend it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The body of each answer with a status of 400 and above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// What was wrong: one sentence, lowercase, without a full stop.
    pub what: String,
    /// The request, file or line where it was wrong.
    #[serde(rename = "where")]
    pub place: String,
    /// What to do about it.
    pub mend: String,
    /// The bad lines of an upload, at most [`super::BAD_LINES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<BadLine>,
    /// How many lines were bad in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bad: u64,
}

impl ErrorDetail {
    /// An error without lines.
    pub fn new(what: impl Into<String>, place: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            place: place.into(),
            mend: mend.into(),
            lines: Vec::new(),
            bad: 0,
        }
    }
}

impl fmt::Display for ErrorDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nat: {}\ntry: {}", self.what, self.place, self.mend)
    }
}

/// A line of an upload that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// Its number, from 1; blank lines are counted too.
    pub line: u64,
    /// Why it was refused.
    pub reason: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_what_to_do() {
        let body = ErrorBody { error: ErrorDetail::new("no such set", "/v1/x", "list them") };
        let json = serde_json::to_string(&body).unwrap();
        assert_eq!(json, r#"{"error":{"what":"no such set","where":"/v1/x","mend":"list them"}}"#);
        assert_eq!(serde_json::from_str::<ErrorBody>(&json).unwrap(), body);
    }
}
