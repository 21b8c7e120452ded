//! Plots of the results, as SVG.
//!
//! In: [`Results`]. Out: study/gold.svg, study/kl.svg, study/weak.svg. May not enter: figures that the CSV files
//! do not have.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::prepare::Scene;
use crate::results::{BEST_OF_N, Results, Row, SFT};
use crate::stats;

const SIZE: (u32, u32) = (760, 460);
/// As many as there are iterations: a mark at each.
const X_LABELS: usize = 7;
const COLOURS: [RGBColor; 5] = [
    RGBColor(0x4c, 0x72, 0xb0),
    RGBColor(0xc4, 0x4e, 0x52),
    RGBColor(0x55, 0xa8, 0x68),
    RGBColor(0x81, 0x72, 0xb2),
    RGBColor(0xcc, 0xb9, 0x74),
];

/// A line with its name: thin ones of the seeds, and a thick one of their mean.
struct Curve {
    name: String,
    colour: RGBColor,
    seeds: Vec<Vec<(f64, f64)>>,
    mean: Vec<(f64, f64)>,
}

/// Draws everything there is.
///
/// Errors: the disk.
pub fn draw(scene: &Scene, results: &Results, out: &Path) -> Result<()> {
    let arms: Vec<&str> = scene
        .settings
        .arms
        .iter()
        .filter(|(_, arm)| !arm.weak)
        .map(|(name, _)| name.as_str())
        .collect();
    let by_iteration = |row: &Row| Some((whole(row.iteration), row.gold));
    let curves = curves(&results.rows, &arms, by_iteration);
    let level = |arm: &str| -> Option<(String, f64)> {
        let own = |row: &&Row| row.arm == arm && row.temperature == 1.0;
        let golds: Vec<f64> = results.rows.iter().filter(own).map(|row| row.gold).collect();
        (!golds.is_empty()).then(|| (arm.to_owned(), stats::mean(&golds)))
    };
    let levels: Vec<_> = [SFT, BEST_OF_N].into_iter().filter_map(level).collect();
    let title = "Gold score of held-out answers, temperature 1";
    svg(&out.join("gold.svg"), |area| {
        chart(area, (title, "iteration", "gold score"), &curves, &levels)
    })?;

    let by_kl = |row: &Row| Some((row.kl?, row.gold));
    let curves = self::curves(&results.rows, &arms, by_kl);
    let title = "Gold score against KL from the initial policy, by iteration";
    svg(&out.join("kl.svg"), |area| {
        chart(area, (title, "KL, nats an answer", "gold score"), &curves, &[])
    })?;

    let arms: Vec<&str> = scene
        .settings
        .arms
        .iter()
        .filter(|(_, arm)| arm.weak)
        .map(|(name, _)| name.as_str())
        .collect();
    if results.weak.is_empty() {
        return Ok(());
    }
    svg(&out.join("weak.svg"), |area| {
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        let score = |row: &Row| Some((whole(row.iteration), row.score));
        let gold = |row: &Row| Some((whole(row.iteration), row.gold));
        let scored = self::curves(&results.weak, &arms, score);
        let judged = self::curves(&results.weak, &arms, gold);
        chart(&left, ("Score by the weak reward model", "iteration", "score"), &scored, &[])?;
        chart(&right, ("Gold score", "iteration", "gold score"), &judged, &[])
    })
}

fn whole(iteration: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "iterations are few")]
    let number = iteration as f64;
    number
}

fn curves(rows: &[Row], arms: &[&str], point: impl Fn(&Row) -> Option<(f64, f64)>) -> Vec<Curve> {
    let curve = |(index, arm): (usize, &&str)| {
        let mut seeds: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        let mut means: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.arm == *arm && row.temperature == 1.0) {
            if let Some(point) = point(row) {
                seeds.entry(row.seed).or_default().push(point);
                means.entry(row.iteration).or_default().push(point);
            }
        }
        let mean = |points: Vec<(f64, f64)>| {
            let (x, y): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
            (stats::mean(&x), stats::mean(&y))
        };
        Curve {
            name: (*arm).to_owned(),
            colour: COLOURS[index % COLOURS.len()],
            seeds: seeds.into_values().collect(),
            mean: means.into_values().map(mean).collect(),
        }
    };
    arms.iter().enumerate().map(curve).filter(|curve| !curve.mean.is_empty()).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn svg(path: &Path, fill: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    fill(&area)?;
    area.present().map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn chart(
    area: &Area<'_>,
    (title, x_name, y_name): (&str, &str, &str),
    curves: &[Curve],
    levels: &[(String, f64)],
) -> Result<()> {
    try_chart(area, (title, x_name, y_name), curves, levels)
        .map_err(|error| anyhow!("a plot cannot be drawn: {error}"))
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn try_chart(
    area: &Area<'_>,
    (title, x_name, y_name): (&str, &str, &str),
    curves: &[Curve],
    levels: &[(String, f64)],
) -> Drawn {
    let points = || curves.iter().flat_map(|curve| curve.seeds.iter().flatten());
    let (x_low, x_high) = bounds(points().map(|point| point.0));
    let ys = points().map(|point| point.1).chain(levels.iter().map(|level| level.1));
    let (y_low, y_high) = bounds(ys);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(x_low..x_high, y_low..y_high)?;
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_labels(X_LABELS)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(("sans-serif", 15))
        .light_line_style(WHITE)
        .draw()?;
    for (name, level) in levels {
        let line = [(x_low, *level), (x_high, *level)];
        chart.draw_series(LineSeries::new(line, BLACK.mix(0.5)))?;
        let place = (x_low, *level + (y_high - y_low) * 0.03);
        let style = ("sans-serif", 15).into_font().color(&BLACK);
        chart.draw_series([Text::new(name.clone(), place, style)])?;
    }
    for curve in curves {
        for seed in &curve.seeds {
            chart.draw_series(LineSeries::new(seed.clone(), curve.colour.mix(0.3)))?;
        }
        let style = curve.colour.stroke_width(3);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
        chart
            .draw_series(LineSeries::new(curve.mean.clone(), style))?
            .label(curve.name.clone())
            .legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 15))
        .border_style(BLACK.mix(0.3))
        .draw()
}

/// From a little below the least to a little above the largest.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = ((high - low) * 0.06).max(1e-3);
    (low - room, high + room)
}
