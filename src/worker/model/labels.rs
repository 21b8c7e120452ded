//! preference.json: what makes a folder with a language head a preference model's.
//!
//! In: a folder. Out: the ids of its two labels, or nothing where the file is not there. May not
//! enter: tokenizers, texts.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::read_text;
use crate::errors::ModelError;

/// The file's name in a folder.
pub const PREFERENCE: &str = "preference.json";

/// The name of the one way to ask that there is (see [`crate::question`]).
const TEMPLATE: &str = "context-response-a-response-b";

/// The ids with which a preference model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of "A": the response that stands first is better.
    #[serde(rename = "A")]
    pub a: u32,
    /// Of "B".
    #[serde(rename = "B")]
    pub b: u32,
}

#[derive(Serialize, Deserialize)]
struct PreferenceFile {
    template: String,
    label_ids: Labels,
}

impl Labels {
    /// Reads them from a folder; None where it holds no preference model.
    ///
    /// # Errors
    /// `Preference` where the file cannot be understood.
    pub fn read(dir: &Path) -> Result<Option<Self>, ModelError> {
        let path = dir.join(PREFERENCE);
        if !path.is_file() {
            return Ok(None);
        }
        let unusable = |problem| ModelError::Preference { path: path.clone(), problem };
        let file: PreferenceFile = serde_json::from_str(&read_text(&path)?)
            .map_err(|error| unusable(format!("it cannot be read ({error})")))?;
        if file.template != TEMPLATE {
            return Err(unusable(format!(
                "its template is {:?}, this worker knows {TEMPLATE:?} alone",
                file.template
            )));
        }
        Ok(Some(file.label_ids))
    }

    /// The file's contents.
    ///
    /// # Errors
    /// Never for two numbers and a word; kept so that no caller has to unwrap.
    pub fn to_bytes(self) -> Result<Vec<u8>, serde_json::Error> {
        let file = PreferenceFile { template: TEMPLATE.to_owned(), label_ids: self };
        let mut bytes = serde_json::to_vec_pretty(&file)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_from_their_file_and_other_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Labels::read(dir.path()).unwrap(), None);
        let labels = Labels { a: 35, b: 36 };
        let write = |bytes: &[u8]| std::fs::write(dir.path().join(PREFERENCE), bytes).unwrap();
        write(&labels.to_bytes().unwrap());
        assert_eq!(Labels::read(dir.path()).unwrap(), Some(labels));
        for (text, reason) in [
            ("{}", "template"),
            (r#"{"template": "other", "label_ids": {"A": 1, "B": 2}}"#, "\"other\""),
            (r#"{"template": "context-response-a-response-b", "label_ids": {"A": 1}}"#, "`B`"),
        ] {
            write(text.as_bytes());
            let error = Labels::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(PREFERENCE), "{error}");
        }
    }
}
