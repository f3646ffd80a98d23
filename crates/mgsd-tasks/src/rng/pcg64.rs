//! numpy's default generator: `SeedSequence` feeding PCG64 (XSL-RR 128/64).

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
const POOL: usize = 4;

/// The stream of `numpy.random.default_rng(seed)`.
#[derive(Clone, Debug)]
pub struct Pcg64 {
    state: u128,
    increment: u128,
    /// Upper half of the last 64-bit word, handed out by the following 32-bit draw.
    kept: Option<u32>,
}

struct Hasher(u32);

impl Hasher {
    fn hash(&mut self, value: u32) -> u32 {
        let mut value = value ^ self.0;
        self.0 = self.0.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(self.0);
        value ^ (value >> 16)
    }
}

fn mix(x: u32, y: u32) -> u32 {
    let r = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
    r ^ (r >> 16)
}

fn entropy_pool(seed: u64) -> [u32; POOL] {
    // A 64-bit seed has at most two words, so the pool's overflow rule never applies.
    let entropy = [seed as u32, (seed >> 32) as u32, 0, 0];
    let mut hasher = Hasher(0x43b0_d7e5);
    let mut pool = entropy.map(|word| hasher.hash(word));
    for source in 0..POOL {
        for target in 0..POOL {
            if source != target {
                pool[target] = mix(pool[target], hasher.hash(pool[source]));
            }
        }
    }
    pool
}

fn state_words(pool: &[u32; POOL]) -> [u64; 4] {
    let mut h = 0x8b51_f9dd_u32;
    let mut words = [0_u32; 8];
    for (i, word) in words.iter_mut().enumerate() {
        let mut value = pool[i % POOL] ^ h;
        h = h.wrapping_mul(0x58f3_8ded);
        value = value.wrapping_mul(h);
        *word = value ^ (value >> 16);
    }
    std::array::from_fn(|i| u64::from(words[2 * i]) | u64::from(words[2 * i + 1]) << 32)
}

impl Pcg64 {
    /// The generator for a seed.
    pub fn new(seed: u64) -> Self {
        let [s0, s1, s2, s3] = state_words(&entropy_pool(seed));
        let start = u128::from(s0) << 64 | u128::from(s1);
        let increment = (u128::from(s2) << 64 | u128::from(s3)) << 1 | 1;
        let mut rng = Self { state: 0, increment, kept: None };
        rng.advance();
        rng.state = rng.state.wrapping_add(start);
        rng.advance();
        rng
    }

    fn advance(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.advance();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// The next 32 random bits: the low half of a fresh word, then its high half.
    pub fn next_u32(&mut self) -> u32 {
        if let Some(high) = self.kept.take() {
            return high;
        }
        let word = self.next_u64();
        self.kept = Some((word >> 32) as u32);
        word as u32
    }

    /// A double in [0, 1) with 53 random bits.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform integer in `0..=high` by Lemire's multiplication with rejection; no draw when `high` is 0.
    pub fn bounded(&mut self, high: u32) -> u32 {
        if high == 0 {
            return 0;
        }
        let n = u64::from(high) + 1;
        let mut m = u64::from(self.next_u32()) * n;
        if (m & 0xffff_ffff) < n {
            let threshold = u64::from(u32::MAX - high) % n;
            while (m & 0xffff_ffff) < threshold {
                m = u64::from(self.next_u32()) * n;
            }
        }
        (m >> 32) as u32
    }

    /// Two different numbers below `count`, as `Generator.choice(count, 2, replace=False)` picks
    /// them (Floyd's sampling and a final shuffle). `count` is 2 to 10,000.
    pub fn choose_two(&mut self, count: u32) -> (u32, u32) {
        let first = self.bounded(count - 2);
        let drawn = self.bounded(count - 1);
        let second = if drawn == first { count - 1 } else { drawn };
        if self.bounded(1) == 0 { (second, first) } else { (first, second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/data/rng_vectors.json")).unwrap()
    }

    fn hex(values: &Value) -> Vec<u64> {
        let parse = |v: &Value| u64::from_str_radix(v.as_str().unwrap(), 16).unwrap();
        values.as_array().unwrap().iter().map(parse).collect()
    }

    #[test]
    fn pcg64_gives_numpys_words_doubles_and_halves() {
        let vectors = vectors();
        for (seed, expected) in vectors["numpy_pcg64"].as_object().unwrap() {
            let seed = seed.parse().unwrap();
            let pool: Vec<u64> = entropy_pool(seed).iter().map(|&w| w.into()).collect();
            assert_eq!(pool, hex(&expected["seedseq_pool_u32"]));
            assert_eq!(state_words(&entropy_pool(seed)).to_vec(), hex(&expected["state64x4"]));
            let mut rng = Pcg64::new(seed);
            for word in hex(&expected["next_u64_first10"]) {
                assert_eq!(rng.next_u64(), word);
            }
            let mut rng = Pcg64::new(seed);
            for value in expected["random_f64_first10"].as_array().unwrap() {
                // The JSON reader may be off by one unit in the last place; the words above are exact.
                assert!((rng.next_f64() - value.as_f64().unwrap()).abs() < 1e-15);
            }
            let mut rng = Pcg64::new(seed);
            for half in hex(&expected["next_u32_first4_buffered"]) {
                assert_eq!(u64::from(rng.next_u32()), half);
            }
        }
    }

    #[test]
    fn choose_two_gives_numpys_pairs() {
        let vectors = vectors();
        for (seed, by_count) in vectors["choice_two"].as_object().unwrap() {
            for (count, pairs) in by_count.as_object().unwrap() {
                let mut rng = Pcg64::new(seed.parse().unwrap());
                for pair in pairs.as_array().unwrap() {
                    let (a, b) = rng.choose_two(count.parse().unwrap());
                    assert_eq!(serde_json::json!([a, b]), *pair, "seed {seed}, count {count}");
                }
            }
        }
    }
}
