//! Pillion's own dialect: `POST /generate` and `POST /generate_stream`.

mod parse;
mod render;

use super::call::Dialect;

/// The answer comes whole.
pub(crate) static GENERATE: Dialect = Dialect {
    parse: |body, context| parse::parse(body, context.limits, false),
    fields: render::FIELDS,
    has_unprocessable: true,
};

/// The answer comes as it is made.
pub(crate) static GENERATE_STREAM: Dialect =
    Dialect { parse: |body, context| parse::parse(body, context.limits, true), ..GENERATE };
