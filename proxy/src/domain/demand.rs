//! What texts ask of an engine, known before anything is tokenised.

/// What the members of a batch ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Members.
    pub members: usize,
    /// Bytes of their prompts.
    pub bytes: u64,
    /// The most tokens that they may still produce, together.
    pub tokens: u64,
    /// The most tokens that one of them may still produce.
    pub longest: u32,
    /// Tokens that earlier attempts have produced, which are fed again like a prompt.
    pub again: u64,
}

impl Demand {
    /// One member more: bytes of its prompt, tokens that it may still produce, and tokens that it has produced before.
    pub fn add(&mut self, bytes: usize, tokens: u32, again: usize) {
        self.members += 1;
        self.bytes += bytes as u64;
        self.tokens += u64::from(tokens);
        self.longest = self.longest.max(tokens);
        self.again += again as u64;
    }

    /// These members and others.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            members: self.members + other.members,
            bytes: self.bytes + other.bytes,
            tokens: self.tokens + other.tokens,
            longest: self.longest.max(other.longest),
            again: self.again + other.again,
        }
    }

    /// Without those others, who were among them. The longest stays.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        Self {
            members: self.members.saturating_sub(other.members),
            bytes: self.bytes.saturating_sub(other.bytes),
            tokens: self.tokens.saturating_sub(other.tokens),
            longest: self.longest,
            again: self.again.saturating_sub(other.again),
        }
    }

    /// Of so many members like these on average, where there are `all`.
    #[must_use]
    pub fn part(&self, members: usize, all: usize) -> Self {
        let (n, all) = (members as u64, (all as u64).max(1));
        Self {
            members,
            bytes: self.bytes * n / all,
            tokens: self.tokens * n / all,
            longest: self.longest,
            again: self.again * n / all,
        }
    }
}

#[cfg(test)]
impl Demand {
    /// So many times as much: `members` like this one.
    #[must_use]
    pub(crate) fn times(&self, members: usize) -> Self {
        let n = members as u64;
        Self {
            members: self.members * members,
            bytes: self.bytes * n,
            tokens: self.tokens * n,
            longest: self.longest,
            again: self.again * n,
        }
    }
}
