//! What a process takes, and whether that grows: memory, open files, and the line through many samples.
//!
//! Comes in: a process id, or a scene whose daemon is to be watched from within. Goes out: figures. What
//! counts as growth is the test's to say.

use std::fs;
use std::path::PathBuf;

use crate::native;
use crate::scene::Scene;

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Resident memory of its own: heap and stacks.
    pub own_kib: u64,
    /// Resident memory in all, with the pages of files (code, the database's shared index).
    pub resident_kib: u64,
    /// The most that it ever was.
    pub peak_kib: u64,
    pub open_files: u64,
    pub threads: u64,
}

/// Of a process that may have ended meanwhile.
pub fn usage(pid: i32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let open_files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(Usage {
        own_kib: number("RssAnon:")?,
        resident_kib: number("VmRSS:")?,
        peak_kib: number("VmHWM:")?,
        open_files,
        threads: number("Threads:")?,
    })
}

/// How much `y` grows with `x`, by the straight line that lies nearest to all points.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let (x_mean, y_mean) = (
        points.iter().map(|(x, _)| x).sum::<f64>() / count,
        points.iter().map(|(_, y)| y).sum::<f64>() / count,
    );
    let together: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let spread: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

/// Tells what the heap of a scene's daemon holds, from within.
pub struct HeapWatch {
    file: PathBuf,
}

impl HeapWatch {
    /// In the daemons that `scene` starts from now on; `None`, said aloud, without a C compiler.
    pub fn of(scene: &mut Scene) -> Option<Self> {
        let library = native::library(scene, "heap_watch.c", "heap_watch.so")?;
        let file = scene.path("heap");
        native::variable(scene, "LD_PRELOAD", &library);
        native::variable(scene, "HEAP_WATCH", &file);
        Some(Self { file })
    }

    /// Bytes in use, and bytes that the heap holds with what is free in it.
    pub fn bytes(&self) -> Option<(f64, f64)> {
        let text = fs::read_to_string(&self.file).ok()?;
        let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line_through_the_points() {
        let line: Vec<(f64, f64)> =
            (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 7.0)).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-12);
        let noisy: Vec<(f64, f64)> = (0..1000)
            .map(|x| (f64::from(x), 0.5 * f64::from(x) + if x % 2 == 0 { 40.0 } else { -40.0 }))
            .collect();
        assert!((slope(&noisy) - 0.5).abs() < 0.01);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
    }

    #[test]
    fn a_process_is_measured_and_one_that_is_gone_is_not() {
        let own = usage(std::process::id() as i32).unwrap();
        assert!(own.own_kib > 0 && own.resident_kib >= own.own_kib && own.open_files > 0);
        assert!(usage(i32::MAX).is_none());
    }
}
