//! Means, intervals and slopes.
//!
//! In: numbers. Out: numbers. May not enter: what they mean.

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Its lower bound.
    pub low: f64,
    /// Its upper bound.
    pub high: f64,
}

/// The two-sided 97.5 % quantiles of Student's t for 1 to 12 degrees of freedom.
const T: [f64; 12] =
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];
/// Beyond those the normal distribution's is near enough.
const NORMAL: f64 = 1.96;

/// The mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / number(values.len())
}

/// The mean with Student's interval; of fewer than two values the interval is unbounded.
pub fn interval(values: &[f64]) -> Interval {
    let mean = mean(values);
    if values.len() < 2 {
        return Interval { mean, low: f64::NEG_INFINITY, high: f64::INFINITY };
    }
    let freedom = values.len() - 1;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (squares / number(freedom) / number(values.len())).sqrt();
    let half = T.get(freedom - 1).copied().unwrap_or(NORMAL) * error;
    Interval { mean, low: mean - half, high: mean + half }
}

/// Least squares of `y` on two regressors and a constant: both slopes. NaN where they are collinear.
pub fn slopes(y: &[f64], first: &[f64], second: &[f64]) -> (f64, f64) {
    let (my, ma, mb) = (mean(y), mean(first), mean(second));
    let product = |x: &[f64], mx: f64, z: &[f64], mz: f64| -> f64 {
        x.iter().zip(z).map(|(x, z)| (x - mx) * (z - mz)).sum()
    };
    let (aa, bb) = (product(first, ma, first, ma), product(second, mb, second, mb));
    let ab = product(first, ma, second, mb);
    let (ay, by) = (product(first, ma, y, my), product(second, mb, y, my));
    let determinant = aa * bb - ab * ab;
    ((ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant)
}

/// A count as a number.
pub fn number(count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of answers, far below 2⁵³")]
    let number = count as f64;
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_students() {
        let Interval { mean, low, high } = interval(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        // Deviation 1.5811, error 0.7071, t(4) = 2.776.
        assert!((mean - 3.0).abs() < 1e-12);
        assert!((low - 1.0371).abs() < 1e-3 && (high - 4.9629).abs() < 1e-3, "{low} {high}");
        assert_eq!(interval(&[1.0]).high, f64::INFINITY);
    }

    #[test]
    fn slopes_are_found_again() {
        let a = [0.1, 0.5, 0.3, 0.9, 0.2];
        let b = [4.0, 2.0, 7.0, 1.0, 3.0];
        let y: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 3.0 * a - 0.5 * b + 1.0).collect();
        let (first, second) = slopes(&y, &a, &b);
        assert!((first - 3.0).abs() < 1e-9 && (second + 0.5).abs() < 1e-9);
    }
}
