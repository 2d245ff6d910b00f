//! How much work texts demand of an engine, estimated before they are tokenised.

/// The work that some jobs, often the members of a batch, demand all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The number of members.
    pub members: usize,
    /// Bytes of their prompts.
    pub bytes: u64,
    /// The most tokens that they may still produce, all together.
    pub tokens: u64,
    /// The most tokens that any one of them may still produce.
    pub longest: u32,
    /// Tokens that earlier attempts produced. The engine is fed these again like a prompt.
    pub refed: u64,
}

impl Demand {
    /// Adds a member: the bytes of its prompt, the most tokens that it may still produce, and the tokens to feed again.
    pub fn add(&mut self, bytes: usize, tokens: u32, refed: usize) {
        self.members += 1;
        self.bytes += bytes as u64;
        self.tokens += u64::from(tokens);
        self.longest = self.longest.max(tokens);
        self.refed += refed as u64;
    }

    /// The demand of these members and of `other`, together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            members: self.members + other.members,
            bytes: self.bytes + other.bytes,
            tokens: self.tokens + other.tokens,
            longest: self.longest.max(other.longest),
            refed: self.refed + other.refed,
        }
    }

    /// The demand without `other`, which is a part of it. `longest` stays the same.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        Self {
            members: self.members.saturating_sub(other.members),
            bytes: self.bytes.saturating_sub(other.bytes),
            tokens: self.tokens.saturating_sub(other.tokens),
            longest: self.longest,
            refed: self.refed.saturating_sub(other.refed),
        }
    }

    /// The demand of `members` average members, if this is the demand of `all`. `longest` stays the same.
    #[must_use]
    pub fn part(&self, members: usize, all: usize) -> Self {
        let (n, all) = (members as u64, (all as u64).max(1));
        Self {
            members,
            bytes: self.bytes * n / all,
            tokens: self.tokens * n / all,
            longest: self.longest,
            refed: self.refed * n / all,
        }
    }
}

#[cfg(test)]
impl Demand {
    /// The demand of this many times the same members.
    #[must_use]
    pub(crate) fn times(&self, members: usize) -> Self {
        let n = members as u64;
        Self {
            members: self.members * members,
            bytes: self.bytes * n,
            tokens: self.tokens * n,
            longest: self.longest,
            refed: self.refed * n,
        }
    }
}
