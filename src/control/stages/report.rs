//! Report: what a reward model's checkpoint folder says of held-out preferences.
//!
//! In: a published folder. Out: figures for the store. May not enter: how they are measured.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rlhfd_domain::train::HeldOut;
use serde::Deserialize;

use crate::actors::stage::StageError;

/// Written by the worker into a reward model's folder, under its manifest.
pub const REPORT: &str = "report.json";

/// Sources that are kept: a field with a name of its own on each line is no source.
const SOURCES_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
struct Report {
    held_out: Option<Sides>,
}

#[derive(Debug, Deserialize)]
struct Sides {
    all: Measures,
    by_source: BTreeMap<String, Measures>,
}

#[derive(Debug, Deserialize)]
struct Measures {
    pairs: u64,
    accuracy: f64,
    calibration_error: f64,
    responses: u64,
    length_correlation: Option<f64>,
}

/// The figures over all held-out preferences and by source; none where nothing was held out, or
/// where the folder tells of none. It blocks.
pub fn read(folder: &Path) -> Result<Vec<HeldOut>, StageError> {
    let path = folder.join(REPORT);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StageError::Place { path, source }),
    };
    let report: Report = serde_json::from_str(&text)
        .map_err(|error| StageError::Answers(format!("{}: {error}", path.display())))?;
    let Some(Sides { all, by_source }) = report.held_out else { return Ok(Vec::new()) };
    let sources = by_source.into_iter().filter(|(source, _)| !source.is_empty());
    let all = std::iter::once((String::new(), all));
    Ok(all.chain(sources.take(SOURCES_MAX)).map(|(source, of)| of.named(source)).collect())
}

impl Measures {
    fn named(self, source: String) -> HeldOut {
        HeldOut {
            source,
            pairs: self.pairs,
            accuracy: self.accuracy,
            calibration_error: self.calibration_error,
            responses: self.responses,
            length_correlation: self.length_correlation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_figures_over_all_and_by_source() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap().is_empty());
        let measures = r#"{"pairs": 4, "accuracy": 0.75, "calibration_error": 0.1, "responses": 8,
            "length_correlation": null}"#;
        let path = folder.path().join(REPORT);
        let text = format!(
            r#"{{"pairs": 9, "trained": 5, "dropped": {{}}, "held_out": {{"prompts": 4,
            "all": {measures}, "by_source": {{"hh": {measures}, "": {measures}}}}}}}"#
        );
        fs::write(&path, text).unwrap();
        let figures = read(folder.path()).unwrap();
        let names: Vec<_> = figures.iter().map(|of| of.source.as_str()).collect();
        assert_eq!(names, ["", "hh"]);
        assert_eq!((figures[1].accuracy, figures[1].length_correlation), (0.75, None));
        fs::write(&path, r#"{"pairs": 9, "trained": 9, "dropped": {}, "held_out": null}"#).unwrap();
        assert!(read(folder.path()).unwrap().is_empty());
        fs::write(&path, "{").unwrap();
        assert!(matches!(read(folder.path()), Err(StageError::Answers(_))));
    }
}
