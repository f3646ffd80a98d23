//! From logits to the next token.

use mgsd_compute::ops::sample::Choice;
use rand::RngExt as _;
use rand_pcg::Pcg64;

/// How a token is chosen. The filters apply in the order of the fields, as in transformers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides (multiplies, if negative) the logits of tokens that prompt or response already have; 1 is off.
    pub repetition_penalty: f32,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Seed of this request's own random numbers.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::policy(0) }
    }

    /// The model's own distribution: temperature 1, no filter.
    pub fn policy(seed: u64) -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed }
    }

    /// What is wrong with these settings, if anything.
    pub fn problem(&self) -> Option<String> {
        let wrong = |name: &str, value: f32, expected: &str| Some(format!("{name} is {value}; expected {expected}"));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            wrong("temperature", self.temperature, "0 (greedy) or more")
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            wrong("top_p", self.top_p, "more than 0 and at most 1")
        } else if !(0.0..=1.0).contains(&self.min_p) {
            wrong("min_p", self.min_p, "0 to 1")
        } else if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            wrong("repetition_penalty", self.repetition_penalty, "more than 0")
        } else {
            None
        }
    }

    fn filtered(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// Below this temperature the likeliest token is taken.
const COLDEST: f32 = 1e-5;

/// Chooses tokens for one request.
pub(crate) struct Sampler {
    settings: Sampling,
    rng: Pcg64,
    /// Tokens of prompt and response; empty when there is no penalty.
    seen: Vec<bool>,
    weights: Vec<f32>,
    order: Vec<u32>,
}

impl Sampler {
    pub fn new(mut settings: Sampling, prompt: &[u32], vocab: usize) -> Self {
        // Differences of logits over it would leave the range of numbers.
        if settings.temperature < COLDEST {
            settings.temperature = 0.0;
        }
        let mut seen = Vec::new();
        if settings.repetition_penalty != 1.0 {
            seen.resize(vocab, false);
            prompt.iter().for_each(|&id| seen[id as usize] = true);
        }
        let rng = Pcg64::new(settings.seed.into(), 0x7361_6d70_6c65);
        Self { settings, rng, seen, weights: Vec::new(), order: Vec::new() }
    }

    /// A token, and the logarithm of its probability under the unchanged logits (temperature 1, no filter, no penalty).
    pub fn pick(&mut self, logits: &[f32]) -> (u32, f32) {
        let (best, highest) = argmax(logits);
        let temperature = self.settings.temperature;
        if self.seen.is_empty() && temperature == 0.0 {
            return (best, -(sum_exp(logits, highest, 1.0).ln() as f32));
        }
        if self.seen.is_empty() && temperature == 1.0 && !self.settings.filtered() {
            let sum = exp_into(&mut self.weights, logits, highest, 1.0);
            let token = self.draw(sum);
            return (token, logits[token as usize] - highest - sum.ln() as f32);
        }
        let log_sum = sum_exp(logits, highest, 1.0).ln() as f32 + highest;
        let token = self.pick_changed(logits);
        if !self.seen.is_empty() {
            self.seen[token as usize] = true;
        }
        (token, logits[token as usize] - log_sum)
    }

    /// Whether a GPU can choose: it does not know which tokens a penalty is for.
    pub fn fits_a_gpu(&self) -> bool {
        self.seen.is_empty()
    }

    /// What a GPU needs to choose the next token, with this request's next random number.
    pub fn choice(&mut self) -> Choice {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.settings;
        let uniform = if temperature > 0.0 { self.rng.random::<f32>() } else { 0.0 };
        Choice { temperature, top_k: top_k as f32, top_p, min_p, uniform, place: 0.0 }
    }

    /// With penalty, temperature and filters.
    fn pick_changed(&mut self, logits: &[f32]) -> u32 {
        let penalty = self.settings.repetition_penalty;
        let mut changed = std::mem::take(&mut self.order);
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        for (weight, _) in self.weights.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *weight = if *weight > 0.0 { *weight / penalty } else { *weight * penalty };
        }
        let (best, highest) = argmax(&self.weights);
        if self.settings.temperature == 0.0 {
            self.order = changed;
            return best;
        }
        let sharpness = 1.0 / self.settings.temperature;
        let mut sum = exp_in_place(&mut self.weights, highest, sharpness);
        if self.settings.filtered() {
            sum = self.filter(sum, &mut changed);
        }
        self.order = changed;
        self.draw(sum)
    }

    /// Sets the weights of tokens that are filtered out to zero; returns the sum of the others.
    fn filter(&mut self, sum: f64, order: &mut Vec<u32>) -> f64 {
        let Sampling { top_k, top_p, min_p, .. } = self.settings;
        let weights = &mut self.weights;
        order.clear();
        order.extend(0..weights.len() as u32);
        let heavier = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b));
        let mut kept = order.len();
        if top_k > 0 && top_k < kept {
            order.select_nth_unstable_by(top_k - 1, heavier);
            kept = top_k;
        }
        if top_p < 1.0 {
            let mass = match kept < order.len() {
                true => order[..kept].iter().map(|&t| f64::from(weights[t as usize])).sum(),
                false => sum,
            };
            kept = nucleus(&mut order[..kept], f64::from(top_p) * mass, heavier, weights);
        }
        // The likeliest token weighs exp(0) = 1.
        let floor = min_p;
        for &token in &order[kept..] {
            weights[token as usize] = 0.0;
        }
        let mut left = 0.0;
        for &token in &order[..kept] {
            let weight = &mut weights[token as usize];
            if *weight < floor {
                *weight = 0.0;
            }
            left += f64::from(*weight);
        }
        left
    }

    fn draw(&mut self, sum: f64) -> u32 {
        let mut left = self.rng.random::<f64>() * sum;
        let mut last = 0;
        for (token, &weight) in self.weights.iter().enumerate() {
            if weight > 0.0 {
                last = token as u32;
                left -= f64::from(weight);
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }
}

/// Puts the heaviest tokens that reach `mass` in front; returns how many. Sorts no more than it must.
fn nucleus(order: &mut [u32], mass: f64, heavier: impl Fn(&u32, &u32) -> std::cmp::Ordering, weights: &[f32]) -> usize {
    let mut width = 256;
    loop {
        let whole = width >= order.len();
        if !whole {
            order.select_nth_unstable_by(width - 1, &heavier);
        }
        let front = if whole { &mut *order } else { &mut order[..width] };
        front.sort_unstable_by(&heavier);
        let mut reached = 0.0;
        for (index, &token) in front.iter().enumerate() {
            reached += f64::from(weights[token as usize]);
            if reached >= mass {
                return index + 1;
            }
        }
        if whole {
            return order.len();
        }
        width *= 8;
    }
}

/// The `count` likeliest tokens with their log-probabilities under the unchanged logits, likeliest first; among equals
/// the lower id comes first.
pub(crate) fn likeliest(logits: &[f32], count: usize, out: &mut Vec<(u32, f32)>) {
    let (_, highest) = argmax(logits);
    let log_sum = sum_exp(logits, highest, 1.0).ln() as f32;
    out.clear();
    for (id, &logit) in logits.iter().enumerate() {
        let full = out.len() >= count;
        if full && out.last().is_none_or(|last| logit <= last.1) {
            continue;
        }
        if full {
            out.pop();
        }
        let place = out.partition_point(|kept| kept.1 >= logit);
        out.insert(place, (id as u32, logit));
    }
    out.iter_mut().for_each(|kept| kept.1 = kept.1 - highest - log_sum);
}

/// The first of the highest logits.
fn argmax(logits: &[f32]) -> (u32, f32) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at = logits.iter().position(|&l| l == highest).unwrap_or(0);
    (at as u32, highest)
}

