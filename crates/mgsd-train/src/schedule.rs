//! The learning rate's course: linear warm-up, then a cosine or a constant.

use crate::recipe::{Schedule, Shape};

impl Schedule {
    /// Warm-up in steps for a run of `steps`.
    pub fn warmup(&self, steps: u64) -> u64 {
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(warmup), _) => warmup,
            (None, Some(ratio)) => (ratio * steps as f64).ceil() as u64,
            (None, None) => 0,
        }
    }

    /// Factor on the learning rate for step `step` (counted from 0) of `steps`.
    ///
    /// The warm-up rises from 0 exclusive to 1: its first step already moves the weights. The cosine would reach
    /// `min_ratio` at step `steps`, one after the last.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let warmup = self.warmup(steps);
        if step < warmup {
            return (step + 1) as f64 / (warmup + 1) as f64;
        }
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Cosine => {
                let done = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
                self.min_ratio + (1.0 - self.min_ratio) * cosine
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(warmup: u64, min_ratio: f64) -> Schedule {
        Schedule { shape: Shape::Cosine, warmup_steps: Some(warmup), warmup_ratio: None, min_ratio }
    }

    #[test]
    fn warm_up_rises_and_the_cosine_falls_to_the_floor() {
        let schedule = cosine(10, 0.1);
        let factors: Vec<f64> = (0..=100).map(|step| schedule.factor(step, 100)).collect();
        assert!(factors[0] > 0.0);
        assert!(factors[..11].windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(factors[10], 1.0);
        assert!(factors[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((factors[55] - 0.55).abs() < 1e-12, "half way between 1 and 0.1");
        assert!((factors[100] - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_ratio_is_a_share_of_all_steps() {
        let schedule = Schedule { warmup_ratio: Some(0.1), ..Schedule::default() };
        assert_eq!(schedule.warmup(828), 83);
        assert_eq!(Schedule::default().warmup(828), 0);
        assert_eq!(Schedule { shape: Shape::Constant, ..Schedule::default() }.factor(500, 828), 1.0);
    }
}
