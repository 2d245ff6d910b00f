//! The arithmetic of a model.

use std::fmt;

use super::refusal::FlagError;

/// The types in which the model's numbers are stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeType {
    /// As the model was converted.
    Default,
    /// The fastest that the device has.
    Auto,
    /// 32-bit floating point.
    Float32,
    /// 16-bit floating point.
    Float16,
    /// 16-bit brain floating point.
    Bfloat16,
    /// 16-bit integers.
    Int16,
    /// 8-bit integers, and floating point as the model was converted.
    Int8,
    /// 8-bit integers and 32-bit floating point.
    Int8Float32,
    /// 8-bit integers and 16-bit floating point.
    Int8Float16,
    /// 8-bit integers and 16-bit brain floating point.
    Int8Bfloat16,
}

pub(super) const HELP: &str = "default (as the model was converted), auto (the fastest of the device), float32, float16, bfloat16, \
    int16, int8, int8_float32, int8_float16 or int8_bfloat16";

const NAMES: [(ComputeType, &str); 10] = [
    (ComputeType::Default, "default"),
    (ComputeType::Auto, "auto"),
    (ComputeType::Float32, "float32"),
    (ComputeType::Float16, "float16"),
    (ComputeType::Bfloat16, "bfloat16"),
    (ComputeType::Int16, "int16"),
    (ComputeType::Int8, "int8"),
    (ComputeType::Int8Float32, "int8_float32"),
    (ComputeType::Int8Float16, "int8_float16"),
    (ComputeType::Int8Bfloat16, "int8_bfloat16"),
];

impl ComputeType {
    pub(super) fn parse(text: &str) -> Result<Self, FlagError> {
        NAMES.iter().find(|(_, name)| *name == text).map(|(compute_type, _)| *compute_type).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
            FlagError::refused("--compute-type", text, &format!("one of {}", names.join(", ")))
        })
    }

    /// Whether activations take 16 bits on a GPU. `converted` says whether the model was converted to 16 bits.
    pub fn is_half(self, converted: bool) -> bool {
        match self {
            Self::Auto | Self::Float16 | Self::Bfloat16 | Self::Int8Float16 | Self::Int8Bfloat16 => true,
            Self::Float32 | Self::Int16 | Self::Int8Float32 => false,
            Self::Default | Self::Int8 => converted,
        }
    }
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(compute_type, _)| compute_type == self).map_or("?", |(_, name)| name);
        f.write_str(name)
    }
}
