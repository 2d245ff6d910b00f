//! The memory that is free, the memory that a call needs, and so the largest call that may be made.
//!
//! On a processor the kernel kills the process if a call needs too much memory; on a GPU the call fails. To avoid both, the
//! worker computes what a call needs from the shapes in `model.bin` before it makes the call.

mod free;
mod need;

pub use free::{device, system};
#[cfg(test)]
pub(crate) use need::tests::llama;
pub use need::{Need, Size};

/// The part of the free memory that calls may take. The rest is for prompts in flight and for other programs.
const PART: (u64, u64) = (3, 4);

/// Bytes that one call may take of `free` bytes when `calls` calls run at once.
pub fn share(free: u64, calls: u64) -> u64 {
    free / PART.1 * PART.0 / calls.max(1)
}

/// How much memory a call needs, and how much it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Computes what a call needs.
    pub need: Need,
    /// Bytes that one call may take; `u64::MAX` if the free memory is unknown.
    pub bytes: u64,
}

/// The prompt tokens and new tokens of a request that is always accepted, however little memory is free.
const LEAST: (u32, u32) = (256, 256);

impl Allowance {
    /// An allowance of `bytes`, but at least what a short request needs.
    pub fn new(need: Need, bytes: u64) -> Self {
        Self { need, bytes: bytes.max(need.bytes(Size::alone(LEAST.0, LEAST.1))) }
    }

    /// Whether a call of this size may be made.
    pub fn fits(&self, size: Size) -> bool {
        self.need.bytes(size) <= self.bytes
    }

    /// The longest prompt, of at most `most` tokens, that one request with `new` new tokens may have.
    pub fn longest_prompt(&self, new: u32, most: u32) -> u32 {
        largest(most, |prompt| self.fits(Size::alone(prompt, new)))
    }

    /// The most new tokens, at most `most`, that one request with a prompt of `prompt` tokens may have.
    pub fn longest_answer(&self, prompt: u32, most: u32) -> u32 {
        largest(most, |new| self.fits(Size::alone(prompt, new)))
    }
}

/// The largest number up to `most` that fits, given that every smaller one fits too; 0 if none fits.
fn largest(most: u32, fits: impl Fn(u32) -> bool) -> u32 {
    if fits(most) {
        return most;
    }
    let (mut largest, mut too_large) = (0, most);
    while largest + 1 < too_large {
        let middle = u32::midpoint(largest, too_large);
        if fits(middle) {
            largest = middle;
        } else {
            too_large = middle;
        }
    }
    largest
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
    fn the_largest_that_fits_is_found() {
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
