//! Which kind of sample comes when, and which record of a file: pure functions of a counter.

use crate::random::{Random, derive};
use std::sync::Mutex;

/// Length of the repeating pattern that realises the shares.
const CYCLE: usize = 1000;

/// Spreads entries over a counter in exact shares.
///
/// Every [`CYCLE`] samples hold each entry as often as its share says (rounded), in an order drawn once; so the n-th
/// use of an entry is known without walking there.
pub(crate) struct Shares {
    /// Entry at each place of the cycle.
    pattern: Vec<usize>,
    /// How many places of the same entry come before each place.
    rank: Vec<u64>,
    /// Places of each entry in a cycle.
    quota: Vec<u64>,
}

impl Shares {
    pub(crate) fn new(weights: &[f64], seed: u64) -> Self {
        let total: f64 = weights.iter().sum();
        // Rounding the running sum keeps the quotas' total at the cycle's length.
        let mut pattern = Vec::with_capacity(CYCLE);
        let mut sum = 0.0;
        for (entry, weight) in weights.iter().enumerate() {
            sum += weight;
            pattern.resize((sum / total * CYCLE as f64).round() as usize, entry);
        }
        pattern.resize(CYCLE, weights.len() - 1);
        Random::new(derive(seed, 0x7368_6172, 0)).shuffle(&mut pattern);
        let mut quota = vec![0; weights.len()];
        let rank = pattern
            .iter()
            .map(|&entry| {
                quota[entry] += 1;
                quota[entry] - 1
            })
            .collect();
        Self { pattern, rank, quota }
    }

    /// Entry of sample `index`, and how many samples of that entry came before.
    pub(crate) fn at(&self, index: u64) -> (usize, u64) {
        let (cycle, place) = (index / CYCLE as u64, (index % CYCLE as u64) as usize);
        let entry = self.pattern[place];
        (entry, cycle * self.quota[entry] + self.rank[place])
    }

    /// Share of an entry as realised.
    pub(crate) fn share(&self, entry: usize) -> f64 {
        self.quota[entry] as f64 / CYCLE as f64
    }
}

/// A list visited again and again, in a new order each time.
pub(crate) struct Epochs {
    indices: Vec<usize>,
    seed: u64,
    /// The order of the epoch last asked for.
    current: Mutex<(Option<u64>, Vec<usize>)>,
}

impl Epochs {
    pub(crate) fn new(indices: Vec<usize>, seed: u64) -> Self {
        Self { indices, seed, current: Mutex::new((None, Vec::new())) }
    }

    pub(crate) fn len(&self) -> usize {
        self.indices.len()
    }

    /// The record at `position`, epochs counted through.
    pub(crate) fn at(&self, position: u64) -> usize {
        let epoch = position / self.len() as u64;
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if current.0 != Some(epoch) {
            current.1.clone_from(&self.indices);
            Random::new(derive(self.seed, 0x6570_6f63, epoch)).shuffle(&mut current.1);
            current.0 = Some(epoch);
        }
        current.1[(position % self.len() as u64) as usize]
    }
}

/// Splits `0..count` into training and held-out records by a seeded draw: the former in ascending order, the latter as
/// drawn, since measurements take the first of them.
pub(crate) fn split(count: usize, held_out: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..count).collect();
    Random::new(derive(seed, 0x7370_6c69, 0)).shuffle(&mut order);
    let held = ((count as f64 * held_out).round() as usize).min(count.saturating_sub(1));
    let mut train = order.split_off(held);
    train.sort_unstable();
    (train, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_and_ordinals_count_each_entry_without_gaps() {
        let shares = Shares::new(&[4.0, 1.0, 0.5], 7);
        let mut seen = [0u64; 3];
        for index in 0..5500 {
            let (entry, ordinal) = shares.at(index);
            assert_eq!(ordinal, seen[entry]);
            seen[entry] += 1;
        }
        assert!(seen.iter().zip([4000.0, 1000.0, 500.0]).all(|(&n, want)| (n as f64 - want).abs() < 40.0), "{seen:?}");
    }

    #[test]
    fn an_epoch_visits_every_record_once_and_the_next_in_another_order() {
        let epochs = Epochs::new((10..60).collect(), 3);
        let first: Vec<usize> = (0..50).map(|i| epochs.at(i)).collect();
        let second: Vec<usize> = (50..100).map(|i| epochs.at(i)).collect();
        assert_ne!(first, second);
        for mut order in [first.clone(), second] {
            order.sort_unstable();
            assert_eq!(order, (10..60).collect::<Vec<_>>());
        }
        assert_eq!((0..50).map(|i| epochs.at(i)).collect::<Vec<_>>(), first, "going back gives the same order");
    }

    #[test]
    fn held_out_records_are_a_share_and_never_trained_on() {
        let (train, held) = split(1000, 0.02, 1);
        assert_eq!((train.len(), held.len()), (980, 20));
        assert!(!held.is_sorted(), "the first ones would be of one kind where a file has kinds one after another");
        assert!(held.iter().all(|record| train.binary_search(record).is_err()));
    }
}
