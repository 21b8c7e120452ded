//! Figures with their limits: a table for people, JSON for programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

/// What a figure is held to.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// Told only.
    None,
    AtMost(f64),
    AtLeast(f64),
}

struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    limit: Limit,
}

impl Figure {
    fn holds(&self) -> bool {
        match self.limit {
            Limit::None => true,
            Limit::AtMost(most) => self.value <= most,
            Limit::AtLeast(least) => self.value >= least,
        }
    }
}

/// All that was measured, in order.
#[derive(Default)]
pub struct Report(Vec<Figure>);

impl Report {
    pub fn add(&mut self, what: impl Into<String>, value: f64, unit: &'static str, limit: Limit) {
        let figure = Figure { what: what.into(), value, unit, limit };
        println!("{}", line(&figure));
        self.0.push(figure);
    }

    /// As [`Self::add`], median and 99th percentile, the latter under the limit.
    pub fn add_times(&mut self, what: &str, mut times: Vec<Duration>, p99: Limit) {
        times.sort();
        let at = |share: f64| {
            let place = (times.len().saturating_sub(1) as f64 * share).round() as usize;
            times.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        self.add(format!("{what}, median"), at(0.5), "ms", Limit::None);
        self.add(format!("{what}, p99"), at(0.99), "ms", p99);
    }

    pub fn figure(&self, what: &str) -> Option<f64> {
        self.0.iter().find(|figure| figure.what == what).map(|figure| figure.value)
    }

    /// Writes the JSON; whether every limit is held.
    pub fn end(&self, path: &Path) -> bool {
        let figures = self.0.iter().map(|figure| {
            let (least, most) = match figure.limit {
                Limit::None => (None, None),
                Limit::AtMost(most) => (None, Some(most)),
                Limit::AtLeast(least) => (Some(least), None),
            };
            json!({
                "what": figure.what, "value": figure.value, "unit": figure.unit,
                "at_least": least, "at_most": most, "holds": figure.holds(),
            })
        });
        let all: Vec<_> = figures.collect();
        let text = serde_json::to_string_pretty(&all).expect("numbers are JSON");
        fs::write(path, text).expect("the report");
        let over = self.0.iter().filter(|figure| !figure.holds()).count();
        println!("{} figures, {over} beyond their limits; {}", self.0.len(), path.display());
        over == 0
    }
}

fn line(figure: &Figure) -> String {
    let limit = match figure.limit {
        Limit::None => String::new(),
        Limit::AtMost(most) => format!("at most {most}"),
        Limit::AtLeast(least) => format!("at least {least}"),
    };
    let verdict = match figure.limit {
        Limit::None => "",
        _ if figure.holds() => "holds",
        _ => "BEYOND",
    };
    let Figure { what, value, unit, .. } = figure;
    format!("{what:<62} {value:>12.3} {unit:<10} {limit:<16} {verdict}")
}
