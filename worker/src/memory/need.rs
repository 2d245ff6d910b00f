//! Computes the memory that a call needs from the model's shapes. Pure.

use crate::model::Description;

/// Bytes that the engine takes for any call.
const BASE: u64 = 16 << 20;
/// Copies of a step's logits: as computed, as probabilities, and sorted.
const LOGITS: u64 = 3;
/// Copies of a token's activations in a layer: its input, its output, and those between.
const ACTIVATIONS: u64 = 3;

/// The memory that a model's calls need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    heads: u64,
    layers: u64,
    /// Bytes of a token's keys and values in all layers.
    token: u64,
    /// Bytes of a token's activations in a layer.
    activation: u64,
    /// Bytes of one member's logits.
    logits: u64,
    /// Bytes of one element.
    element: u64,
    window: u64,
}

/// The size of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Members.
    pub members: u64,
    /// Tokens of the shortest prompt: the engine feeds this many in bulk for each member.
    pub shortest: u64,
    /// Tokens of all prompts and answers together.
    pub tokens: u64,
}

impl Size {
    /// The size of a call of one member with `prompt` prompt tokens and `new` new tokens.
    pub fn alone(prompt: u32, new: u32) -> Self {
        Self { members: 1, shortest: prompt.into(), tokens: u64::from(prompt) + u64::from(new) }
    }
}

impl Need {
    /// Calls that need no memory, for a model whose shapes are unknown.
    pub const NOTHING: Self = Self { heads: 0, layers: 1, token: 0, activation: 0, logits: 0, element: 0, window: 0 };

    /// The need of a model whose activations take `element` bytes per element.
    pub fn of(model: &Description, element: u64) -> Self {
        Self {
            heads: model.heads,
            layers: model.layers.max(1),
            token: model.cached * element,
            activation: ACTIVATIONS * (model.inner + model.width) * element,
            logits: LOGITS * model.choices * element,
            element,
            window: model.window.into(),
        }
    }

    /// Bytes of a token's keys and values.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The most bytes that a call takes at a time. While the engine feeds prompts in bulk, each head has a score for every pair
    /// of tokens. After that the keys and values of all tokens take the memory, and one layer's a second time as they grow.
    pub fn bytes(&self, size: Size) -> u64 {
        let fed = size.shortest.saturating_sub(1);
        // A prompt longer than the window is fed in pieces of the window's length that attend to the piece before.
        let (rows, columns) = match self.window {
            0 => (fed, fed),
            window => (fed.min(window), fed.min(2 * window)),
        };
        let product = |factors: &[u64]| factors.iter().fold(1u64, |all, factor| all.saturating_mul(*factor));
        let scores = product(&[size.members, self.heads, rows, columns, self.element]);
        let activations = product(&[size.members, rows, self.activation]);
        let fed = product(&[size.members, fed, self.token]);
        let all = product(&[size.tokens, self.token]);
        let growing = all / self.layers;
        let decoding = all.saturating_add(growing).saturating_add(product(&[size.members, self.logits]));
        // Queries, keys and values exist at the same time as the scores. The feed-forward part runs after the scores are freed.
        let feeding = scores.saturating_add(activations / 2).max(activations).saturating_add(fed);
        BASE.saturating_add(feeding.max(decoding))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A Llama of 24 MiB: 4 layers, 512 wide, 8 heads.
    pub(crate) fn llama() -> Need {
        let model = Description {
            layers: 4,
            width: 512,
            heads: 8,
            cached: 4 * 2 * 512,
            inner: 2 * 1376,
            choices: 2048,
            ..Description::default()
        };
        Need::of(&model, 4)
    }

    /// Measured on such a model, as the peak above the memory of the loaded worker: 66 MiB with 1,000 prompt tokens, 180 with
    /// 2,000, 628 with 4,000, 2,241 with 8,000; 468 with 8 prompts of 1,000 and 278 with 20 of 300.
    #[test]
    fn attention_grows_with_the_square_of_the_prompt() {
        let bytes = |prompt| llama().bytes(Size::alone(prompt, 10)) / MIB;
        for (prompt, least, most) in [(1_000, 66, 90), (2_000, 180, 230), (4_000, 628, 680), (8_000, 2_241, 2_300)] {
            assert!((least..most).contains(&bytes(prompt)), "{prompt}: {}", bytes(prompt));
        }
        let many = |members, prompt: u64| {
            llama().bytes(Size { members, shortest: prompt, tokens: members * (prompt + 10) }) / MIB
        };
        assert!((468..560).contains(&many(8, 1_000)) && (278..420).contains(&many(20, 300)));
    }

    #[test]
    fn a_long_answer_takes_its_keys_and_values_and_no_square() {
        let bytes = llama().bytes(Size::alone(10, 8_000));
        let token = 4 * 2 * 512 * 4;
        assert!((8_000 * token..8_000 * token * 2).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_window_bounds_the_square() {
        let bounded = Need { window: 512, ..llama() };
        assert!(bounded.bytes(Size::alone(8_000, 10)) < llama().bytes(Size::alone(8_000, 10)) / 5);
        assert_eq!(bounded.bytes(Size::alone(500, 10)), llama().bytes(Size::alone(500, 10)));
    }

    #[test]
    fn no_size_is_too_large_to_be_counted() {
        let size = Size { members: u64::MAX, shortest: u64::MAX, tokens: u64::MAX };
        assert_eq!(llama().bytes(size), u64::MAX);
    }
}
