//! Pillion's own dialect: `POST /generate` and `POST /generate_stream`.

mod parse;
mod render;

use super::call::Dialect;

/// `POST /generate`: the answer is sent whole.
pub(crate) static GENERATE: Dialect = Dialect {
    parse: |body, context| parse::parse(body, context.limits, false),
    fields: render::FIELDS,
    has_unprocessable: true,
};

/// `POST /generate_stream`: the answer is streamed.
pub(crate) static GENERATE_STREAM: Dialect =
    Dialect { parse: |body, context| parse::parse(body, context.limits, true), ..GENERATE };
