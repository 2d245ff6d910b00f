//! Prepares the members of a received batch for the engine: tokenises and checks them. An invalid member fails alone, before
//! the call.

use std::time::{Duration, Instant};

use pillion_protocol::MemberIndex;
use pillion_protocol::frame::{FailureCode, FinishReason, Member, Options, Prompt};

use crate::batch::{Ended, Ending, PreparedMember, Progress};
use crate::memory::Size;
use crate::shared::Limits;
use crate::tokens::{Answer, PromptFailed, PromptKind, TokenizerFailed, Tokens};

/// Deadlines further away than this are cut to it.
const FARTHEST_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a member cannot be served.
#[derive(Debug, PartialEq, Eq)]
struct Invalid(FailureCode, String);

impl From<TokenizerFailed> for Invalid {
    fn from(error: TokenizerFailed) -> Self {
        match error {
            TokenizerFailed::Refused(_) => invalid(error.to_string()),
            TokenizerFailed::Panicked(_) => Self(FailureCode::Internal, error.to_string()),
        }
    }
}

/// The failure of a member whose prompt could not be tokenised.
fn untokenised(error: PromptFailed, positions: u32) -> Invalid {
    match error {
        PromptFailed::Tokenizer(failed) => failed.into(),
        PromptFailed::TooLong(_) => {
            let message = format!("{error}, which is more than the model's {positions} positions");
            Invalid(FailureCode::TooManyTokens, message)
        }
        other => invalid(other.to_string()),
    }
}

fn invalid(message: impl Into<String>) -> Invalid {
    Invalid(FailureCode::InvalidRequest, message.into())
}

/// Prepares the members of a batch that was received at `received`. Members that end at once are added to `progress` instead.
pub fn members(
    members: Vec<Member>,
    options: &Options,
    received: Instant,
    tokens: &Tokens,
    limits: &Limits,
    progress: &mut Progress,
) -> Vec<PreparedMember> {
    let invalid_options = check_options(options, tokens, limits).err();
    let mut ready = Vec::with_capacity(members.len());
    for (index, member) in (0..).zip(members) {
        let prepared = match &invalid_options {
            Some(Invalid(code, message)) => Err(Invalid(*code, message.clone())),
            None => prepare(index, member, options, received, tokens, limits),
        };
        match prepared {
            Ok((member, None)) => ready.push(member),
            Ok((mut member, Some(reason))) => member.end(Ending::Finished(reason), tokens, progress),
            Err(Invalid(code, message)) => progress.ended.push(Ended {
                member: index,
                how: Ending::Failed(code, message),
                prompt_tokens: 0,
                completion_tokens: 0,
            }),
        }
    }
    ready
}

/// Drops what a member has produced if it cannot be continued: with options that look back over the output, the engine would
/// take produced tokens for prompt. Such a member starts again, if nothing of it was sent.
pub fn forget_what_cannot_be_continued(member: &mut Member, options: &Options) {
    if options.look_back() && member.sent == 0 {
        member.produced = Vec::new();
    }
}

