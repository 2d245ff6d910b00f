//! Work whose panics fail one request and not the worker. A model's tokenizer and chat template are foreign code and data, so
//! what they do with a text runs here.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the panics of this thread's present work are caught. The panic hook asks this.
pub fn is_catching() -> bool {
    CATCHING.get()
}

/// Runs the work and returns its result.
///
/// # Errors
/// The work panicked with this message. What the work borrowed mutably may be half changed, so the caller must not use it any
/// more, or it must stay valid when half changed.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CATCHING.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    done.map_err(|panic| {
        let message = message(&*panic);
        tracing::error!(message, "the tokenizer or the chat template panicked, which is a defect in it: the request fails, the worker serves on");
        message
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 5), Ok(5));
        let empty: Vec<u8> = Vec::new();
        let error = caught(|| empty[std::hint::black_box(3)]).unwrap_err();
        assert!(error.contains("index out of bounds"), "{error}");
        assert!(!is_catching());
        assert!(caught(is_catching).unwrap());
    }
}
