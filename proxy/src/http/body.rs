//! A request's body: room for it is taken before it is kept, and it is read within bounds of size and time.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::{Instant, timeout_at};

use super::response::ApiError;
use crate::admission::{self, Admission};

/// Reads a body of at most `limit` bytes before `until`. Its room is taken while the second part is held.
pub(super) async fn read(
    body: Incoming,
    limit: usize,
    started: Instant,
    until: Instant,
    admission: &Admission,
) -> Result<(Bytes, admission::Bytes), ApiError> {
    let announced = body.size_hint().lower();
    let announced = usize::try_from(announced).ok().filter(|&n| n <= limit).ok_or(ApiError::TooLarge { limit })?;
    let mut room = admission.body(announced)?;
    let collect = collect(body, limit, &mut room);
    let bytes = timeout_at(until, collect).await.map_err(|_| ApiError::BodyTimeout(until - started))??;
    Ok((bytes, room.whole()))
}

async fn collect(mut body: Incoming, limit: usize, room: &mut admission::Coming) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Body(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        room.grow(data.len())?;
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
