//! Memory: what is left, what calls need, and so how large one may be.
//!
//! On a processor a call that is too much would end the process, since the kernel kills it; on a GPU the call fails. Neither is
//! left to chance: what a call needs is computed from the shapes in `model.bin` before it is made.

mod free;
mod need;

pub use free::{device, system};
#[cfg(test)]
pub(crate) use need::tests::llama;
pub use need::{Need, Size};

/// The part of the free memory that calls may take: the rest is for prompts on their way, and for whoever else wants it.
const PART: (u64, u64) = (3, 4);

/// What one call may take: a part of what is free, shared by so many calls at once.
pub fn share(free: u64, calls: u64) -> u64 {
    free / PART.1 * PART.0 / calls.max(1)
}

/// What a worker's calls need, and the most that one may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// What calls need.
    pub need: Need,
    /// Bytes that one may take. `u64::MAX` where nobody knows what is free.
    pub bytes: u64,
}

/// A request that is always let in, however little memory there seems to be: so many prompt tokens and new ones.
const LEAST: (u32, u32) = (256, 256);

impl Allowance {
    /// For a worker whose calls need this, and may take so much; but at least what a short request takes.
    pub fn new(need: Need, bytes: u64) -> Self {
        Self { need, bytes: bytes.max(need.bytes(Size::alone(LEAST.0, LEAST.1))) }
    }

    /// Whether a call of this size may be made.
    pub fn fits(&self, size: Size) -> bool {
        self.need.bytes(size) <= self.bytes
    }

    /// The most prompt tokens that one request may have which wants so many new tokens; at most `most`.
    pub fn longest_prompt(&self, new: u32, most: u32) -> u32 {
        largest(most, |prompt| self.fits(Size::alone(prompt, new)))
    }

    /// The most new tokens that one request may have behind so many prompt tokens; at most `most`.
    pub fn longest_answer(&self, prompt: u32, most: u32) -> u32 {
        largest(most, |new| self.fits(Size::alone(prompt, new)))
    }
}

/// The largest number up to `most` that will do, if every smaller one does too; 0 if none does.
fn largest(most: u32, will_do: impl Fn(u32) -> bool) -> u32 {
    if will_do(most) {
        return most;
    }
    let (mut good, mut bad) = (0, most);
    while good + 1 < bad {
        let middle = u32::midpoint(good, bad);
        if will_do(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// For a machine that does not say how much memory is free.
    pub(crate) const UNKNOWN: Allowance = Allowance { need: Need::NOTHING, bytes: u64::MAX };

    #[test]
    fn calls_share_a_part_of_what_is_free() {
        assert_eq!(share(4000, 1), 3000);
        assert_eq!(share(4000, 3), 1000);
    }

    #[test]
    fn the_largest_that_will_do_is_found() {
        for most in [0, 1, 7, 100, u32::MAX] {
            for limit in [0, 1, 6, 7, 99, 100, u32::MAX] {
                assert_eq!(largest(most, |number| number <= limit), limit.min(most));
            }
        }
    }

    #[test]
    fn the_number_that_would_fit_does_and_the_next_does_not() {
        let allowance = Allowance { need: need::tests::llama(), bytes: 200 << 20 };
        let longest = allowance.longest_prompt(10, 100_000);
        assert!(allowance.fits(Size::alone(longest, 10)) && !allowance.fits(Size::alone(longest + 1, 10)));
        let answer = allowance.longest_answer(100, 1 << 24);
        assert!(allowance.fits(Size::alone(100, answer)) && !allowance.fits(Size::alone(100, answer + 1)));
    }
}
