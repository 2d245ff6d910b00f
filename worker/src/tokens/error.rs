//! Why a text could not be turned into token ids, or why ids could not be turned into text.

/// The tokenizer failed on a text or on ids.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerFailed {
    /// The tokenizer returned an error.
    #[error("the tokenizer failed: {0}")]
    Refused(String),
    /// The tokenizer panicked: a defect in the tokenizer.
    #[error("the tokenizer panicked: {0}")]
    Panicked(String),
}

/// Why a prompt cannot be turned into ids.
#[derive(Debug, thiserror::Error)]
pub enum PromptFailed {
    /// The prompt has at least this many tokens, which its length alone shows; the model has fewer positions.
    #[error("the prompt has at least {0} tokens")]
    TooLong(usize),
    /// The model has no usable chat template, or the template refuses these messages.
    #[error("{0}")]
    Template(String),
    /// The text holds the characters that tell special tokens from text that only looks like them.
    #[error("the text holds noncharacters (U+FDD0 to U+FDEF) that are needed to tell special tokens from text")]
    Unmarkable,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerFailed),
}
