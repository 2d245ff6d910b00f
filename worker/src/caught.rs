//! Work whose panics cost one request, and not the worker: what a model's tokenizer makes of a text is code of others that
//! takes data of others.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is at work whose panics are caught. A panic's hook asks it.
pub fn is_catching() -> bool {
    CATCHING.get()
}

/// The work's result.
///
/// # Errors
/// It has panicked, with this message. What it had borrowed may be left half changed: it must be of no further use, or
/// not mind.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CATCHING.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    done.map_err(|panic| {
        let message = message(&*panic);
        tracing::error!(message, "a defect in the tokenizer or the chat template fails a request");
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
