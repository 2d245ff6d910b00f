//! A request's body: memory is reserved before a part is kept, and the body is read within bounds of size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::{Instant, timeout_at};

use crate::admission::{Admission, BodyBytes, BodyReservation};
use crate::api::error::ApiError;

/// Reads a body of at most `limit` bytes, which must be there `timeout` after `started`. Its memory is reserved while the
/// second part of the result is held.
pub(super) async fn read(
    body: Incoming,
    limit: usize,
    started: Instant,
    timeout: Duration,
    admission: &Admission,
) -> Result<(Bytes, BodyBytes), ApiError> {
    let announced = body.size_hint().lower();
    let announced = usize::try_from(announced).ok().filter(|&n| n <= limit).ok_or(ApiError::TooLarge { limit })?;
    let mut reservation = admission.body(announced)?;
    let collect = collect(body, limit, &mut reservation);
    let bytes = timeout_at(started + timeout, collect).await.map_err(|_| ApiError::BodyTimeout(timeout))??;
    Ok((bytes, reservation.complete()))
}

async fn collect(mut body: Incoming, limit: usize, reservation: &mut BodyReservation) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Body(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        reservation.grow(data.len())?;
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Checks that the body may be read as JSON: its type says so, or says nothing. `curl -d` without a header says that it
/// sends a form; that is taken for JSON too, because it is what people type.
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
