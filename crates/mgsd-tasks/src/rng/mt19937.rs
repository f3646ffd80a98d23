//! CPython's `random.Random`: the Mersenne Twister seeded by array.

const N: usize = 624;
const M: usize = 397;

/// The stream of `random.Random(seed)`.
#[derive(Clone)]
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl std::fmt::Debug for Mt19937 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mt19937").field("next", &self.next).finish_non_exhaustive()
    }
}

fn scramble(word: u32) -> u32 {
    word ^ (word >> 30)
}

impl Mt19937 {
    /// The generator for a seed.
    pub fn new(seed: u64) -> Self {
        let words = [seed as u32, (seed >> 32) as u32];
        let key = if words[1] == 0 { &words[..1] } else { &words[..] };
        let mut state = [0_u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = 1_812_433_253_u32.wrapping_mul(scramble(state[i - 1])).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            state[i] =
                (state[i] ^ scramble(state[i - 1]).wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            i += 1;
            j = (j + 1) % key.len();
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            state[i] = (state[i] ^ scramble(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, next: N }
    }

    fn refill(&mut self) {
        let twist = |upper: u32, lower: u32, far: u32| {
            let y = (upper & 0x8000_0000) | (lower & 0x7fff_ffff);
            far ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 }
        };
        let s = &mut self.state;
        for k in 0..N - M {
            s[k] = twist(s[k], s[k + 1], s[k + M]);
        }
        for k in N - M..N - 1 {
            s[k] = twist(s[k], s[k + 1], s[k + M - N]);
        }
        s[N - 1] = twist(s[N - 1], s[0], s[M - 1]);
        self.next = 0;
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next >= N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform number below `n` (which is at least 1): `randrange(n)`, and the index that `choice` takes.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u32;
        // The width is that of n itself, so n = 1 draws single bits until one is zero.
        let width = 32 - n.leading_zeros();
        loop {
            let value = self.next_u32() >> (32 - width);
            if value < n {
                return value as usize;
            }
        }
    }

    /// `choice(items)`; `items` is not empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i + 1);
            items.swap(i, j);
        }
    }

    /// `sample(range(n), k)` with `k <= n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut largest_pool = 21;
        if k > 5 {
            let mut power = 1;
            while power < 3 * k {
                power *= 4;
            }
            largest_pool += power;
        }
        if n <= largest_pool {
            let mut pool: Vec<usize> = (0..n).collect();
            let take = |i: usize| {
                let j = self.below(n - i);
                let taken = pool[j];
                pool[j] = pool[n - i - 1];
                taken
            };
            return (0..k).map(take).collect();
        }
        let mut taken: Vec<usize> = Vec::with_capacity(k);
        let mut seen = std::collections::HashSet::with_capacity(k);
        while taken.len() < k {
            let j = self.below(n);
            if seen.insert(j) {
                taken.push(j);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn mt19937_gives_cpythons_words_ranges_samples_and_shuffles() {
        let text = include_str!("../../tests/data/rng_vectors.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        for (seed, expected) in vectors["mt19937"].as_object().unwrap() {
            let seed: u64 = seed.parse().unwrap();
            let list = |name: &str| -> Vec<u64> {
                expected[name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
            };
            let mut rng = Mt19937::new(seed);
            assert!(list("u32_first10").iter().all(|&word| u64::from(rng.next_u32()) == word));
            for n in [5, 4] {
                let mut rng = Mt19937::new(seed);
                for value in list(&format!("randrange_{n}_first10")) {
                    assert_eq!(rng.below(n) as u64, value);
                }
            }
            for (n, k) in [(9, 2), (16, 2), (25, 2), (36, 2), (100, 10)] {
                let drawn = Mt19937::new(seed).sample(n, k);
                let drawn: Vec<u64> = drawn.into_iter().map(|v| v as u64).collect();
                assert_eq!(drawn, list(&format!("sample_range{n}_{k}")), "seed {seed}");
            }
            let mut items: Vec<u64> = (0..10).collect();
            Mt19937::new(seed).shuffle(&mut items);
            assert_eq!(items, list("shuffle_range10"));
        }
    }
}
