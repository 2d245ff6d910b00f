//! Random numbers from a seed.

use std::time::Duration;

/// The generator that Java's `SplittableRandom` uses (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014). Good enough for a load.
#[derive(Clone, Copy, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// 64 random bits.
    #[allow(clippy::should_implement_trait, reason = "it never ends, and nothing iterates over it")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From an exponential distribution with this mean.
    pub fn exponential(&mut self, mean: Duration) -> Duration {
        // 1 - u is in (0, 1]: its logarithm is finite.
        mean.mul_f64(-(1.0 - self.unit()).ln())
    }

    /// Uniform in [0, 1): 52 random bits behind the exponent of 1.
    pub fn unit(&mut self) -> f64 {
        f64::from_bits(1.0_f64.to_bits() | (self.next() >> 12)) - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(0);
        assert_eq!([random.next(), random.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }
}