const LANES: usize = 16;

/// `Σ exp((l - highest) * sharpness)`
fn sum_exp(logits: &[f32], highest: f32, sharpness: f32) -> f64 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp((logit - highest) * sharpness);
        }
    }
    let tail: f32 = rest.iter().map(|logit| exp((logit - highest) * sharpness)).sum();
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(tail)
}

fn exp_into(weights: &mut Vec<f32>, logits: &[f32], highest: f32, sharpness: f32) -> f64 {
    weights.clear();
    weights.extend_from_slice(logits);
    exp_in_place(weights, highest, sharpness)
}

fn exp_in_place(weights: &mut [f32], highest: f32, sharpness: f32) -> f64 {
    for weight in weights.iter_mut() {
        *weight = exp((*weight - highest) * sharpness);
    }
    weights.chunks(LANES).map(|chunk| f64::from(chunk.iter().sum::<f32>())).sum()
}

/// `exp(x)` for `x <= 0` to about one unit in the last place, without branches so that the compiler uses vectors:
/// `2^n * e^r` with `|r| <= ln 2 / 2`.
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let n = (x * LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(settings: Sampling, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = Sampler::new(settings, &[], logits.len());
        for _ in 0..draws {
            counts[sampler.pick(logits).0 as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn probabilities(logits: &[f32], sharpness: f64) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) * sharpness).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    const LOGITS: [f32; 20] =
        [0.1, 2.0, -1.0, 1.5, 0.0, 0.3, -0.7, 1.1, -2.0, 0.9, 1.9, -0.2, 0.4, 0.8, -3.0, 1.2, 0.6, -1.4, 0.2, 1.7];

    #[test]
    fn exp_agrees_with_the_library_to_two_parts_in_ten_million() {
        for step in 0..87_000 {
            let x = -(step as f32) / 1000.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2e-7, "exp({x}) = {ours}, not {exact}");
        }
    }

    #[test]
    fn draws_follow_the_tempered_distribution() {
        for temperature in [1.0, 0.6] {
            let seen = counts(Sampling { temperature, ..Sampling::policy(3) }, &LOGITS, 200_000);
            for (seen, expected) in seen.iter().zip(probabilities(&LOGITS, 1.0 / f64::from(temperature))) {
                assert!((seen - expected).abs() < 0.005, "{seen} for {expected}");
            }
        }
    }

    #[test]
    fn the_log_probability_is_that_of_the_unchanged_distribution() {
        let exact = probabilities(&LOGITS, 1.0);
        for settings in [
            Sampling::greedy(),
            Sampling::policy(1),
            Sampling { temperature: 0.6, top_p: 0.95, ..Sampling::policy(1) },
            Sampling { repetition_penalty: 1.3, ..Sampling::greedy() },
        ] {
            let (token, log_prob) = Sampler::new(settings, &[3], 20).pick(&LOGITS);
            assert!((f64::from(log_prob) - exact[token as usize].ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn the_likeliest_tokens_come_in_order_with_the_unchanged_log_probabilities() {
        let exact = probabilities(&LOGITS, 1.0);
        let mut top = Vec::new();
        likeliest(&LOGITS, 4, &mut top);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 10, 19, 3]);
        for (id, log_prob) in top {
            assert!((f64::from(log_prob) - exact[id as usize].ln()).abs() < 1e-6);
        }
        let mut top = vec![(9, 0.0)];
        likeliest(&[1.0, 2.0, 2.0], 8, &mut top);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn filters_leave_only_the_tokens_they_name() {
        let alive = |settings| -> Vec<usize> {
            let counts = counts(settings, &LOGITS, 20_000);
            (0..20).filter(|&t| counts[t] > 0.0).collect()
        };
        assert_eq!(alive(Sampling { top_k: 3, ..Sampling::policy(0) }), [1, 10, 19]);
        // exp(1.2 - 2.0) = 0.449, exp(1.1 - 2.0) = 0.407
        assert_eq!(alive(Sampling { min_p: 0.42, ..Sampling::policy(0) }), [1, 3, 10, 15, 19]);
        let p = probabilities(&LOGITS, 1.0);
        let two = (p[1] + p[10]) as f32;
        assert_eq!(alive(Sampling { top_p: two - 0.001, ..Sampling::policy(0) }), [1, 10]);
        assert_eq!(alive(Sampling { top_p: two + 0.001, ..Sampling::policy(0) }), [1, 10, 19]);
    }

    #[test]
    fn a_temperature_hardly_above_zero_takes_the_likeliest() {
        for temperature in [1e-40, 1e-38, 1e-6] {
            let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::policy(0) }, &[], 3);
            assert_eq!([0; 8].map(|_| sampler.pick(&[0.5, 2.0, 1.0]).0), [1; 8], "{temperature}");
        }
    }

    #[test]
    fn a_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() {
        let settings = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(settings, &[0], 3);
        assert_eq!(sampler.pick(&[3.0, 1.6, 1.0]).0, 1);
        assert_eq!(sampler.pick(&[3.0, 1.6, 1.0]).0, 0);
        let settings = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        assert_eq!(Sampler::new(settings, &[0], 2).pick(&[-1.0, -1.5]).0, 1);
    }

    #[test]
    fn a_wide_nucleus_is_found_beyond_the_first_sorted_piece() {
        let logits = vec![0.0; 3000];
        let counts = counts(Sampling { top_p: 0.5, ..Sampling::policy(9) }, &logits, 30_000);
        assert_eq!(counts.iter().position(|&c| c == 0.0).map(|first| first > 1000), Some(true));
        assert!(counts[1500..].iter().all(|&c| c == 0.0));
    }
}
