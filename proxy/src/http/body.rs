//! A request's body: reserved before it is read, and read within bounds of size and time.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::{Instant, timeout_at};

use super::response::ApiError;
use crate::admission::{self, Admission};

/// Reads a body of at most `limit` bytes before `until`. The bytes stay reserved while the second part is held.
pub(super) async fn read(
    body: Incoming,
    limit: usize,
    started: Instant,
    until: Instant,
    admission: &Admission,
) -> Result<(Bytes, admission::Bytes), ApiError> {
    let announced = body.size_hint().lower();
    let announced = usize::try_from(announced).ok().filter(|&n| n <= limit).ok_or(ApiError::TooLarge { limit })?;
    let mut reserved = admission.bytes(announced)?;
    let collect = collect(body, limit, announced, &mut reserved);
    let bytes = timeout_at(until, collect).await.map_err(|_| ApiError::BodyTimeout(until - started))??;
    Ok((bytes, reserved))
}

async fn collect(
    mut body: Incoming,
    limit: usize,
    announced: usize,
    reserved: &mut admission::Bytes,
) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Body(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        let total = whole.len() + data.len();
        if total > limit {
            return Err(ApiError::TooLarge { limit });
        }
        if total > announced {
            reserved.grow(total - announced.max(whole.len()))?;
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Whether the body may be read as JSON: said to be, or nothing said. `curl -d` without a header says that it sends a
/// form; that is taken for JSON too, because it is what people type.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or("something unreadable");
    let essence = text.split(';').next().unwrap_or_default().trim();
    if ["application/json", "application/x-www-form-urlencoded"].iter().any(|ok| essence.eq_ignore_ascii_case(ok)) {
        Ok(())
    } else {
        Err(ApiError::ContentType(text.to_owned()))
    }
}
