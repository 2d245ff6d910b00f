//! Reads a request's body within limits of size and time. Memory is reserved for each part before the part is kept.

use std::fmt::Display;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::{Instant, timeout_at};

use crate::admission::{Admission, BodyBytes};
use crate::api::error::ApiError;

/// Reads a body of at most `limit` bytes, which must be complete `timeout` after `started`. Its memory stays reserved until
/// the returned [`BodyBytes`] is dropped.
pub(super) async fn read<B>(
    body: B,
    limit: usize,
    started: Instant,
    timeout: Duration,
    admission: &Admission,
) -> Result<(Bytes, BodyBytes), ApiError>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    let announced = body.size_hint().lower();
    let announced = usize::try_from(announced).ok().filter(|&n| n <= limit).ok_or(ApiError::TooLarge { limit })?;
    let mut reserved = admission.body(announced)?;
    let collect = collect(body, limit, &mut reserved);
    let bytes = timeout_at(started + timeout, collect).await.map_err(|_| ApiError::BodyTimeout(timeout))??;
    reserved.complete();
    Ok((bytes, reserved))
}

async fn collect<B>(mut body: B, limit: usize, reserved: &mut BodyBytes) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Body(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        reserved.grow(data.len())?;
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Checks that the content type is that of JSON, or absent. The type of a form is accepted too, because `curl -d` sends it
/// unless the user sets a header.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or("an unreadable value");
    let essence = text.split(';').next().unwrap_or_default().trim();
    if ["application/json", "application/x-www-form-urlencoded"].iter().any(|ok| essence.eq_ignore_ascii_case(ok)) {
        Ok(())
    } else {
        Err(ApiError::ContentType(text.to_owned()))
    }
}
