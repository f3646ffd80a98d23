//! How sure a number is: Wilson's interval for a rate, the paired bootstrap for a difference.

use serde::{Deserialize, Serialize};

/// The two ends of a 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A measured value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value itself.
    pub value: f64,
    /// Where it lies with 95 % confidence.
    pub interval: Interval,
}

/// The normal quantile that leaves 2.5 % on each side.
const Z_95: f64 = 1.959_963_984_540_054;

/// Wilson's score interval (1927) for `hits` of `trials`, at 95 %. No trials: nothing is known, so 0 to 1.
pub fn wilson(hits: u64, trials: u64) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let n = trials as f64;
    let p = hits as f64 / n;
    let z2 = Z_95 * Z_95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // At 0 and at all hits the formula's end is exactly 0 or 1 up to rounding.
    let low = if hits == 0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if hits >= trials { 1.0 } else { (centre + half).min(1.0) };
    Interval { low, high }
}

/// The rate `hits / trials` with Wilson's interval.
pub fn rate(hits: u64, trials: u64) -> Estimate {
    Estimate { value: hits as f64 / trials.max(1) as f64, interval: wilson(hits, trials) }
}

/// A small deterministic generator (SplitMix64), so that an interval is the same in every run.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, by the high half of a 128-bit product.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// The 95 % percentile interval of `statistic` under resampling of the cases with replacement, stratified: each group
/// (a task, say) keeps its size, and a case keeps all its columns together (that is what makes the bootstrap paired).
///
/// `groups[g][case]` holds one row of columns; `statistic` gets the column means of each group, `[group][column]`, and
/// returns the number of interest. Empty groups are left out. Returns `None` when nothing is left.
pub fn bootstrap<const N: usize>(
    groups: &[Vec<[f64; N]>],
    resamples: usize,
    seed: u64,
    statistic: impl Fn(&[[f64; N]]) -> f64,
) -> Option<Estimate> {
    let groups: Vec<&Vec<[f64; N]>> = groups.iter().filter(|group| !group.is_empty()).collect();
    if groups.is_empty() || resamples == 0 {
        return None;
    }
    let mean = |rows: &mut dyn Iterator<Item = &[f64; N]>, count: usize| {
        let mut sums = [0.0; N];
        for row in rows {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        sums.map(|sum| sum / count as f64)
    };
    let means: Vec<[f64; N]> = groups.iter().map(|group| mean(&mut group.iter(), group.len())).collect();
    let value = statistic(&means);
    let mut random = SplitMix64(seed);
    let mut drawn = Vec::with_capacity(resamples);
    let mut means = means;
    for _ in 0..resamples {
        for (slot, group) in means.iter_mut().zip(&groups) {
            let mut picks = (0..group.len()).map(|_| &group[random.below(group.len())]);
            *slot = mean(&mut picks, group.len());
        }
        let sample = statistic(&means);
        if sample.is_finite() {
            drawn.push(sample);
        }
    }
    drawn.sort_by(f64::total_cmp);
    Some(Estimate { value, interval: Interval { low: quantile(&drawn, 0.025), high: quantile(&drawn, 0.975) } })
}

/// The quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = at * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The mean over groups of (first column's mean - second column's mean), with its paired bootstrap interval: the
/// macro difference of two measurements of the same cases, such as text minus picture or one model minus another.
pub fn paired_difference(groups: &[Vec<[f64; 2]>], resamples: usize, seed: u64) -> Option<Estimate> {
    bootstrap(groups, resamples, seed, |means| {
        means.iter().map(|[first, second]| first - second).sum::<f64>() / means.len() as f64
    })
}

/// The mean over groups of a rate, with its stratified bootstrap interval.
pub fn macro_rate(groups: &[Vec<[f64; 1]>], resamples: usize, seed: u64) -> Option<Estimate> {
    bootstrap(groups, resamples, seed, |means| means.iter().map(|[rate]| rate).sum::<f64>() / means.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_gives_the_published_values() {
        // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (hits, trials, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let interval = wilson(hits, trials);
            assert!((interval.low - low).abs() < 5e-5, "{hits}/{trials}: {interval:?}");
            assert!((interval.high - high).abs() < 5e-5, "{hits}/{trials}: {interval:?}");
        }
        assert_eq!(wilson(7, 7).high, 1.0);
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn the_paired_bootstrap_is_repeatable_and_as_wide_as_theory_says() {
        // 400 pairs, difference 1 for half of them: standard error 0.5 / 20 = 0.025.
        let pairs: Vec<[f64; 2]> = (0..400).map(|case| [1.0, f64::from(case % 2)]).collect();
        let first = paired_difference(std::slice::from_ref(&pairs), 4000, 7).expect("pairs");
        let again = paired_difference(std::slice::from_ref(&pairs), 4000, 7).expect("pairs");
        assert_eq!(first, again);
        assert_eq!(first.value, 0.5);
        let half = (first.interval.high - first.interval.low) / 2.0;
        assert!((half - Z_95 * 0.025).abs() < 0.004, "half width {half}");
    }

    #[test]
    fn pairs_that_move_together_have_no_uncertainty_in_their_difference() {
        let pairs: Vec<[f64; 2]> = (0..50).map(|case| [f64::from(case % 2) + 0.25, f64::from(case % 2)]).collect();
        let estimate = paired_difference(&[pairs, Vec::new()], 200, 1).expect("pairs");
        assert!((estimate.interval.high - estimate.interval.low).abs() < 1e-12);
        assert!((estimate.value - 0.25).abs() < 1e-12);
        assert_eq!(paired_difference(&[Vec::new()], 200, 1), None);
    }
}
