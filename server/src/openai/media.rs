//! The media of a request: counted against the limits before anything is fetched, then fetched side
//! by side.

use crate::openai::ApiError;
use crate::openai::api::Api;
use crate::openai::message::{MediaPart, MediaSource};
use futures_util::future::try_join_all;
use kiln_engine::MediaInput;
use kiln_registry::{HostTensor, MediaItem};
use tracing::Instrument;

/// Items as the engine takes them, in the order given.
pub(super) async fn fetch(parts: Vec<MediaPart>, api: &Api) -> Result<Vec<MediaInput>, ApiError> {
    api.pipeline()
        .check_counts(parts.iter().map(|part| part.modality))?;
    let span = tracing::info_span!("fetch", items = parts.len());
    let all = try_join_all(parts.into_iter().map(|part| one(part, api)));
    all.instrument(span).await
}

async fn one(part: MediaPart, api: &Api) -> Result<MediaInput, ApiError> {
    let MediaPart {
        modality,
        source,
        uuid,
        param,
    } = part;
    let modality = modality.to_owned();
    let bytes = match (source, &uuid) {
        (Some(MediaSource::Url(url)), _) => api.fetcher.url(url).await,
        (Some(MediaSource::Base64(text)), _) => api.fetcher.base64(text).await,
        (Some(MediaSource::Embeds { data, shape, dtype }), _) => {
            let bytes = api.fetcher.base64(data).await;
            let bytes = bytes.map_err(|error| ApiError::from(error).param(param.clone()))?;
            let tensor = embeds(&bytes, shape, &dtype).map_err(|error| error.param(param))?;
            return Ok(MediaInput::Item(MediaItem::embeds(modality, tensor)));
        }
        (None, Some(uuid)) => {
            let uuid = uuid.clone();
            return Ok(MediaInput::Uuid { modality, uuid });
        }
        (None, None) => return Err(ApiError::field(param, "it is missing")),
    };
    let bytes = bytes.map_err(|error| ApiError::from(error).param(param))?;
    Ok(MediaInput::Bytes {
        modality,
        bytes,
        uuid,
    })
}

/// Rows that the caller computed; the engine checks their width and number.
fn embeds(bytes: &[u8], shape: Vec<usize>, dtype: &str) -> Result<HostTensor, ApiError> {
    if !matches!(dtype, "float32" | "f32" | "torch.float32") {
        return Err(ApiError::invalid("embeddings must be float32"));
    }
    let (elements, rest) = bytes.as_chunks::<4>();
    let wanted = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    if !rest.is_empty() || shape.len() != 2 || wanted != Some(elements.len()) {
        return Err(ApiError::invalid(format!(
            "embeddings of shape {shape:?} must be [rows, width] with 4 bytes a number; there are {} bytes",
            bytes.len()
        )));
    }
    let values: Vec<f32> = elements.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if values.iter().any(|v| !v.is_finite()) {
        return Err(ApiError::invalid("embeddings must be finite numbers"));
    }
    Ok(HostTensor::f32(shape, values)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_have_the_shape_that_they_say() {
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        assert!(embeds(&bytes, vec![2, 2], "float32").is_ok());
        for (bytes, shape, dtype) in [
            (&bytes[..], vec![2, 3], "float32"),
            (&bytes[..], vec![4], "float32"),
            (&bytes[..], vec![2, 2], "float16"),
            (&bytes[..15], vec![2, 2], "float32"),
            (&bytes[..], vec![usize::MAX, 2], "float32"),
            (&f32::NAN.to_le_bytes()[..], vec![1, 1], "float32"),
        ] {
            assert!(embeds(bytes, shape, dtype).is_err());
        }
    }
}
