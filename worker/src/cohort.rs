//! Splits a batch into cohorts: the members of a cohort share one engine call. Pure.
//!
//! A member's answer must not depend on the other members of its call. Three properties of CTranslate2 would break this. So
//! members that would affect each other's answers are kept apart.
//! A call has one `min_length` for all members. It feeds one-token prompts in another way than
//! longer ones. And options that look back over the output see the prompt tokens that longer members feed step by step.
//!
//! If a prompt is longer than the model's sliding window, CTranslate2 answers only the first member of a call correctly. Such
//! a member gets a call of its own.
//!
//! CTranslate2 feeds only the length of the shortest prompt in bulk, and the rest of longer prompts one decode step at a time.
//! So members of very different lengths are kept apart too, if two calls are predicted to take less time than one.

use pillion_protocol::frame::UnitCost;

use crate::memory::{Allowance, Size};

/// The lengths of a member, by which it is put into a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens to feed before the first new one; at least 1.
    pub prompt: u32,
    /// New tokens that the member gets before its sequence may end.
    pub least: u32,
    /// The most new tokens.
    pub most: u32,
}

impl Shape {
    /// The most tokens that the member comes to, prompt and answer together.
    pub fn tokens(self) -> u64 {
        u64::from(self.prompt) + u64::from(self.most)
    }
}

/// The costs of the engine's work, in nanoseconds. If all costs are zero, only members that must not share are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// A call, before it does anything.
    pub call: u64,
    /// A decode step, for any number of members.
    pub step: u64,
    /// A member in a decode step.
    pub member: u64,
    /// A prompt token fed in bulk.
    pub fed: u64,
}

impl From<Cost> for UnitCost {
    fn from(Cost { call: _, step, member, fed }: Cost) -> Self {
        Self { step_ns: step, member_ns: member, prompt_ns: fed }
    }
}

/// The rules by which members share a call.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether the decoding options look back over the output. Then only prompts of equal length share.
    pub look_back: bool,
    /// The most tokens of a call, prompts and answers together. A member that has more gets a call of its own.
    pub max_tokens: u64,
    /// The memory that a call may take. A member that needs more gets a call of its own.
    pub allowance: Allowance,
    /// The model's sliding window in tokens; 0 means no window.
    pub window: u32,
    /// The costs by which different lengths are kept apart.
    pub cost: Cost,
}

/// Splits members into cohorts, which are lists of indexes in `shapes`. Each member is in exactly one cohort; no cohort is
/// empty. Cohorts with shorter prompts come first.
pub fn split(shapes: &[Shape], rules: Rules) -> Vec<Vec<usize>> {
    let class = |index: &usize| {
        let shape = shapes[*index];
        (shape.least, if rules.look_back { shape.prompt } else { shape.prompt.min(2) })
    };
    // The engine feeds all of a prompt except its last token in bulk.
    let is_beyond = |index: &usize| rules.window > 0 && shapes[*index].prompt - 1 > rules.window;
    let (beyond, mut order): (Vec<usize>, Vec<usize>) = (0..shapes.len()).partition(is_beyond);
    order.sort_by_key(|index| (class(index), shapes[*index].prompt, *index));
    let mut cohorts = Vec::new();
    for alike in order.chunk_by(|a, b| class(a) == class(b)) {
        let mut rest = alike;
        for length in cut(shapes, alike, rules) {
            let (cohort, later) = rest.split_at(length);
            cohorts.push(cohort.to_vec());
            rest = later;
        }
    }
    cohorts.extend(beyond.into_iter().map(|index| vec![index]));
    cohorts
}

/// Cuts a row of members, sorted by the length of their prompts, into calls so that all calls together are predicted to take
/// the least time. Returns the lengths of the pieces. Of equally fast cuts, the one with the fewest pieces is taken.
fn cut(shapes: &[Shape], row: &[usize], rules: Rules) -> Vec<usize> {
    // best[end]: the least time for the members before `end`, the pieces it takes, and where the last of them starts.
    let mut best: Vec<(u64, usize, usize)> = vec![(0, 0, 0)];
    for end in 1..=row.len() {
        let mut piece = Piece::default();
        let mut least = (u64::MAX, usize::MAX, 0);
        for start in (0..end).rev() {
            piece.extend(shapes[row[start]]);
            if piece.tokens > rules.max_tokens && start + 1 < end {
                break;
            }
            // With a shorter prompt in the call, less is fed in bulk: a larger call may need less memory, so the loop goes on.
            if !rules.allowance.fits(piece.size()) && start + 1 < end {
                continue;
            }
            let (before, pieces, _) = best[start];
            least = least.min((before.saturating_add(piece.time(rules.cost)), pieces + 1, start));
        }
        best.push(least);
    }
    let mut lengths = Vec::new();
    let mut end = row.len();
    while end > 0 {
        let start = best[end].2;
        lengths.push(end - start);
        end = start;
    }
    lengths.reverse();
    lengths
}

/// A possible call. Members are added to it one by one, from longer prompts to shorter ones.
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    shortest: u64,
    members: u64,
    tokens: u64,
    /// Prompt and new tokens of the member that ends last.
    last: u64,
}

impl Piece {
    fn extend(&mut self, shape: Shape) {
        let tokens = shape.tokens();
        self.shortest = shape.prompt.into();
        self.members += 1;
        self.tokens += tokens;
        self.last = self.last.max(tokens);
    }

    fn size(self) -> Size {
        Size { members: self.members, shortest: self.shortest, tokens: self.tokens }
    }

