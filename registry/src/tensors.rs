//! Tensors on the host: what mappers produce and models consume.
//!
//! Mappers run on a pool, away from the device, so their output is plain memory under Hugging
//! Face's own names. A model parses it into a typed struct at one boundary and uploads it there.

use crate::{Error, Result};
use std::collections::BTreeMap;

/// The elements of a [`HostTensor`].
#[derive(Debug, Clone, PartialEq)]
pub enum HostData {
    /// Bytes, such as pixels.
    U8(Vec<u8>),
    /// 32-bit floats, such as normalised pixels.
    F32(Vec<f32>),
    /// 64-bit integers, such as sizes.
    I64(Vec<i64>),
}

impl HostData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type's name, as in messages and hashes.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::F32(_) => "f32",
            Self::I64(_) => "i64",
        }
    }
}

/// A dense row-major tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: HostData,
}

impl HostTensor {
    /// A tensor of `shape` over `data`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the shape does not hold exactly the elements.
    pub fn new(shape: impl Into<Vec<usize>>, data: HostData) -> Result<Self> {
        let shape = shape.into();
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if elements != Some(data.len()) {
            return Err(Error::internal(format!(
                "a tensor of shape {shape:?} can't hold {} elements",
                data.len()
            )));
        }
        Ok(Self { shape, data })
    }

    /// A tensor of 32-bit floats.
    ///
    /// # Errors
    /// As [`HostTensor::new`].
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self> {
        Self::new(shape, HostData::F32(data))
    }

    /// A tensor of 64-bit integers.
    ///
    /// # Errors
    /// As [`HostTensor::new`].
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Result<Self> {
        Self::new(shape, HostData::I64(data))
    }

    /// A tensor of bytes.
    ///
    /// # Errors
    /// As [`HostTensor::new`].
    pub fn u8(shape: impl Into<Vec<usize>>, data: Vec<u8>) -> Result<Self> {
        Self::new(shape, HostData::U8(data))
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &HostData {
        &self.data
    }

    /// The elements as floats, if they are.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            HostData::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as integers, if they are.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            HostData::I64(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as bytes, if they are.
    pub fn as_u8(&self) -> Option<&[u8]> {
        match &self.data {
            HostData::U8(v) => Some(v),
            _ => None,
        }
    }

    /// Memory taken by the elements, in bytes.
    pub fn size_bytes(&self) -> usize {
        match &self.data {
            HostData::U8(v) => v.len(),
            HostData::F32(v) => v.len() * 4,
            HostData::I64(v) => v.len() * 8,
        }
    }
}

/// The mapped tensors of one media item, under Hugging Face's names (`pixel_values`,
/// `image_sizes`, `input_features`, ...). The first axis counts items: it is 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NamedTensors {
    tensors: BTreeMap<String, HostTensor>,
}

impl NamedTensors {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more tensor; a tensor of that name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, tensor: HostTensor) -> Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    /// The tensor of a name, if there is one.
    pub fn get(&self, name: &str) -> Option<&HostTensor> {
        self.tensors.get(name)
    }

    /// The float tensor of a name with `D` axes: its extents and elements.
    ///
    /// # Errors
    /// [`Error::Internal`] when it is missing, or of another type or rank.
    pub fn require_f32<const D: usize>(&self, name: &str) -> Result<([usize; D], &[f32])> {
        let tensor = self.require(name)?;
        let data = tensor.as_f32().ok_or_else(|| wrong(name, "f32", tensor))?;
        Ok((rank(name, tensor)?, data))
    }

    /// The integer tensor of a name with `D` axes: its extents and elements.
    ///
    /// # Errors
    /// [`Error::Internal`] when it is missing, or of another type or rank.
    pub fn require_i64<const D: usize>(&self, name: &str) -> Result<([usize; D], &[i64])> {
        let tensor = self.require(name)?;
        let data = tensor.as_i64().ok_or_else(|| wrong(name, "i64", tensor))?;
        Ok((rank(name, tensor)?, data))
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HostTensor)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Memory taken by all elements, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.tensors.values().map(HostTensor::size_bytes).sum()
    }

    fn require(&self, name: &str) -> Result<&HostTensor> {
        self.get(name).ok_or_else(|| {
            let have: Vec<_> = self.tensors.keys().map(String::as_str).collect();
            Error::internal(format!("the mapper gave no `{name}`, only {have:?}"))
        })
    }
}

fn wrong(name: &str, want: &str, tensor: &HostTensor) -> Error {
    Error::internal(format!("`{name}` is {}, not {want}", tensor.data().dtype()))
}

fn rank<const D: usize>(name: &str, tensor: &HostTensor) -> Result<[usize; D]> {
    tensor.shape().try_into().map_err(|_| {
        Error::internal(format!(
            "`{name}` has shape {:?}, not {D} axes",
            tensor.shape()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_and_elements_must_agree() {
        assert!(HostTensor::f32([2, 3], vec![0.0; 6]).is_ok());
        assert!(HostTensor::f32([2, 3], vec![0.0; 5]).is_err());
        assert!(
            HostTensor::u8([usize::MAX, 2], vec![]).is_err(),
            "an overflow is no panic"
        );
    }

    #[test]
    fn a_missing_or_mistyped_tensor_is_named() {
        let tensors =
            NamedTensors::new().with("image_sizes", HostTensor::i64([1, 2], vec![3, 4]).unwrap());
        assert_eq!(tensors.require_i64::<2>("image_sizes").unwrap().1, [3, 4]);
        let missing = tensors
            .require_f32::<4>("pixel_values")
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("pixel_values") && missing.contains("image_sizes"),
            "{missing}"
        );
        let mistyped = tensors
            .require_f32::<2>("image_sizes")
            .unwrap_err()
            .to_string();
        assert!(mistyped.contains("i64"), "{mistyped}");
        assert!(tensors.require_i64::<1>("image_sizes").is_err());
    }
}