fn prepare(
    index: MemberIndex,
    member: Member,
    options: &Options,
    received: Instant,
    tokens: &Tokens,
    limits: &Limits,
) -> Result<(PreparedMember, Option<FinishReason>), Invalid> {
    let Member { prompt, max_new_tokens: mut most, fit, min_new_tokens: least, stop, deadline_ms, stream, .. } = member;
    let Member { produced, sent, stop_token_ids, chat_template_kwargs: kwargs, .. } = member;
    if options.look_back() && !produced.is_empty() {
        let message = "a part was sent, and repetition_penalty or no_repeat_ngram_size allow no continuation elsewhere";
        return Err(Invalid(FailureCode::NotResumable, message.to_owned()));
    }
    if most == 0 {
        return Err(invalid("max_new_tokens is 0, but it must be at least 1"));
    }
    if least > most {
        return Err(invalid(format!("min_new_tokens {least} is larger than max_new_tokens {most}")));
    }
    let longest = limits.positions as usize;
    let (kind, ids) = match prompt {
        Prompt::Text(text) => (PromptKind::Text, tokens.encode(&text, longest)),
        Prompt::Chat(messages) => (PromptKind::Chat, tokens.encode_chat(&messages, &kwargs, longest)),
        Prompt::Ids(ids) => (PromptKind::Ids, Ok(ids)),
    };
    let mut ids = ids.map_err(|error| untokenised(error, limits.positions))?;
    if ids.is_empty() {
        return Err(Invalid(FailureCode::EmptyPrompt, "the prompt has no tokens".to_owned()));
    }
    let prompt = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    if fit {
        let room = limits.positions.saturating_sub(prompt);
        most = most.min(room);
        most = limits.allowance.longest_answer(prompt, most).max(least.max(1));
    }
    if prompt.checked_add(most).is_none_or(|sum| sum > limits.positions) {
        let positions = limits.positions;
        let message =
            format!("{prompt} prompt tokens and {most} new tokens are more than the model's {positions} positions");
        return Err(Invalid(FailureCode::TooManyTokens, message));
    }
    // Tokens of earlier attempts are fed with the prompt.
    let fed = prompt.saturating_add(u32::try_from(produced.len()).unwrap_or(u32::MAX)).min(prompt.saturating_add(most));
    check_memory(fed, prompt.saturating_add(most).saturating_sub(fed), !produced.is_empty(), limits)?;
    let vocabulary = tokens.vocabulary();
    if let Some(id) = ids.iter().chain(&produced).find(|id| **id >= vocabulary) {
        return Err(invalid(format!(
            "there is no token {id}: the vocabulary has tokens 0 to {}",
            vocabulary.saturating_sub(1)
        )));
    }
    let context = tokens.context(&ids, kind)?;
    let mut text = String::new();
    let (answer, stopped) = if stop.is_empty() {
        (None, false)
    } else {
        let (answer, stopped) = Answer::resume(tokens.decoder(), &context, stop.clone(), &produced, sent, &mut text)?;
        ((!stopped).then_some(answer), stopped)
    };
    let ending = if stopped {
        Some(FinishReason::Stop)
    } else {
        (produced.len() >= most as usize).then_some(FinishReason::Length)
    };
    ids.extend(produced);
    let deadline = received + Duration::from_millis(deadline_ms).min(FARTHEST_DEADLINE);
    let reported = ids.len();
    let member = PreparedMember {
        index,
        tokens: ids,
        prompt,
        most,
        least,
        deadline,
        stream,
        stop,
        stop_token_ids,
        context,
        answer,
        text,
        reported,
    };
    Ok((member, ending))
}

/// Fails a member that alone needs more memory than a call may take.
fn check_memory(fed: u32, new: u32, resumed: bool, limits: &Limits) -> Result<(), Invalid> {
    const MIB: u64 = 1 << 20;
    let Limits { allowance, positions, .. } = limits;
    let size = Size::alone(fed, new);
    if allowance.fits(size) {
        return Ok(());
    }
    let (needs, has) = (allowance.need.bytes(size) / MIB, allowance.bytes / MIB);
    if resumed {
        let message = format!(
            "to continue, {fed} tokens must be fed again, which takes {needs} MiB of memory; this worker has {has} MiB for a request"
        );
        return Err(Invalid(FailureCode::NotResumable, message));
    }
    let alternative = match allowance.longest_prompt(new, positions.saturating_sub(new)) {
        0 => format!("up to {} new tokens would fit with a short prompt", allowance.longest_answer(1, positions - 1)),
        prompt => format!("with that many new tokens, a prompt of {prompt} tokens would fit"),
    };
    let message = format!(
        "{fed} prompt tokens and {new} new tokens take {needs} MiB of memory, and this worker has {has} MiB for a request; {alternative}"
    );
    Err(Invalid(FailureCode::TooManyTokens, message))
}

