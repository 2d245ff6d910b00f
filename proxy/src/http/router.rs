//! Maps paths to endpoints, and endpoints to dialects.

use crate::api::call::Dialect;
use crate::api::generate::{GENERATE, GENERATE_STREAM};
use crate::api::openai::{CHAT_COMPLETIONS, COMPLETIONS};
use crate::metrics::Endpoint;

/// The endpoints that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All endpoints.
    All,
    /// Probes and metrics only.
    Admin,
}

/// The endpoint at a path, or `Other` if a listener with this scope does not serve it.
pub(super) fn endpoint(path: &str, scope: Scope) -> Endpoint {
    let endpoint = Endpoint::at(path);
    if scope == Scope::Admin && !endpoint.is_admin() { Endpoint::Other } else { endpoint }
}

/// The dialect of an endpoint, if the endpoint generates text.
pub(super) fn dialect(endpoint: Endpoint) -> Option<&'static Dialect> {
    match endpoint {
        Endpoint::Generate => Some(&GENERATE),
        Endpoint::GenerateStream => Some(&GENERATE_STREAM),
        Endpoint::Completions => Some(&COMPLETIONS),
        Endpoint::ChatCompletions => Some(&CHAT_COMPLETIONS),
        _ => None,
    }
}