    /// The predicted time of the call if every member uses all its tokens. A member takes part in every step up to and
    /// including its own last step.
    fn time(self, cost: Cost) -> u64 {
        let fed = self.shortest.saturating_sub(1).saturating_mul(self.members);
        let member_steps = self.tokens.saturating_sub(self.shortest.saturating_mul(self.members));
        let steps = self.last.saturating_sub(self.shortest);
        cost.call
            .saturating_add(fed.saturating_mul(cost.fed))
            .saturating_add(steps.saturating_mul(cost.step))
            .saturating_add(member_steps.saturating_mul(cost.member))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::llama;
    use crate::memory::tests::UNKNOWN;

    fn shapes() -> impl Strategy<Value = Vec<Shape>> {
        let shape = (1u32..6, 0u32..3, 1u32..50).prop_map(|(prompt, least, most)| Shape { prompt, least, most });
        proptest::collection::vec(shape, 0..40)
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let cost =
            (0u64..9, 0u64..9, 0u64..9, 0u64..9).prop_map(|(call, step, member, fed)| Cost { call, step, member, fed });
        (any::<bool>(), 1u64..200, cost, 0u32..8).prop_map(|(look_back, max_tokens, cost, window)| Rules {
            look_back,
            max_tokens,
            allowance: UNKNOWN,
            window,
            cost,
        })
    }

    fn sizes(prompts: &[u32], cost: Cost) -> Vec<usize> {
        let shapes: Vec<Shape> = prompts.iter().map(|&prompt| Shape { prompt, least: 0, most: 10 }).collect();
        split(&shapes, Rules { look_back: false, max_tokens: 1 << 20, allowance: UNKNOWN, window: 0, cost })
            .iter()
            .map(Vec::len)
            .collect()
    }

    #[test]
    fn very_different_lengths_are_kept_apart_and_similar_ones_share_a_call() {
        // As measured on a model of 125 million parameters on two processor cores.
        let cost = Cost { call: 0, step: 13_500_000, member: 600_000, fed: 300_000 };
        assert_eq!(sizes(&[[10; 8], [200; 8]].concat(), cost), [8, 8]);
        assert_eq!(sizes(&[10, 11, 12, 13, 14, 15], cost), [6]);
        assert_eq!(sizes(&[10, 200, 11, 205, 12, 1000], cost), [3, 2, 1]);
        assert_eq!(sizes(&[10, 200, 1000], Cost::default()), [3], "nothing measured, nothing predicted");
    }

    #[test]
    fn members_that_do_not_fit_the_memory_together_are_kept_apart() {
        let split_of = |mib: u64, prompts: &[u32]| {
            let shapes: Vec<Shape> = prompts.iter().map(|&prompt| Shape { prompt, least: 0, most: 10 }).collect();
            let allowance = Allowance { need: llama(), bytes: mib << 20 };
            let rules = Rules { look_back: false, max_tokens: 1 << 20, allowance, window: 0, cost: Cost::default() };
            split(&shapes, rules).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(split_of(10_000, &[2_000; 8]), [8]);
        assert_eq!(split_of(900, &[2_000; 8]).iter().max(), Some(&4));
        assert_eq!(split_of(1, &[2_000; 3]), [1, 1, 1], "a member that does not fit even alone still gets a call");
        assert_eq!(split_of(500, &[20, 2_000, 2_000]), [3], "beside a short prompt the others are fed step by step");
    }

    proptest! {
        #[test]
        fn every_member_is_in_exactly_one_cohort(shapes in shapes(), rules in rules()) {
            let mut seen: Vec<usize> = split(&shapes, rules).into_iter().flatten().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..shapes.len()).collect::<Vec<_>>());
        }

        #[test]
        fn no_member_shares_a_call_that_would_change_its_answer(shapes in shapes(), rules in rules()) {
            for cohort in split(&shapes, rules) {
                let first = shapes[cohort[0]];
                let mut tokens = 0;
                for &index in &cohort {
                    let shape = shapes[index];
                    prop_assert_eq!(shape.least, first.least);
                    prop_assert_eq!(shape.prompt == 1, first.prompt == 1);
                    prop_assert!(!rules.look_back || shape.prompt == first.prompt);
                    prop_assert!(cohort.len() == 1 || rules.window == 0 || shape.prompt - 1 <= rules.window);
                    tokens += u64::from(shape.prompt + shape.most);
                }
                prop_assert!(tokens <= rules.max_tokens || cohort.len() == 1);
            }
        }

        /// Against every way to cut a short row.
        #[test]
        fn no_other_cut_is_predicted_to_be_faster(
            mut shapes in proptest::collection::vec((2u32..30, 1u32..9), 1..8),
            rules in rules(),
        ) {
            shapes.sort_unstable();
            let shapes: Vec<Shape> = shapes.iter().map(|&(prompt, most)| Shape { prompt, least: 0, most }).collect();
            let rules = Rules { look_back: false, max_tokens: u64::MAX, window: 0, ..rules };
            let time = |cohorts: &[Vec<usize>]| -> u64 {
                cohorts.iter().map(|cohort| {
                    let mut piece = Piece::default();
                    cohort.iter().rev().for_each(|&index| piece.extend(shapes[index]));
                    piece.time(rules.cost)
                }).sum()
            };
            let chosen = time(&split(&shapes, rules));
            for cuts in 0u32..1 << (shapes.len() - 1) {
                let mut other = vec![vec![0]];
                for place in 1..shapes.len() {
                    if cuts & (1 << (place - 1)) == 0 {
                        other.last_mut().unwrap().push(place);
                    } else {
                        other.push(vec![place]);
                    }
                }
                prop_assert!(chosen <= time(&other));
            }
        }
    }
}
