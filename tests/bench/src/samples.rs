//! Times that were taken again and again.

use std::time::Duration;

/// Times of one thing.
#[derive(Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time that this many of a hundred do not exceed, in microseconds; 0 without any.
    #[must_use]
    pub fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_unstable();
        let at = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), 0.0);
        (1..=200).rev().for_each(|ms| samples.add(Duration::from_micros(ms)));
        assert_eq!(samples.len(), 200);
        let (half, most) = (samples.percentile(50), samples.percentile(99));
        assert!(
            (half - 101.0).abs() < 0.01 && (most - 199.0).abs() < 0.01,
            "{half} {most}"
        );
    }
}