fn check_options(options: &Options, tokens: &Tokens, limits: &Limits) -> Result<(), Invalid> {
    let Options { sampling_topk, sampling_topp, sampling_temperature, repetition_penalty, no_repeat_ngram_size: _ } =
        *options;
    let vocabulary = tokens.vocabulary();
    if sampling_topk > vocabulary {
        return Err(invalid(format!(
            "sampling_topk {sampling_topk} is larger than the vocabulary of {vocabulary} tokens"
        )));
    }
    if !(sampling_topp > 0.0 && sampling_topp <= 1.0) {
        return Err(invalid(format!("sampling_topp {sampling_topp} must be greater than 0 and at most 1")));
    }
    for (name, value) in [("sampling_temperature", sampling_temperature), ("repetition_penalty", repetition_penalty)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(invalid(format!("{name} {value} must be greater than 0 and finite")));
        }
    }
    let candidates = if sampling_topk == 0 { vocabulary } else { sampling_topk };
    if sampling_topp < 1.0 && candidates > limits.top_p_candidates {
        let most = limits.top_p_candidates;
        return Err(invalid(format!(
            "with sampling_topp below 1, sampling_topk must be from 1 to {most} on this device, but it is {sampling_topk}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pillion_protocol::frame::Message;

    use super::*;
    use crate::memory::tests::UNKNOWN;
    use crate::memory::{Allowance, llama};
    use crate::tokens::samples::byte_tokens;
    use crate::tokens::tests::member;

    const LIMITS: Limits = Limits { positions: 20, slots: 1, top_p_candidates: 100, allowance: UNKNOWN, window: 0 };

    fn ready(member: Member, options: &Options) -> Result<PreparedMember, Ended> {
        let mut progress = Progress::default();
        let members = members(vec![member], options, Instant::now(), &byte_tokens(), &LIMITS, &mut progress);
        members.into_iter().next().ok_or_else(|| progress.ended.remove(0))
    }

    fn code(member: Member, options: &Options) -> FailureCode {
        match ready(member, options).unwrap_err().how {
            Ending::Failed(code, _) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_prompt_may_fill_the_models_positions_but_no_more() {
        let options = Options::default();
        assert_eq!(ready(member("twelve bytes"), &options).unwrap().prompt, 12);
        let ended = ready(member("thirteen byte"), &options).unwrap_err();
        let message = "13 prompt tokens and 8 new tokens are more than the model's 20 positions".to_owned();
        assert_eq!(ended.how, Ending::Failed(FailureCode::TooManyTokens, message));
    }

    #[test]
    fn a_fitting_answer_may_have_the_positions_that_the_prompt_leaves() {
        let options = Options::default();
        let fitting = |text: &str| Member { max_new_tokens: 20, fit: true, ..member(text) };
        assert_eq!(ready(fitting("twelve bytes"), &options).unwrap().most, 8);
        assert_eq!(ready(Member { max_new_tokens: 3, ..fitting("a") }, &options).unwrap().most, 3);
        assert_eq!(code(fitting("exactly twenty bytes"), &options), FailureCode::TooManyTokens);
        assert_eq!(code(Member { min_new_tokens: 9, ..fitting("twelve bytes") }, &options), FailureCode::TooManyTokens);
    }

    #[test]
    fn a_request_that_does_not_fit_the_memory_is_refused_with_a_number_that_fits() {
        let limits =
            |mib: u64| Limits { positions: 30_000, allowance: Allowance { need: llama(), bytes: mib << 20 }, ..LIMITS };
        let ready = |member: Member, limits: &Limits| {
            let mut progress = Progress::default();
            let members =
                members(vec![member], &Options::default(), Instant::now(), &byte_tokens(), limits, &mut progress);
            members.into_iter().next().ok_or_else(|| progress.ended.remove(0).how)
        };
        let long = || member(&"a".repeat(11_000));
        let Err(Ending::Failed(FailureCode::TooManyTokens, message)) = ready(long(), &limits(2_000)) else { panic!() };
        let (_, fitting) = message.split_once("a prompt of ").expect(&message);
        let longest: usize = fitting.split(' ').next().unwrap().parse().unwrap();
        assert!(ready(member(&"a".repeat(longest)), &limits(2_000)).is_ok());
        assert!(ready(member(&"a".repeat(longest + 1)), &limits(2_000)).is_err());
        assert!(ready(long(), &limits(6_000)).is_ok());
        let fitting = Member { max_new_tokens: 29_000, fit: true, ..member("a") };
        let most = ready(fitting, &limits(300)).unwrap().most;
        assert!((1_000..29_000).contains(&most), "{most}");
        let resumed = Member { produced: vec![7; 11_000], max_new_tokens: 12_000, ..member("a") };
        let failed = ready(resumed, &limits(2_000)).unwrap_err();
        assert!(matches!(failed, Ending::Failed(FailureCode::NotResumable, _)), "{failed:?}");
    }

    #[test]
    fn a_chat_becomes_a_prompt() {
        let message = Message { role: "user".to_owned(), content: "a".to_owned() };
        let chat = Member { prompt: Prompt::Chat(vec![message]), ..member("") };
        let limits = Limits { positions: 100, ..LIMITS };
        let mut progress = Progress::default();
        let options = Options::default();
        let members = members(vec![chat], &options, Instant::now(), &byte_tokens(), &limits, &mut progress);
        assert_eq!(byte_tokens().decoder().decode(&members[0].tokens).unwrap(), "user: a\nassistant:");
    }

    #[test]
    fn members_that_the_engine_cannot_take_fail_before_the_call() {
        let options = Options::default();
        assert_eq!(code(member(""), &options), FailureCode::EmptyPrompt);
        assert_eq!(code(Member { max_new_tokens: 0, ..member("a") }, &options), FailureCode::InvalidRequest);
        assert_eq!(code(Member { min_new_tokens: 9, ..member("a") }, &options), FailureCode::InvalidRequest);
        assert_eq!(
            code(Member { prompt: Prompt::Ids(vec![257]), ..member("") }, &options),
            FailureCode::InvalidRequest
        );
        assert_eq!(code(Member { produced: vec![999], ..member("a") }, &options), FailureCode::InvalidRequest);
    }

    #[test]
    fn options_that_the_engine_cannot_take_fail_before_the_call() {
        let sound = Options { sampling_topk: 100, sampling_topp: 0.5, ..Options::default() };
        assert!(ready(member("a"), &sound).is_ok());
        for options in [
            Options { sampling_topk: 258, ..Options::default() },
            Options { sampling_topk: 101, ..sound },
            Options { sampling_topk: 0, ..sound },
            Options { sampling_topp: 0.0, ..sound },
            Options { sampling_topp: f32::NAN, ..sound },
            Options { sampling_temperature: 0.0, ..sound },
            Options { sampling_temperature: f32::INFINITY, ..sound },
            Options { repetition_penalty: -1.0, ..sound },
        ] {
            assert_eq!(code(member("a"), &options), FailureCode::InvalidRequest, "{options:?}");
        }
    }

    #[test]
    fn tokens_of_earlier_attempts_are_fed_again_and_count() {
        let resumed = Member { produced: vec![7, 8, 9], ..member("ab") };
        let member = ready(resumed, &Options::default()).unwrap();
        assert_eq!((member.tokens.len(), member.prompt, member.produced()), (5, 2, 3));
        assert_eq!(member.shape(), crate::cohort::Shape { prompt: 5, least: 0, most: 5 });
    }

    #[test]
    fn a_member_that_has_all_its_tokens_already_ends_at_once() {
        let ended = ready(Member { produced: vec![1; 8], ..member("ab") }, &Options::default()).unwrap_err();
        assert_eq!(ended.how, Ending::Finished(FinishReason::Length));
        assert_eq!((ended.prompt_tokens, ended.completion_tokens), (2, 8));
    }

    #[test]
    fn options_that_look_back_start_again_or_not_at_all() {
        let options = Options { repetition_penalty: 1.5, ..Options::default() };
        let mut unsent = Member { produced: vec![7], ..member("ab") };
        forget_what_cannot_be_continued(&mut unsent, &options);
        assert_eq!(ready(unsent, &options).unwrap().produced(), 0);
        let mut sent = Member { produced: vec![7], sent: 1, ..member("ab") };
        forget_what_cannot_be_continued(&mut sent, &options);
        assert_eq!(code(sent, &options), FailureCode::NotResumable);
    }
}
