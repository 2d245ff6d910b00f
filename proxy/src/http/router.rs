//! Which path is whose.

use crate::api::call::Dialect;
use crate::api::generate::{GENERATE, GENERATE_STREAM};
use crate::api::openai::{CHAT_COMPLETIONS, COMPLETIONS};
use crate::metrics::Endpoint;

/// What a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Probes and metrics alone.
    Admin,
}

/// The endpoint at a path, as far as a listener offers it.
pub(super) fn endpoint(path: &str, scope: Scope) -> Endpoint {
    let endpoint = Endpoint::at(path);
    if scope == Scope::Admin && !endpoint.is_admin() { Endpoint::Other } else { endpoint }
}

/// The dialect of an endpoint that generates.
pub(super) fn dialect(endpoint: Endpoint) -> Option<&'static Dialect> {
    match endpoint {
        Endpoint::Generate => Some(&GENERATE),
        Endpoint::GenerateStream => Some(&GENERATE_STREAM),
        Endpoint::Completions => Some(&COMPLETIONS),
        Endpoint::ChatCompletions => Some(&CHAT_COMPLETIONS),
        _ => None,
    }
}
